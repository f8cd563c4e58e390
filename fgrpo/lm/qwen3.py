"""The decoder of the tiny policies: its forward pass over any tokens, and its backward pass from what the first one kept.

The forward pass is that of transformers on the same weights (a test compares them), in fewer and larger operations. The
backward pass is written out for one reason: in the first epoch the loss needs the gradient of what sampling has computed
already. With it, nothing is computed twice (`replay`). A test compares its gradients with those of autograd.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, rms_norm, silu
from transformers import Qwen3ForCausalLM

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, queries (R, heads, size), keys and values (N, key heads, size)) -> (R, heads, size)"""
AttendBackward = Callable[[int, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""(what `Attend` took, gradient of what it gave) -> gradients of queries, keys and values, then of what else is attended
to: the keys and values of the prompts"""


def plain_qwen3(model: Any) -> bool:
    """Whether `qwen3` computes what this model does: what Policy.tiny makes, none of the architecture's variants."""
    config = model.config
    kinds, rope = set(getattr(config, "layer_types", [])), getattr(config, "rope_parameters", {})
    plain = kinds == {"full_attention"} and rope["rope_type"] == "default" and config.hidden_act == "silu"
    return type(model) is Qwen3ForCausalLM and plain and not config.attention_bias


class Layer(NamedTuple):
    """Weights of a layer; those that are used together are one matrix, with the weights of the norm before them."""

    qkv: Tensor  # of queries, keys and values
    head_norms: Tensor  # (heads + key heads, head size)
    out: Tensor
    gate_up: Tensor
    down: Tensor


def layers_of(model: Any) -> list[Layer]:
    """The weights of each layer; gradients flow through to the model's own."""
    heads, key_heads, found = model.config.num_attention_heads, model.config.num_key_value_heads, []
    for layer in model.model.layers:
        a, m = layer.self_attn, layer.mlp
        norms = torch.cat((a.q_norm.weight.expand(heads, -1), a.k_norm.weight.expand(key_heads, -1)))
        qkv = torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight)) * layer.input_layernorm.weight
        gate_up = torch.cat((m.gate_proj.weight, m.up_proj.weight)) * layer.post_attention_layernorm.weight
        found.append(Layer(qkv, norms, a.o_proj.weight, gate_up, m.down_proj.weight))
    return found


