"""Bias and variance of each credit method against the exact gradient, and how the phases interfere on the real task."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..config import Config, GrammarConfig, RLConfig
from ..credit import assign_credit, check_credit
from ..data import Example, Splits
from ..loss import policy_loss
from ..policy import Policy, Prompts
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rewards import score
from ..rollout import rollout
from ..runs.run import provenance
from ..tasks.atomic import write_text
from ..trainer import batch_of, sampled_tokens, sampling_of
from . import plots
from .gradients import PHASES
from .oracle import Oracle, enumerate_outputs, small_pool
from .plots import Row
from .report import columns, to_csv

MAX_GROUPS = 200_000
"""maximum number of groups of an exact expectation"""

Numbers = dict[str, float]


def analyse(
    policy: Policy, splits: Splits, methods: Mapping[str, RLConfig], config: Config, pools: int = 4, batches: int = 8,
    groups: Sequence[int] = (2, 4, 8, 16, 32),
) -> tuple[list[Row], Numbers, Numbers]:  # fmt: skip
    """`oracle_table` of all methods, then means of `separability` and of `interference`.

    The oracle enumerates the pools of the first `pools` test queries, cut down to 4 candidates (all groups of 2 to 4
    rollouts, exactly) and to 6 (drawn groups of every size in `groups`). Interference is measured on `batches` rollout
    batches of the training queries.
    """
    small, middle = (
        [enumerate_outputs(policy, small_pool(e, pool), replace(config, grammar=GrammarConfig(slate, 2)))
         for e in splits.test[:pools]] for pool, slate in ((4, 2), (6, 3))
    )  # fmt: skip
    rows = oracle_table(small, methods, (2, 3, 4), exact=True)
    rows += oracle_table(middle, methods, groups, seed=config.seed)
    apart = mean_of([separability(policy, oracle) for oracle in middle])
    queries = [batch_of(splits.train, config.rl.queries, number, config.seed) for number in range(batches)]
    real = mean_of([interference(policy, batch, config, number) for number, batch in enumerate(queries)])
    return rows, apart, real


def oracle_table(
    pools: Sequence[Oracle],
    methods: Mapping[str, RLConfig],
    groups: Sequence[int],
    *,
    exact: bool = False,
    seed: int = 0,
) -> list[Row]:
    """`bias_and_variance` as a mean over queries, for every method, given by name and options, and group size.

    Combinations that cannot be had are left out: fewer than two slates, and, if `exact`, noisy rewards or more than
    MAX_GROUPS groups.
    """
    rows = []
    for method, options in methods.items():
        for group in groups:
            rl = replace(options, group=group)
            slates, noisy = group // rl.rankings, rl.slate_noise or rl.rank_noise
            if group % rl.rankings or slates < 2 or (exact and (noisy or pools[0].count_groups(rl) > MAX_GROUPS)):
                continue
            check_credit(rl)
            generator = torch.Generator().manual_seed(seed)
            found = [bias_and_variance(oracle, rl, generator, exact=exact) for oracle in pools]
            size = pools[0].rollouts.prompts.choices.tokens.shape[1] - 5  # four tags and the end are choices as well
            case = {"method": method, "group": group, "pool": size, "exact": exact}
            rows.append({**case, **mean_of(found), "queries": len(found)})
    return rows


def bias_and_variance(
    oracle: Oracle, config: RLConfig, generator: torch.Generator, count: int = 8000, exact: bool = False
) -> Numbers:
    """Bias, variance and signal of `config.credit` against the true gradient of E[R_slate + lambda R_rank].

    `angle` between the expected estimate and the true gradient, in degrees, also within each phase; `norm` the ratio of
    their lengths; `variance` the mean squared distance of one group's estimate from its expectation; `signal` the length
    of the expected estimate along the true gradient, divided by the root of the variance; `signal_1k` the same for as
    many groups as fit into 1,000 sampled tokens. `exact` sums over all groups; otherwise `count` groups are drawn, and
    the angles are known to `angle_error` degrees.
    """
    truth = oracle.gradient((oracle.rewards.slate + config.lam * oracle.rewards.rank)[0])
    groups, weights = oracle.all_groups(config) if exact else (oracle.sample(count, config, generator), None)
    weights = torch.full((len(groups),), 1 / len(groups), dtype=torch.float64) if weights is None else weights
    noise = generator if config.slate_noise or config.rank_noise else None
    mean, square, tokens = torch.zeros_like(truth), 0.0, 0.0
    # moments of the estimate, in decision weights (E,); a part of the N groups at a time
    for part, weight in zip(groups.split(2000), weights.split(2000), strict=True):
        found = oracle.estimates(part, config, noise)  # (N, E)
        mean, square = mean + weight @ found, square + float(weight @ oracle.dot(found, found))
        tokens += float(weight @ oracle.tokens(part, config.rankings).double())
    variance = square - float(oracle.dot(mean, mean))
    signal = float(oracle.dot(mean, truth) / oracle.dot(truth, truth).sqrt()) / variance**0.5
    return {
        "angle": oracle.angle(mean, truth),
        **{f"angle_{name}": oracle.angle(*(x * (oracle.phase == p) for x in (mean, truth))) for name, p in PHASES.items()},
        "angle_error": 0.0 if exact else math.degrees((variance / count / float(oracle.dot(mean, mean))) ** 0.5),
        "norm": float((oracle.dot(mean, mean) / oracle.dot(truth, truth)).sqrt()), "variance": variance,
        "signal": signal, "tokens": tokens, "signal_1k": signal * (1000 / tokens) ** 0.5,
    }  # fmt: skip


RAISED = 0.01
"""gain of the phase's own expected reward, to first order, by the steps of `separability`"""


