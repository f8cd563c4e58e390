"""The tiny policy's fast way to feed rollouts: their tokens in one sequence, each attending to the slots of its own row.

A model as small as the lab's spends most of its time on what the mask of fgrpo.lm.prefix hides: branches attend to each
other, and shorter ones are padded. Here every rollout has a row of keys and values of its own, in memory set aside at its
start. Where prompts are short it holds a copy of the prompt's too (`RowTree`); longer ones are held once (`BranchTree`).
Linear layers see the tokens that are there and no padding, the last layer computes only what is read, and the head the
logits of each query's choices (fgrpo.lm.qwen3). What sampling computes from prompts that are kept for the loss is recorded
(`Record`), so that the loss has a backward pass alone.
"""

import sys
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention

from ..policy import positions
from .attention import two_parts, two_parts_fused
from .prefix import NO_BRANCH, PROMPT, PrefixTree, SharedPolicy
from .qwen3 import Kept, Pass, Rotation, last_norm, layers_of, plain_qwen3, qwen3, replay

SHORT = 256
"""number of prompt tokens up to which each rollout gets a copy of its prompt's keys and values (at 128 it costs the same)"""
FEW = 4
"""number of queries of a row up to which plain products are faster than torch's fused attention on a CPU"""
EVEN = 16
"""plain products take slots in multiples of this, the last ones hidden: a tenth of a rollout's time on a CPU"""


class RowPolicy(SharedPolicy):
    """A tiny policy (Policy.tiny) that feeds rollouts of short prompts by row. Its results are the same to rounding."""

    def decoding(self) -> AbstractContextManager[None]:
        """A context in which tokens are sampled: without what autograd would need."""
        return torch.inference_mode()

    def grow(self, ids: Tensor, mask: Tensor, tokens: Tensor | None) -> PrefixTree:
        """Encode prompts (Q, P). Of `tokens` (Q, K), if given, the logits are enough."""
        if not plain_qwen3(self.model):
            return PrefixTree(self.model, ids, mask)
        return (RowTree if ids.shape[1] <= SHORT else BranchTree)(self.model, ids, mask, tokens)


@dataclass(frozen=True)
class Feed:
    """Where fed tokens belong. `row` of B and `place` among those fed to it now: of those whose attention is computed."""

    row: Tensor
    place: Tensor
    written: tuple[Any, ...]  # index of the slots, in keys and values, of all N tokens
    shape: tuple[int, int]  # rows, tokens of the row that gets most
    mask: Tensor  # 0 where a token sees a slot, -inf elsewhere: (B, 1, places, slots), or as two_parts takes it
    by_place: bool = False  # the tokens are in the order of places, not of rows

    def grid(self, x: Tensor) -> Tensor:
        """(N, ...) -> (B, places, ...), 0 where a row has fewer tokens."""
        if len(x) < self.shape[0] * self.shape[1]:
            return x.new_zeros(*self.shape, *x.shape[1:]).index_put((self.row, self.place), x)
        if self.by_place:
            return x.view(*self.shape[::-1], *x.shape[1:]).transpose(0, 1)
        return x.view(*self.shape, *x.shape[1:])

    def flat(self, x: Tensor) -> Tensor:
        """The reverse of `grid`."""
        if len(self.row) < self.shape[0] * self.shape[1]:
            return x[self.row, self.place]
        return (x.transpose(0, 1) if self.by_place else x).flatten(0, 1)


class Fed(NamedTuple):
    """All tokens of a record, in the order of depths, with what each layer computed."""

    ids: Tensor  # (N,)
    row: Tensor
    depth: Tensor
    read: Tensor  # (R,): which tokens have logits that were read
    kept: list[Kept]
    out: Tensor  # (R, width)


