"""Attention to a shared prompt and to a branch's own tokens: both ways against one plain softmax."""

import pytest
import torch

from fgrpo.lm.attention import two_parts, two_parts_fused

QUERIES, HEADS, BRANCHES, TOKENS, PROMPT, SIZE = 2, 2, 3, 5, 17, 8


def inputs(dtype: torch.dtype) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """q, prompt and own keys and values; the first prompt is padded, and a token sees those before it."""
    g = torch.Generator().manual_seed(0)
    own = (QUERIES * HEADS * BRANCHES, TOKENS, SIZE)
    prompt = (QUERIES, HEADS, PROMPT, SIZE)
    shapes = [(QUERIES, HEADS, BRANCHES * TOKENS, SIZE), prompt, prompt, own, own]
    tensors = [torch.randn(s, generator=g, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    hidden = torch.zeros(QUERIES, 1, 1, PROMPT, dtype=dtype)
    hidden[0, ..., :4] = float("-inf")
    later = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return tensors, hidden, torch.zeros(own[0], TOKENS, TOKENS, dtype=dtype).masked_fill(later, float("-inf"))


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("attention", [two_parts, two_parts_fused])
def test_equals_a_loop_over_branches(attention, padded) -> None:
    (q, pk, pv, k, v), hidden, mask = inputs(torch.float64)
    hidden = hidden if padded else torch.zeros_like(hidden)
    found = attention(q, pk, pv, hidden if padded else None, k, v, mask)
    for n in range(len(k)):
        query, head, branch = n // (HEADS * BRANCHES), n // BRANCHES % HEADS, n % BRANCHES
        mine = q[query, head, branch * TOKENS : (branch + 1) * TOKENS]
        keys, values = torch.cat((pk[query, head], k[n])), torch.cat((pv[query, head], v[n]))
        scores = mine @ keys.T * SIZE**-0.5 + torch.cat((hidden[query, 0].expand(TOKENS, -1), mask[n]), dim=1)
        assert torch.allclose(found[query, head, branch * TOKENS : (branch + 1) * TOKENS], scores.softmax(-1) @ values)


@pytest.mark.parametrize("attention", [two_parts, two_parts_fused])
def test_gradients_are_those_of_finite_differences(attention) -> None:
    (q, pk, pv, k, v), hidden, mask = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda q, pk, pv, k, v: attention(q, pk, pv, hidden, k, v, mask), (q, pk, pv, k, v))


def test_both_ways_agree_in_bfloat16() -> None:
    found = []
    for attention in (two_parts, two_parts_fused):
        (q, pk, pv, k, v), hidden, mask = inputs(torch.bfloat16)
        out = attention(q, pk, pv, hidden, k, v, mask)
        out.float().square().sum().backward()
        found.append([out.detach(), *(x.grad for x in (q, pk, pv, k, v))])
    assert all(
        a.dtype == b.dtype and (a - b).float().norm() < 0.02 * a.float().norm() for a, b in zip(*found, strict=True)
    )
