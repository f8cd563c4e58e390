"""The exact oracle: every output of a policy for a small pool, so that true gradients are known.

A gradient is a weighted sum of the gradients of log p of single decisions (this token after that prefix). It is stored as
these weights (E,); the Gram matrix of the decisions' gradients gives every norm and angle in parameter space.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import permutations, product

import torch
from torch import Tensor

from ..config import Config, GrammarConfig, KitError, RLConfig
from ..credit import CREDITS
from ..data import Example
from ..policy import Policy, Prompts, Sampling
from ..prompt import PHASE_RANK, PHASE_SLATE, Output
from ..rewards import Rewards, score
from ..rollout import Rollouts

MAX_OUTPUTS = 5000


@dataclass(frozen=True)
class Oracle:
    """Every output of a policy for one query: B outputs of at most T tokens, made of E distinct decisions.

    `rollouts` holds each output once, `rewards` (1, B) its rewards, `probability` (B,) its probability. `decision`
    (B, T) is the number of each token's decision (E: none, forced or padding), `phase` (E,) the phase of each decision.
    `gram` (E, E): inner products of the gradients of log p of the decisions, over all parameters.
    """

    rollouts: Rollouts
    rewards: Rewards
    probability: Tensor
    decision: Tensor
    phase: Tensor
    gram: Tensor

    def gradient(self, pay: Tensor) -> Tensor:
        """Weights (E,) of the exact gradient of E[pay]; pay (B,), one number per output."""
        found = torch.zeros(len(self.phase) + 1, dtype=torch.float64)
        weights = (self.probability * pay).unsqueeze(1).expand_as(self.decision)
        return found.index_add_(0, self.decision.flatten(), weights.flatten())[:-1]

    def estimates(self, groups: Tensor, config: RLConfig, generator: torch.Generator | None = None) -> Tensor:
        """The gradient estimate of each group of rollouts by `config.credit`. groups (N, G) of outputs -> (N, E).

        Reward noise is added if there is a generator to draw it from. GDPO's division by the spread over a batch, one
        number for all tokens, is left out: here no batch is meant, and it turns no gradient.
        """
        flat, r = groups.flatten(), self.rollouts
        drawn = replace(
            r, prompts=replace(r.prompts, choices=r.prompts.choices.repeat(len(groups))), completions=r.completions[flat],
            mask=r.mask[flat], phase=r.phase[flat], outputs=[r.outputs[b] for b in flat.tolist()],
            group=groups.shape[1], rankings=config.rankings,
        )  # fmt: skip
        paid = Rewards(**{name: x[0, groups] for name, x in vars(self.rewards).items()})
        if generator is not None:
            slate, rank = (torch.randn(paid.slate.shape, generator=generator) for _ in range(2))
            noisy = {"slate": paid.slate + config.slate_noise * slate, "rank": paid.rank + config.rank_noise * rank}
            paid = replace(paid, **noisy)
        # a group's estimate is the mean over its G rollouts of advantage times gradient of log p, token by token
        advantages = CREDITS[config.credit](paid, drawn, config).double().view(*groups.shape, -1) / groups.shape[1]
        found = torch.zeros(len(groups), len(self.phase) + 1, dtype=torch.float64)
        found.scatter_add_(1, self.decision[groups].flatten(1), advantages.flatten(1))
        return found[:, :-1]

    def sample(self, count: int, config: RLConfig, generator: torch.Generator) -> Tensor:
        """Groups of outputs as the policy would draw them: M slates, K rankings of each. -> (N, M * K)."""
        k = config.rankings
        first = torch.multinomial(self.probability, count * config.group // k, True, generator=generator)
        if k == 1:
            return first.view(count, -1)
        same = self.slate_of.unsqueeze(0) == self.slate_of.unsqueeze(1)  # (B, B): outputs that share a slate
        given = (same * self.probability)[first]  # (N * M, B): probabilities, up to a factor, given the slate
        return torch.multinomial(given, k, replacement=True, generator=generator).view(count, -1)

    def all_groups(self, config: RLConfig) -> tuple[Tensor, Tensor]:
        """Every possible group (N, G) and its probability (N,). For pools of a few outputs and small groups only."""
        m, k = config.group // config.rankings, config.rankings
        slates = [torch.nonzero(self.slate_of == s).flatten().tolist() for s in self.slate_of.unique()]
        nests = [nest for outputs in slates for nest in product(outputs, repeat=k)]  # one slate, K rankings of it
        within = torch.tensor(nests)  # (nests, K)
        p_slate = torch.zeros(len(slates), dtype=torch.float64).index_add_(0, self.slate_of, self.probability)
        given = self.probability[within] / p_slate[self.slate_of[within]]  # (nests, K): of a ranking, given the slate
        p_nest = p_slate[self.slate_of[within[:, 0]]] * given.prod(1)
        chosen = torch.cartesian_prod(*[torch.arange(len(nests))] * m).view(-1, m)
        return within[chosen].flatten(1), p_nest[chosen].prod(1)

    def count_groups(self, config: RLConfig) -> int:
        """Number of groups in `all_groups`."""
        nests = (self.slate_of.bincount() ** config.rankings).sum()
        return int(nests) ** (config.group // config.rankings)

    @property
    def slate_of(self) -> Tensor:
        """Number of the (ordered) slate of each output, (B,)."""
        numbers: dict[tuple[int, ...], int] = {}
        return torch.tensor([numbers.setdefault(o.slate, len(numbers)) for o in self.rollouts.outputs])

    def tokens(self, groups: Tensor, rankings: int) -> Tensor:
        """Drawn tokens of each group (N,), a slate that K rankings share counted once."""
        drawn = self.decision < len(self.phase)  # (B, T)
        slate, rank = ((drawn & (self.rollouts.phase == p)).sum(1)[groups] for p in (PHASE_SLATE, PHASE_RANK))
        return slate[:, ::rankings].sum(1) + rank.sum(1)

    def cosine(self, a: Tensor, b: Tensor) -> float:
        """Cosine between two gradients given as weights; 0 if either vanishes."""
        norms = (self.dot(a, a) * self.dot(b, b)).clamp(min=0).sqrt()
        return float((self.dot(a, b) / norms).clamp(-1, 1)) if norms > 1e-12 else 0.0

    def angle(self, a: Tensor, b: Tensor) -> float:
        """Angle between two gradients given as weights, in degrees; 90 if either vanishes."""
        lengths = [self.dot(x, x).clamp(min=0).sqrt() for x in (a, b)]
        if min(lengths) < 1e-9:
            return 90.0
        apart = a / lengths[0] - b / lengths[1]  # its length keeps digits that a cosine near 1 loses
        return math.degrees(2 * math.asin(min(1.0, float(self.dot(apart, apart).clamp(min=0).sqrt()) / 2)))

    def dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Inner products of gradients given as weights (..., E)."""
        return ((a @ self.gram) * b).sum(-1)


