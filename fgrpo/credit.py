"""Who gets which credit: one advantage per token from the two rewards of each rollout.

A method is a function (rewards, rollouts, config) -> advantages (B, T). To add one, write it and name it in CREDITS.
Advantages are centred on the mean over the G rollouts of the same query, in the manner of Dr. GRPO (arXiv 2503.20783)
not divided by their standard deviation unless `scale` asks for it. A group whose rewards are all equal gives zero.

The format penalty belongs to neither phase alone: it is added to what each phase is paid.
"""

from collections.abc import Callable

from torch import Tensor

from .config import KitError, RLConfig
from .prompt import PHASE_RANK, PHASE_SLATE
from .rewards import Rewards
from .rollout import Rollouts


def grpo(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Joint: A(R_slate + lambda R_rank) on every token (GRPO, arXiv 2402.03300)."""
    joint = advantage(rewards.slate + config.lam * rewards.rank + rewards.format, config)
    return by_phase(joint, joint, rollouts)


def fgrpo(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Factorised: slate tokens learn from A(R_slate) alone, rank tokens from lambda A(R_rank) alone (arXiv 2605.12995)."""
    return by_phase(advantage(rewards.slate + rewards.format, config), rank_advantage(rewards, config), rollouts)


def reward_to_go(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Plain causality: a slate token precedes both rewards, a rank token only the second. Unbiased for the joint one."""
    joint = advantage(rewards.slate + config.lam * rewards.rank + rewards.format, config)
    return by_phase(joint, rank_advantage(rewards, config), rollouts)


Credit = Callable[[Rewards, Rollouts, RLConfig], Tensor]

CREDITS: dict[str, Credit] = {"grpo": grpo, "fgrpo": fgrpo, "reward_to_go": reward_to_go}

JOINT = {"grpo"}
"""Methods that give every token of a rollout the same advantage, which a sequence-level ratio may carry."""


def assign_credit(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Advantages (B, T) under the method that `config.credit` names; 0 at padding."""
    return CREDITS[config.credit](rewards, rollouts, config)


def advantage(reward: Tensor, config: RLConfig, spread_of: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its group. (Q, G) -> (Q, G).

    If `scale` is std, over the group's standard deviation of the reward, or of `spread_of` where that is given.
    """
    centred = reward - reward.mean(dim=1, keepdim=True)
    centred = centred.masked_fill(zero_variance(reward).unsqueeze(1), 0.0)  # not the mean's rounding error
    if config.scale == "none":
        return centred
    return centred / ((reward if spread_of is None else spread_of).std(dim=1, keepdim=True) + 1e-4)


def rank_advantage(rewards: Rewards, config: RLConfig) -> Tensor:
    """lambda A(R_rank), the format penalty at its full weight. (Q, G)."""
    return advantage(config.lam * rewards.rank + rewards.format, config, spread_of=rewards.rank + rewards.format)


def zero_variance(reward: Tensor) -> Tensor:
    """True for each group whose rollouts were all rewarded alike. (Q, G) -> (Q,)."""
    return (reward == reward[:, :1]).all(dim=1)


def by_phase(slate: Tensor, rank: Tensor, rollouts: Rollouts) -> Tensor:
    """Spread one advantage per phase, (Q, G) each, over the tokens of that phase. -> (B, T)."""
    phase = rollouts.phase
    slate, rank = slate.to(phase.device), rank.to(phase.device)
    return slate.reshape(-1, 1) * (phase == PHASE_SLATE) + rank.reshape(-1, 1) * (phase == PHASE_RANK)


def check_credit(config: RLConfig) -> None:
    """Raise KitError on an unknown method, or on a sequence-level ratio for a factorised one.

    One ratio for the whole sequence has one gradient for all its tokens: it averages the phase advantages into one
    and so undoes factorised credit without a word.
    """
    if config.credit not in CREDITS:
        raise KitError(f"credit {config.credit!r} is not known; choose from {', '.join(CREDITS)}.")
    if config.ratio == "sequence" and config.credit not in JOINT:
        raise KitError(
            f"ratio 'sequence' averages the phases of {config.credit!r} into one: choose ratio token, item or phase."
        )


def spread(advantages: Tensor, phase: Tensor, which: int) -> float:
    """Standard deviation of the advantages on the tokens of one phase."""
    chosen = advantages[phase == which]
    return float(chosen.std()) if chosen.numel() > 1 else 0.0
