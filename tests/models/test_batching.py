from dataclasses import replace

import numpy as np
import pytest
import torch

from models.batching import FromStep, StepBatches, cut_by_length
from models.guide import states_of
from models.parameters import ParameterError, TrainingParameters
from models.stages import FINDS_ALL, rate_factor, stage_at, stages_of, told_share
from tests.models.conftest import TINY


def batches_of(maker, **changes) -> StepBatches:
    make, _, questions = maker
    return StepBatches(questions, make, TrainingParameters.from_mapping({**TINY, "reading_steps": 0, **changes}))


def videos(batches: StepBatches):
    return stages_of(batches.parameters)[-1]


def rows_asked(packs) -> list[int]:
    return [row for pack in packs for row in pack.rows]


def test_step_decides_the_batch(maker, parameters):
    make, _, questions = maker
    one, other = (StepBatches(questions, make, parameters) for _ in range(2))
    later = [one[step, 0].trees.tokens for step in (9, 4, 1)]
    assert all(torch.equal(a, other[step, 0].trees.tokens) for a, step in zip(later, (9, 4, 1), strict=True))
    assert not torch.equal(one[0, 0].trees.tokens, one[1, 0].trees.tokens)


def test_an_epoch_asks_every_question_once(maker):
    batches = batches_of(maker, questions_per_clip=2, steps=50)
    # Each of four clips: three questions in two packs and one alone: 12 packs, 6 steps an epoch.
    for epoch in range(2):
        rows = [row for step in range(6) for row in rows_asked(batches.packs(videos(batches), 6 * epoch + step))]
        assert sorted(rows) == list(range(16))
    assert batches.packs(videos(batches), 0) != batches.packs(videos(batches), 6)


def test_sampler_goes_on_where_training_stands():
    assert list(FromStep(3, 6)) == [(3, 0), (4, 0), (5, 0)] and len(FromStep(3, 6)) == 6
    first, second = (list(FromStep(4, 6, accumulate=2, rank=rank, processes=2)) for rank in (0, 1))
    assert first == [(4, 0), (4, 2), (5, 0), (5, 2)] and second == [(4, 1), (4, 3), (5, 1), (5, 3)]


def test_reading_stage_states_the_answer(maker, parameters, monkeypatch):
    monkeypatch.setattr("models.reading.WRONG", 0.0)
    make, _, questions = maker
    batch = StepBatches(questions, make, parameters)[2, 0].trees
    assert batch.patches is None and batch.prior is None
    assert len(batch.tokens) == parameters.reading_questions == batch.prompt_end.sum()
    assert (batch.geometry_slots.sum(1) == parameters.geometry.queries).all()
    decode = make.prompt.tokenizer.decode
    texts = [decode(words[words >= 0]).removeprefix(") ").removesuffix(".") for words in batch.guide.state_words]
    assert texts[0] == "nothing"
    for tokens, learned, branch, states in zip(
        batch.tokens, batch.targets, batch.branch, batch.guide.states, strict=True
    ):
        letter = decode(learned[learned >= 0][0])
        lines = decode(tokens[branch == 0]).splitlines()
        (option,) = (line[2:].removesuffix("<|im_end|>") for line in lines if line.startswith(f"{letter} "))
        told = [texts[state] for state in states if state]
        assert [state for place, state in enumerate(told) if told[place - 1 : place] != [state]] == states_of(option)


def test_grounding_stage_has_priors_and_no_videos(maker):
    batches = batches_of(maker, grounding_steps=2, guidance={})
    assert [stage.name for stage in stages_of(batches.parameters)] == ["grounding", "videos"]
    micro = batches[1, 0]
    assert (micro.stage, micro.trees.patches) == ("grounding", None)
    assert len(micro.trees.prior) == 2 and micro.totals.questions == len(micro.trees.owner)


def test_naming_stage_has_a_question_for_each_prior_and_no_videos(maker):
    batches = batches_of(maker, naming_steps=9, grounding_steps=2, guidance={})
    assert [stage.name for stage in stages_of(batches.parameters)] == ["naming", "grounding", "videos"]
    first = stages_of(batches.parameters)[0]
    # 16 questions, one for each clip that is read: 8 steps an epoch.
    assert sorted(row for step in range(8) for row in rows_asked(batches.packs(first, step))) == list(range(16))
    assert batches.packs(first, 8) != batches.packs(first, 0)
    micro = batches[0, 0]
    assert (micro.stage, micro.trees.patches) == ("naming", None)
    assert micro.trees.owner.tolist() == [0, 1] and micro.totals.questions == len(micro.trees.prior) == 2
    assert micro.trees.guide.cover.any()
    parts = batches_of(maker, naming_steps=9, grounding_steps=0, guidance={}, accumulate=2)
    assert [parts[0, part].totals for part in (0, 1)] == [micro.totals] * 2
    assert sum(len(parts[0, part].trees.prior) for part in (0, 1)) == 2


@pytest.mark.parametrize("stage", ["reading", "videos"])
@pytest.mark.parametrize("parts", [1, 2, 3])
def test_parts_of_a_step_are_the_step(maker, stage, parts):
    steps = {"reading_steps": 5} if stage == "reading" else {}
    whole = batches_of(maker, clips_per_batch=5, **steps)[2, 0]
    batches = batches_of(maker, clips_per_batch=5, accumulate=parts, **steps)
    micros = [batches[2, part] for part in range(parts)]
    assert {micro.totals for micro in micros} == {whole.totals} and whole.stage == stage
    assert sum(int((m.trees.targets >= 0).sum()) for m in micros) == whole.totals.answers
    assert sum(micro.slots for micro in micros) == whole.slots
    said = [
        sorted(row[m.trees.branch[place] >= 0].tolist() for m in some for place, row in enumerate(m.trees.tokens))
        for some in (micros, [whole])
    ]
    assert said[0] == said[1]