def enumerate_outputs(policy: Policy, example: Example, config: Config) -> Oracle:
    """List every output that the grammar allows for one query. Raises KitError on a pool that is too large for it."""
    pool, grammar = range(len(example.candidates)), config.grammar
    count = _count(len(pool), grammar)
    if count > MAX_OUTPUTS:
        raise KitError(f"{len(pool)} candidates give {count:,} outputs, more than {MAX_OUTPUTS:,}: take fewer.")
    outputs = [
        Output(slate, rank)
        for slate in _orders(pool, grammar.slate_size) for rank in _orders(slate, grammar.rank_size)
    ]  # fmt: skip
    prompts = policy.encode([example])
    completions, mask = policy.spell([example] * len(outputs), outputs)
    sampling = Sampling(grammar, temperature=config.rl.temperature)
    with torch.no_grad():
        logprobs, _ = policy.logprobs(prompts, completions, mask, sampling, shared=False)
    phase = policy.labels.phases(completions, mask)
    rollouts = Rollouts(prompts, completions, mask, phase, logprobs, outputs, len(outputs), sampling)
    decision, where = _decisions(completions, (logprobs < 0) & mask)
    gram, rollouts = _gram(policy, rollouts, where).cpu(), _on_cpu(rollouts)
    rows, columns = where.T
    return Oracle(
        rollouts, score(rollouts, [example], config.rl), rollouts.logprobs.double().sum(1).exp(), decision,
        rollouts.phase[rows, columns], gram,
    )  # fmt: skip


def _on_cpu(rollouts: Rollouts) -> Rollouts:
    """The rollouts on the CPU, where all that an oracle counts and draws is done: these tensors are small."""
    prompts = rollouts.prompts
    here = Prompts(prompts.ids.cpu(), prompts.mask.cpu(), prompts.choices.to(torch.device("cpu")))
    tensors = {name: getattr(rollouts, name).cpu() for name in ("completions", "mask", "phase", "logprobs")}
    return replace(rollouts, prompts=here, **tensors)


def small_pool(example: Example, size: int, relevant: int = 2) -> Example:
    """The example with a pool of `size`: its first relevant candidates and its first others, in pool order."""
    chosen = sorted(example.relevant)[:relevant]
    others = [i for i in range(len(example.candidates)) if i not in example.relevant]
    kept = sorted(chosen + others[: size - len(chosen)])
    return replace(
        example, candidates=tuple(example.candidates[i] for i in kept),
        candidate_ids=tuple(example.candidate_ids[i] for i in kept if example.candidate_ids),
        relevant=frozenset(kept.index(i) for i in chosen),
        gains=tuple(example.gains[i] for i in kept if example.gains),
    )  # fmt: skip


def _orders(items: Sequence[int], limit: int) -> list[tuple[int, ...]]:
    return [order for size in range(1, limit + 1) for order in permutations(items, size)]


def _count(pool: int, grammar: GrammarConfig) -> int:
    slates, ranks = min(pool, grammar.slate_size), grammar.rank_size
    return sum(math.perm(pool, n) * math.perm(n, k) for n in range(1, slates + 1) for k in range(1, min(n, ranks) + 1))


def _decisions(completions: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Number every distinct (prefix, token) that was not forced. -> numbers (B, T); first row and column of each (E, 2)."""
    numbers: dict[tuple[int, ...], int] = {}
    where = []
    decision = torch.full(completions.shape, -1)
    for b, t in free.nonzero().tolist():
        prefix = tuple(completions[b, : t + 1].tolist())
        if prefix not in numbers:
            numbers[prefix] = len(numbers)
            where.append((b, t))
        decision[b, t] = numbers[prefix]
    return decision.masked_fill(decision < 0, len(numbers)), torch.tensor(where)


def _gram(policy: Policy, rollouts: Rollouts, where: Tensor) -> Tensor:
    """Inner products of the gradients of log p at the tokens `where` (E, 2)."""
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    rows: list[Tensor] = []
    for b in where[:, 0].unique_consecutive().tolist():
        ids, mask = rollouts.completions[b : b + 1], rollouts.mask[b : b + 1]
        logp, _ = policy.logprobs(rollouts.prompts, ids, mask, rollouts.sampling, shared=False)
        for t in where[where[:, 0] == b, 1].tolist():
            found = torch.autograd.grad(logp[0, t], parameters, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([x.flatten() for x in found if x is not None]))
    jacobian = torch.stack(rows)  # (E, parameters)
    return (jacobian @ jacobian.T).double()
