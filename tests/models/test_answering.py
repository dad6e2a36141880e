"""Answers on a shared encoding against transformers' own forward and generate, one question at a time."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.training import published_loops
from benchmarks.training.parity import save_published
from models.answering import LETTERS, SharedPrefix, asked_text
from models.data import groups_of, questions_of
from models.geometric_qwen import load_base
from models.parameters import TrainingParameters
from models.predict import Opened, open_checkpoint, open_model
from models.prompt import CHAT_TEMPLATE, QuestionError, question_text
from tests.models.small_models import FAMILIES, IDS, VARIANTS, model_of, one_by_one, packed, sequences, tree_of

END = IDS["<|im_end|>"]
TOKENS = 6


def alone(model, tree) -> list[list[int]]:
    """What transformers' generate says to each question of a tree, one sequence for each."""
    said = []
    for single in one_by_one([tree]):
        branch = single.branches[0]
        asked = replace(single, branches=[replace(branch, tokens=branch.tokens[: branch.prompt_length])])
        inputs, geometry = sequences(model, [asked])
        out = model.generate(
            **inputs, geometry=geometry, max_new_tokens=TOKENS, do_sample=False, eos_token_id=END, pad_token_id=0
        )
        ids = out[0, inputs["input_ids"].shape[1] :].tolist()
        said.append(ids[: ids.index(END)] if END in ids else ids)
    return said


def prompts(tree):
    """The tree without the answers that its branches hold for training."""
    branches = [
        replace(one, tokens=one.tokens[: one.prompt_length], targets=one.targets[: one.prompt_length])
        for one in tree.branches
    ]
    return replace(tree, branches=branches)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_generation_on_a_shared_prefix_says_what_transformers_says_to_each_alone(family, variant):
    model = model_of(family, variant)
    tree = prompts(tree_of(model, seed=3, questions=4, slots=3))
    expected = alone(model, tree)
    assert len({tuple(ids) for ids in expected}) > 1
    if not model.shares_prefix:
        trees = one_by_one([tree])
        assert [SharedPrefix(model, packed(model, [one])).generate([0], TOKENS, {END})[0] for one in trees] == expected
        return
    prefix = SharedPrefix(model, packed(model, [tree]))
    said = prefix.generate(range(4), TOKENS, {END})
    assert said == expected
    # A second row finds the prefix as the first found it, whatever was said in between.
    assert [prefix.generate([number], TOKENS, {END})[0] for number in (2, 0)] == [said[2], said[0]]


@torch.no_grad()
def test_an_answer_ends_where_it_says_so_and_the_others_go_on():
    model = model_of("qwen2_5", "gsm")
    tree = prompts(tree_of(model, seed=3, questions=3))
    prefix = SharedPrefix(model, packed(model, [tree]))
    whole = prefix.generate(range(3), TOKENS, set())
    ends = {whole[0][2]}
    cut = prefix.generate(range(3), TOKENS, ends)
    assert cut[0] == whole[0][: whole[0].index(whole[0][2])]
    for ids, full in zip(cut, whole, strict=True):
        assert ids == full[: next((place for place, token in enumerate(full) if token in ends), TOKENS)]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_on_a_shared_prefix_are_those_of_the_tree(family):
    model = model_of(family, "gsm")
    tree = prompts(tree_of(model, seed=4, questions=5))
    batch = packed(model, [tree])
    expected = model.score(batch, batch.prompt_end)
    prefix = SharedPrefix(model, batch)
    found = torch.cat([prefix.ask(row) for row in (range(0, 2), range(2, 5))])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    assert prefix.cache.get_seq_length() == prefix.length


def test_the_text_is_the_training_s_for_four_options_and_serves_others():
    assert asked_text("Is it?", "wxyz") == question_text("Is it?", "wxyz")
    assert asked_text("Is it?", ("yes", "no"), "Say it.") == "Is it?\nOptions:\nA yes\nB no\nSay it."
    assert asked_text("How many?", ()) == "How many?"
    assert asked_text("Which?", list(range(10))).endswith("\nJ 9")
    for count in (1, 11):
        with pytest.raises(QuestionError, match=f"{count} options"):
            asked_text("Which?", ["x"] * count)