def test_no_step_has_more_slots_than_the_budget(maker):
    batches = batches_of(maker, tokens_per_batch=1400, questions_per_clip=2, steps=40, accumulate=2)
    asked = set()
    for step in range(12):
        micros = [batches[step, part] for part in range(2)]
        assert sum(micro.trees.tokens.numel() for micro in micros) <= 1400
        asked |= set(rows_asked(batches.packs(videos(batches), step)))
    assert asked == set(range(16))
    fresh = batches_of(maker, tokens_per_batch=1400, questions_per_clip=2, steps=40, accumulate=2)
    assert fresh.packs(videos(fresh), 11) == batches.packs(videos(batches), 11)


def test_estimated_lengths_are_those_of_the_rows(maker):
    batches = batches_of(maker, tokens_per_batch=4000)
    for pack in batches.packs(videos(batches), 0):
        row = batches.maker.pack([batches._tree(videos(batches), pack)])
        assert row.tokens.numel() == batches._length(pack)


def test_budget_that_no_row_fits_is_told(maker):
    with pytest.raises(ParameterError, match=r"tokens_per_batch = 100: the longest row has \d+ slots"):
        batches_of(maker, tokens_per_batch=100)[0, 0]
    with pytest.raises(ParameterError, match="make 8 prefixes, accumulate · devices · nodes is 9"):
        batches_of(maker, clips_per_batch=9, accumulate=9)[0, 0]


def test_a_model_that_shares_no_prefix_gets_a_row_for_each_question(maker):
    shared = batches_of(maker)
    make, *_ = maker
    make.shares_prefix = False
    single = batches_of(maker)
    assert rows_asked(single.packs(videos(single), 3)) == rows_asked(shared.packs(videos(shared), 3))
    assert int((single[3, 0].trees.branch > 0).sum()) == 0
    assert len(single[3, 0].trees.tokens) == single[3, 0].totals.questions


def test_parts_are_even_and_of_similar_length():
    lengths = [100, 10, 90, 12, 11, 95, 9, 8]
    parts = cut_by_length(lengths, 3)
    assert sorted(place for part in parts for place in part) == list(range(8))
    padded = [len(part) * max(lengths[place] for place in part) for part in parts]
    assert max(padded) == 190
    assert [len(part) for part in cut_by_length([5, 5, 5], 3)] == [1, 1, 1]
    assert max(map(len, cut_by_length([7] * 10, 4))) == 3


def test_sorting_in_a_window_keeps_padding_small():
    rng = np.random.default_rng(0)
    lengths = rng.integers(100, 1000, 400).tolist()
    parts = cut_by_length(lengths, 40)
    padded = sum(len(part) * max(lengths[place] for place in part) for part in parts)
    assert padded < 1.05 * sum(lengths)


def test_each_stage_rises_and_decays():
    stages = {"reading_steps": 100, "naming_steps": 20, "grounding_steps": 50, "steps": 200}
    parameters = TrainingParameters(**stages, warmup_share=0.1, grounding_rate=0.4, videos_rate=0.5)
    rates = [rate_factor(step, parameters) for step in range(370)]
    assert rates[0] < rates[5] < rates[10] == 1.0
    assert rates[99] < 0.02
    assert rates[100] < 0.5 and rates[102] == 1.0 and rates[119] < 0.06
    assert rates[120] < 0.1 and rates[125] == max(rates[120:170]) == 0.4 and rates[169] < 0.02
    assert rates[170] < 0.1 and rates[190] == max(rates[170:]) == 0.5 and 0 < rates[369] < 0.01
    names = [stage_at(step, parameters).name for step in (99, 100, 119, 120, 170, 400)]
    assert names == ["reading", "naming", "naming", "grounding", "videos", "videos"]
    module = [rate_factor(step, replace(parameters, videos_geometry_rate=0.1), "geometry") for step in range(370)]
    assert module[:170] == rates[:170] and module[190] == max(module[170:]) == 0.1
    alone = {"reading_steps": 0, "naming_steps": 0, "grounding_steps": 0, "steps": 100, "warmup_share": 0.0}
    assert rate_factor(50, TrainingParameters(**alone, decay="cosine", videos_rate=1.0)) == pytest.approx(0.5)
    assert rate_factor(99, TrainingParameters(**alone, decay="constant", videos_rate=0.3)) == 0.3


def test_cells_are_told_less_and_less_and_in_the_grounding_stage_alone():
    parameters = TrainingParameters(reading_steps=10, naming_steps=20, grounding_steps=100, steps=50)
    shares = [told_share(step, parameters) for step in range(200)]
    assert not any(shares[:30]) and shares[30] == 1.0
    found = 30 + round(100 * FINDS_ALL)
    assert shares[30:found] == sorted(set(shares[30:found]), reverse=True) and shares[found - 1] > 0
    assert shares[30 + round(50 * FINDS_ALL)] == pytest.approx(0.5)
    assert max(shares[found:]) == pytest.approx(0.0, abs=1e-9)
