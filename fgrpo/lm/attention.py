"""Attention of branches to a prompt that is held once and to their own tokens, as one softmax over both.

`two_parts` is the plain way, fastest for a few tokens. `two_parts_fused` computes it by torch's fused attention of a CPU,
once for each part, and holds no matrix of weights: the parts are joined by the logarithms of their sums, and each part's
gradient is that of fused attention, given the sums and outputs of both together.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

FUSED: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
FUSED_BACKWARD: Any = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu_backward", None)
"""operators that torch does not promise to keep: without them the plain way is taken"""


def two_parts(
    q: Tensor, prompt_keys: Tensor, prompt_values: Tensor, hidden: Tensor | None, keys: Tensor, values: Tensor, mask: Tensor
) -> Tensor:  # fmt: skip
    """Attention of q (Q, heads, N, size) to a prompt (Q, heads, P, size) and of each branch to its own tokens.

    N: tokens of one branch after another. keys, values (Q * heads * branches, T, size); hidden (Q, 1, 1, P) and mask
    (Q * heads * branches, N / branches, T) are added to the scores. Returns (Q, heads, N, size).
    """
    length, q = prompt_keys.shape[2], q * q.shape[-1] ** -0.5
    to_prompt = q @ prompt_keys.transpose(2, 3)
    if hidden is not None:
        to_prompt = to_prompt + hidden
    own = torch.baddbmm(mask, q.view(len(keys), -1, q.shape[-1]), keys.transpose(1, 2))
    weights = torch.cat((to_prompt, own.view(*q.shape[:3], -1)), dim=-1).softmax(-1)
    from_own = weights[..., length:].reshape(own.shape) @ values
    return weights[..., :length] @ prompt_values + from_own.view_as(q)


class TwoParts(torch.autograd.Function):
    """See `two_parts_fused`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, prompt_keys: Tensor, prompt_values: Tensor, hidden: Tensor | None, *own: Tensor
    ) -> Tensor:
        """Both outputs, weighted by the shares of their sums."""
        keys, values, mask = (x.unsqueeze(1) for x in own)
        rows = q.view(len(keys), 1, -1, q.shape[-1])  # (Q * heads * branches, 1, N / branches, size)
        out, log_sum = FUSED(q, prompt_keys, prompt_values, attn_mask=hidden)
        own_out, own_log_sum = FUSED(rows, keys, values, attn_mask=mask)
        own_out, own_log_sum = own_out.reshape(q.shape), own_log_sum.reshape(q.shape[:3])
        both = torch.logaddexp(log_sum, own_log_sum)
        share, own_share = ((x - both).exp().unsqueeze(-1) for x in (log_sum, own_log_sum))
        out = (out * share + own_out * own_share).to(q.dtype)
        ctx.save_for_backward(q, prompt_keys, prompt_values, hidden, keys, values, mask, out, both)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        """Gradients of everything but the two masks."""
        q, prompt_keys, prompt_values, hidden, keys, values, mask, out, both = ctx.saved_tensors
        shape, gradient = (len(keys), 1, -1, q.shape[-1]), gradient.contiguous()
        dq, *prompt = FUSED_BACKWARD(gradient, q, prompt_keys, prompt_values, out, both, 0.0, False, attn_mask=hidden)
        rows = (x.view(shape) for x in (gradient, q))
        sums = both.reshape(shape[:3])
        own_dq, *own = FUSED_BACKWARD(*rows, keys, values, out.view(shape), sums, 0.0, False, attn_mask=mask)
        return dq + own_dq.reshape(q.shape), *prompt, None, *(x.squeeze(1) for x in own), None


two_parts_fused: Callable[..., Any] = TwoParts.apply if FUSED and FUSED_BACKWARD else two_parts
"""As two_parts, with gradients for all but the masks."""
