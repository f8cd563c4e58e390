"""The prompt is paid for once: one prompt per query in the cache, and the G rollouts grow from it as branches.

The branches are fed side by side, in one sequence per query. A mask lets each token see the prompt and the earlier tokens of
its own branch, and positions run on from the prompt's end in every branch. So the prompt is encoded once, its keys and
values are stored once (not G times), and gradients are those of G separate sequences to rounding.
"""

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

CHUNK = 192  # tokens; tuned on 2 CPU cores, November 2026
KEEP_FROM = 256  # tokens of a prompt from which its graph is kept between sampling and loss; below, it saves little
NO_BRANCH, PROMPT = -2, -1  # what a slot of the cache may hold beside branch 0, 1, ...: padding, the shared prompt


class PrefixTree:
    """Encoded prompts (Q, P) and the branches fed so far. `logits` (Q, V) are those after each prompt."""

    def __init__(self, model: Any, ids: Tensor, mask: Tensor):
        """Encode prompts, padded on the left; mask (Q, P) bool."""
        self.model, self.windows = model, sliding_windows(model.config)
        self.spent = False
        self.versions = [p._version for p in model.parameters()]  # grow with every change in place, as an optimizer's
        self.position = positions(mask)  # (Q, slots)
        self.branch = torch.where(mask, PROMPT, NO_BRANCH)  # (Q, slots)
        self.prompt_length = mask.sum(1, keepdim=True)  # (Q, 1)
        # a cache without configuration keeps every key; sliding windows are the mask's business
        out = model(
            ids, attention_mask=None if mask.all() else mask.long(), position_ids=self.position, cache=DynamicCache(),
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        self.cache, self.logits = out.cache, out.logits[:, -1]

    def extend(self, ids: Tensor, branch: Tensor, depth: Tensor) -> Tensor:
        """Feed tokens, (Q, W) each: token, its branch (NO_BRANCH: padding), how many tokens of the branch precede it.

        Returns logits (Q, W, V). Tokens of one branch must come in order, of different branches in any.
        """
        position = self.prompt_length + depth
        self.branch = torch.cat((self.branch, branch), dim=1)
        self.position = torch.cat((self.position, position), dim=1)
        distance = position.unsqueeze(2) - self.position.unsqueeze(1)  # (Q, W, slots)
        slot = self.branch.unsqueeze(1)
        sees = ((slot == PROMPT) | (slot == branch.unsqueeze(2))) & (distance >= 0)
        masks = {}
        for kind, window in self.windows:
            mask = (sees & (distance < window) if window else sees).unsqueeze(1)  # with a dimension for heads
            if self.model.config._attn_implementation == "eager":  # which adds a mask to its scores
                dtype = self.logits.dtype
                mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
            masks[kind] = mask
        out = self.model(
            ids, attention_mask=masks if len(masks) > 1 else next(iter(masks.values())), position_ids=position,
            cache=self.cache, use_cache=True,
        )  # fmt: skip
        return out.logits

    def take(self) -> bool:
        """Whether the loss may still grow from this tree: it carries a gradient, once, until the weights change."""
        fresh = not self.spent and self.versions == [p._version for p in self.model.parameters()]
        self.spent = True
        return fresh and self.logits.requires_grad

    def fork(self) -> "PrefixTree":
        """The same prompt with a cache of its own to grow in; its present content is shared, not copied."""
        other = copy(self)
        other.cache = copy(self.cache)
        other.cache.layers = [copy(layer) for layer in self.cache.layers]
        return other

    def keep(self, queries: Tensor) -> None:
        """Drop all queries but these (indices) from the batch."""
        self.cache.batch_select_indices(queries)
        self.branch, self.position = self.branch[queries], self.position[queries]
        self.prompt_length = self.prompt_length[queries]


def feed_branches(tree: PrefixTree, group: int, completions: Tensor, begun: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Feed each row's new tokens as a branch of its query's prompt. Rows and queries that ended are fed no more.

    completions (Q * group, T), written by others between two calls; the first `begun` tokens of every row are encoded
    with the prompt. Returns a function: (rows still decoding, length of every row) -> logits (rows, V) after the last
    token of each.
    """
    fed = torch.full((len(completions),), begun, device=completions.device)  # tokens of each row that the tree has seen
    in_batch = torch.arange(len(completions) // group, device=completions.device)  # queries still in the tree

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal in_batch
        if length.max() == begun:
            return tree.logits[rows // group]
        going = torch.zeros_like(length, dtype=torch.bool).index_fill_(0, rows, True)  # (B,)
        alive = going.view(-1, group)[in_batch].any(1)
        if alive.sum() <= 0.75 * len(alive):  # leaving costs a copy of the cache, so several leave together
            tree.keep(alive.nonzero().squeeze(1))
            in_batch = in_batch[alive]
        depth = torch.arange(completions.shape[1], device=fed.device)
        new = (depth >= fed.unsqueeze(1)) & (depth < length.unsqueeze(1)) & going.unsqueeze(1)  # (B, T)
        new = new.view(-1, group * len(depth))[in_batch]  # (Q, G * T)
        width = int(new.sum(1).max())
        # (Q, W): which tokens to feed, each as (row in the query) * T + depth
        where = new.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        valid, branch, at = new.gather(1, where), where // len(depth), where % len(depth)
        tokens = completions.view(-1, group * len(depth))[in_batch].gather(1, where)
        logits = tree.extend(tokens, branch.masked_fill(~valid, NO_BRANCH), at - begun)  # (Q, W, V)
        row = in_batch.unsqueeze(1) * group + branch
        last = valid & (at == length[row] - 1)
        found = logits.new_zeros(len(length), logits.shape[-1])
        found[row[last]] = logits[last]
        fed[rows] = length[rows]
        return found[rows]

    return logits_after


def branches_at_once(prompt: int, length: int) -> int:
    """How many branches of a length to feed together.

    Attention is computed between all of them and masked across, so that their tokens should be fewer than the
    prompt's; but each feeding costs a call of the model, so that a few hundred tokens should go together at least.
    """
    return max(1, max(CHUNK, prompt // 2) // max(1, length))


def positions(mask: Tensor) -> Tensor:
    """Position of each token, counted from its row's first real token."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def sliding_windows(config: Any) -> list[tuple[str, int | None]]:
    """Each kind of attention layer of a model with its window (None: no limit)."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    kinds: Sequence[str] = getattr(text, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    return [(kind, window if kind == "sliding_attention" else None) for kind in dict.fromkeys(kinds)]
