"""G rollouts a query: completions sampled token by token, or decoded greedily.

The plain way is below, `_feed_rows`: every row encodes its own prompt and is fed one token a step. Where policy and
model allow it, which `_compared` finds out, the rollouts of a query grow as branches of one encoded prompt
(fgrpo.lm.prefix). A policy that shares nothing is compared as well, once: a cache may change what a model computes.
Either way a token that the grammar forces (tags, the end, the last choice left) has log-prob 0 and costs the branches
no step of its own.

Random numbers: which token is drawn depends on (seed, step, query id, rollout, position) and the model alone. So a run
is the same on one process or several, with the queries of a step together or a few at a time, in any order.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import KitError
from .data import Example
from .policy import Policy, Prompts, Sampling, Tree, constrained_logps, free_logps, join_rows, positions, slices
from .prompt import PHASE_PAD, Output, parse

COMPARED = 2048  # tokens of prompts and completions on which rollouts are compared
ROUNDING = 3  # in bfloat16 0.2 (2 layers) to 1.0 (30 layers, SmolLM2-135M) times that of embeddings was found


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
    tree: Tree | None = None  # the encoded prompts and the `begun` tokens that all rows share, for the loss
    begun: int = 0
    rankings: int = 1  # K: each K rows in turn share one slate
    words: Tensor | None = None  # (B, T): number of the word that a token belongs to (None: each is one by itself)
    longest: int | None = None  # tokens of the longest completion (None: as if every label were one)
    parts: "tuple[Rollouts, ...]" = ()  # what was decoded together, where memory does not hold all

    @staticmethod
    def join(parts: "Sequence[Rollouts]", prompts: Prompts, pad: int) -> "Rollouts":
        """The rollouts of all parts in one batch, which remembers them. `prompts`: those of all parts."""
        values = {"completions": pad, "phase": PHASE_PAD, "mask": 0.0, "logprobs": 0.0, "words": 0.0}
        joined: dict[str, Any] = {
            name: join_rows([getattr(p, name) for p in parts], value)
            for name, value in values.items() if getattr(parts[0], name) is not None
        }  # fmt: skip
        return replace(
            parts[0], prompts=prompts, tree=None, begun=0, outputs=[o for p in parts for o in p.outputs],
            longest=max(p.longest or 0 for p in parts), parts=tuple(parts), **joined,
        )  # fmt: skip


@torch.no_grad()
def rollout(
    policy: Policy, examples: Sequence[Example], sampling: Sampling, group: int = 1, seed: int | None = None,
    step: int = 0, *, rankings: int = 1, micro: int = 0, keep_prompts: bool = False,
    slates: Sequence[Sequence[int]] | None = None,
) -> Rollouts:  # fmt: skip
    """Sample `group` completions per example, or decode greedily if `seed` is None.

    With `rankings` K above 1, group / K slates are sampled per example and then K rankings of each: K rows in turn
    share a slate. `micro` examples are in memory at a time (0: all), here and in the loss. `keep_prompts`
    keeps encoded prompts with their gradient, for the first loss on these rollouts, where all are decoded
    together. `slates` (pool indices, one per row) are taken as written and closed; only their ranking is decoded.
    """
    parts = slices(len(examples), micro)
    keep_prompts = keep_prompts and len(parts) == 1
    done = []
    for part in parts:
        some, given = examples[part], slates and slates[part]
        prompts = policy.encode(some, sampling.grammar)
        draw = partial(_rollout, policy, prompts, some, sampling, group, seed, step, rankings, keep_prompts, given)
        done.append(draw() if slates else _compared(policy, draw, some, seed is None))
    return done[0] if len(done) == 1 else Rollouts.join(done, policy.encode(examples, sampling.grammar), policy.pad)


def _compared(policy: Policy, draw: Callable[[], Rollouts], examples: Sequence[Example], greedy: bool) -> Rollouts:
    """Draw rollouts and compare their log-probabilities with those of whole sequences that share nothing.

    Only if no group as large was compared at this length. If they differ (local or biased attention, recurrent states),
    every rollout encodes its own prompt from here on, which is reported. Raises KitError if they still differ.
    """
    name, note = type(getattr(policy.model, "get_base_model", lambda: policy.model)()).__name__, ""
    while True:
        try:
            rollouts, cause = draw(), None
            group, length = rollouts.group, rollouts.prompts.ids.shape[1] + rollouts.mask.shape[1]
            if any(g >= group and n >= length for g, n in policy.checked.items()):
                return rollouts
            gap, rounding = _gap(policy, rollouts, examples)
            why = f"log-probabilities at sampling and in the loss differ by {gap:.2g} (root mean square)"
        except (KitError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a model that cannot do this may raise anything
            cause, why = error, f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:150]}"
        if not cause and (gap <= rounding or (greedy and not policy.share)):
            policy.checked[group] = length
            print(note, end="", file=sys.stderr)
            return rollouts
        if not policy.share:
            raise KitError(f"{name} cannot be sampled from as a policy ({why}); choose another model.") from cause
        policy.share, note = False, f"fgrpo: each rollout encodes its own prompt, {name} cannot share it: {why}\n"


def _gap(policy: Policy, rollouts: Rollouts, examples: Sequence[Example]) -> tuple[float, float]:
    """Root mean square difference of drawn tokens' log-probabilities from those of whole sequences, and its limit.

    Over the last rollouts of the longest prompt and of the shortest, and as many more as COMPARED tokens hold, longest
    first. Then what rounding explains, 0.001 to 0.5: ROUNDING times the effect of the embeddings' last digit.
    """
    length, written = rollouts.prompts.mask.sum(1), rollouts.mask.sum(1)
    first = [(int(q) + 1) * rollouts.group - 1 for q in (length.argmax(), length.argmin())]
    count = max(2, COMPARED // (rollouts.prompts.ids.shape[1] + rollouts.mask.shape[1]))
    rows = list(dict.fromkeys([*first, *written.argsort(descending=True).tolist()]))[:count]
    alone = policy.encode([examples[row // rollouts.group] for row in rows], rollouts.sampling.grammar)
    ids, mask, old = rollouts.completions[rows], rollouts.mask[rows], rollouts.logprobs[rows]
    recompute = partial(policy.logprobs, alone, ids, mask, rollouts.sampling, shared=False)
    drawn, (new, _) = (old != 0).sum().clamp(min=1), recompute()  # forced tokens have 0
    gap = float(((new - old).square().sum() / drawn).sqrt())
    if gap <= 0.001:
        return gap, 0.001
    digit = 1 + torch.finfo(policy.precision).eps * torch.randn(2**16, generator=torch.Generator().manual_seed(0))
    embeddings = policy.model.get_input_embeddings()
    with embeddings.register_forward_hook(lambda module, ids, out: out * digit[: out.shape[-1]].to(out)):
        other, _ = recompute()
    rounding = float(((other - new).square().sum() / drawn).sqrt())
    return gap, min(max(0.001, ROUNDING * rounding), 0.5)


def drawn_tokens(rollouts: Rollouts) -> Tensor:
    """Which tokens were drawn, (B, T) bool: those that the grammar left a choice of."""
    if not rollouts.sampling.constrained:
        return rollouts.mask
    choices = rollouts.prompts.choices.repeat(rollouts.group)
    allowed, _ = choices.walk(rollouts.completions, rollouts.mask, rollouts.sampling.grammar)
    return rollouts.mask & (allowed.sum(-1) > 1)


def uniforms(seed: int, step: int, examples: Sequence[Example], group: int, length: int, use: str = "") -> Tensor:
    """Numbers in [0, 1) for every (query, rollout, position), (Q * G, T) float64: Philox, a counter-based generator.

    Its key is a hash of seed, step, the query's id and `use`, its counter says which rollout, its output runs over
    positions. Other queries, rollouts or a longer T change none of the numbers.
    """
    rows = np.empty((len(examples), group, length), dtype=np.uint64)
    for example, own in zip(examples, rows, strict=True):
        stream = np.random.Philox(key=key_of(use, seed, step, example.id))
        for g in range(group):
            own[g] = stream.random_raw(length)
            stream.advance((1 << 192) - -(-length // 4))  # to counter (g + 1) << 192; each count gave four numbers
    # 50 bits: a number times a sum of probabilities can then never round up to the whole sum
    return torch.from_numpy((rows >> np.uint64(14)).astype(np.float64) * 2.0**-50).flatten(0, 1)


def key_of(*names: object) -> int:
    """A hash of the names, 128 bits."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, names)).encode("utf-8", "surrogatepass")).digest()[:16])


