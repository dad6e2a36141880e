"""What must hold for the project's tables, told by Great Expectations and answered as plain verdicts.

The rules are plain data, so that anyone may list them at no cost; Great Expectations (seconds to import) is
loaded when a table is validated. A rule that needs more than one column of a row, or other rows, reads a
helper column computed in pandas beforehand: the computation stays readable and the expectation stays a
built-in one.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

TEMPLATE_TYPES = tuple(
    f"{viewpoint}_{question}"
    for viewpoint in ("abs", "rel")
    for question in ("dis", "dir", "ori", "spd", "spd_comp", "dir_pred")
)
TYPES = (*TEMPLATE_TYPES, "non_temp")
LETTERS = ("A", "B", "C", "D")
SPLITS = ("train", "val", "bench")

CLIP_IDENTITY = r"^[0-9a-f]{64}$"
PERCEPTUAL_HASH = r"^[0-9a-f]{320}$"
SHARD_KEY = r"^shard-\d{6}$"
STEP_NUMBER = re.compile(r"\((\d+)\)")
LONGEST_QUESTION = 2000


class SuiteError(ValueError):
    """A table was asked for that no suite describes."""


@dataclass(frozen=True)
class Limits:
    """The figures in the rules that a user may tune.

    Attributes:
        stability: lowest share of noise draws under which an answer must stand, 0..1.
        letter_low: smallest share of the rows that one answer letter may have.
        letter_high: largest share of the rows that one answer letter may have.
        minimum_rows: fewest questions each split may hold.
        refused_share: largest share of clips without usable geometry before a warning.
    """

    stability: float = 0.75
    letter_low: float = 0.2
    letter_high: float = 0.3
    minimum_rows: int = 4
    refused_share: float = 0.5


@dataclass(frozen=True)
class Rule:
    """One expectation: its readable name, the Great Expectations class, its arguments, and how much it
    matters.
    """

    name: str
    expectation: str
    arguments: dict[str, Any] = field(default_factory=dict)
    severity: str = "critical"


@dataclass(frozen=True)
class Verdict:
    """What one rule said about one table.

    Attributes:
        name: the rule's readable name, unique within the table.
        passed: whether it holds; a rule that could not be evaluated does not.
        severity: "critical" (blocks what follows), "warning" or "info".
        observed: what was seen, as a short text.
        message: one sentence for people.
    """

    name: str
    passed: bool
    severity: str
    observed: str
    message: str


Helper = Callable[[pd.DataFrame], pd.Series]


def _known(name: str, column: str, severity: str = "critical") -> Rule:
    return Rule(name, "ExpectColumnValuesToNotBeNull", {"column": column}, severity)


def _unique(name: str, column: str) -> Rule:
    return Rule(name, "ExpectColumnValuesToBeUnique", {"column": column})


def _within(name: str, column: str, values: tuple, severity: str = "critical") -> Rule:
    return Rule(name, "ExpectColumnValuesToBeInSet", {"column": column, "value_set": list(values)}, severity)


def _between(name: str, column: str, low: float | None, high: float | None, severity: str = "critical") -> Rule:
    arguments = {"column": column, "min_value": low, "max_value": high}
    return Rule(name, "ExpectColumnValuesToBeBetween", arguments, severity)


def _shaped(name: str, column: str, pattern: str) -> Rule:
    return Rule(name, "ExpectColumnValuesToMatchRegex", {"column": column, "regex": pattern})


def _holds(name: str, helper: str, severity: str = "critical") -> Rule:
    return _within(name, helper, (True,), severity)


def _columns(names: tuple[str, ...]) -> Rule:
    arguments = {"column_set": list(names), "exact_match": False}
    return Rule("columns are all there", "ExpectTableColumnsToMatchSet", arguments)


def _rows(minimum: int) -> Rule:
    return Rule("table is not empty", "ExpectTableRowCountToBeBetween", {"min_value": minimum})


def _option_texts(table: pd.DataFrame) -> pd.Series:
    return table["options"].map(lambda options: () if options is None else tuple(str(text) for text in options))


def _true_text(table: pd.DataFrame) -> pd.Series:
    """The text of the option the answer letter points at; empty where it points nowhere."""

    def pick(options: tuple[str, ...], answer: Any) -> str:
        place = LETTERS.index(answer) if answer in LETTERS else len(options)
        return options[place] if place < len(options) else ""

    pairs = zip(_option_texts(table), table["answer"], strict=True)
    return pd.Series([pick(options, answer) for options, answer in pairs], index=table.index, dtype=object)


def _count(values: Any) -> int:
    return 0 if values is None else len(values)


def _numbered_steps(text: str) -> int:
    """How many numbered steps "(1) … (2) …" an answer has; a text without numbers is one step."""
    return max((int(number) for number in STEP_NUMBER.findall(text)), default=1)


def _is_json_object(text: Any) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False


def _distinct_in_group(table: pd.DataFrame, group: str, values: pd.Series) -> pd.Series:
    """Per row: how many different values its group has; 0 for a row without a group."""
    return values.groupby(table[group]).transform("nunique").reindex(table.index).fillna(0).astype(int)


def _rows_in_group(table: pd.DataFrame, group: str) -> pd.Series:
    return table.groupby(group)[group].transform("size").reindex(table.index).fillna(0).astype(int)


def _letter_share(table: pd.DataFrame) -> pd.Series:
    return table["answer"].map(table["answer"].value_counts(normalize=True)).astype(float)


def _is_prediction(table: pd.DataFrame) -> pd.Series:
    return table["type"].astype(str).str.endswith("dir_pred")


def _viewpoint_agrees(table: pd.DataFrame) -> pd.Series:
    kind = table["type"].astype(str).str.split("_").str[0]
    return (kind == table["viewpoint_kind"]) | (table["type"] == "non_temp")


def _verdict_explained(table: pd.DataFrame) -> pd.Series:
    """Whether a row is fit, or says which of its columns speak against it, and not both."""
    return table["fit"] == (table["unfit"].fillna("") == "")


def _said_twice(table: pd.DataFrame) -> pd.Series:
    keys = pd.DataFrame({"clip": table["clip"], "question": table["question"], "truth": _true_text(table)})
    return keys.duplicated(keep=False)


QUESTION_HELPERS: dict[str, Helper] = {
    "four_options": lambda t: _option_texts(t).map(len) == 4,
    "options_distinct": lambda t: _option_texts(t).map(lambda texts: len(set(texts)) == len(texts)),
    "options_filled": lambda t: _option_texts(t).map(lambda texts: all(text.strip() for text in texts)),
    "interval_ordered": lambda t: (t["interval_start"] < t["interval_end"]) & (t["interval_start"] >= 0),
    "states_agree": lambda t: t["states"].map(_count) == _true_text(t).map(_numbered_steps),
    "hidden_only_when_predicting": lambda t: t["visible_until"].notna() == _is_prediction(t),
    "viewpoint_agrees": lambda t: _viewpoint_agrees(t),
    "viewpoint_time_agrees": lambda t: t["viewpoint_time"].notna() == (t["viewpoint_kind"] == "abs"),
    "question_length": lambda t: t["question"].fillna("").astype(str).str.strip().str.len(),
    "evidence_readable": lambda t: t["evidence"].map(_is_json_object),
    "letter_share": lambda t: _letter_share(t),
    "quad_rows": lambda t: _rows_in_group(t, "quad"),
    "quad_option_sets": lambda t: _distinct_in_group(t, "quad", _option_texts(t).map(sorted).map(tuple)),
    "quad_truths": lambda t: _distinct_in_group(t, "quad", _true_text(t)),
    "quad_letters": lambda t: _distinct_in_group(t, "quad", t["answer"]),
    "quad_splits": lambda t: _distinct_in_group(t, "quad", t["split"]),
    "clip_splits": lambda t: _distinct_in_group(t, "clip", t["split"]),
    "said_once": lambda t: ~_said_twice(t),
}

SPLIT_HELPERS: dict[str, Helper] = {
    **QUESTION_HELPERS,
    "rows_in_split": lambda t: _rows_in_group(t, "split"),
    "bench_type": lambda t: t["type"].where(t["split"] == "bench"),
    "source_splits": lambda t: _distinct_in_group(t, "videoID", t["split"]),
}

CLIP_HELPERS: dict[str, Helper] = {
    "measured": lambda t: (
        (t["kind"] != "video")
        | t[["width", "height", "seconds", "frame_count", "sampled", "frame_width", "frame_height", "cuts", "phash"]]
        .notna()
        .all(axis=1)
    ),
    "not_upscaled": lambda t: (
        ~(t["frame_width"].fillna(0) * t["frame_height"].fillna(0) > t["width"].fillna(0) * t["height"].fillna(0))
    ),
    "sampled_from_clip": lambda t: ~(t["sampled"].fillna(0) > t["frame_count"].fillna(0)),
    "verdict_explained": lambda t: _verdict_explained(t),
}

SCENE_HELPERS: dict[str, Helper] = {
    "refusal_explained": lambda t: (t["status"] != "refused") | t["reason"].fillna("").astype(bool),
    "moving_within_objects": lambda t: ~(t["moving"].fillna(0) > t["objects"].fillna(0)),
    "agents_within_objects": lambda t: ~(t["agents"].fillna(0) > t["objects"].fillna(0)),
    "refused_share": lambda t: pd.Series((t["status"] == "refused").mean(), index=t.index),
    "something_moves": lambda t: (t["status"] == "refused") | (t["moving"].fillna(0) >= 1),
    "sizes_ordered": lambda t: ~(t["smallest_share"] > t["largest_share"]),
    "verdict_explained": lambda t: _verdict_explained(t),
}

QUESTION_COLUMNS = (
    *("qa_id", "clip", "videoID", "shard", "type", "question", "options", "answer"),
    *("viewpoint_kind", "viewpoint_subject", "viewpoint_time", "targets", "interval_start", "interval_end"),
    *("states", "evidence", "stability", "visible_until", "split", "quad", "has_video"),
    *("estimator", "generator_version"),
)
CLIP_COLUMNS = (
    *("clip", "shard", "name", "kind", "width", "height", "rotation", "seconds", "frame_count"),
    *("sampled", "frame_width", "frame_height", "has_truth", "cuts", "phash", "fit", "unfit"),
)
SCENE_COLUMNS = (
    *("clip", "shard", "kind", "estimator", "status", "reason", "objects", "moving", "agents"),
    *("smallest_share", "largest_share", "mount_share", "fit", "unfit"),
)


def _clip_rules(limits: Limits) -> list[Rule]:
    return [
        _columns(CLIP_COLUMNS),
        _rows(1),
        _known("every clip has its identity", "clip"),
        _unique("no clip appears twice", "clip"),
        _shaped("clip identities are SHA-256 hashes", "clip", CLIP_IDENTITY),
        _shaped("shard keys are well formed", "shard", SHARD_KEY),
        _known("every clip keeps its file name", "name", "warning"),
        _within("clips are of a known kind", "kind", ("video", "av2", "kitti")),
        _holds("videos are fully measured", "measured"),
        _between("clips last longer than nothing", "seconds", 0.001, None),
        _between("videos have at least two frames", "frame_count", 2, None),
        _between("at least two frames are sampled", "sampled", 2, None),
        _holds("no more frames are sampled than there are", "sampled_from_clip"),
        _holds("frames are never upscaled", "not_upscaled"),
        _within("rotation is a quarter turn", "rotation", (0, 90, 180, 270)),
        _between("cut counts are not negative", "cuts", 0, None),
        _shaped("perceptual hashes are well formed", "phash", PERCEPTUAL_HASH),
        _known("every clip is judged fit or not", "fit"),
        _holds("every unfit clip says why", "verdict_explained"),
        _within("clips are fit for questions", "fit", (True,), "info"),
        _between("clips last 20 to 120 s, the paper's window", "seconds", 20, 120, "info"),
    ]


def _scene_rules(limits: Limits) -> list[Rule]:
    return [
        _columns(SCENE_COLUMNS),
        _rows(1),
        _known("every scene names its clip", "clip"),
        _unique("no clip has two scenes", "clip"),
        _shaped("clip identities are SHA-256 hashes", "clip", CLIP_IDENTITY),
        _shaped("shard keys are well formed", "shard", SHARD_KEY),
        _known("every scene names its estimator", "estimator"),
        _within("status is 3d, 2d or refused", "status", ("3d", "2d", "refused")),
        _holds("every refusal gives its reason", "refusal_explained"),
        _between("object counts are not negative", "objects", 0, None),
        _holds("moving things are among the objects", "moving_within_objects"),
        _holds("agents are among the objects", "agents_within_objects"),
        _between("most clips have usable geometry", "refused_share", None, limits.refused_share, "warning"),
        _holds("something moves in every usable scene", "something_moves", "warning"),
        _between("the smallest moving thing is part of the frame", "smallest_share", 0, 1),
        _between("the largest moving thing is part of the frame", "largest_share", 0, 1),
        _holds("the smallest moving thing is not larger than the largest", "sizes_ordered"),
        _between("what the camera is mounted on is part of the frame", "mount_share", 0, 1),
        _known("every scene is judged fit or not", "fit"),
        _holds("every unfit scene says why", "verdict_explained"),
        _within("scenes are fit for questions", "fit", (True,), "info"),
    ]


def _question_rules(limits: Limits) -> list[Rule]:
    return [
        _columns(QUESTION_COLUMNS),
        _rows(1),
        _known("every question has its identity", "qa_id"),
        _unique("no question appears twice", "qa_id"),
        _known("every question names its clip", "clip"),
        _shaped("clip identities are SHA-256 hashes", "clip", CLIP_IDENTITY),
        _shaped("shard keys are well formed", "shard", SHARD_KEY),
        _known("every question has a type", "type"),
        _within("types are the thirteen of the paper", "type", TYPES),
        _between("questions are worded", "question_length", 1, None),
        _between("questions are of readable length", "question_length", None, LONGEST_QUESTION, "warning"),
        _known("every question has an answer", "answer"),
        _within("answers are A, B, C or D", "answer", LETTERS),
        _holds("there are four options", "four_options"),
        _holds("the four options differ", "options_distinct"),
        _holds("no option is blank", "options_filled"),
        _between("answer letters are balanced", "letter_share", limits.letter_low, limits.letter_high),
        _holds("intervals start before they end", "interval_ordered"),
        _known("every question knows its stability", "stability"),
        _between("answers survive the geometry's error", "stability", limits.stability, 1),
        _holds("states match the numbered answer", "states_agree"),
        _holds("frames are hidden for predictions only", "hidden_only_when_predicting"),
        _within("viewpoints are abs or rel", "viewpoint_kind", ("abs", "rel")),
        _holds("viewpoint kind agrees with the type", "viewpoint_agrees"),
        _holds("only absolute viewpoints have a time", "viewpoint_time_agrees"),
        _holds("evidence is readable", "evidence_readable"),
        _within("splits are train, val or bench", "split", SPLITS),
        _known("every question belongs to a quad", "quad"),
        _between("every quad has its four questions", "quad_rows", 4, 4),
        _between("the questions of a quad share their options", "quad_option_sets", 1, 1),
        _between("each option of a quad is true exactly once", "quad_truths", 4, 4),
        _between("the letters of a quad are all different", "quad_letters", 4, 4),
        _between("no quad lies in two splits", "quad_splits", 1, 1),
        _between("no clip lies in two splits", "clip_splits", 1, 1),
        _holds("nothing is asked twice of a clip", "said_once", "warning"),
    ]


def _split_rules(limits: Limits) -> list[Rule]:
    return [
        *_question_rules(limits),
        _within("every question can be seen", "has_video", (True,)),
        _between("no source video lies in two splits", "source_splits", 1, 1),
        Rule(
            "train, val and bench all exist",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "split", "value_set": list(SPLITS)},
        ),
        _between("every split has enough questions", "rows_in_split", limits.minimum_rows, None),
        Rule(
            "bench asks all twelve template types",
            "ExpectColumnDistinctValuesToContainSet",
            {"column": "bench_type", "value_set": list(TEMPLATE_TYPES)},
            "warning",
        ),
    ]


SUITES: dict[str, Callable[[Limits], list[Rule]]] = {
    "clips": _clip_rules,
    "scenes": _scene_rules,
    "questions": _question_rules,
    "splits": _split_rules,
}
HELPERS: dict[str, dict[str, Helper]] = {
    "clips": CLIP_HELPERS,
    "scenes": SCENE_HELPERS,
    "questions": QUESTION_HELPERS,
    "splits": SPLIT_HELPERS,
}


def rules(table_name: str, limits: Limits | None = None) -> list[Rule]:
    """The rules of one table, in reading order, without loading Great Expectations.

    Args:
        table_name: "clips", "scenes", "questions" or "splits".
        limits: the tunable figures; the defaults where None.

    Raises:
        SuiteError: no suite has that name.
    """
    if table_name not in SUITES:
        raise SuiteError(f"no suite for table {table_name!r}: choose one of {', '.join(SUITES)}")
    return SUITES[table_name](limits or Limits())


def validate(table_name: str, dataframe: pd.DataFrame, limits: Limits | None = None) -> list[Verdict]:
    """Hold one table against its suite.

    Args:
        table_name: "clips", "scenes", "questions" or "splits" (all splits concatenated).
        dataframe: the table, one row per clip or question; list columns as lists or arrays.
        limits: the tunable figures; the defaults where None.

    Returns:
        One verdict per rule, in the order of `rules`. A rule that could not be evaluated (a column is
        missing or holds something else than expected) is a failed verdict that says so.

    Raises:
        SuiteError: no suite has that name.
    """
    chosen = rules(table_name, limits)
    table, failures = _with_helpers(table_name, dataframe)
    outcomes = _outcomes(chosen, table)
    return [_verdict(rule, outcomes.get(rule.name), failures.get(rule.arguments.get("column"))) for rule in chosen]


def _with_helpers(table_name: str, dataframe: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """The table with its helper columns, and why the others could not be computed.

    A helper whose sources are missing or malformed is left out: the rule that reads it then reports that it
    could not be evaluated, while the other rules still speak.
    """
    table = dataframe.reset_index(drop=True)
    columns, failures = {}, {}
    for name, derive in HELPERS[table_name].items():
        try:
            columns[name] = derive(table)
        except KeyError as error:
            failures[name] = f"the table lacks {_one_line(str(error))}"
        except (TypeError, ValueError, AttributeError) as error:
            failures[name] = _one_line(str(error))
    return pd.concat([table, pd.DataFrame(columns, index=table.index)], axis=1), failures


def _outcomes(chosen: list[Rule], table: pd.DataFrame) -> dict[str, Any]:
    """Great Expectations' results by rule name (it returns them in another order than asked)."""
    # Telemetry is on by default and decided at import.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("tables").add_dataframe_asset("table")
    batch = asset.add_batch_definition_whole_dataframe("whole").get_batch({"dataframe": table})
    suite = gx.ExpectationSuite(name="suite")
    for rule in chosen:
        expectation = getattr(gxe, rule.expectation)
        suite.add_expectation(
            expectation(**rule.arguments, severity=rule.severity, meta={"name": rule.name}),
        )
    report = batch.validate(suite, result_format={"result_format": "SUMMARY", "partial_unexpected_count": 3})
    return {result.expectation_config.meta["name"]: result for result in report.results}


