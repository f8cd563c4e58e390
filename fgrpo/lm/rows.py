"""The tiny policy's fast way to feed rollouts: their tokens in one sequence, each attending to the slots of its own row.

A model as small as the lab's spends most of its time on what the mask of fgrpo.prefix hides: branches attend to each
other, and shorter ones are padded. Here every rollout has a row of keys and values of its own, a copy of its prompt's
included, which costs memory but is cheap where prompts are short; longer ones are left to fgrpo.prefix. Linear layers
see the tokens that are there and no padding, and the head computes the logits of each query's choices only. Everything
else is transformers' own Qwen3, whose attention function can be replaced by name.
"""

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ..policy import Policy
from ..prefix import PrefixTree

KEPT = ("keys", "values")  # of a layer of transformers' cache
SHORT = 256
"""number of prompt tokens up to which each rollout gets a copy of its prompt's keys and values"""
FEW = 4
"""number of queries of a row up to which plain products are faster than torch's fused attention on a CPU"""


class RowPolicy(Policy):
    """A tiny policy (Policy.tiny) that feeds rollouts of short prompts by row. Its results are the same to rounding."""

    def __init__(self, model: Any, *args: Any):
        super().__init__(model, *args)
        model.set_attn_implementation("rows")

    def decoding(self) -> AbstractContextManager[None]:
        """A context in which tokens are sampled: without what autograd would need."""
        return torch.inference_mode()

    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> PrefixTree:
        """Encode prompts (Q, P). Of `tokens` (Q, K), if given, the logits are enough."""
        return PrefixTree(self.model, ids, mask) if ids.shape[1] > SHORT else RowTree(self.model, ids, mask, tokens)


@dataclass(frozen=True)
class Feed:
    """Where N fed tokens belong: row of B, place among those fed to the row now, slot of the row. And what they see."""

    row: Tensor
    place: Tensor
    slot: Tensor
    shape: tuple[int, int]  # rows, tokens of the row that gets most
    mask: Tensor  # (B, 1, places, slots): 0 where a token sees a slot, -inf elsewhere

    def grid(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, places, ...), 0 where a row has fewer tokens."""
        if len(x) == self.shape[0] * self.shape[1]:
            return x.view(*self.shape, *x.shape[1:])
        return x.new_zeros(*self.shape, *x.shape[1:]).index_put((self.row, self.place), x)

    def flat(self, x: Tensor) -> Tensor:
        """The reverse of `grid`."""
        return x.flatten(0, 1) if len(self.row) == self.shape[0] * self.shape[1] else x[self.row, self.place]


class RowTree(PrefixTree):
    """Encoded prompts, and the keys and values of each rollout in a row of its own."""

    keys: list[Tensor]  # of each layer, (B, key heads, prompt + completion, head size)
    values: list[Tensor]
    hidden: Tensor  # (B, 1, 1, slots): -inf at the padding of prompts
    first: Tensor  # (B,): position of the first token after the prompt
    fed: Tensor  # (B,): number of tokens that each row holds

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, tokens: Tensor | None):
        super().__init__(model, ids, mask)
        self.head: Tensor | None = None  # of each query's choices, (Q, K, hidden size)
        if tokens is not None:
            tokens = tokens.clamp(min=0)  # a pool shorter than the longest
            self.head, self.logits = model.lm_head.weight[tokens], self.logits.gather(1, tokens)

    def fork(self, group: int, length: int) -> "RowTree":
        """The same prompts with room for `group` rows of `length` tokens each."""
        other = super().fork(group, length)
        assert isinstance(other, RowTree)

        def rows(x: Tensor, value: float = 0.0) -> Tensor:  # (Q, heads, P, size) -> (B, heads, P + length, size)
            x = pad(x, (0, 0, 0, length), value=value)
            return x.unsqueeze(1).expand(-1, group, -1, -1, -1).flatten(0, 1).contiguous()  # of one query too

        other.keys, other.values = ([rows(getattr(layer, name)) for layer in self.cache.layers] for name in KEPT)
        hidden = torch.zeros_like(self.branch, dtype=self.logits.dtype).masked_fill(self.branch < -1, float("-inf"))
        other.hidden = rows(hidden.unsqueeze(1).unsqueeze(-1)).transpose(2, 3)
        other.first = self.prompt_length.repeat_interleave(group)
        other.fed = torch.zeros(len(other.hidden), dtype=torch.long, device=hidden.device)
        return other

    def extend(self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor) -> Tensor:
        """As PrefixTree.extend; returns the logits of the query's `tokens`, if those were given."""
        prompt, place = self.branch.shape[1], depth - self.fed[row]
        shape, end = (len(self.fed), int(place.max()) + 1), prompt + int(depth.max()) + 1
        sees = prompt + self.fed.unsqueeze(1) + torch.arange(shape[1], device=ids.device)  # (B, places): its own slot
        later = torch.arange(end, device=ids.device) > sees.unsqueeze(-1)
        mask = self.hidden[..., :end].masked_fill(later.unsqueeze(1), float("-inf"))
        feed = Feed(row, place, prompt + depth, shape, mask)
        self.fed = self.fed + torch.bincount(row, minlength=shape[0])
        out = self.model.model(
            ids.unsqueeze(0), attention_mask={"full_attention": None}, use_cache=False,
            position_ids=(self.first[row] + depth).unsqueeze(0), rows=(self, feed),
        ).last_hidden_state.squeeze(0)  # (N, hidden size)  # fmt: skip
        if self.head is None:
            return self.model.lm_head(out[read])
        logits = feed.grid(out).view(len(self.head), -1, out.shape[-1]) @ self.head.transpose(1, 2)
        return feed.flat(logits.view(*shape, -1))[read]

    @staticmethod
    def at_once(prompt: int, length: int) -> int:
        """All branches: attention between them is not computed."""
        return sys.maxsize

    def attend(self, feed: Feed, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Attention of fed tokens to their rows, whose new keys and values are written first. (N, heads, size) each."""
        keys, values = self.keys[layer], self.values[layer]
        keys[feed.row, :, feed.slot], values[feed.row, :, feed.slot] = k, v
        (rows, places), end, heads = feed.shape, feed.mask.shape[-1], k.shape[1]
        keys, values, q = keys[:, :, :end], values[:, :, :end], feed.grid(q)  # q: (B, places, heads, size)
        if places > FEW:
            out = scaled_dot_product_attention(
                q.transpose(1, 2), keys, values, attn_mask=feed.mask, scale=scale, enable_gqa=True
            )
            return feed.flat(out.transpose(1, 2))
        q = q.view(rows, places, heads, -1, q.shape[-1]).transpose(1, 2).flatten(2, 3)  # heads that share keys together
        scores = (q @ keys.transpose(2, 3)).view(rows, heads, places, -1, end) * scale + feed.mask.unsqueeze(3)
        out = scores.softmax(-1).flatten(2, 3) @ values
        return feed.flat(out.view(rows, heads, places, -1, k.shape[-1]).transpose(1, 2).flatten(2, 3))


def row_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float,
    rows: tuple[RowTree, Feed] | None = None, **options: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """The attention of a RowPolicy's model: torch's, unless a RowTree feeds it."""
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    tree, feed = rows
    q, k, v = (x.squeeze(0).transpose(0, 1) for x in (query, key, value))
    return tree.attend(feed, module.layer_idx, q, k, v, scaling).unsqueeze(0), None


AttentionInterface.register("rows", row_attention)
AttentionMaskInterface.register("rows", sdpa_mask)
