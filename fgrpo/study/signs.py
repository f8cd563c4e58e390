"""How often a group gives a phase the wrong sign: its advantage in the group against its true advantage.

The true advantage of a slate is V(slate) - V, with V(slate) = E[R_slate + lambda R_rank | slate] and V its mean over the
policy's slates; that of a ranking is lambda (R_rank - E[R_rank | slate]). A slate is told apart by its order, which the
ranker reads. What a method gives to a phase is the sum over the phase's drawn tokens, which has the sign of their mean;
for methods that pay by item it is what all items of the list get together. Rollouts whose true advantage is 0 are left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import torch
from torch import Tensor

from ..config import Config, GrammarConfig, RLConfig
from ..data import Example
from ..policy import Policy
from ..prompt import Output
from ..rewards import Rewards, ndcg, pool_gains, score
from ..rollout import Rollouts, drawn_tokens, rollout
from ..trainer import sampling_of
from .gradients import PHASES, Key, advantages_of
from .oracle import Oracle, enumerate_outputs, small_pool
from .plots import Row
from .report import columns

RANKINGS, SLATES = 32, 64
"""rollouts by which expectations are estimated where outputs cannot be listed: rankings of a slate, slates of a query"""
POOL, GRAMMAR = 5, GrammarConfig(slate_size=3, rank_size=2)
"""small pools whose 625 outputs are listed"""
RESAMPLES = 400
ROUNDING = 1e-6
"""advantages below this are 0"""

Counts = dict[Key, dict[str, Tensor]]
"""by method and phase: numbers of wrong signs, of zeros and of rollouts that were judged, of each query (Q, 3)"""


def exact_signs(
    policy: Policy, examples: Sequence[Example], methods: Mapping[Key, RLConfig], config: Config, groups: int = 64
) -> Counts:
    """Signs on pools of POOL candidates, whose outputs are listed: `groups` groups a query, true advantages exact.

    A method's options say the group size, lambda, and with how much noise it is paid.
    """
    generator = torch.Generator().manual_seed(config.seed)
    counts: list[Counts] = []
    for example in examples:
        small = small_pool(example, POOL)
        oracle = enumerate_outputs(policy, small, replace(config, grammar=GRAMMAR), gradients=False)
        drawn = oracle.decision < len(oracle.phase)
        own: Counts = {}
        sizes = {(rl.group, rl.rankings): rl for rl in methods.values()}
        samples = {size: oracle.sample(groups, rl, generator) for size, rl in sizes.items()}
        for key, rl in methods.items():
            which = samples[rl.group, rl.rankings]  # (N, G)
            noise = generator if rl.slate_noise or rl.rank_noise else None
            given = oracle.advantages(which, rl, noise) * drawn[which]
            own[key] = {
                name: judged((given * (oracle.rollouts.phase[which] == PHASES[name])).sum(-1), true[which])
                for name, true in true_advantages(oracle, rl.lam).items()
            }
        counts.append(own)
    return _stacked(counts)


def true_advantages(oracle: Oracle, lam: float) -> dict[str, Tensor]:
    """True advantage of every output's slate and ranking, (B,) each: exact."""
    rank = lam * oracle.rewards.rank[0].double()
    mass = torch.zeros(len(oracle.probability), dtype=torch.float64)
    p_slate = mass.index_add(0, oracle.slate_of, oracle.probability)[oracle.slate_of]
    expected = mass.index_add(0, oracle.slate_of, oracle.probability * rank)[oracle.slate_of] / p_slate
    value = oracle.rewards.slate[0].double() + expected
    return {"slate": value - oracle.probability @ value, "rank": rank - expected}


def sampled_signs(
    policy: Policy, examples: Sequence[Example], methods: Mapping[Key, RLConfig], config: Config, number: int = 0
) -> Counts:
    """Signs of one group a query, with true advantages estimated by nested sampling.

    E[R_rank | slate] is the mean of RANKINGS - 1 other rankings of the slate, V that of SLATES other rollouts of the
    query. Errors of both turn the sign of some true advantages that are nearly 0.
    """
    rl, counts, at_once = config.rl, list[Counts](), config.lm.micro or 4
    for first in range(0, len(examples), at_once):
        some = examples[first : first + at_once]
        nested, others = (
            rollout(policy, some, sampling_of(config), size, config.seed, number + n, rankings=k)
            for n, (size, k) in enumerate(((rl.group * RANKINGS, RANKINGS), (SLATES, 1)))
        )
        group = every(nested, RANKINGS)  # of each slate its first ranking
        given = advantages_of(group, some, methods, config.seed, number)
        drawn = drawn_tokens(group)
        clean = replace(rl, slate_noise=0.0, rank_noise=0.0)
        inside, outside = score(nested, some, clean), score(others, some, clean)
        for q in range(len(some)):
            own: Counts = {}
            rows = slice(q * rl.group, (q + 1) * rl.group)
            for key, of in methods.items():
                true = _nested_advantages(inside, outside, q, of.lam)
                own[key] = {
                    name: judged(
                        (given[key] * drawn * (group.phase == PHASES[name])).sum(1)[rows].unsqueeze(0), true[name]
                    )
                    for name in PHASES
                }
            counts.append(own)
    return _stacked(counts)


