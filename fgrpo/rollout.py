"""G rollouts a query, decoded together as branches of one encoded prompt (fgrpo.prefix).

A token that the grammar forces (tags, the end, the last choice left) costs no step of its own: it is appended at
log-prob 0 and fed together with the next token that has to be fed anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .data import Example
from .lm import memory_kept, narrowed
from .policy import Policy, Prompts, Sampling, constrained_logps, free_logps, join_rows
from .prefix import KEEP_FROM, NO_BRANCH, PrefixTree, positions
from .prompt import PHASE_PAD, Output, parse


@dataclass(frozen=True)
class Rollouts:
    """Q x G sampled completions, row q * G + g belonging to query q. B = Q * G.

    `completions` (B, T) token ids, padded on the right; `mask` (B, T) bool, true through the end token; `phase` (B, T)
    see fgrpo.prompt; `logprobs` (B, T) at sampling; `outputs` B parsed completions; `group` is G.
    """

    prompts: Prompts
    completions: Tensor
    mask: Tensor
    phase: Tensor
    logprobs: Tensor
    outputs: list[Output]
    group: int
    sampling: Sampling
    tree: PrefixTree | None = None  # the encoded prompts and the `begun` tokens that all rows share, for the loss
    begun: int = 0
    rankings: int = 1  # K: each K rows in turn share one slate
    words: Tensor | None = None  # (B, T): number of the word that a token belongs to (None: each is one by itself)
    longest: int | None = None  # tokens of the longest completion (None: as if every label were one)

    def rows(self, queries: slice) -> "Rollouts":
        """The rollouts of some queries, without padding that none of them needs and without the kept prompts."""
        own = slice(queries.start * self.group, queries.stop * self.group)
        mask = self.mask[own]
        width = int(mask.sum(1).max())
        completions, phase, logprobs = (x[own, :width] for x in (self.completions, self.phase, self.logprobs))
        return replace(
            self, prompts=self.prompts.rows(queries), completions=completions, mask=mask[:, :width], phase=phase,
            logprobs=logprobs, outputs=self.outputs[own], tree=None, begun=0,
            words=None if self.words is None else self.words[own, :width],
        )  # fmt: skip

    @staticmethod
    def join(parts: "Sequence[Rollouts]", pad: int, prompts: Prompts | None = None) -> "Rollouts":
        """The rollouts of all parts in one batch; their kept prompts are dropped unless there is one part only.

        `prompts` are those of all parts where they are at hand already.
        """
        if len(parts) == 1 and prompts is None:
            return parts[0]
        fields = {"completions": pad, "mask": 0, "phase": PHASE_PAD, "logprobs": 0.0}
        joined: dict[str, Any] = {
            name: join_rows([getattr(p, name) for p in parts], value) for name, value in fields.items()
        }
        words = None if parts[0].words is None else join_rows([p.words for p in parts if p.words is not None], 0)
        return replace(
            parts[0], prompts=prompts or Prompts.join([p.prompts for p in parts], pad), **joined, words=words, tree=None,
            begun=0, outputs=[o for p in parts for o in p.outputs], longest=max(p.longest or 0 for p in parts),
        )  # fmt: skip


class Draws:
    """Where sampled tokens come from: one generator on the CPU, so that a seed means the same everywhere."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def choose(self, probabilities: Tensor) -> Tensor:
        """One index per row that is still written. (B, K) -> (B, 1)."""
        return torch.multinomial(probabilities, 1, generator=self.generator)

    def finish(self) -> None:
        """Called when no row is left to draw for."""


@torch.no_grad()
@memory_kept()
def rollout(
    policy: Policy, examples: Sequence[Example], sampling: Sampling, group: int = 1,
    generator: torch.Generator | Draws | None = None, keep_prompts: bool = False, rankings: int = 1,
    slates: Sequence[Sequence[int]] | None = None, own: slice | None = None,
) -> Rollouts:  # fmt: skip
    """Sample `group` completions per example, or decode greedily if there is no generator.

    `keep_prompts` keeps long encoded prompts with their gradient, for the first loss on these rollouts. With
    `rankings` K above 1, group / K slates are sampled per example and then K rankings of each: K rows in turn share a
    slate. `slates` (pool indices, one per row) are taken as written and closed; only their ranking is decoded.
    Of the examples `own` alone are sampled, if given: other processes see to the rest (fgrpo.distributed).
    """
    prompts = policy.encode(examples, sampling.grammar)
    if own is not None:
        prompts, examples = prompts.rows(own), examples[own]
    if isinstance(generator, torch.Generator):
        generator = Draws(generator)
    with narrowed(policy.model, prompts.choices.columns if sampling.constrained else None):
        return _rollout(policy, prompts, examples, sampling, group, generator, keep_prompts, rankings, slates)


