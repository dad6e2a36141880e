"""That what the stages teach can be learned: a world of a few clips, small models, seeds fixed."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from models.batch import Branch, Prior, Tree, pack
from models.configuration import geometry_config
from models.geometric_qwen import GeometricQwen
from models.grounding import Guides
from models.gsm import CELL_CHANNELS
from models.guide import Notes, Things
from models.loss import stage_loss
from models.parameters import GeometryModelParameters, TinyModelParameters, TrainingParameters
from models.prompt import Prompt, build_tokenizer, special_ids
from models.reading import stated_question
from models.tiny import tiny_config

NAMES = ("red box", "blue car", "green dog", "white cup")
COLOURS = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], float)
STATES = ("Left", "Right", "Front", "Behind")
SLOTS, HEIGHT, WIDTH, QUERIES = 4, 3, 4, 4
PARAMETERS = TrainingParameters()
RATE = 4e-3
VISION = {"vision_depth": 1, "vision_width": 16, "vision_heads": 2}


def question_of(former: int, latter: int) -> str:
    return f"Where is {NAMES[former]} as seen from {NAMES[latter]}?"


def learner(geometry: bool = True, **sizes: int):
    """A small model, its tokenizer's prompt and the readers that guide it."""
    torch.manual_seed(0)
    texts = [question_of(a, b) for a in range(4) for b in range(4)]
    texts += [f"{letter} (1) {state}." for state in STATES for letter in "ABCD"]
    tokenizer = build_tokenizer(texts * 2, 400)
    chosen = GeometryModelParameters(queries=QUERIES, octaves=1, heads=2, condenser_depth=1)
    module = geometry_config(chosen, CELL_CHANNELS) if geometry else None
    config = tiny_config(TinyModelParameters(**sizes, **VISION), special_ids(tokenizer), module)
    return GeometricQwen(config), Prompt(tokenizer, 500), Guides(config.text_config.hidden_size)


def clip(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Cells (T,h,w,C) of four things that jump about, and what each covers."""
    cells = rng.normal(0, 0.3, (SLOTS, HEIGHT, WIDTH, CELL_CHANNELS)).astype(np.float32)
    cells[..., 9:12], cells[..., 12] = 0.0, 1.0
    cells[..., 13] = np.arange(SLOTS)[:, None, None] / 60
    cover = np.zeros((4, SLOTS, HEIGHT, WIDTH), np.float32)
    for slot in range(SLOTS):
        places = rng.permutation(HEIGHT * WIDTH)[:4]
        for thing, place in enumerate(places):
            cells[slot].reshape(-1, CELL_CHANNELS)[place, 9:12] = COLOURS[thing]
            cover[thing, slot].reshape(-1)[place] = 1.0
    return cells, cover


def grounding_tree(prompt: Prompt, world: tuple, rng: np.random.Generator) -> Tree:
    """Three questions about two things each of a clip."""
    cells, cover = world
    branches = []
    for _ in range(3):
        former, latter = rng.permutation(4)[:2].tolist()
        text = question_of(former, latter)
        ids = prompt.words(text)
        spans = prompt.spans(text, [NAMES[former], NAMES[latter], ""])
        notes = Notes((0, 1, 2, 3), things=(former, latter, -1), spans=spans)
        branches.append(Branch(ids, [-100] * len(ids), ids, len(ids), notes))
    prior = Prior(cells, np.arange(SLOTS) + 0.5)
    return Tree(prompt.prefix(False), None, prior, branches, things=Things(list(NAMES), cover))


def reading_tree(prompt: Prompt, rng: np.random.Generator) -> Tree:
    states, options, letter = stated_question([f"(1) {state}." for state in STATES], QUERIES, rng)
    branch = prompt.branch("Where?", options, letter, False, noted=True)
    noted = replace(branch, notes=replace(branch.notes, states=states))
    return Tree(prompt.prefix(False), None, None, [noted], stated=QUERIES)


def batch_of(prompt: Prompt, trees: list[Tree]):
    return pack(trees, prompt.video_pad, QUERIES, 2.0, None, prompt.words)


def reading_batch(prompt: Prompt, rng: np.random.Generator, questions: int):
    return batch_of(prompt, [reading_tree(prompt, rng) for _ in range(questions)])


def share_on_things(model, batch) -> float:
    """Share of the attention of the heads that look for a thing, on its cells of each query's own slot."""
    with torch.no_grad():
        looks = model.select(batch.geometry, with_looks=True).looks
    found = []
    for question, row in enumerate(batch.owner.tolist()):
        for head in range(2):
            for query in range(QUERIES):
                keys, slot = looks.window.keys[row, query], int(looks.window.slots[row, query])
                cover = torch.zeros(SLOTS, HEIGHT * WIDTH)
                cover[slot] = batch.guide.cover[row, batch.guide.things[question, head], slot].flatten()
                found.append(float((looks.cells[question, head, query, :-1].exp() * cover.flatten()[keys]).sum()))
    return float(np.mean(found))


def train(model, guides, stage: str, steps: int, draw: Callable, letters: torch.Tensor | None = None) -> None:
    """As `models.module` does it, on one drawn batch after the other."""
    learned = [*model.parameters(), *guides.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=RATE, weight_decay=0.01)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / 20, 1 - step / steps))
    for _ in range(steps):
        batch = draw()
        optimizer.zero_grad()
        stage_loss(model, batch, stage, PARAMETERS, None, guides, letters).total.backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimizer.step()
        decay.step()


def test_grounding_brings_the_attention_to_the_things_that_are_named():
    model, prompt, guides = learner(hidden_size=64, layers=1, heads=2, key_value_heads=1, intermediate_size=128)
    rng = np.random.default_rng(0)
    worlds = [clip(rng) for _ in range(6)]
    unseen = batch_of(prompt, [grounding_tree(prompt, clip(rng), rng) for _ in range(8)])
    before = share_on_things(model, unseen)
    train(model, guides, "grounding", 200, lambda: batch_of(prompt, [grounding_tree(prompt, w, rng) for w in worlds]))
    after = share_on_things(model, unseen)
    # One cell of the 12 or 24 that a query sees, by chance; on clips that were not trained on.
    assert before < 0.1 and after > 0.5, (before, after)


def test_reading_finds_what_is_stated_among_the_options():
    # It is text alone, so what the geometry module draws at its birth must not move the language model's weights.
    sizes = {"layers": 3, "heads": 4, "key_value_heads": 2}
    model, prompt, guides = learner(geometry=False, hidden_size=64, intermediate_size=128, **sizes)
    rng, letters = np.random.default_rng(1), torch.tensor(prompt.letters)
    draw = partial(reading_batch, prompt, rng)
    train(model, guides, "reading", 260, partial(draw, 32), letters)
    fresh = draw(200)
    with torch.no_grad():
        said = model.score(fresh, fresh.prompt_end)[:, letters].argmax(-1)
    right = float((letters[said] == fresh.targets[fresh.prompt_end]).float().mean())
    assert right > 0.6, right
