"""Attention on CPUs: in float32, whatever is around it."""

import torch
from torch.nn import functional

from models.attention import attend


def test_a_cpu_attends_in_float32_also_where_all_else_is_computed_in_half():
    draw = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 16, generator=draw) for _ in range(3))
    exact = functional.scaled_dot_product_attention(query.double(), key.double(), value.double()).float()
    with torch.autocast("cpu", torch.bfloat16):
        # As rotary positions leave them: queries and keys in float32, values from a half-precision map.
        mixed = attend(query, key, value, None)
        halves = attend(query.bfloat16(), key.bfloat16(), value.bfloat16(), None)
        plain = functional.scaled_dot_product_attention(query, key, value)
    assert mixed.dtype == torch.float32 and halves.dtype == torch.bfloat16
    torch.testing.assert_close(mixed, exact, rtol=1e-5, atol=1e-5)
    assert (plain.float() - exact).abs().max() > 1e-3