def choose(logps: Tensor, uniform: Tensor | None) -> tuple[Tensor, Tensor]:
    """One index per row of log-probabilities (B, K), and its log-probability, (B,) each.

    By inverse CDF: the first index at which the cumulative probability exceeds the row's `uniform` number (B,).
    Without numbers the most likely index.
    """
    if uniform is None:
        index = logps.argmax(-1)
    else:
        cdf = logps.cpu().double().exp().cumsum(-1)
        index = (cdf <= (uniform * cdf[:, -1]).unsqueeze(1)).sum(-1).to(logps.device)
    return index, logps.gather(-1, index.unsqueeze(1)).squeeze(1)


def _rollout(
    policy: Policy, prompts: Prompts, examples: Sequence[Example], sampling: Sampling, group: int, seed: int | None,
    step: int, rankings: int, keep_prompts: bool, slates: Sequence[Sequence[int]] | None,
) -> Rollouts:  # fmt: skip
    slate_rows = group // rankings  # M
    rows = _Rows(policy, prompts, slate_rows, sampling)
    tree, begun = None, 0
    drawn = None if seed is None else uniforms(seed, step, examples, group, rows.completions.shape[1])  # (Q * G, T)
    for row, slate in enumerate(slates or ()):
        for token in rows.choices.slate_ids(row, slate):
            rows.append(*torch.tensor([[row], [token]], device=prompts.ids.device))
    with policy.narrowed(prompts.choices.columns if sampling.constrained else None):
        if policy.share:
            if slates is None:  # the forced tokens that all rows of a query begin with are encoded with the prompt
                rows.append_forced()
                begun = int(rows.length.min())
            ids = torch.cat((prompts.ids, rows.completions[::slate_rows, :begun]), dim=1)
            with torch.set_grad_enabled(keep_prompts):
                mask = torch.nn.functional.pad(prompts.mask, (0, begun), value=True)
                tree = policy.grow(ids, mask, prompts.choices.tokens if sampling.constrained else None)
        if rankings > 1:
            with policy.decoding():
                rows.decode(tree, begun, None if drawn is None else drawn[::rankings], slate_only=True)
            rows.repeat(rankings)
        with policy.decoding():
            rows.decode(tree, begun, drawn)

    width = int(rows.length.max())
    completions, logprobs = rows.completions[:, :width], rows.logprobs[:, :width]
    mask = torch.arange(width, device=completions.device) < rows.length.unsqueeze(1)
    labels = [{label: i for i, label in enumerate(policy.labels.candidates(e))} for e in examples]
    texts = [policy.labels.text(row[:n]) for row, n in zip(completions.tolist(), rows.length.tolist(), strict=True)]
    outputs = [parse(text, labels[b // group], sampling.grammar) for b, text in enumerate(texts)]
    phase, words = policy.labels.phases(completions, mask), policy.labels.words(completions, mask)
    return Rollouts(
        prompts, completions, mask, phase, logprobs, outputs, group, sampling, tree if keep_prompts else None, begun,
        rankings, words, prompts.choices.longest(sampling.grammar),
    )  # fmt: skip


class _Rows:
    """Completions while they are written: completions, logprobs (B, T); length (B,); progress in the grammar."""

    def __init__(self, policy: Policy, prompts: Prompts, per_query: int, sampling: Sampling):
        self.policy, self.prompts, self.sampling = policy, prompts, sampling
        self.choices, device = prompts.choices.repeat(per_query), prompts.ids.device
        shape = len(self.choices.tokens), self.choices.longest(sampling.grammar)  # (B, T)
        self.completions = torch.full(shape, policy.pad, device=device)
        self.logprobs = torch.zeros(shape, device=device)
        self.length = torch.zeros(shape[0], dtype=torch.long, device=device)
        self.progress = self.choices.progress(sampling.grammar, sampling.constrained)

    def repeat(self, times: int) -> None:
        """Each row `times` times: the slates are written, their rankings follow."""
        self.choices, self.progress = self.choices.repeat(times), self.progress.repeat(times)
        rows = self.completions, self.logprobs, self.length
        self.completions, self.logprobs, self.length = (x.repeat_interleave(times, dim=0) for x in rows)

    def append(self, rows: Tensor, tokens: Tensor, logps: Tensor | float = 0.0) -> None:
        at = self.length[rows]
        self.completions[rows, at], self.logprobs[rows, at], self.length[rows] = tokens, logps, at + 1
        self.progress.append(rows, tokens)

    def append_forced(self) -> Tensor | None:
        """Write what is forced. Returns which choices may come next, (B, K) bool; None where nothing is enforced."""
        while self.sampling.constrained:
            allowed = self.progress.allowed()
            rows = ((allowed.sum(1) == 1) & ~self.progress.ended()).nonzero().squeeze(1)
            if not len(rows):
                return allowed
            self.append(rows, self.choices.tokens[rows, allowed[rows].int().argmax(1)])
        return None

    def decode(self, tree: Tree | None, begun: int, drawn: Tensor | None, slate_only: bool = False) -> None:
        """Write on until every row has written the end (`slate_only`: `</SLATE>`) or has no room left.

        drawn (B, T): the uniform number of every token; None: greedy.
        """
        group, sampling = len(self.completions) // len(self.prompts.ids), self.sampling
        if tree is not None:
            logits_after = tree.feed(group, self.completions, begun)
        else:
            logits_after = _feed_rows(self.policy, self.prompts, group, self.completions)
        while True:
            allowed = self.append_forced() if tree is not None else None
            done = self.progress.slate_closed() if slate_only else self.progress.ended()
            going = (~done & (self.length < self.completions.shape[1])).nonzero().squeeze(1)
            if not len(going):
                return
            logits = logits_after(going, self.length)  # (rows, V)
            uniform = None if drawn is None else drawn[going.cpu(), self.length[going].cpu()]
            if sampling.constrained:
                if allowed is None:  # without a tree every row takes one token a step, a forced one at probability 1
                    allowed = self.progress.allowed()
                tokens, may = self.choices.tokens[going], allowed[going].unsqueeze(1)  # (rows, K), (rows, 1, K)
                index, logp = choose(constrained_logps(logits.unsqueeze(1), tokens, may, sampling).squeeze(1), uniform)
                chosen = self.choices.tokens[going, index]
            else:
                chosen, logp = choose(free_logps(logits, sampling), uniform)
            self.append(going, chosen, logp)


def _feed_rows(policy: Policy, prompts: Prompts, group: int, completions: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The plain way: every row encodes its own prompt and is fed one token a step.

    Returns a function: (rows still decoding, length of every row) -> logits (rows, V) after the last token of each.
    """
    cache, seen = None, torch.zeros(())

    def logits_after(rows: Tensor, length: Tensor) -> Tensor:
        nonlocal cache, seen
        if cache is None:  # the prompt and what is written already, padded on the left
            written = torch.arange(int(length.max()), device=length.device) < length.unsqueeze(1)
            seen = torch.cat((prompts.mask.repeat_interleave(group, dim=0), written), dim=1)  # (B, P + T)
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