@pytest.fixture(scope="module")
def opened(checkpoint) -> Opened:
    return open_checkpoint(checkpoint)


def test_two_to_ten_options_are_weighed(opened, release):
    (group, *_), listed = groups_of(questions_of(release.table, False)), questions_of(release.table, False)
    question = listed[group.rows[0]]
    some = [replace(question, options=tuple(f"{n} red" for n in range(count))) for count in (2, 4, 7, len(LETTERS))]
    answering = opened.answering(release.videos, release.geometry)
    shares = answering.shares(group, some)
    assert [len(one) for one in shares] == [2, 4, 7, 10]
    assert all(one.sum() == pytest.approx(1) and (one > 0).all() for one in shares)
    told = answering.shares(group, some, instructions=("Answer at once.", ""))
    assert np.abs(told[1] - shares[1]).max() > 1e-6


def test_texts_of_a_clip(opened, release):
    listed = questions_of(release.table, False)
    (group, *_) = groups_of(listed)
    some = [replace(listed[row], options=()) if row % 2 else listed[row] for row in group.rows]
    answering = opened.answering(release.videos, release.geometry)
    texts = answering.texts(group, some, 5)
    assert len(texts) == len(some) and all(isinstance(text, str) for text in texts)
    assert texts == [answering.texts(group, [one], 5)[0] for one in some]
    assert answering.texts(group, some, 5, blind=True) == answering.texts(group, some, 5, blind=True)


def test_any_model_is_opened(checkpoint, release, parameters, tmp_path):
    """A checkpoint by its report, a plain model by its configuration; the plain one reads no geometry."""
    assert open_model(str(checkpoint), parameters).model.reads_prior
    mine = open_checkpoint(checkpoint)
    plain = load_base(str(checkpoint), None)
    plain.config.geometry_config = None
    plain.save_pretrained(tmp_path)
    mine.tokenizer.save_pretrained(tmp_path)
    opened = open_model(str(tmp_path), parameters)
    assert not opened.model.reads_prior and opened.parameters.max_pixels == parameters.max_pixels
    listed = questions_of(release.table, False)
    (group, *_) = groups_of(listed)
    some = [listed[row] for row in group.rows]
    assert len(opened.answering(release.videos, release.geometry).shares(group, some)) == len(some)


QWEN_IDS = {"<|endoftext|>": 151643, "<|im_start|>": 151644, "<|im_end|>": 151645, "<|vision_start|>": 151652} | {
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}


def qwen_tokenizer():
    """Bytes as tokens, and Qwen's special tokens under their own ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = {byte: place for place, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet | QWEN_IDS, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[name for name in QWEN_IDS if name not in ("<|im_end|>", "<|endoftext|>")],
        chat_template=CHAT_TEMPLATE,
    )


def test_the_published_model_answers_as_the_reference_computes(release, tmp_path):
    """From frames to probabilities with the prior that it brings along, against float64 arithmetic written apart."""
    sizes = published_loops.Sizes()
    weights, config = published_loops.random_weights(sizes), published_loops.configuration(sizes)
    save_published(tmp_path, weights, config)
    qwen_tokenizer().save_pretrained(tmp_path)
    like = TrainingParameters(max_frames=6, max_pixels=3136, threads=1)
    answering = open_model(str(tmp_path), like).answering(release.videos, release.geometry)
    listed = questions_of(release.table, False)
    (group, *_) = groups_of(listed)
    some = [listed[row] for row in group.rows]
    found = answering.shares(group, some)
    for question, shares in zip(some, found, strict=True):
        tree = answering.maker.tree(group, [question])
        pads = [published_loops.VIDEO_PAD] * (tree.video.tokens + sizes.queries)
        tokens = torch.tensor([*tree.prefix, *pads, *tree.branches[0].tokens])
        patches = torch.from_numpy(tree.video.patches)
        asked = published_loops.Asked(tokens, patches, tree.video.grid, tree.video.seconds_per_slot)
        last = published_loops.logits(weights, config, asked)[-1]
        np.testing.assert_allclose(shares, last[answering.prompt.letters[:4]].softmax(-1), atol=1e-4)
    assert np.ptp(found) > 0.05
