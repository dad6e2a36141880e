"""Questions that no template asks: programs over a scene, chosen by balance, stable, with the program as evidence."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from assets.questions.evaluation import Answer, Measured, Stored, evaluate, texts, vocabulary
from assets.questions.parameters import QuestionParameters
from assets.questions.program_forms import drawn_programs
from assets.questions.program_wording import program_question, view_of
from assets.questions.programs import Node, ProgramError, interval, named, parse, skeleton
from assets.questions.row import GENERATOR_VERSION, NON_TEMPLATE, content_id, content_seed
from assets.questions.states import Scene, Thresholds, counts, key
from assets.questions.wording import CAMERA

if TYPE_CHECKING:
    from assets.questions.candidates import Clip

TOLERANCE_DRAWS = 8


def measured(scene: Scene, draws: Scene, about: "Clip", parameters: QuestionParameters) -> Measured:
    """Numbers of a clip, for ``evaluate``; ``parameters.stride`` is this scene's."""
    thresholds = Thresholds.of(parameters, parameters.still_share * about.scale)
    seed = content_seed(about.clip, "tolerance")
    return Measured(scene, draws, about.names, thresholds, parameters, TOLERANCE_DRAWS, seed)


def derive_compositional(
    scene: Scene, draws: Scene, about: "Clip", parameters: QuestionParameters, poses_known: bool = True
) -> tuple[list[dict], list[dict]]:
    """Derive a clip's non-template questions.

    Args:
        scene: the exact scene, K = 1, the camera last.
        draws: noise draws of it.
        about: what all rows of the clip share.
        parameters: thresholds, stability, number of rows; ``stride`` is this scene's.
        poses_known: whether the camera's path is; without it only distances and directions are asked for.

    Returns:
        Rows as ``row.CANDIDATES`` has them, at most ``candidates_per_type``; and how many were dropped for which
        reason.
    """
    rng = np.random.default_rng(content_seed(about.clip, NON_TEMPLATE))
    numbers = measured(scene, draws, about, parameters)
    lost: dict[str, int] = defaultdict(int)
    known, rows = [], {}
    for program in dict.fromkeys(drawn_programs(numbers.scene, about, parameters, rng, poses_known)):
        finding, reason = find(program, numbers, about, parameters)
        known += [] if finding is None else [finding]
        lost[reason] += 1
    for four in _balanced(known, rng):
        left = parameters.candidates_per_type - len(rows)
        if four[0].program.kind == "thing" and left < len(four):
            continue
        for finding in four[:left]:
            row = row_of(finding, numbers, about)
            lost["duplicate"] += row["qa_id"] in rows
            rows.setdefault(row["qa_id"], row)
    dropped = [
        {"clip": about.clip, "type": NON_TEMPLATE, "reason": reason, "count": lost[reason]}
        for reason in ("duplicate", "too_long", "unstable")
        if lost[reason]
    ]
    return list(rows.values()), dropped


@dataclass(frozen=True)
class Finding:
    """A program that has a stable answer in a clip.

    Attributes:
        program: it.
        answer: in all draws.
        stability: share of noise draws that say the same.
        tolerated: other answers that are also true within tolerance.
        option_pool: what questions must have in common to share options.
        taken: the numbers that the answer comes from.
    """

    program: Node
    answer: Answer
    stability: float
    tolerated: list[str]
    option_pool: str
    taken: list[dict]

    @property
    def meaning(self) -> str:
        """The answer as ``row.CANDIDATES`` has it."""
        return key(self.answer.said[0])


def find(program: Node, numbers: Measured, about: "Clip", parameters: QuestionParameters) -> tuple[Finding | None, str]:
    """Answer a checked program.

    Returns:
        What was found and "", or None and why: "undefined", "unstable" or "too_long".

    Raises:
        ProgramError: it names a thing or a time that the scene does not have.
    """
    numbers.start()
    answer = evaluate(program, numbers)
    if not answer.defined[0]:
        return None, "undefined"
    if counts(answer.labels[:1])[0] > parameters.max_states:
        return None, "too_long"
    same = (answer.said == answer.said[0]).all(axis=1) & answer.defined
    stability = float(same[numbers.noise].mean())
    distinct = {said.tobytes() for said in answer.said[answer.defined]} - {answer.said[0].tobytes()}
    tolerated = [key(np.frombuffer(said, np.int8)) for said in distinct]
    # Where too many answers are also true within tolerance, there are no three others to choose from.
    if stability < parameters.min_stability or vocabulary(program) - len(tolerated) < 4:
        return None, "unstable"
    return Finding(
        program, answer, stability, sorted(tolerated), _option_pool(program, answer, about), numbers.taken
    ), ""


def row_of(finding: Finding, numbers: Measured, about: "Clip") -> dict:
    """A row as ``row.CANDIDATES`` has it."""
    program, answer = finding.program, finding.answer
    called = _called(program, numbers, about)
    question = program_question(program, called)
    start, end = interval(program)
    targets = _targets(program)
    return non_template_row(
        about,
        question,
        targets,
        (start, end),
        viewpoint_kind="rel" if view_of(program) is None else "abs",
        viewpoint_time=view_of(program),
        states=texts(program, answer.labels[0], [called(name) for name in about.names]),
        evidence=_evidence(finding, numbers, called, about),
        stability=round(finding.stability, 4),
        meaning=finding.meaning,
        tolerated=finding.tolerated,
        option_pool=finding.option_pool,
    )