def separability(policy: Policy, oracle: Oracle) -> Numbers:
    """Change of one phase's reward gradient after a small step of the other phase, relative to its length. Exact sums.

    Our reading of a phrase: a summary of the paper speaks of "first-order separability", whose statement could not be
    obtained. The step goes along a phase's gradient as F-GRPO takes it (slate tokens' of E[R_slate], rank tokens' of
    E[R_rank]), as far as raises its own reward by RAISED to first order.

    After a step of the slate phase, `rank_given_slates` is the change of the ranker's gradient for the slates as they
    were, in shared weights: the leak. With a model of its own for each phase it is exactly 0. `rank_shared` and
    `rank_separate` are the change for the slates as they are after the step: the ranker is asked about other slates,
    whatever weights are shared. After a step of the rank phase, `slate_shared` is the change of the slate phase's
    gradient, whose reward does not depend on the ranking; with separate models it is exactly 0.
    """
    of_slate, of_rank = (reward[0].double() for reward in (oracle.rewards.slate, oracle.rewards.rank))
    slates, ranks = phase_probabilities(policy, oracle)
    slate = phase_gradient(policy, oracle, PHASE_SLATE, slates * ranks * of_slate)
    rank = phase_gradient(policy, oracle, PHASE_RANK, slates * ranks * of_rank)
    with stepped(policy, slate * (RAISED / slate.square().sum())):
        new_slates, new_ranks = phase_probabilities(policy, oracle)
        given, shared = (
            phase_gradient(policy, oracle, PHASE_RANK, asked * new_ranks * of_rank) for asked in (slates, new_slates)
        )
    # a ranker with weights of its own is as before, and asked about the new slates
    separate = phase_gradient(policy, oracle, PHASE_RANK, new_slates * ranks * of_rank)
    with stepped(policy, rank * (RAISED / rank.square().sum())):
        new_slates, new_ranks = phase_probabilities(policy, oracle)
        other = phase_gradient(policy, oracle, PHASE_SLATE, new_slates * new_ranks * of_slate)

    def change(after: Tensor, before: Tensor) -> float:
        return float((after - before).norm() / before.norm())

    return {
        "rank_given_slates": change(given, rank), "rank_shared": change(shared, rank),
        "rank_separate": change(separate, rank), "slate_shared": change(other, slate),
    }  # fmt: skip