class Record:
    """What sampling feeds, for the loss: tensors (T, B, ...), by depth and row, of which as much is used as was fed."""

    def __init__(self, rows: int, length: int, device: torch.device):
        self.fed, self.read = (torch.zeros(length, rows, dtype=torch.bool, device=device) for _ in range(2))
        self.tensors: list[Tensor] = []  # token, layers, output

    def add(
        self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor, kept: list[Kept], out: Tensor, begin: int
    ) -> None:
        """Tokens (N,) of which R indices are read. `begin`: their first depth, if all rows get as many, -1 otherwise."""
        length, rows = self.fed.shape
        tensors = [ids, *(x for layer in kept for x in layer), out]
        of_all = len(tensors) - len(Kept._fields) + 1  # the others are of R tokens: from the last layer's attention on
        if not self.tensors:
            with torch.inference_mode(False):  # the loss computes with them
                self.tensors = [
                    torch.empty(length, rows, *x.shape[1:], dtype=x.dtype, device=x.device) for x in tensors
                ]
        end, at, at_read = begin + len(row) // rows, (depth, row), (depth[read], row[read])
        if begin >= 0 and len(read) == rows:  # whole rows of the record, which need no index
            self.fed[begin:end], self.read[end - 1] = True, True
            for n, (place, x) in enumerate(zip(self.tensors, tensors, strict=True)):
                place[begin if n < of_all else end - 1 : end] = x.unflatten(0, (rows, -1)).transpose(0, 1)
            return
        self.fed[at], self.read[at_read] = True, True
        for n, (place, x) in enumerate(zip(self.tensors, tensors, strict=True)):
            place[at if n < of_all else at_read] = x

    def all(self) -> Fed:
        """All that was fed, and the record is empty."""
        at, at_read, rows = self.fed.nonzero(as_tuple=True), self.read.nonzero(as_tuple=True), self.fed.shape[1]
        places, (ids, *tensors, out) = int(at[0][-1]) + 1, self.tensors
        whole, which = len(at[0]) == places * rows, self.read.any(1)
        depths = which.nonzero().squeeze(1) if torch.equal(which, self.read.all(1)) else None

        def tokens(x: Tensor) -> Tensor:
            return x[:places].flatten(0, 1) if whole else x[at]

        def reads(x: Tensor) -> Tensor:
            return x[at_read] if depths is None else x.index_select(0, depths).flatten(0, 1)

        self.tensors, kept, fields = [], [], len(Kept._fields)
        for n in range(0, len(tensors), fields):
            x, qkv, *rest = tensors[n : n + fields]
            some = tokens if n + fields < len(tensors) else reads
            kept.append(Kept(tokens(x), tokens(qkv), *(some(x) for x in rest)))
        return Fed(tokens(ids), at[1], at[0], self.read[at].nonzero().squeeze(1), kept, reads(out))