def non_template_row(
    about: "Clip", question: str, targets: list[str], span: tuple[float, float], **derived: object
) -> dict:
    """A row as ``row.CANDIDATES`` has it, of a question that the camera is asked.

    Args:
        about: what all rows of the clip share.
        question: the text.
        targets: names of the things it is about.
        span: start and end of its interval, s.
        derived: the columns that depend on how the answer was found.
    """
    entities = [about.names.index(name) for name in targets]
    return {
        "qa_id": content_id(about.clip, NON_TEMPLATE, question, GENERATOR_VERSION),
        "clip": about.clip,
        "shard": about.shard,
        "type": NON_TEMPLATE,
        "question": question,
        "viewpoint_subject": CAMERA,
        "viewpoint_role": CAMERA,
        "targets": targets,
        "target_roles": [about.roles[entity] for entity in entities],
        "target_classes": [about.classes[entity] for entity in entities],
        "interval_start": span[0],
        "interval_end": span[1],
        "visible_until": None,
        "has_video": about.has_video,
        "estimator": about.estimator,
        "generator_version": GENERATOR_VERSION,
        **derived,
    }


def _called(program: Node, numbers: Measured, about: "Clip") -> Callable[[str], str]:
    """How the text of a question points at the things of a program.

    An answer that is a name has no box: that of another question's interval would tell whose option it is.
    """
    start = int(np.argmin(np.abs(numbers.scene.times - interval(program)[0]))) * numbers.stride

    def called(name: str) -> str:
        entity = about.names.index(name)
        if program.kind == "thing":
            return about.pointing.names[entity]
        return about.pointing.said(entity, start, "initial")

    return called


def _targets(program: Node) -> list[str]:
    """The things that a program is about; the camera only where there is nothing else."""
    return [name for name in named(program) if name != CAMERA] or [CAMERA]


def _option_pool(program: Node, answer: Answer, about: "Clip") -> str:
    """What questions must have in common to share options: the kind of answer, then a hash of the rest.

    The form of the program and how many things it is about; for answers that are names also the clip, the names and
    what they are compared with, else an option could be ruled out by the words; for procedural answers how many states
    there are (1 or 2, exactly 3 to 6, 7 or more) and, of directions that change, the first.
    """
    names = program.kind == "thing"
    parts = [skeleton(program, keep_names=names), str(len(_targets(program))), about.clip if names else ""]
    if program.kind == "states":
        number = min(max(int(counts(answer.labels[:1])[0]), 2), 7)
        changing = program.args[0].op == "direction" and number > 2
        parts += [str(number), str(answer.labels[0, 0]) if changing else ""]
    return f"{program.kind} {content_id(*parts)}"


def _evidence(finding: Finding, numbers: Measured, called: Callable[[str], str], about: "Clip") -> str:
    """The program and the numbers that its answer comes from, as JSON with sorted keys."""
    program = finding.program
    evidence = {
        "program": program.text,
        "names": named(program),
        "called": [called(name) for name in named(program)],
        "numbers": [
            {"of": item["of"], "times": item["times"].tolist(), "values": item["values"].tolist()}
            for item in finding.taken
        ],
        "thresholds": asdict(numbers.thresholds),
        "scene_scale": round(about.scale, 6),
        "depends_on_viewpoint": any(node.op == "direction" for node in program.nodes),
    }
    return json.dumps(evidence, sort_keys=True, allow_nan=False)


def rederive_program(row: dict) -> list[str]:
    """Derive the answer of a non-template row again from nothing but its evidence.

    Raises:
        ProgramError: the evidence holds no program, or not the numbers that it needs.
    """
    evidence = json.loads(row["evidence"])
    if "program" not in evidence:
        raise ProgramError(f"the evidence of {row['qa_id']} holds no program; it is free text that passes agreed on")
    program = parse(evidence["program"])
    stored = Stored(evidence["names"], Thresholds(**evidence["thresholds"]), evidence["numbers"])
    answer = evaluate(program, stored)
    if not answer.defined[0]:
        raise ProgramError(f"the evidence of {row['qa_id']} gives no answer; derive the question again")
    return texts(program, answer.labels[0], evidence["called"])


def _balanced(findings: list[Finding], rng: np.random.Generator) -> list[list[Finding]]:
    """Order findings, by fours, so that every prefix is balanced over kinds of answers, then pools, then answers.

    Four findings that are names are four answers of one pool, or they would find no quad.
    """
    ordered = []
    for group in _grouped(findings, lambda finding: finding.program.kind):
        pools = [
            _turns(_grouped(pool, lambda finding: finding.meaning), rng)
            for pool in _grouped(group, lambda finding: finding.option_pool)
        ]
        if group[0].program.kind == "thing":
            whole = [four for pool in pools for four in _fours(pool) if len({one.meaning for one in four}) == 4]
            ordered.append([whole[index] for index in rng.permutation(len(whole))])
        else:
            ordered.append(_fours(_turns(pools, rng)))
    return _turns(ordered, rng)


def _grouped(findings: list[Finding], by: Callable[[Finding], str]) -> list[list[Finding]]:
    groups = defaultdict(list)
    for finding in findings:
        groups[by(finding)].append(finding)
    return [group for _, group in sorted(groups.items())]


def _fours(items: list) -> list[list]:
    return [items[first : first + 4] for first in range(0, len(items), 4)]


def _turns(groups: Sequence[list], rng: np.random.Generator) -> list:
    """Take one item of each group in turn, groups in a drawn order."""
    shuffled = [groups[index] for index in rng.permutation(len(groups))]
    most = max(map(len, shuffled), default=0)
    return [group[turn] for turn in range(most) for group in shuffled if turn < len(group)]
