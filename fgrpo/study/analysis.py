"""What each credit method estimates: bias and variance against the exact gradient, and measurements on the real task."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from ..config import Config, RLConfig, with_method
from ..credit import assign_credit, check_credit
from ..data import Example
from ..loss import policy_loss
from ..policy import Policy
from ..prompt import PHASE_RANK, PHASE_SLATE
from ..rewards import score
from ..rollout import rollout
from ..trainer import sampled_tokens, sampling_of
from .oracle import Oracle

MOST_GROUPS = 200_000
PHASES = {"slate": PHASE_SLATE, "rank": PHASE_RANK}


def measure_method(
    oracle: Oracle, config: RLConfig, generator: torch.Generator, count: int = 8000, exact: bool = False
) -> dict[str, float]:
    """Bias, variance and signal of `config.credit` against the true gradient of E[R_slate + lambda R_rank].

    `angle` between the expected estimate and the true gradient, in degrees, also within each phase; `norm` the ratio of
    their lengths; `variance` the mean squared distance of one group's estimate from its expectation; `signal` the length
    of the expected estimate along the true gradient, over the root of the variance; `signal_1k` the same for as many
    groups as 1,000 sampled tokens buy. `exact` goes through all groups; else `count` are drawn, and the angles are known
    to `angle_error` degrees.
    """
    truth = oracle.gradient((oracle.rewards.slate + config.lam * oracle.rewards.rank)[0])
    groups, weights = oracle.all_groups(config) if exact else (oracle.sample(count, config, generator), None)
    weights = torch.full((len(groups),), 1 / len(groups), dtype=torch.float64) if weights is None else weights
    noise = generator if config.slate_noise or config.rank_noise else None
    mean, square, tokens = torch.zeros_like(truth), 0.0, 0.0
    for part, weight in zip(groups.split(2000), weights.split(2000), strict=True):
        found = oracle.estimates(part, config, noise)
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


def separability(oracle: Oracle) -> dict[str, float]:
    """What a small step of each phase does to either expected reward, as F-GRPO takes it. Exact, to first order.

    `slate_on_rank` is the change of E[R_rank] after a step along the slate tokens' gradient of E[R_slate], over the
    change that the same length brings along E[R_rank]'s own gradient (a cosine, -1 to 1); the others accordingly.
    `rank_on_slate` compares with the slate phase's own step.
    """
    slate, rank = (oracle.gradient(x[0]) for x in (oracle.rewards.slate, oracle.rewards.rank))
    slate_step, rank_step = slate * (oracle.phase == PHASE_SLATE), rank * (oracle.phase == PHASE_RANK)
    return {
        "slate_on_slate": oracle.cosine(slate_step, slate), "slate_on_rank": oracle.cosine(slate_step, rank),
        "rank_on_slate": oracle.cosine(rank_step, slate), "rank_on_rank": oracle.cosine(rank_step, rank),
    }  # fmt: skip


def oracle_table(
    pools: Sequence[Oracle], methods: Sequence[str], groups: Sequence[int], config: Config, exact: bool = False
) -> list[dict[str, Any]]:
    """`measure_method` as a mean over queries, for every method (as `with_method` reads it) and group size.

    What a method cannot have is left out: less than two slates, and, if `exact`, more groups than can be gone through
    or noisy rewards.
    """
    rows = []
    for method, group in product(methods, groups):
        rl = with_method(replace(config, rl=replace(config.rl, group=group)), method).rl
        slates, noisy = group // rl.rankings, rl.slate_noise or rl.rank_noise
        if group % rl.rankings or slates < 2 or (exact and (noisy or pools[0].count_groups(rl) > MOST_GROUPS)):
            continue
        check_credit(rl)
        generator = torch.Generator().manual_seed(config.seed)
        found = [measure_method(o, rl, generator, exact=exact) for o in pools]
        size = pools[0].rollouts.prompts.choices.tokens.shape[1] - 5
        rows.append(
            {"method": method, "group": group, "pool": size, "exact": exact, **mean_of(found), "queries": len(found)}
        )
    return rows


def mean_of(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Each number's mean over the rows."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


def interference(policy: Policy, queries: Sequence[Example], config: Config, number: int = 0) -> dict[str, float]:
    """One batch of the real task: do the phases pull the shared weights apart, and whom does joint credit mislead?

    `cosine` of the slate tokens' and the rank tokens' gradient under fgrpo; `slate_share` the slate's part of the sum of
    both norms. `flipped_slate`, `flipped_rank`: share of rollouts whose joint advantage (grpo) has the opposite sign of
    the phase's own; `blind_slate`, `blind_rank`: share where the phase's own is zero and the joint one is not.
    """
    rollouts = rollout(policy, queries, sampling_of(config), config.rl.group, config.seed, number)
    rewards = score(rollouts, queries, config.rl)
    joint, own = (
        assign_credit(rewards, rollouts, replace(config.rl, credit=name, rankings=1)) for name in ("grpo", "fgrpo")
    )
    found, gradients = {"tokens": float(sampled_tokens(rollouts))}, []
    for name, phase in PHASES.items():
        here = rollouts.phase == phase
        loss, _ = policy_loss(policy, replace(rollouts, tree=None), own * here, config.rl)
        policy.model.zero_grad(set_to_none=True)
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None]))
        first = here.int().argmax(1, keepdim=True)  # every token of a phase has the same advantage
        a, b = joint.gather(1, first), own.gather(1, first)
        found[f"flipped_{name}"] = float((a * b < 0).float().mean())
        found[f"blind_{name}"] = float(((b == 0) & (a != 0)).float().mean())
    policy.model.zero_grad(set_to_none=True)
    slate, rank = gradients
    found["cosine"] = float(torch.cosine_similarity(slate, rank, dim=0))
    found["slate_share"] = float(slate.norm() / (slate.norm() + rank.norm()))
    return found
