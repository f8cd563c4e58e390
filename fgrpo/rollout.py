"""G rollouts a query, decoded together as branches of one encoded prompt (fgrpo.prefix).

A token that the grammar forces (tags, the end, the last choice left) costs no step of its own: it is appended at
log-prob 0 and fed together with the next token that has to be fed anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import Example
from .policy import Policy, Prompts, Sampling, constrained_logps, free_logps
from .prefix import KEEP_FROM, NO_BRANCH, PrefixTree, positions
from .prompt import Choices, Output, max_tokens, parse, phases


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


@torch.no_grad()
def rollout(
    policy: Policy,
    examples: Sequence[Example],
    sampling: Sampling,
    group: int = 1,
    generator: torch.Generator | None = None,
    keep_prompts: bool = False,
) -> Rollouts:
    """Sample `group` completions per example, or decode greedily if there is no generator.

    `keep_prompts` keeps long encoded prompts with their gradient, for the first loss on these rollouts.
    """
    prompts = policy.encode(examples)
    choices = prompts.choices.repeat(group)
    batch, longest = len(examples) * group, max_tokens(sampling.grammar)
    device = prompts.ids.device
    completions = torch.full((batch, longest), policy.pad, device=device)
    logprobs = torch.zeros(completions.shape, device=device)
    length = torch.zeros(batch, dtype=torch.long, device=device)
    counts = torch.zeros(batch, 1, choices.tokens.shape[1], dtype=torch.int16, device=device)

    def append(rows: Tensor, tokens: Tensor, logps: Tensor) -> None:
        completions[rows, length[rows]], logprobs[rows, length[rows]] = tokens, logps
        counts[rows, 0] += (choices.tokens[rows] == tokens.unsqueeze(1)).to(counts.dtype)
        length[rows] += 1

    def append_forced() -> None:
        while sampling.constrained:
            allowed = choices.allowed(counts, sampling.grammar).squeeze(1)
            rows = ((allowed.sum(1) == 1) & (counts[:, 0, -1] == 0)).nonzero().squeeze(1)
            if not len(rows):
                return
            index = allowed[rows].int().argmax(1, keepdim=True)
            append(rows, choices.tokens[rows].gather(1, index).squeeze(1), logprobs.new_zeros(len(rows)))

    shared = policy.shares_prompts
    if shared:
        append_forced()
    tree, begun = None, int(length.min())
    if shared:
        ids = torch.cat((prompts.ids, completions[::group, :begun]), dim=1)  # what all rows begin with goes along
        keep_prompts = keep_prompts and ids.shape[1] >= KEEP_FROM
        with torch.set_grad_enabled(keep_prompts):
            tree = PrefixTree(policy.model, ids, torch.nn.functional.pad(prompts.mask, (0, begun), value=True))
        logits_after = _feed_branches(tree.fork(), group, completions, begun)
    else:
        logits_after = _feed_rows(policy, prompts, group, completions)
    while True:
        if shared:  # else every row takes one token a step, a forced one at probability 1
            append_forced()
        rows = ((counts[:, 0, -1] == 0) & (length < longest)).nonzero().squeeze(1)
        if not len(rows):
            break
        logits = logits_after(rows, length)
        if sampling.constrained:
            here = Choices(choices.tokens[rows])
            logps = constrained_logps(logits.unsqueeze(1), here, counts[rows], sampling).squeeze(1)
            index, logp = _draw(logps, generator)
            tokens = here.tokens.gather(1, index.unsqueeze(1)).squeeze(1)
        else:
            tokens, logp = _draw(free_logps(logits, sampling), generator)
        append(rows, tokens, logp)

    width = int(length.max())
    completions, logprobs = completions[:, :width], logprobs[:, :width]
    mask = torch.arange(width, device=device) < length.unsqueeze(1)
    labels = [{label: i for i, label in enumerate(policy.labels.candidates(e))} for e in examples]
    texts = [policy.text(row[:n]) for row, n in zip(completions.tolist(), length.tolist(), strict=True)]
    outputs = [parse(text, labels[b // group], sampling.grammar) for b, text in enumerate(texts)]
    phase = phases(completions, mask, policy.tags[1])
    return Rollouts(
        prompts, completions, mask, phase, logprobs, outputs, group, sampling, tree if keep_prompts else None, begun
    )  # fmt: skip


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
    ids = prompts.ids.repeat_interleave(group, dim=0)
    seen = prompts.mask.repeat_interleave(group, dim=0)
    cache = None

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal ids, seen, cache
        if cache is not None:
            ids = completions[:, length.max() - 1].unsqueeze(1)  # padding in rows that ended
            seen = torch.nn.functional.pad(seen, (0, 1), value=True)
        out = policy.model(
            ids, attention_mask=seen.long(), position_ids=positions(seen)[:, -ids.shape[1] :], cache=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        cache = out.cache
        return out.logits[rows, -1]

    return logits_after


def _draw(logps: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """One index per row of (B, K) log-probabilities: sampled, or the most likely one without a generator."""
    if generator is None:
        index = logps.argmax(-1, keepdim=True)
    else:  # drawn on the CPU, so that a seed means the same everywhere
        index = torch.multinomial(logps.exp().cpu(), 1, generator=generator).to(logps.device)
    return index.squeeze(1), logps.gather(-1, index).squeeze(1)