def every(rollouts: Rollouts, rankings: int) -> Rollouts:
    """Of each slate the first ranking alone: a group of independent rollouts."""
    names = ("completions", "mask", "phase", "logprobs", "words")
    rows = {name: x[::rankings] for name in names if (x := getattr(rollouts, name)) is not None}
    group = rollouts.group // rankings
    return replace(rollouts, outputs=rollouts.outputs[::rankings], group=group, rankings=1, tree=None, parts=(), **rows)


def _nested_advantages(inside: Rewards, outside: Rewards, q: int, lam: float) -> dict[str, Tensor]:
    """True advantages of the first ranking of each slate of query q, (G,) each; penalties are paid as in training."""

    def paid(rewards: Rewards) -> tuple[Tensor, Tensor]:
        rank = lam * rewards.rank[q] + rewards.rank_format[q]
        return (rewards.slate[q] + rewards.slate_format[q]).double(), rank.double()

    (slate, rank), (slates, ranks) = paid(inside), paid(outside)
    slate, rank = slate.view(-1, RANKINGS)[:, 0], rank.view(-1, RANKINGS)  # (G,), (G, RANKINGS)
    expected = rank[:, 1:].mean(1)
    own = torch.where((rank == rank[:, :1]).all(1), 0.0, rank[:, 0] - expected)  # a ranker that cannot differ
    return {"slate": slate + expected - (slates + ranks).mean(), "rank": own}


def random_order_advantages(
    example: Example, outputs: Sequence[Output], rewards: Rewards, config: Config
) -> dict[str, Tensor]:
    """True advantages of the slates and the rankings of B outputs written by hand, (B,) each; rewards (1, B).

    Which are true depends on the policy. This one draws the slates of the B outputs equally often, and for a slate every
    ranked list of the written length. Format penalties are left out.
    """
    gains = pool_gains([example]).unsqueeze(1)  # (1, 1, N)
    orders = [torch.tensor([list(permutations(o.slate, len(o.rank)))]) for o in outputs]  # (1, lists, length) each
    expected = torch.stack([ndcg(lists, gains, config.grammar.rank_size).mean() for lists in orders])
    value = rewards.slate[0] + config.rl.lam * expected
    return {"slate": value - value.mean(), "rank": config.rl.lam * (rewards.rank[0] - expected)}


def judged(given: Tensor, true: Tensor) -> Tensor:
    """Numbers of wrong signs, of zeros and of all, among rollouts whose true advantage is not 0: (3,)."""
    counted = true.abs() > ROUNDING
    zero = given.abs() <= ROUNDING
    wrong = (given * true < 0) & ~zero
    return torch.stack([(x & counted).sum() for x in (wrong, zero, counted)]).double()


def _stacked(counts: Sequence[Counts]) -> Counts:
    return {
        key: {name: torch.stack([own[key][name] for own in counts]) for name in phases}
        for key, phases in (counts[0].items() if counts else ())
    }


def shares(counts: Tensor, seed: int = 0) -> dict[str, float | None]:
    """`wrong` with its 95 % interval over queries (bootstrap), and `silent`, the share of zeros. counts (Q, 3)."""
    total = counts.sum(0)
    if not total[2]:
        return {"wrong": None, "wrong_low": None, "wrong_high": None, "silent": None}
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(counts), (RESAMPLES, len(counts)), generator=generator)
    again = counts[drawn].sum(1)  # (RESAMPLES, 3)
    low, high = (again[:, 0] / again[:, 2].clamp(min=1)).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
    return {"wrong": float(total[0] / total[2]), "wrong_low": float(low), "wrong_high": float(high),
            "silent": float(total[1] / total[2])}  # fmt: skip


def sign_rows(counts: Counts, lam: float, seed: int = 0) -> list[Row]:
    """A row for each method, group size and phase, by (method, G)."""
    return [
        {"method": method, "group": group, "lam": lam, "phase": phase, **shares(found, seed), "queries": len(found)}
        for (method, group), phases in counts.items() for phase, found in phases.items()
    ]  # fmt: skip


def format_signs(rows: Sequence[Row]) -> str:
    """The rows of `sign_rows` as text."""
    lines: list[tuple[str, ...]] = [("method", "G", "phase", "wrong sign", "95 %", "zero")]
    for r in rows:
        wrong, low, high, silent = (
            "" if r[k] is None else f"{100 * r[k]:.1f}" for k in ("wrong", "wrong_low", "wrong_high", "silent")
        )
        lines.append((r["method"], str(r["group"]), r["phase"], wrong, f"{low} to {high}", silent))
    return f"""{columns(lines)}

Percent of rollouts whose phase gets the opposite sign of its true advantage (lambda {rows[0]["lam"]:g}), or none at all;
{rows[0]["queries"]} queries, in pools of {POOL} candidates with every output listed. Intervals over queries."""
