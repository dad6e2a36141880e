"""A model behind an OpenAI-compatible endpoint (chat completions), hosted or of one's own.

Answers are kept in a folder under the hash of their request, so that a repeated run asks nothing twice and gives the
same answers, whatever the endpoint would say today.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# An endpoint that asks for a longer pause than this is asked again after it all the same, seconds.
LONGEST_PAUSE = 60.0
LONGEST_ANSWER = 1 << 18
# Alternatives that are asked for beside the likeliest token; the interface allows no more.
ALTERNATIVES = 20
# What a kept request shows of a picture is its hash.
DATA_URL = "data:"
# Request timeout, conflict and too many requests; every 5xx beside them.
WORTH_ANOTHER_TRY = (408, 409, 429)


class EndpointError(RuntimeError):
    """The endpoint gave no answer; the message names the endpoint, the reason and the remedy in one line."""


class BudgetError(EndpointError):
    """More requests were asked for than the budget allows."""


class Endpoint:
    """Asks one model; may be shared by threads.

    Attributes:
        requests: real requests made so far, answers from the folder not counted.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key_variable: str = "OPENAI_API_KEY",
        attempts: int = 4,
        timeout_s: float = 60.0,
        max_requests: int = 1000,
        cache: Path | None = None,
        back_off_s: float = 1.0,
    ) -> None:
        """Describe the endpoint; nothing is sent before the first question.

        Args:
            url: base URL, such as ``http://localhost:8000/v1``.
            model: name of the model there.
            api_key_variable: environment variable that holds the key; where it is not set, none is sent.
            attempts: tries per question.
            timeout_s: seconds one try may take.
            max_requests: real requests this object may make in all, retries included.
            cache: folder of the answers; None keeps none.
            back_off_s: pause before the second try, seconds; doubles with every further one.
        """
        self.url, self.model = url, model
        self.requests = 0
        self._api_key_variable = api_key_variable
        self._attempts, self._timeout_s, self._max_requests = attempts, timeout_s, max_requests
        self._back_off_s = back_off_s
        self._cache = None if cache is None else Path(cache)
        self._lock = threading.Lock()
        self._opened: Any = None

    def complete(self, messages: list[dict], *, max_tokens: int = 512, temperature: float = 0.0, seed: int = 0) -> str:
        """The model's answer to a conversation.

        Args:
            messages: ``{"role": ..., "content": ...}`` each, as the chat-completions interface has them.
            max_tokens: longest answer in tokens; a longer one arrives cut off.
            temperature: of sampling.
            seed: of sampling, where the endpoint honours it.

        Raises:
            BudgetError: the budget is spent.
            EndpointError: no answer after all attempts, or a response that is none.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        return self._answered(request, self._answer_in)

    def letter_shares(self, messages: list[dict], letters: Sequence[str], *, seed: int = 0) -> list[float] | None:
        """How likely an answer begins with each of the letters, normalised over them.

        Args:
            messages: as for `complete`.
            letters: single ones, told apart whatever their case.
            seed: of sampling, where the endpoint honours it.

        Returns:
            As many shares as letters; None where none of them is among the endpoint's likeliest tokens.

        Raises:
            BudgetError, EndpointError: as `complete`, and where the endpoint tells no probabilities.
        """
        request = {
            "model": self.model,
            "messages": messages,
            "max_tokens": 1,
            "temperature": 0.0,
            "seed": seed,
            "logprobs": True,
            "top_logprobs": ALTERNATIVES,
        }
        tokens = json.loads(self._answered(request, self._alternatives_in))
        found = [sum(math.exp(chance) for token, chance in tokens if token.strip().upper() == one) for one in letters]
        return [share / sum(found) for share in found] if sum(found) > 0 else None

    def _answered(self, request: dict[str, Any], read: Callable[[Any], str]) -> str:
        """What `read` finds in the response to a request, which is sent only if the folder holds none."""
        key = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
        known = self._remembered(key)
        if known is not None:
            return known
        answer = self._ask(request, read)
        self._remember(key, request, answer)
        return answer

    def _ask(self, request: dict[str, Any], read: Callable[[Any], str]) -> str:
        """One answer over the network, after as many tries as are allowed."""
        import openai

        reason = ""
        for attempt in range(self._attempts):
            self._spend()
            try:
                return read(self._client().chat.completions.create(**request))
            except openai.APIStatusError as error:
                reason = f"status {error.status_code}"
                if error.status_code not in WORTH_ANOTHER_TRY and error.status_code < 500:
                    raise EndpointError(
                        f"{self.url}: {reason} for model {self.model}; check the URL, the model's name and the key in "
                        f"{self._api_key_variable}"
                    ) from error
                pause = self._pause(attempt, error.response.headers.get("retry-after"))
            except openai.APIConnectionError as error:  # timeouts too
                reason = f"no connection ({type(error.__cause__ or error).__name__})"
                pause = self._pause(attempt)
            except (openai.OpenAIError, ValueError) as error:
                raise EndpointError(f"{self.url}: {self._no_completion(type(error).__name__)}") from error
            if attempt + 1 < self._attempts:
                time.sleep(pause)
        raise EndpointError(
            f"{self.url}: {reason} in each of {self._attempts} attempts; check that the endpoint is up, then run again"
        )

    def _answer_in(self, completion: Any) -> str:
        try:
            answer = completion.choices[0].message.content
        except (AttributeError, IndexError, TypeError):
            raise EndpointError(f"{self.url}: {self._no_completion(type(completion).__name__)}") from None
        if not isinstance(answer, str) or len(answer) > LONGEST_ANSWER:
            raise EndpointError(f"{self.url}: {self._no_completion('no text, or more than can be an answer')}")
        return answer

    def _alternatives_in(self, completion: Any) -> str:
        """Likeliest first tokens with the logarithms of their probabilities, as JSON."""
        try:
            likeliest = completion.choices[0].logprobs.content[0].top_logprobs
            tokens = [(str(one.token), min(float(one.logprob), 0.0)) for one in likeliest[:ALTERNATIVES]]
        except (AttributeError, IndexError, TypeError, ValueError):
            tokens = []
        if not tokens or any(math.isnan(chance) for _, chance in tokens):
            raise EndpointError(f"{self.url}: tells no probabilities of tokens; let it generate its answers instead")
        return json.dumps(tokens)

    def _no_completion(self, what: str) -> str:
        return f"the response is no chat completion ({what}); the URL of a chat endpoint usually ends in /v1"

    def _pause(self, attempt: int, asked: str | None = None) -> float:
        """Seconds until the next try: what the endpoint asked for, else a doubling pause."""
        try:
            seconds = float(asked)
        except (TypeError, ValueError):
            seconds = self._back_off_s * 2**attempt
        return min(max(seconds, 0.0), LONGEST_PAUSE) if math.isfinite(seconds) else LONGEST_PAUSE

    def _spend(self) -> None:
        with self._lock:
            if self.requests >= self._max_requests:
                raise BudgetError(
                    f"{self.url}: all {self._max_requests} requests of the budget are made; raise max_requests to go on"
                )
            self.requests += 1

    def _client(self):
        import openai

        with self._lock:
            if self._opened is None:
                # The library wants a key even where the endpoint does not.
                key = os.environ.get(self._api_key_variable) or "none"
                self._opened = openai.OpenAI(base_url=self.url, api_key=key, timeout=self._timeout_s, max_retries=0)
            return self._opened

    def _remembered(self, key: str) -> str | None:
        """The kept answer; None where there is none or its file is damaged."""
        if self._cache is None:
            return None
        try:
            answer = json.loads((self._cache / f"{key}.json").read_text())["answer"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return answer if isinstance(answer, str) else None

    def _remember(self, key: str, request: dict[str, Any], answer: str) -> None:
        if self._cache is None:
            return
        self._cache.mkdir(parents=True, exist_ok=True)
        partial = self._cache / f".{key}.{os.getpid()}.{threading.get_ident()}.partial"
        kept = {"request": _without_pictures(request), "answer": answer}
        partial.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n")
        os.replace(partial, self._cache / f"{key}.json")


def _without_pictures(value: Any) -> Any:
    """A request with the hash of each picture in its place: a video's frames would be megabytes for every question."""
    if isinstance(value, dict):
        return {name: _without_pictures(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_without_pictures(part) for part in value]
    if isinstance(value, str) and value.startswith(DATA_URL):
        return f"sha256:{hashlib.sha256(value.encode()).hexdigest()}"
    return value