def _rollout(
    policy: Policy, prompts: Prompts, examples: Sequence[Example], sampling: Sampling, group: int,
    draws: Draws | None, keep_prompts: bool, rankings: int, slates: Sequence[Sequence[int]] | None,
) -> Rollouts:  # fmt: skip
    rows = _Rows.empty(policy, prompts, group // rankings, sampling)
    tree, begun = None, 0
    if slates is not None:
        rows.write_slates(slates)
    elif policy.shares_prompts:
        rows.append_forced()
        begun = int(rows.length.min())
    if policy.shares_prompts:
        ids = torch.cat(
            (prompts.ids, rows.completions[:: group // rankings, :begun]), dim=1
        )  # all rows begin with these
        keep_prompts = keep_prompts and ids.shape[1] >= KEEP_FROM
        with torch.set_grad_enabled(keep_prompts):
            tree = policy.grow(ids, torch.nn.functional.pad(prompts.mask, (0, begun), value=True))
    if rankings > 1:
        _decode(rows, prompts, tree, begun, draws, slate_only=True)
        rows = rows.repeat(rankings)
    _decode(rows, prompts, tree, begun, draws)

    width = int(rows.length.max())
    completions, logprobs = rows.completions[:, :width], rows.logprobs[:, :width]
    mask = torch.arange(width, device=completions.device) < rows.length.unsqueeze(1)
    labels = [{label: i for i, label in enumerate(policy.labels.candidates(e))} for e in examples]
    texts = [policy.text(row[:n]) for row, n in zip(completions.tolist(), rows.length.tolist(), strict=True)]
    outputs = [parse(text, labels[b // group], sampling.grammar) for b, text in enumerate(texts)]
    phase, words = policy.labels.phases(completions, mask), policy.labels.words(completions, mask)
    return Rollouts(
        prompts, completions, mask, phase, logprobs, outputs, group, sampling, tree if keep_prompts else None, begun,
        rankings, words, prompts.choices.longest(sampling.grammar),
    )  # fmt: skip


@dataclass
class _Rows:
    """Completions while they are written. completions, logprobs (B, T); length (B,); progress of each in the grammar."""

    policy: Policy
    choices: Any
    sampling: Sampling
    completions: Tensor
    logprobs: Tensor
    length: Tensor
    progress: Any

    @classmethod
    def empty(cls, policy: Policy, prompts: Prompts, group: int, sampling: Sampling) -> "_Rows":
        choices, device = prompts.choices.repeat(group), prompts.ids.device
        shape = len(choices.tokens), choices.longest(sampling.grammar)
        completions = torch.full(shape, policy.pad, device=device)
        length = torch.zeros(len(completions), dtype=torch.long, device=device)
        logprobs = torch.zeros(shape, device=device)
        progress = choices.progress(sampling.grammar, sampling.constrained)
        return cls(policy, choices, sampling, completions, logprobs, length, progress)

    def repeat(self, times: int) -> "_Rows":
        completions, logprobs, length = (
            x.repeat_interleave(times, dim=0) for x in (self.completions, self.logprobs, self.length)
        )
        choices, progress = self.choices.repeat(times), self.progress.repeat(times)
        return _Rows(self.policy, choices, self.sampling, completions, logprobs, length, progress)

    def unfinished(self, slate_only: bool) -> Tensor:
        """Rows that have not yet written the end (`slate_only`: `</SLATE>`) and have room left."""
        done = self.progress.slate_closed() if slate_only else self.progress.ended()
        return (~done & (self.length < self.completions.shape[1])).nonzero().squeeze(1)

    def append(self, rows: Tensor, tokens: Tensor, logps: Tensor) -> None:
        self.completions[rows, self.length[rows]], self.logprobs[rows, self.length[rows]] = tokens, logps
        self.progress.append(rows, tokens)
        self.length[rows] += 1

    def append_forced(self) -> Tensor | None:
        """Write what is forced. Returns which choices may come next, (B, K) bool; None where nothing is enforced."""
        while self.sampling.constrained:
            allowed = self.progress.allowed()
            rows = ((allowed.sum(1) == 1) & ~self.progress.ended()).nonzero().squeeze(1)
            if not len(rows):
                return allowed
            index = allowed[rows].int().argmax(1, keepdim=True)
            tokens = self.choices.tokens[rows].gather(1, index).squeeze(1)
            self.append(rows, tokens, self.logprobs.new_zeros(len(rows)))
        return None

    def write_slates(self, slates: Sequence[Sequence[int]]) -> None:
        for row, slate in enumerate(slates):
            for token in self.choices.slate_ids(row, slate):
                self.append(torch.tensor([row]), torch.tensor([token]), torch.zeros(1))


def _decode(
    rows: _Rows, prompts: Prompts, tree: PrefixTree | None, begun: int, draws: Draws | None,
    slate_only: bool = False,
) -> None:  # fmt: skip
    """Write on, in place, until every row has written the end (`slate_only`: `</SLATE>`) or has no room left."""
    group, sampling = len(rows.completions) // len(prompts.ids), rows.sampling
    if tree is not None:
        logits_after = _feed_branches(tree.fork(), group, rows.completions, begun)
    else:
        logits_after = _feed_rows(rows.policy, prompts, group, rows.completions)
    while True:
        allowed = rows.append_forced() if tree is not None else None
        going = rows.unfinished(slate_only)
        if not len(going):
            return draws.finish() if draws else None
        logits = logits_after(going, rows.length)
        if sampling.constrained:
            if allowed is None:  # without a tree every row takes one token a step, a forced one at probability 1
                allowed = rows.progress.allowed()
            here, may = rows.choices.tokens[going], allowed[going]
            logps = constrained_logps(logits.unsqueeze(1), here, may.unsqueeze(1), sampling).squeeze(1)
            index, logp = _draw(logps, draws)
            tokens = here.gather(1, index.unsqueeze(1)).squeeze(1)
        else:
            tokens, logp = _draw(free_logps(logits, sampling), draws)
        rows.append(going, tokens, logp)


LogitsAfter = Callable[[Tensor, Tensor], Tensor]
"""(rows still decoding, length of every row) -> logits (rows, V) after the last token of each."""


def _feed_branches(tree: PrefixTree, group: int, completions: Tensor, begun: int) -> LogitsAfter:
    """Feed each row's new tokens as a branch of its query's prompt. Rows and queries that ended are fed no more.

    The first `begun` tokens of every row are encoded with the prompt.
    """
    fed = torch.full((len(completions),), begun, device=completions.device)
    in_batch = torch.arange(len(completions) // group, device=completions.device)  # queries still in the tree

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal in_batch
        if length.max() == begun:
            return tree.logits[rows // group]
        going = torch.zeros_like(length, dtype=torch.bool).index_fill_(0, rows, True)
        alive = going.view(-1, group)[in_batch].any(1)
        if alive.sum() <= 0.75 * len(alive):  # leaving costs a copy of the cache, so several leave together
            tree.keep(alive.nonzero().squeeze(1))
            in_batch = in_batch[alive]
        depth = torch.arange(completions.shape[1], device=fed.device)
        new = (depth >= fed.unsqueeze(1)) & (depth < length.unsqueeze(1)) & going.unsqueeze(1)  # (B, T)
        new = new.view(-1, group * len(depth))[in_batch]
        width = int(new.sum(1).max())
        # (Q, W): which tokens to feed, each as (row in the query) * T + depth
        where = new.int().argsort(dim=1, descending=True, stable=True)[:, :width]
        valid, branch, at = new.gather(1, where), where // len(depth), where % len(depth)
        tokens = completions.view(-1, group * len(depth))[in_batch].gather(1, where)
        logits = tree.extend(tokens, branch.masked_fill(~valid, NO_BRANCH), at - begun)
        row = in_batch.unsqueeze(1) * group + branch
        last = valid & (at == length[row] - 1)
        found = logits.new_zeros(len(length), logits.shape[-1])
        found[row[last]] = logits[last]
        fed[rows] = length[rows]
        return found[rows]

    return logits_after


def _feed_rows(policy: Policy, prompts: Prompts, group: int, completions: Tensor) -> LogitsAfter:
    """Every row encodes its own prompt and is fed one token a step: for models whose state branches cannot share."""
    cache, seen = None, torch.zeros(())

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal cache, seen
        if cache is None:  # the prompt and what is written already, padded on the left
            written = torch.arange(int(length.max()), device=length.device) < length.unsqueeze(1)
            seen = torch.cat((prompts.mask.repeat_interleave(group, dim=0), written), dim=1)
            ids = torch.cat((prompts.ids.repeat_interleave(group, dim=0), completions[:, : written.shape[1]]), dim=1)
            order = seen.int().argsort(dim=1, stable=True)
            ids, seen = ids.gather(1, order), seen.gather(1, order)
        else:
            ids = completions.gather(1, (length - 1).unsqueeze(1))  # of rows that ended, the last one again
            seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        out = policy.model(
            ids, attention_mask=seen.long(), position_ids=positions(seen)[:, -ids.shape[1] :], cache=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = out.cache
        return out.logits[rows, -1]

    return logits_after


def _draw(logps: Tensor, draws: Draws | None) -> tuple[Tensor, Tensor]:
    """One index per row of (B, K) log-probabilities: sampled, or the most likely one without `draws`."""
    index = draws.choose(logps.exp().cpu()).to(logps.device) if draws else logps.argmax(-1, keepdim=True)
    return index.squeeze(1), logps.gather(-1, index).squeeze(1)