class RowTree(PrefixTree):
    """Encoded prompts, and the keys and values of each rollout in a row of its own."""

    keys: list[Tensor]  # of each layer, (B, key heads, prompt + completion, head size)
    values: list[Tensor]
    hidden: Tensor  # (B, 1, 1, slots): -inf at the padding of prompts
    first: Tensor  # (B,): position of the first token after the prompt
    fed: Tensor  # (B,): number of tokens that each row holds
    level: int | None  # slots of every row that are written, where they are as many
    rotation: Rotation  # of every position
    record: Record | None = None  # of what is fed
    sampled: "RowTree | None" = None  # the fork that recorded the last rollouts
    start: int  # slots of a row before its first token
    prompt_keys: list[Tensor]  # of each layer, (Q, key heads, P, head size)
    prompt_values: list[Tensor]

    def __init__(self, model: Any, ids: Tensor, mask: Tensor, tokens: Tensor | None):
        self.model, self.spent, self.group = model, False, 1
        self.versions = [p._version for p in model.parameters()]
        self.branch, self.prompt_length = torch.where(mask, PROMPT, NO_BRANCH), mask.sum(1, keepdim=True)
        self.layers = layers_of(model)
        rotation = Rotation.of(model, ids.shape[1]).at(positions(mask).flatten())
        (queries, length), order = ids.shape, torch.arange(ids.shape[1], device=ids.device)
        kept: list[tuple[Tensor, Tensor]] = []
        padded = ids.shape[1] <= SHORT or not mask.all()  # otherwise half of the work is left out, which pays if long

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            q, k, v = (x.view(queries, -1, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
            kept.append((k.contiguous(), v.contiguous()))
            every, own = q.shape[2] == length, None
            if padded or not every:
                at = (order.expand(queries, -1) if every else read).unsqueeze(2)  # (Q, R, 1)
                # padding sees itself, since a token that sees nothing has no attention at all
                own = ((order <= at) & (mask.unsqueeze(1) | (order == at))).unsqueeze(1)
            out = scaled_dot_product_attention(q, k, v, attn_mask=own, is_causal=own is None, enable_gqa=True)
            return out.transpose(1, 2).flatten(0, 1)

        read = self.read(ids)
        flat = (read + length * torch.arange(queries, device=ids.device).unsqueeze(1)).flatten()
        out = qwen3(model, self.layers, ids.flatten(), rotation, attend, flat)
        out = last_norm(model, out).view(*read.shape, -1)
        self.prompt_keys, self.prompt_values = [k for k, _ in kept], [v for _, v in kept]
        self.head, out = self.choices(ids, out, tokens), out[:, -1]
        if self.head is None:
            self.logits = model.lm_head(out)
        else:
            self.logits = (self.head @ self.asking(out).unsqueeze(-1)).squeeze(-1)

    def read(self, ids: Tensor) -> Tensor:
        """Places (Q, R) in prompts (Q, P) whose hidden states are read, the last token's last."""
        return torch.full((len(ids), 1), ids.shape[1] - 1, device=ids.device)

    def choices(self, ids: Tensor, out: Tensor, tokens: Tensor | None) -> Tensor | None:
        """What `asking` is multiplied with for the logits of tokens (Q, K): (Q, K, size); None: the whole head.

        `out` (Q, R, hidden size): what was `read`.
        """
        return None if tokens is None else embedding(tokens.clamp(min=0), self.model.lm_head.weight)  # -1: no choice

    def asking(self, hidden: Tensor) -> Tensor:
        """Hidden states, (..., size) of `choices`."""
        return hidden

    def prompt_parts(self) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """As PrefixTree.prompt_parts."""
        return list(zip(self.prompt_keys, self.prompt_values, strict=True)), self.branch == PROMPT

    def logits_of(self, hidden: Tensor, rows: Tensor, group: int) -> Tensor:
        """As PrefixTree.logits_of; of the query's `tokens`, if those were given."""
        if self.head is None:
            return super().logits_of(hidden, rows, group)
        return (self.head[rows // group] @ self.asking(hidden).unsqueeze(-1)).squeeze(-1)

    def fork(self, group: int, length: int) -> "RowTree":
        """The same prompts with room for `group` rows of `length` tokens each."""
        other = copy(self)
        other.group, other.start = group, self.branch.shape[1]
        other.rotation, other.level = Rotation.of(self.model, other.start + length), other.start
        self.let_record(other, length)

        def rows(x: Tensor, value: float = 0.0) -> Tensor:  # (Q, heads, P, size) -> (B, heads, P + length, size)
            x = pad(x, (0, 0, 0, length), value=value)
            return x.unsqueeze(1).expand(-1, group, -1, -1, -1).flatten(0, 1).contiguous()  # of one query too

        other.keys, other.values = ([rows(x) for x in each] for each in (self.prompt_keys, self.prompt_values))
        hidden = torch.zeros_like(self.branch, dtype=self.logits.dtype).masked_fill(self.branch < -1, float("-inf"))
        other.hidden = rows(hidden.unsqueeze(1).unsqueeze(-1)).transpose(2, 3)
        other.first = self.prompt_length.repeat_interleave(group)
        other.fed = torch.zeros(len(other.hidden), dtype=torch.long, device=hidden.device)
        return other

    def let_record(self, other: "RowTree", length: int) -> None:
        """A fork that samples records, where the prompts are kept for the loss."""
        if self.logits.requires_grad and not torch.is_grad_enabled():
            self.sampled, other.record = other, Record(other.group * len(self.branch), length, self.branch.device)

    def extend(self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor) -> Tensor:
        """As PrefixTree.extend; returns the logits of the query's `tokens`, if those were given."""
        where = read.nonzero().squeeze(1)
        feed, part = self.feeds(row, depth, where)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(feed if len(q) == len(ids) else part, layer, q, k, v)

        kept: list[Kept] = []
        rotation = self.rotation.at(self.first[row] + depth)
        out = qwen3(self.model, self.layers, ids, rotation, attend, where, None if self.record is None else kept)
        if self.record is not None:
            begin = feed.written[2].start - self.start if isinstance(feed.written[0], slice) else -1
            self.record.add(ids, self.numbered(row), depth, where, kept, out, begin)
        return self.answers(out, part)

    def numbered(self, row: Tensor) -> Tensor:
        """Rows of the batch as others number them."""
        return row

    def feeds(self, row: Tensor, depth: Tensor, read: Tensor, plain: bool = False) -> tuple[Feed, Feed]:
        """Where tokens belong that are fed now, (N,) each: all of them, and those that are read (R indices).

        `plain`: their attention is computed by plain products, many as they are.
        """
        place = depth - self.fed[row]
        shape, end = (len(self.fed), int(place.max()) + 1), self.start + int(depth.max()) + 1
        if plain or shape[1] <= FEW:
            end = min(-(-end // EVEN) * EVEN, self.keys[0].shape[-2])
        own = self.start + self.fed.unsqueeze(1) + torch.arange(shape[1], device=row.device)  # slots (B, places)
        later = torch.arange(end, device=row.device) > own.unsqueeze(-1)
        mask = self.hidden[..., :end].masked_fill(later.unsqueeze(1), float("-inf"))
        feed = self.laid_out(row, place, self.start + depth, shape, mask)
        self.fed = self.fed + torch.bincount(row, minlength=shape[0])
        return feed, replace(feed, row=row[read], place=place[read]) if len(read) < len(row) else feed

    def answers(self, hidden: Tensor, read: Feed) -> Tensor:
        """Logits of what was `read`, from hidden states (R, hidden size) before the last norm."""
        hidden = self.asking(last_norm(self.model, hidden))
        if self.head is None:
            return self.model.lm_head(hidden)
        logits = read.grid(hidden).reshape(len(self.head), -1, hidden.shape[-1]) @ self.head.transpose(1, 2)
        return read.flat(logits.view(*read.shape, -1))

    def completion_logits(self, completions: Tensor, wanted: Tensor, fed: Tensor, begun: int) -> Tensor:
        """As PrefixTree.completion_logits. Of tokens that were fed and read by sampling nothing is computed again."""
        tree, length = self.sampled, completions.shape[1]
        if tree is None or tree.record is None or not tree.record.tensors or not torch.is_grad_enabled():
            return super().completion_logits(completions, wanted, fed, begun)
        ids, row, depth, read, kept, out = tree.record.all()
        at = row[read], begun + depth[read] + 1
        known = torch.zeros_like(wanted).index_put(at, wanted.new_ones(()))
        if (known != wanted)[:, begun + 1 :].any() or (completions[row, begun + depth] != ids).any():
            return super().completion_logits(completions, wanted, fed, begun)
        again = self.again(tree, length)
        feed, part = (replace(x, by_place=True) for x in again.feeds(row, depth, read, plain=again is tree))

        def attend_backward(layer: int, q: Tensor, k: Tensor, v: Tensor, d: Tensor) -> tuple[Tensor, ...]:
            return again.attend_backward(feed, feed if len(q) == len(ids) else part, layer, q, k, v, d)

        done = Pass(kept, out, read, again.rotation.at(again.first[row] + depth), self.model.config.rms_norm_eps)
        prompts = [x for both in zip(self.prompt_keys, self.prompt_values, strict=True) for x in both]
        found = replay(done, self.layers, self.model.model.embed_tokens(ids), prompts, attend_backward)
        logits = self.logits.repeat_interleave(tree.group, dim=0).unsqueeze(1).expand(-1, length, -1)
        return logits.index_put(at, self.answers(found, part))

    def again(self, sampled: "RowTree", length: int) -> "RowTree":
        """A fork for the attention's backward pass, to which nothing is fed yet: the one that sampled."""
        sampled.fed, sampled.level = torch.zeros_like(sampled.fed), sampled.start
        return sampled

    def laid_out(self, row: Tensor, place: Tensor, slot: Tensor, shape: tuple[int, int], mask: Tensor) -> Feed:
        """The tokens of an `extend`, for `attend`."""
        begin = self.level
        if begin is None or len(row) < shape[0] * shape[1]:
            self.level = None
            return Feed(row, place, (row, slice(None), slot), shape, mask)
        self.level = begin + shape[1]  # every row gets as many tokens, into the same slots
        return Feed(row, place, (slice(None), slice(None), slice(begin, self.level)), shape, mask)

    @staticmethod
    def at_once(prompt: int, length: int) -> int:
        """All branches: attention between them is not computed."""
        return sys.maxsize

    def attend(self, feed: Feed, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of fed tokens to their rows, whose new keys and values are written first. (N, heads, size) each."""
        keys, values = self.keys[layer], self.values[layer]
        whole = isinstance(feed.written[0], slice)
        keys[feed.written], values[feed.written] = (feed.grid(x).transpose(1, 2) if whole else x for x in (k, v))
        (rows, places), end, heads = feed.shape, feed.mask.shape[-1], k.shape[1]
        keys, values, q = keys[:, :, :end], values[:, :, :end], feed.grid(q)  # q: (B, places, heads, size)
        if places > FEW:
            out = scaled_dot_product_attention(q.transpose(1, 2), keys, values, attn_mask=feed.mask, enable_gqa=True)
            return feed.flat(out.transpose(1, 2))
        q = q.view(rows, places, heads, -1, q.shape[-1]).transpose(1, 2).flatten(2, 3)  # heads that share keys together
        scores = (q @ keys.transpose(2, 3)).view(rows, heads, places, -1, end)
        weights = torch.add(feed.mask.unsqueeze(3), scores, alpha=k.shape[-1] ** -0.5).softmax(-1)
        out = weights.flatten(2, 3) @ values
        return feed.flat(out.view(rows, heads, places, -1, k.shape[-1]).transpose(1, 2).flatten(2, 3))

    def attend_backward(
        self, feed: Feed, read: Feed, layer: int, q: Tensor, k: Tensor, v: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        """Gradients of q (R, heads, size), of all tokens' k and v, of the prompts', from that of what `attend` gave, d."""
        (rows, places), end, size = read.shape, read.mask.shape[-1], q.shape[-1]
        keys, values = (x[layer][:, :, :end] for x in (self.keys, self.values))  # k and v are among them
        heads = keys.shape[1]

        def grid(x: Tensor) -> Tensor:  # heads that share keys together: (B, key heads, places * sharing, size)
            return read.grid(x).view(rows, places, heads, -1, size).transpose(1, 2).flatten(2, 3)

        q, d = grid(q * size**-0.5), grid(d)
        scores = (q @ keys.transpose(2, 3)).view(rows, heads, places, -1, end)
        weights = scores.add_(read.mask.unsqueeze(3)).softmax(-1).flatten(2, 3)
        d_scores = torch._softmax_backward_data(d @ values.transpose(2, 3), weights, -1, weights.dtype)
        both = d_scores.transpose(2, 3) @ q, weights.transpose(2, 3) @ d  # of keys, of values
        dq = (d_scores @ keys * size**-0.5).view(rows, heads, places, -1, size).transpose(1, 2).flatten(2, 3)
        own = (feed.flat(x[:, :, self.start : self.start + places].transpose(1, 2)) for x in both)
        prompt = (x[:, :, : self.start].unflatten(0, (-1, self.group)).sum(1) for x in both)
        return read.flat(dq), *own, *prompt


class BranchTree(RowTree):
    """Encoded prompts, each held once, and the keys and values of each rollout's own tokens.

    Rows that are fed no more leave the batch, several at once.
    """

    place: Tensor  # (Q * group,): where each row is in the batch
    numbers: Tensor  # the reverse
    hidden_prompt: Tensor | None  # (Q, 1, 1, P): -inf at padding

    def fork(self, group: int, length: int) -> "BranchTree":
        """The same prompts, not copied, with room for `group` branches of `length` tokens each."""
        other, queries = copy(self), len(self.branch)
        other.group, other.start = group, 0
        other.rotation = Rotation.of(self.model, self.branch.shape[1] + length)
        other.keys, other.values = (
            [x.new_zeros(queries, x.shape[1], group, length, x.shape[-1]) for x in each]
            for each in (self.prompt_keys, self.prompt_values)
        )
        padding, device = self.branch == NO_BRANCH, self.branch.device
        other.hidden_prompt = None
        if padding.any():
            hidden = torch.zeros_like(self.branch, dtype=self.logits.dtype)
            other.hidden_prompt = hidden.masked_fill(padding, float("-inf")).view(queries, 1, 1, -1)
        other.hidden = self.logits.new_zeros(1, 1, 1, length)
        other.first = self.prompt_length.repeat_interleave(group)
        other.numbers = other.place = torch.arange(queries * group, device=device)
        other.fed = torch.zeros_like(other.place)
        other.level = None
        self.let_record(other, length)
        return other

    def numbered(self, row: Tensor) -> Tensor:
        """As RowTree.numbered."""
        return self.numbers[row]

    def again(self, sampled: RowTree, length: int) -> "BranchTree":
        """A new one, since rows have left the one that sampled, with lists of its own."""
        other = self.fork(sampled.group, length)
        other.prompt_keys, other.prompt_values = list(self.prompt_keys), list(self.prompt_values)
        return other

    def attend_backward(
        self, feed: Feed, read: Feed, layer: int, q: Tensor, k: Tensor, v: Tensor, d: Tensor
    ) -> tuple[Tensor, ...]:
        """As RowTree.attend_backward, by autograd."""
        with torch.enable_grad():
            given = [x.detach().requires_grad_() for x in (q, k, v, self.prompt_keys[layer], self.prompt_values[layer])]
            self.prompt_keys[layer], self.prompt_values[layer] = given[3:]
            return torch.autograd.grad(self.attend(read, layer, *given[:3]), given, d)

    def extend(self, ids: Tensor, row: Tensor, depth: Tensor, read: Tensor) -> Tensor:
        """As RowTree.extend. A row that a call leaves out has ended and is not fed again."""
        queries = len(self.prompt_keys[0])
        alive = torch.zeros_like(self.fed, dtype=torch.bool).index_fill(0, self.place[row], True).view(queries, -1)
        many = alive.sum(1)
        if (many > 0).sum() <= 0.75 * queries or many.max() <= 0.75 * alive.shape[1]:  # leaving costs a copy
            self.leave(alive)
        return super().extend(ids, self.place[row], depth, read)

    def leave(self, alive: Tensor) -> None:
        """Drop queries and branches that are not alive, (Q, branches) bool; a query keeps as many as the longest."""
        kept = alive.any(1).nonzero()  # (Q', 1)
        width = int(alive.sum(1).max())
        branch = (~alive[kept.squeeze(1)]).int().argsort(dim=1, stable=True)[:, :width].sort(dim=1).values
        old = (kept * alive.shape[1] + branch).flatten()
        new = torch.full_like(self.fed, -1).index_copy(0, old, torch.arange(len(old), device=old.device))
        self.place = new[self.place]
        self.first, self.fed, self.numbers = self.first[old], self.fed[old], self.numbers[old]
        self.keys, self.values = (
            [x[kept, :, branch].transpose(1, 2).contiguous() for x in each] for each in (self.keys, self.values)
        )
        if len(kept) < len(alive):
            one = kept.squeeze(1)
            self.prompt_keys = [x[one] for x in self.prompt_keys]
            self.prompt_values = [x[one] for x in self.prompt_values]
            self.hidden_prompt = None if self.hidden_prompt is None else self.hidden_prompt[one]
            self.head = None if self.head is None else self.head[one]

    def laid_out(self, row: Tensor, place: Tensor, slot: Tensor, shape: tuple[int, int], mask: Tensor) -> Feed:
        """As RowTree.laid_out."""
        queries, heads, branches = self.keys[0].shape[:3]
        sharing, end = self.model.config.num_attention_heads // heads, mask.shape[-1]  # heads that share keys
        mask = mask.view(-1, 1, branches, shape[1], 1, end).expand(queries, heads, -1, -1, sharing, -1)
        mask = mask.reshape(queries * heads * branches, -1, end)
        return Feed(row, place, (row // branches, slice(None), row % branches, slot), shape, mask)

    def attend(self, feed: Feed, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of fed tokens to their prompt and branch, whose new keys and values are written first."""
        keys, values, (rows, places), end = self.keys[layer], self.values[layer], feed.shape, feed.mask.shape[-1]
        queries, heads, branches, _, size = keys.shape
        keys[feed.written], values[feed.written] = k, v
        keys, values = (x[..., :end, :].flatten(0, 2) for x in (keys, values))  # (Q * heads * branches, end, size)
        q = feed.grid(q).view(queries, branches, places, heads, -1, size).permute(0, 3, 1, 2, 4, 5)
        shape, q = q.shape, q.reshape(queries, heads, -1, size)  # heads that share keys and branches together
        both = two_parts_fused if places > FEW and q.device.type == "cpu" else two_parts
        prompt = self.prompt_keys[layer], self.prompt_values[layer]
        out = both(q, *prompt, self.hidden_prompt, keys, values, feed.mask)
        return feed.flat(out.view(shape).permute(0, 2, 3, 1, 4, 5).reshape(rows, places, -1, size))
