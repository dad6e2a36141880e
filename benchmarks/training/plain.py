"""The plain form: one question, one sequence, as transformers runs it.

Nothing of it comes from `models.batch`: ids, positions (transformers' own `get_rope_index`) and embeddings are laid
out here, and the mask is the causal one that transformers makes itself. The video is encoded again for each question.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Qwen2_5_VLForConditionalGeneration

from models.batch import NO_TARGET, Branch, Tree
from models.geometric_qwen import GeometricQwen

TEXT, VIDEO = 0, 2


def question_loss(model: GeometricQwen, tree: Tree, branch: Branch) -> Tensor:
    """Cross-entropy summed over the tokens of one answer."""
    hidden = _embeddings(model, tree, branch)
    before = hidden.shape[1] - len(branch.tokens)
    places = [place for place, target in enumerate(branch.targets) if target != NO_TARGET]
    output = Qwen2_5_VLForConditionalGeneration.forward(
        model,
        inputs_embeds=hidden,
        position_ids=_positions(model, tree, branch),
        logits_to_keep=torch.tensor(places, device=hidden.device) + before,
        use_cache=False,
    )
    targets = torch.tensor([branch.targets[place] for place in places], device=hidden.device)
    return functional.cross_entropy(output.logits[0].float(), targets, reduction="sum")


def _embeddings(model: GeometricQwen, tree: Tree, branch: Branch) -> Tensor:
    """(1,L,d): prefix, video, geometry, question and answer."""
    embed = model.get_input_embeddings()
    parts = [embed(_row(tree.prefix, model))]
    if tree.video is not None:
        patches = torch.as_tensor(tree.video.patches, device=model.device)
        video = model.get_video_features(patches, _row(tree.video.grid, model), return_dict=True).pooler_output
        parts.append(torch.cat(video)[None])
    if tree.prior is not None:
        parts.append(_geometry(model, tree, branch))
    parts.append(embed(_row(branch.tokens, model)))
    return torch.cat([part.to(parts[0].dtype) for part in parts], 1)


def _geometry(model: GeometricQwen, tree: Tree, branch: Branch) -> Tensor:
    """(1,N,d): the geometry tokens of one question on one clip."""
    question = _row(branch.question, model)
    features = torch.as_tensor(tree.prior.features, dtype=model.dtype, device=model.device)[None]
    times = torch.as_tensor(tree.prior.times, dtype=torch.float32, device=model.device)[None]
    selection = model.gsm(
        model.get_input_embeddings()(question),
        torch.ones_like(question, dtype=torch.bool),
        features,
        _row(features.shape[1:4], model),
        times,
        torch.zeros(1, dtype=torch.long, device=model.device),
    )
    return selection.tokens


def _positions(model: GeometricQwen, tree: Tree, branch: Branch) -> Tensor:
    """(3,1,L), where geometry tokens count as text, as in the reference."""
    after = (model.geometry_tokens if tree.prior is not None else 0) + len(branch.tokens)
    seen = tree.video.tokens if tree.video is not None else 0
    kinds = _row([TEXT] * len(tree.prefix) + [VIDEO] * seen + [TEXT] * after, model)
    if tree.video is None:
        return torch.arange(kinds.shape[1], device=model.device).expand(3, 1, -1)
    positions, _ = model.model.get_rope_index(
        kinds,
        mm_token_type_ids=kinds,
        video_grid_thw=_row(tree.video.grid, model),
        second_per_grid_ts=torch.tensor([tree.video.seconds_per_slot], device=model.device),
    )
    return positions


def _row(numbers, model: GeometricQwen) -> Tensor:
    return torch.tensor([list(numbers)], device=model.device)
