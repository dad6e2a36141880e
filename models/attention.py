"""Attention kernels for machines where the usual choice is a bad one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

if TYPE_CHECKING:
    from models.batch import TreeLayout

FLOAT32 = "sdpa_float32"
"""The name of `sdpa_float32` among transformers' attention implementations."""


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention over the last two axes, on CPUs always in float32.

    There the fused kernel's backward pass can be slower in bfloat16 than in float32, though everything around it is
    faster.

    Args:
        query: (...,L,e).
        key: (...,M,e).
        value: (...,M,e).
        mask: (...,L,M) bool or additive, or None.
    """
    if query.device.type != "cpu":
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    with torch.autocast("cpu", enabled=False):
        mixed = functional.scaled_dot_product_attention(
            query.float(), key.float(), value.float(), attn_mask=_float32_mask(mask)
        )
    return mixed.to(query.dtype)


def look(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """The same as `attend`, and where it looked.

    Args:
        query: (...,L,e).
        key: (...,M,e).
        value: (...,M,e).
        mask: (...,L,M) bool.
        seen: (...,L,M) bool, the part of `mask` that is read from; None for all of it.

    Returns:
        (...,L,e), and (...,L,M) float32 logarithms of the attention over all of `mask`.
    """
    kept, on_cpu = query.dtype, query.device.type == "cpu"
    with torch.autocast(query.device.type, enabled=not on_cpu):
        if on_cpu:
            query, key, value = query.float(), key.float(), value.float()
        scores = (query @ key.mT).float() * query.shape[-1] ** -0.5
        shares = scores.masked_fill(~mask, -torch.inf).log_softmax(-1)
        weights = shares.exp() if seen is None else scores.masked_fill(~seen, -torch.inf).softmax(-1)
        return (weights.to(value.dtype) @ value).to(kept), shares


def sdpa_float32(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    tree: TreeLayout | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Transformers' own sdpa, computed in float32; where rows are trees, branch by branch and without a mask."""
    with torch.autocast(query.device.type, enabled=False):
        whole = query.float(), key.float(), value.float()
        if tree is not None:
            groups = module.num_key_value_groups
            mixed = attend_tree(whole[0], *(repeat_kv(each, groups) for each in whole[1:]), tree).transpose(1, 2)
        else:
            mixed, _ = sdpa_attention_forward(module, *whole, _float32_mask(attention_mask), **options)
    return mixed.to(query.dtype), None


def attend_tree(query: Tensor, key: Tensor, value: Tensor, tree: TreeLayout) -> Tensor:
    """Attention over rows of a shared prefix and branches, each of which sees the prefix and itself.

    The cost grows with the length of a branch, where a mask over the whole row would have it grow with that of all
    branches together.

    Args:
        query: (B,H,L,e).
        key: (B,H,L,e).
        value: (B,H,L,e).
        tree: of the rows.

    Returns:
        (B,H,L,e); on padding anything finite.
    """
    if tree.slots.shape[1] == 1:
        # What stands behind the only branch is padding, which nothing before it sees.
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    rows, branches, width = tree.slots.shape
    prefix = int(tree.prefix.max())
    first = [each[:, :, :prefix] for each in (query, key, value)]
    own = [tree.apart(each) for each in (query, key, value)]
    key, value = (
        torch.cat([shared.repeat_interleave(branches, 0), each], 2)
        for shared, each in zip(first[1:], own[1:], strict=True)
    )
    shown = (torch.arange(prefix, device=query.device) < tree.prefix[:, None]).repeat_interleave(branches, 0)
    causal = torch.ones(width, width, dtype=torch.bool, device=query.device).tril()
    mask = torch.cat([shown[:, None].expand(-1, width, -1), causal.expand(rows * branches, -1, -1)], 2)
    return tree.together(
        functional.scaled_dot_product_attention(*first, is_causal=True),
        functional.scaled_dot_product_attention(own[0], key, value, attn_mask=mask[:, None]),
    )


def _float32_mask(mask: Tensor | None) -> Tensor | None:
    """An additive mask in the precision of the scores that it is added to; any other as it is."""
    return mask if mask is None or mask.dtype == torch.bool else mask.float()


AttentionInterface.register(FLOAT32, sdpa_float32)
