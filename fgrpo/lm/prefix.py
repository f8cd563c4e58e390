"""The prompt is paid for once: one prompt per query in the cache, and the G rollouts grow from it as branches.

The branches are fed side by side, in one sequence per query. A mask lets each token see the prompt and the earlier tokens of
its own branch, and positions run on from the prompt's end in every branch. So the prompt is encoded once, its keys and
values are stored once (not G times), and gradients are those of G separate sequences to rounding. `rollout` finds out
whether a model allows it, by comparing log-probabilities (fgrpo.rollout).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from ..policy import Policy, positions
from ..prompt import Labels
from .static import attending, static_feed

CHUNK = 192  # tokens; tuned on 2 CPU cores, November 2026
FLEX = "flex_attention"
BLOCK_MASKS: set[str] = set()
"""kinds of device on which the loss has FlexAttention, which skips blocks that a mask hides whole. None until a GPU has
shown where that is faster than a dense mask: `python data/results/gpu.py` measures both"""
NO_BRANCH, PROMPT = -2, -1  # what a slot of the cache may hold beside branch 0, 1, ...: padding, the shared prompt


class SharedPolicy(Policy):
    """A policy whose rollouts of a query share its encoded prompt, until a comparison shows that its model cannot."""

    def __init__(self, model: Any, tokenizer: PreTrainedTokenizerBase, labels: Labels):
        super().__init__(model, tokenizer, labels)
        self.share = True

    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> "PrefixTree":
        """Encode prompts (Q, P), padded on the left. Of `tokens` (Q, K), if given, the logits are enough."""
        return PrefixTree(self.model, ids, mask)


class PrefixTree:
    """Encoded prompts (Q, P) and the branches fed so far. `logits` (Q, V) are those after each prompt."""

    static = True  # whether fgrpo.lm.static knows the model

    def __init__(self, model: Any, ids: Tensor, mask: Tensor):
        """Encode prompts, padded on the left; mask (Q, P) bool."""
        self.model, self.windows = model, sliding_windows(model.config)
        self.spent, self.group = False, 1
        self.versions = [p._version for p in model.parameters()]  # grow with every change in place, as an optimizer's
        self.queries = torch.arange(len(ids), device=ids.device)  # those still in the batch
        self.position = positions(mask)  # (Q, slots)
        self.branch = torch.where(mask, PROMPT, NO_BRANCH)  # (Q, slots)
        self.prompt_length = mask.sum(1, keepdim=True)  # (Q, 1)
        # a cache without configuration keeps every key; sliding windows are the mask's business
        out = model(
            ids, attention_mask=None if mask.all() else mask.long(), position_ids=self.position, cache=DynamicCache(),
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache, self.logits = out.cache, out.logits[:, -1]

    def extend(self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor) -> Tensor:
        """Feed tokens, (N,) each: token, its row (query * group + branch), how many tokens of the row precede it.

        Returns logits (R, V) after the tokens at which `read` is true. Rows of one query must follow each other, as
        must the tokens of one row.
        """
        query = row // self.group
        alive = torch.isin(self.queries, query)
        if alive.sum() <= 0.75 * len(alive):  # leaving costs a copy of the cache, so several leave together
            self.keep(alive.nonzero().squeeze(1))
        query = torch.searchsorted(self.queries, query)  # where in the batch
        column = torch.arange(len(ids), device=ids.device) - torch.searchsorted(query, query)
        shape = len(self.queries), int(column.max()) + 1

        def side_by_side(x: Tensor, padding: int) -> Tensor:  # (N,) -> (Q, W)
            return x.new_full(shape, padding).index_put((query, column), x)

        branch = side_by_side(row % self.group, NO_BRANCH)
        position = self.prompt_length + side_by_side(depth, 0)
        self.branch = torch.cat((self.branch, branch), dim=1)
        self.position = torch.cat((self.position, position), dim=1)
        masks = {kind: self.mask(branch, position, window) for kind, window in self.windows}
        out = self.model(
            side_by_side(ids, 0), attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            position_ids=position, cache=self.cache, use_cache=True,
        )  # fmt: skip
        return out.logits[query[read], column[read]]

    def mask(self, branch: Tensor, position: Tensor, window: int | None) -> Any:
        """Which slots the newest tokens see, as the model's attention takes it. branch, position (Q, W)."""
        slots, places = self.branch, self.position

        def sees(branch: Tensor, position: Tensor, slot: Tensor, place: Tensor) -> Tensor:
            distance = position - place
            seen = ((slot == PROMPT) | (slot == branch)) & (distance >= 0)
            return seen & (distance < window) if window else seen

        kind = self.model.config._attn_implementation
        if kind == FLEX:
            from torch.nn.attention.flex_attention import create_block_mask

            return create_block_mask(
                lambda q, head, w, s: sees(branch[q, w], position[q, w], slots[q, s], places[q, s]),
                len(branch), None, branch.shape[1], slots.shape[1], device=str(branch.device),
            )  # fmt: skip
        mask = sees(branch.unsqueeze(2), position.unsqueeze(2), slots.unsqueeze(1), places.unsqueeze(1)).unsqueeze(1)
        if kind != "eager":
            return mask  # (Q, 1, W, slots)
        dtype = self.logits.dtype  # eager attention adds a mask to its scores
        return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)

    def feed(self, group: int, completions: Tensor, begun: int) -> Callable[[Tensor, Tensor], Tensor]:
        """Feed each row's new tokens as a branch of its query's prompt. Rows that ended are fed no more.

        completions (Q * group, T), written by others between two calls; the first `begun` tokens of every row are
        encoded with the prompt. Returns a function: (rows still decoding, length of every row) -> logits (rows, V)
        after the last token of each. On a GPU it may be that of fgrpo.lm.static.
        """
        if static := static_feed(self, group, completions, begun, lambda: self._feed(group, completions, begun)):
            return static
        return self._feed(group, completions, begun)

    def _feed(self, group: int, completions: Tensor, begun: int) -> Callable[[Tensor, Tensor], Tensor]:
        size = completions.shape[1]
        tree, depth = self.fork(group, size), torch.arange(size, device=completions.device)
        fed = torch.full((len(completions), 1), begun, device=completions.device)  # tokens of each row seen by the tree

        def logits_after(rows: Tensor, length: Tensor) -> Tensor:
            if length.max() == begun:
                return tree.logits[rows // group]
            written = length[rows].unsqueeze(1)
            which, at = ((depth >= fed[rows]) & (depth < written)).nonzero(as_tuple=True)
            fed[rows] = written
            row = rows[which]
            return tree.extend(completions[row, at], row, at - begun, at == length[row] - 1)

        return logits_after

    def completion_logits(self, completions: Tensor, wanted: Tensor, fed: Tensor, begun: int) -> Tensor:
        """Logits before the `wanted` tokens of whole branches. completions, wanted, fed (Q * group, T) -> (..., T, V).

        `fed`: the tokens that are needed, those before a wanted one; the first `begun` are encoded with the prompt.
        """
        (rows, length), prompt = completions.shape, self.branch.shape[1] - begun
        group = rows // len(self.logits)
        # the logits after the prompt predict the first token of every branch; each later one needs those before it fed
        logits = self.logits.repeat_interleave(group, dim=0).unsqueeze(1).expand(-1, length, -1)
        order = torch.arange(length, device=fed.device)
        branch, fed = torch.arange(rows, device=fed.device) % group, fed & (order >= begun)
        size, parts = self.at_once(prompt, length), []
        flex = fed.device.type in BLOCK_MASKS
        for n in range(0, group, size):
            row, at = (fed & ((branch >= n) & (branch < n + size)).unsqueeze(1)).nonzero(as_tuple=True)
            if len(row):
                read = wanted[row, at + 1]
                with attending(self.model.config, FLEX) if flex else nullcontext():
                    found = self.fork(group, length).extend(completions[row, at], row, at - begun, read)
                parts.append((row[read], at[read] + 1, found))
        if not parts:
            return logits
        row, at, found = (torch.cat(x) for x in zip(*parts, strict=True))
        return logits.index_put((row, at), found)

    def prompt_parts(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Keys and values of the prompts, (Q, key heads, P, size) of each layer, and which tokens are no padding (Q, P)."""
        return [(layer.keys, layer.values) for layer in self.cache.layers], self.branch == PROMPT

    def logits_of(self, hidden: Tensor, rows: Tensor, group: int) -> Tensor:
        """Logits (R, V) of hidden states (R, width) of these rows."""
        return self.model.get_output_embeddings()(hidden)

    def take(self) -> bool:
        """Whether the loss may still grow from this tree: it carries a gradient, once, until the weights change."""
        fresh = not self.spent and self.versions == [p._version for p in self.model.parameters()]
        self.spent = True
        return fresh and self.logits.requires_grad

    def fork(self, group: int, length: int) -> "PrefixTree":
        """The same prompts with a cache of their own, not copied, for `group` branches each of at most `length` tokens."""
        other = copy(self)
        other.group, other.cache = group, copy(self.cache)
        other.cache.layers = [copy(layer) for layer in self.cache.layers]
        return other

    def keep(self, places: Tensor) -> None:
        """Drop all queries but these (places in the batch)."""
        self.cache.batch_select_indices(places)
        self.branch, self.position, self.queries = self.branch[places], self.position[places], self.queries[places]
        self.prompt_length = self.prompt_length[places]

    @staticmethod
    def at_once(prompt: int, length: int) -> int:
        """How many branches of a length to feed together.

        Attention is computed between all of them and masked across, so that their tokens should be fewer than the
        prompt's; but each feeding costs a call of the model, so that a few hundred tokens should go together at least.
        """
        return max(1, max(CHUNK, prompt // 2) // max(1, length))


def sliding_windows(config: Any) -> list[tuple[str, int | None]]:
    """Each kind of attention layer of a model with its window (None: no limit)."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds: Sequence[str] = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return [(kind, window if kind == "sliding_attention" else None) for kind in dict.fromkeys(kinds)]
