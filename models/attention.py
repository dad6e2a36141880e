"""Attention kernels for machines where the usual choice is a bad one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

FLOAT32 = "sdpa_float32"
"""`attend`'s name among transformers' attention implementations."""


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


def sdpa_float32(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options
) -> tuple[Tensor, None]:
    """Transformers' own sdpa, computed in float32."""
    mask = _float32_mask(attention_mask)
    with torch.autocast(query.device.type, enabled=False):
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)
    return mixed.to(query.dtype), None


def _float32_mask(mask: Tensor | None) -> Tensor | None:
    """An additive mask in the precision of the scores that it is added to; any other as it is."""
    return mask if mask is None or mask.dtype == torch.bool else mask.float()


AttentionInterface.register(FLOAT32, sdpa_float32)