def _verdict(rule: Rule, outcome: Any, failure: str | None) -> Verdict:
    if outcome is None or _raised(outcome.exception_info):
        message = f"could not evaluate: {failure or _why(outcome)}"
        return Verdict(rule.name, False, rule.severity, "could not evaluate", message)
    passed = bool(outcome.success)
    observed = _observed(outcome.result)
    verb = "holds" if passed else "does not hold"
    return Verdict(rule.name, passed, rule.severity, observed, f"{verb}: {observed}")


def _raised(exception_info: dict | None) -> bool:
    """Whether evaluation failed; the information is flat, or keyed by metric where a metric failed."""
    information = exception_info or {}
    if "raised_exception" in information:
        return bool(information["raised_exception"])
    return any(_raised(entry) for entry in information.values() if isinstance(entry, dict))


def _why(outcome: Any) -> str:
    if outcome is None:
        return "no result came back"
    information = outcome.exception_info
    entries = [information] if "raised_exception" in information else list(information.values())
    messages = sorted({_one_line(entry.get("exception_message") or "unknown reason") for entry in entries})
    return messages[0].removeprefix("Error: ").rstrip(".")


def _observed(result: dict) -> str:
    """A short text on what was seen: broken rows with examples, or the table's figure."""
    missing = result.get("partial_missing_list") or result.get("details", {}).get("mismatched", {}).get("missing")
    if missing:
        return f"missing: {_one_line(', '.join(sorted(str(value) for value in missing)))}"
    if "unexpected_count" in result:
        broken, rows = result["unexpected_count"], result["element_count"]
        if not broken:
            return f"{rows} rows"
        examples = ", ".join(_one_line(repr(_plain(value))) for value in result["partial_unexpected_list"][:3])
        return f"{broken} of {rows} rows ({100 * broken / rows:.1f} %), for example {examples}"
    value = result.get("observed_value")
    return "complete" if value is None or isinstance(value, list) else _one_line(str(_plain(value)))


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _one_line(text: str, longest: int = 160) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"
