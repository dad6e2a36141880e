"""Against a real HTTP server that speaks, or garbles, the chat-completions interface."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from models.endpoint import BudgetError, Endpoint, EndpointError

ASK = [{"role": "user", "content": "what moves?"}]


def completion(text) -> bytes:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return json.dumps(
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    ).encode()


class Server(ThreadingHTTPServer):
    """Answers with ``script``, entries (status, body, headers, pause) in turn; the last one for ever."""

    daemon_threads = True
    # A client that gave up on a slow answer is no error.
    handle_error = staticmethod(lambda request, client_address: None)

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen = [], []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, body, self.headers.get("Authorization")))
        script = self.server.script
        status, answer, headers, pause = script.pop(0) if len(script) > 1 else script[0]
        time.sleep(pause)
        self.send_response(status)
        for name, value in ({"Content-Type": "application/json"} | headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """A server that runs for as long as the context."""
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def server():
    with serving() as server:
        yield server


@pytest.fixture
def open_endpoint(server, tmp_path):
    def opened(script, **how) -> Endpoint:
        server.script[:] = [(*step, {}, 0.0)[:4] if len(step) == 2 else (*step, 0.0)[:4] for step in script]
        settings = {"attempts": 3, "timeout_s": 5.0, "back_off_s": 0.005, "cache": tmp_path / "answers"} | how
        return Endpoint(server.url, "m", **settings)

    return opened


def test_it_asks_as_the_interface_wants_and_sends_the_key_of_the_environment(open_endpoint, server, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    endpoint = open_endpoint([(200, completion("dog. ball"))], api_key_variable="SOME_KEY")
    assert endpoint.complete(ASK, max_tokens=7, temperature=0.5, seed=3) == "dog. ball"
    path, body, key = server.seen[0]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body == {"model": "m", "messages": ASK, "max_tokens": 7, "temperature": 0.5, "seed": 3}


def test_an_answer_is_asked_for_once_and_other_settings_are_another_question(open_endpoint, server, tmp_path):
    endpoint = open_endpoint([(200, completion("first")), (200, completion("second"))])
    assert endpoint.complete(ASK) == endpoint.complete(ASK) == "first"
    assert endpoint.complete(ASK, seed=1) == "second"
    again = Endpoint(server.url, "m", cache=tmp_path / "answers")
    assert again.complete(ASK) == "first" and again.requests == 0
    files = sorted((tmp_path / "answers").iterdir())
    assert len(files) == 2 and all(len(path.stem) == 64 for path in files)


def test_a_damaged_file_of_an_answer_is_asked_for_again(open_endpoint, tmp_path):
    endpoint = open_endpoint([(200, completion("first")), (200, completion("second"))])
    endpoint.complete(ASK)
    (file,) = (tmp_path / "answers").iterdir()
    for damaged in ("{", "[]", '{"answer": 3}'):
        file.write_text(damaged)
        assert endpoint.complete(ASK) == "second"
    assert json.loads(file.read_text())["answer"] == "second"


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again(open_endpoint, server, status):
    endpoint = open_endpoint([(status, b"{}"), (status, b"busy", {"Retry-After": "0.01"}), (200, completion("ok"))])
    assert endpoint.complete(ASK) == "ok" and endpoint.requests == 3 == len(server.seen)


def test_an_endpoint_that_stays_down_is_given_up(open_endpoint, server, tmp_path):
    endpoint = open_endpoint([(500, b"{}")])
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1.*status 500 in each of 3 attempts"):
        endpoint.complete(ASK)
    assert len(server.seen) == 3 and not (tmp_path / "answers").exists()


def test_a_question_that_is_refused_is_not_asked_again(open_endpoint, server):
    endpoint = open_endpoint([(401, b'{"error": {"message": "no"}}')], api_key_variable="SOME_KEY")
    with pytest.raises(EndpointError, match=r"status 401 .*SOME_KEY"):
        endpoint.complete(ASK)
    assert len(server.seen) == 1


GARBAGE = {"page": b"<html>hello</html>", "other": b'{"object": "list"}', "list": b"[1, 2]", "broken": b"nul"}
NO_TEXT = {"no text": completion(None), "endless": completion("x" * (1 << 19))}


@pytest.mark.parametrize("body", (GARBAGE | NO_TEXT).values(), ids=(GARBAGE | NO_TEXT).keys())
def test_garbage_is_an_error_that_says_so(open_endpoint, body, tmp_path):
    for kind in ("application/json", "text/html") if body in GARBAGE.values() else ("application/json",):
        endpoint = open_endpoint([(200, body, {"Content-Type": kind})])
        with pytest.raises(EndpointError, match="no chat completion") as caught:
            endpoint.complete(ASK)
        assert "\n" not in str(caught.value) and not (tmp_path / "answers").exists()


def test_a_slow_endpoint_is_given_up_in_time(open_endpoint):
    endpoint = open_endpoint([(200, completion("late"), {}, 0.6)], timeout_s=0.05, attempts=2)
    begun = time.monotonic()
    with pytest.raises(EndpointError, match="in each of 2 attempts"):
        endpoint.complete(ASK)
    assert time.monotonic() - begun < 0.5


def test_no_server_is_one_clear_line(tmp_path):
    with pytest.raises(EndpointError, match=r":9/v1: no connection .* check that the endpoint is up"):
        Endpoint("http://127.0.0.1:9/v1", "m", attempts=2, back_off_s=0.001).complete(ASK)


def test_the_budget_counts_real_requests_only(open_endpoint, server):
    endpoint = open_endpoint([(429, b"{}"), (200, completion("ok"))], max_requests=2)
    assert endpoint.complete(ASK) == endpoint.complete(ASK) == "ok"
    with pytest.raises(BudgetError, match=r"all 2 requests .* raise max_requests"):
        endpoint.complete(ASK, seed=1)
    assert len(server.seen) == 2


def test_pauses_double_and_never_exceed_a_minute():
    endpoint = Endpoint("http://127.0.0.1:9/v1", "m", back_off_s=0.5)
    assert [endpoint._pause(k) for k in range(3)] == [0.5, 1.0, 2.0]
    assert endpoint._pause(0, "7") == 7.0
    assert {endpoint._pause(20), endpoint._pause(0, "1e9"), endpoint._pause(0, "nan")} == {60.0}
    assert endpoint._pause(0, "-4") == 0.0 and endpoint._pause(0, "Wed, 21 Oct 2026") == 0.5