class Rotation(NamedTuple):
    """By which the positions of tokens turn their queries and keys (N, heads, size): (N, 1, size) each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def of(cls, model: Any, length: int) -> "Rotation":
        """Of positions 0 to `length` - 1."""
        rates = model.model.rotary_emb.inv_freq
        angle = (torch.arange(length, device=rates.device).unsqueeze(1) * rates).unsqueeze(1)
        cos, sin, dtype = angle.cos(), angle.sin(), next(model.parameters()).dtype
        return cls(torch.cat((cos, cos), dim=-1).to(dtype), torch.cat((-sin, sin), dim=-1).to(dtype))

    def at(self, position: Tensor) -> "Rotation":
        """Of tokens at these positions (N,)."""
        return Rotation(self.cos[position], self.sin[position])

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys, turned."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, dims=-1), self.sin)

    def turn_back(self, x: Tensor) -> Tensor:
        """The reverse, and so the gradient."""
        return torch.addcmul(x * self.cos, x.roll(x.shape[-1] // 2, dims=-1), self.sin, value=-1)


class Kept(NamedTuple):
    """What one layer computed and its gradient needs. In the last layer only R of the N tokens are read, else R = N."""

    x: Tensor  # (N, width): into the layer
    qkv: Tensor  # (N, heads + 2 * key heads, size): queries and keys before their norm, values
    mixed: Tensor  # (R, heads * size): out of attention
    middle: Tensor  # (R, width): into the MLP
    gate_up: Tensor  # (R, 2 * inner size)


def qwen3(
    model: Any, layers: Sequence[Layer], ids: Tensor, rotation: Rotation, attend: Attend, read: Tensor,
    kept: list[Kept] | None = None,
) -> Tensor:  # fmt: skip
    """What the last layer gives, (R, width), at the tokens `read` (R indices) among N tokens, ids (N,).

    `kept`: a list to which each layer adds what `backward` needs.
    """
    config, count = model.config, len(ids)
    heads, key_heads, size, epsilon = (
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.rms_norm_eps
    )  # fmt: skip
    x = model.model.embed_tokens(ids)
    width = x.shape[1:]
    for n, layer in enumerate(layers):
        given = x
        projected = linear(rms_norm(x, width, None, epsilon), layer.qkv).view(count, -1, size)
        qk, v = projected.split((heads + key_heads, key_heads), dim=1)
        q, k = rotation.turn(rms_norm(qk, (size,), None, epsilon) * layer.head_norms).split((heads, key_heads), dim=1)
        if n == len(layers) - 1 and len(read) < count:  # of the last layer nothing else is read
            x, q = x[read], q[read]
        mixed = attend(n, q, k, v).flatten(1)
        middle = x + linear(mixed, layer.out)
        gate_up = linear(rms_norm(middle, width, None, epsilon), layer.gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        x = middle + linear(silu(gate) * up, layer.down)
        if kept is not None:
            kept.append(Kept(given, projected, mixed, middle, gate_up))
    return x


def last_norm(model: Any, x: Tensor) -> Tensor:
    """The norm between the last layer and the head."""
    return rms_norm(x, x.shape[-1:], model.model.norm.weight, model.config.rms_norm_eps)


class Pass(NamedTuple):
    """A forward pass that is done."""

    kept: list[Kept]
    out: Tensor  # (R, width)
    read: Tensor  # (R,)
    rotation: Rotation  # of the N tokens
    epsilon: float


def replay(
    done: Pass, layers: Sequence[Layer], embedded: Tensor, attended: Sequence[Tensor], backward: AttendBackward
) -> Tensor:
    """`done.out` with gradients for the layers, the embeddings (N, width) and `attended`, whose gradients `backward` gives.

    `attended`: of each layer in turn what its tokens attend to beside each other.
    """
    weights = [weight for layer in layers for weight in layer]
    return _Replay.apply(done, layers, backward, embedded, *weights, *attended)


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, done: Pass, layers: Sequence[Layer], attend_backward: AttendBackward, *inputs: Tensor
    ) -> Tensor:
        ctx.done, ctx.layers, ctx.attend_backward = done, layers, attend_backward
        return done.out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        """`qwen3` from its end: `d` is the gradient of x, what has the name of a weight is that weight's."""
        (kept, _, read, rotation, epsilon), layers = ctx.done, ctx.layers
        weights: list[Tensor] = []
        attended: list[Tensor] = []
        for n in reversed(range(len(layers))):
            layer, (given, qkv, mixed, middle, both), last = layers[n], kept[n], n == len(layers) - 1
            # x = middle + down(silu(gate) * up)
            gate, up = both.chunk(2, dim=-1)
            opened, d_inner, d_both = silu(gate), d @ layer.down, torch.empty_like(both)
            down = d.T @ (opened * up)
            torch.mul(d_inner, opened, out=d_both[:, up.shape[1] :])
            torch.ops.aten.silu_backward(d_inner * up, gate, grad_input=d_both[:, : up.shape[1]])
            normed, scale = _normed(middle, epsilon)
            gate_up = d_both.T @ normed
            d = d + _norm_backward(d_both @ layer.gate_up, normed, scale)
            # middle = x + out(attention(q, k, v))
            out, d_mixed = d.T @ mixed, (d @ layer.out).unflatten(1, (-1, qkv.shape[2]))
            heads, normed_heads = d_mixed.shape[1], len(layer.head_norms)
            normed_qk, scale_qk = _normed(qkv[:, :normed_heads], epsilon)
            q, k = rotation.turn(normed_qk * layer.head_norms).tensor_split((heads,), dim=1)
            v = qkv[:, normed_heads:]
            dq, dk, dv, *beside = ctx.attend_backward(n, q[read] if last else q, k, v, d_mixed)
            if last and len(read) < len(q):
                dq = torch.zeros_like(q).index_copy_(0, read, dq)
            # q, k, v = turned(norm(qk)), v, of which qk, v = qkv(norm(x))
            d_qk = rotation.turn_back(torch.cat((dq, dk), dim=1))
            head_norms = (d_qk * normed_qk).sum(0)
            d_qk = _norm_backward(d_qk * layer.head_norms, normed_qk, scale_qk)
            d_qkv, (normed, scale) = torch.cat((d_qk, dv), dim=1).flatten(1), _normed(given, epsilon)
            w_qkv, d_given = d_qkv.T @ normed, _norm_backward(d_qkv @ layer.qkv, normed, scale)
            d = d_given.index_add_(0, read, d) if last else d_given + d
            weights[:0], attended[:0] = (w_qkv, head_norms, out, gate_up, down), beside
        return None, None, None, d, *weights, *attended


def _normed(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x divided by its root mean square, and what it was multiplied with for that."""
    scale = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return x * scale, scale


def _norm_backward(d: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
    """From the gradient of what `_normed` gave that of x."""
    return (d - normed * (d * normed).mean(-1, keepdim=True)) * scale