def phase_logps(policy: Policy, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Log-probability of each output's slate, and of its ranking given the slate, by the policy as it is now. (B,) each."""
    r, device = oracle.rollouts, policy.device
    prompts = Prompts(r.prompts.ids.to(device), r.prompts.mask.to(device), r.prompts.choices.to(device))
    logp, _ = policy.logprobs(prompts, r.completions.to(device), r.mask.to(device), r.sampling, shared=False)
    slate, rank = ((logp.cpu() * (r.phase == phase)).double().sum(1) for phase in PHASES.values())
    return slate, rank


@torch.no_grad()
def phase_probabilities(policy: Policy, oracle: Oracle) -> tuple[Tensor, Tensor]:
    """Probability of each output's slate, and of its ranking given the slate, (B,) each."""
    slate, rank = phase_logps(policy, oracle)
    return slate.exp(), rank.exp()


def phase_gradient(policy: Policy, oracle: Oracle, phase: int, pay: Tensor) -> Tensor:
    """Gradient of sum(pay log p) over the tokens of a phase, in the weights of the policy. pay (B,) -> (P,)."""
    slate, rank = phase_logps(policy, oracle)
    total = (slate if phase == PHASE_SLATE else rank) @ pay
    return torch.cat([part.flatten() for part in torch.autograd.grad(total, policy.parameters())])


@contextmanager
def stepped(policy: Policy, step: Tensor) -> Iterator[None]:
    """Inside this context the weights of a policy are `step` (P,) away."""
    weights = policy.parameters()
    begin = [p.detach().clone() for p in weights]
    with torch.no_grad():
        for p, part in zip(weights, step.split([p.numel() for p in weights]), strict=True):
            p.add_(part.view_as(p))
    try:
        yield
    finally:
        with torch.no_grad():
            for p, value in zip(weights, begin, strict=True):
                p.copy_(value)


def mean_of(rows: Sequence[Numbers]) -> Numbers:
    """Each number's mean over the rows."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def interference(policy: Policy, queries: Sequence[Example], config: Config, number: int = 0) -> Numbers:
    """One batch of the real task: do the phases' gradients oppose each other?

    `cosine` of the slate tokens' and the rank tokens' gradient under fgrpo; `slate_share` the slate's part of the sum of
    both norms; `tokens` drawn.
    """
    rollouts = rollout(policy, queries, sampling_of(config), config.rl.group, config.seed, number)
    rewards = score(rollouts, queries, config.rl)
    own = assign_credit(rewards, rollouts, replace(config.rl, credit="fgrpo", rankings=1))  # (B, T)
    gradients = []
    for phase in PHASES.values():
        loss, _ = policy_loss(policy, replace(rollouts, tree=None), own * (rollouts.phase == phase), config.rl)
        policy.model.zero_grad(set_to_none=True)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
    policy.model.zero_grad(set_to_none=True)
    slate, rank = gradients
    return {
        "tokens": float(sampled_tokens(rollouts)), "cosine": float(torch.cosine_similarity(slate, rank, dim=0)),
        "slate_share": float(slate.norm() / (slate.norm() + rank.norm())),
    }  # fmt: skip


def write_analysis(path: Path, rows: list[Row], apart: Numbers, real: Numbers, checkpoint: str, config: Config) -> None:
    """The oracle's rows as CSV, with everything else in its first line, and a figure beside it."""
    made = {**provenance(), "checkpoint": checkpoint, "config": config.to_dict(), **apart, **real}
    write_text(path, to_csv(rows, made))
    plots.save(plots.oracle(rows), path.with_suffix(".png"))


def format_analysis(rows: list[Row], apart: Numbers, real: Numbers) -> str:
    """The results of `analyse` as text."""
    lines: list[tuple[str, ...]] = [
        ("method", "G", "pool", "angle", "slate", "rank", "+-", "norm", "variance", "signal", "tokens", "per 1k")
    ]
    for r in rows:
        angles = [f"{r[k]:.1f}" for k in ("angle", "angle_slate", "angle_rank")]
        lines.append((
            r["method"], str(r["group"]), str(r["pool"]), *angles, "exact" if r["exact"] else f"{r['angle_error']:.1f}",
            f"{r['norm']:.2f}", f"{r['variance']:.3g}", f"{r['signal']:.2f}", f"{r['tokens']:.0f}", f"{r['signal_1k']:.2f}",
        ))  # fmt: skip
    change = {name: f"{100 * value:.1f} %" for name, value in apart.items()}
    return f"""{columns(lines)}

Angles in degrees between the expected estimate and the true gradient of E[R_slate + lambda R_rank], over all tokens and
within each phase; signal: length along the true gradient over the root of the variance (per 1k: for 1,000 sampled
tokens). Means over queries.

Separability, as we read it (exact, pools of 6): change of a phase's reward gradient, relative to its length, after a step
of the other phase that raises that one's own reward by {RAISED:g}; with shared weights, and with a model for each phase:
  slate step, ranker's gradient for the same slates: {change["rank_given_slates"]}; 0 % with a model each
  slate step, ranker's gradient for the new slates:  {change["rank_shared"]}; {change["rank_separate"]} with a model each
  rank step, slate phase's gradient:                 {change["slate_shared"]}; 0 % with a model each

On the real task the gradients of the two phases have cosine {real["cosine"]:+.3f}; the slate's has
{100 * real["slate_share"]:.0f} % of the sum of both norms.
How often a method gives a phase the wrong sign is measured by analyse --signs."""
