"""Who gets which credit: one advantage per token from the two rewards of each rollout.

A method is a function (rewards, rollouts, config) -> advantages (B, T). To add one, write it and name it in CREDITS.
Advantages are centred on the mean over the G rollouts of the same query, in the manner of Dr. GRPO (arXiv 2503.20783)
not divided by their standard deviation unless `scale` asks for it. A group whose rewards are all equal gives zero.
The format penalty is added to what the phase at fault is paid.
"""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.nn.functional import pad

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
    return by_phase(advantage(rewards.slate + rewards.slate_format, config), rank_advantage(rewards, config), rollouts)


def reward_to_go(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Plain causality: a slate token precedes both rewards, a rank token only the second. Unbiased for the joint one."""
    joint = advantage(rewards.slate + config.lam * rewards.rank + rewards.format, config)
    return by_phase(joint, rank_advantage(rewards, config), rollouts)


def gdpo(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Each reward over its own spread, then the sum, on every token (GDPO, arXiv 2601.05242).

    The rewards are normalised whatever `scale` says. GDPO's last step, to divide by the spread over the batch, is in
    `assign_credit`: it needs the rollouts of all processes.
    """
    std = replace(config, scale="std")
    slate = advantage(rewards.slate + rewards.slate_format, std)
    joint = slate + config.lam * advantage(rewards.rank + rewards.rank_format, std)
    return by_phase(joint, joint, rollouts)


def nested(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """M slates with K rankings each: a slate against the other slates, a ranking against those of the SAME slate.

    The mean over the rankings of a slate is a baseline that knows the slate, so that its luck is no noise to the
    ranker. M / (M - 1) and K / (K - 1) undo the shrinkage of a mean that includes the rollout itself: with M and K so
    different the phases would otherwise be out of proportion.
    """
    k, (n_queries, group) = rollouts.rankings, rewards.slate.shape
    m = group // k
    paid = rewards.slate + config.lam * rewards.rank + rewards.format
    slate = advantage(paid.view(n_queries, m, k).mean(2), config) * m / (m - 1)
    rank = advantage((config.lam * rewards.rank + rewards.rank_format).view(-1, k), config) * k / (k - 1)
    return by_phase(slate.repeat_interleave(k, dim=1), rank.view(n_queries, group), rollouts)


def item(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Each item its own: leave-one-out coverage in the slate, reward-to-go DCG from each rank on (arXiv 2510.20150).

    Centred on the group's mean at the same place, where a list that has ended counts 0; so does its closing tag. Where
    all slates of a group earn the same, or all rankings, no item of theirs is praised or blamed.
    """
    items = rewards.items.masked_fill(zero_variance(rewards.slate).view(-1, 1, 1), 0.0)
    places = rewards.places.masked_fill(zero_variance(rewards.rank).view(-1, 1, 1), 0.0)
    to_go = places.flip(-1).cumsum(-1).flip(-1)
    if config.scale == "std":
        items, to_go = (x / group_std(r).unsqueeze(-1) for x, r in ((items, rewards.slate), (to_go, rewards.rank)))
    slate, rank = _by_place(items, rollouts, PHASE_SLATE), _by_place(to_go, rollouts, PHASE_RANK)
    form = by_phase(advantage(rewards.slate_format, config), advantage(rewards.rank_format, config), rollouts)
    return slate + config.lam * rank + form


Credit = Callable[[Rewards, Rollouts, RLConfig], Tensor]

CREDITS: dict[str, Credit] = {
    "grpo": grpo, "gdpo": gdpo, "fgrpo": fgrpo, "reward_to_go": reward_to_go, "nested": nested, "item": item,
}  # fmt: skip

JOINT = {"grpo", "gdpo"}  # give all tokens of a rollout one advantage, which a sequence-level ratio may carry
OVER_THE_BATCH = {"gdpo"}  # divide by the standard deviation over the whole batch


def assign_credit(
    rewards: Rewards, rollouts: Rollouts, config: RLConfig, reduce_sum: Callable[[float], float] = float
) -> Tensor:
    """Advantages (B, T) under the method that `config.credit` names; 0 at padding.

    `reduce_sum` adds a number up over the processes that share the batch.
    """
    advantages = CREDITS[config.credit](rewards, rollouts, config)
    if config.credit in OVER_THE_BATCH:
        each = advantages[:, 0]  # one number a rollout, with mean 0
        square, count = reduce_sum(float(each.square().sum())), reduce_sum(len(each))
        advantages = advantages / ((square / (count - 1)) ** 0.5 + 1e-4)
    if config.learn != "both":
        advantages = advantages * (rollouts.phase == {"slate": PHASE_SLATE, "rank": PHASE_RANK}[config.learn])
    return advantages


def with_credit(config: RLConfig, name: str) -> RLConfig:
    """The same options under another method. Nested gets two rankings a slate unless more are set, the others one."""
    return replace(config, credit=name, rankings=max(2, config.rankings) if name == "nested" else 1)


def advantage(reward: Tensor, config: RLConfig, spread_of: Tensor | None = None) -> Tensor:
    """Reward minus the mean of its group. (Q, G) -> (Q, G).

    If `scale` is std, over the group's standard deviation of the reward, or of `spread_of` where that is given.
    """
    centred = reward - reward.mean(dim=1, keepdim=True)
    centred = centred.masked_fill(zero_variance(reward).unsqueeze(1), 0.0)  # not the mean's rounding error
    if config.scale == "none":
        return centred
    return centred / group_std(reward if spread_of is None else spread_of)


def rank_advantage(rewards: Rewards, config: RLConfig) -> Tensor:
    """The advantage lambda A(R_rank), the format penalty at its full weight. (Q, G)."""
    paid, spread_of = (weight * rewards.rank + rewards.rank_format for weight in (config.lam, 1.0))
    return advantage(paid, config, spread_of)


def group_std(reward: Tensor) -> Tensor:
    """Standard deviation of each group, with what keeps a division by it finite. (Q, G) -> (Q, 1)."""
    return reward.std(dim=1, keepdim=True) + 1e-4


def zero_variance(reward: Tensor) -> Tensor:
    """True for each group whose rollouts were all rewarded alike. (Q, G) -> (Q,)."""
    return (reward == reward[:, :1]).all(dim=1)


def by_phase(slate: Tensor, rank: Tensor, rollouts: Rollouts) -> Tensor:
    """Spread one advantage per phase, (Q, G) each, over the tokens of that phase. -> (B, T)."""
    phase = rollouts.phase
    slate, rank = slate.to(phase.device), rank.to(phase.device)
    return slate.reshape(-1, 1) * (phase == PHASE_SLATE) + rank.reshape(-1, 1) * (phase == PHASE_RANK)


def _by_place(values: Tensor, rollouts: Rollouts, which: int) -> Tensor:
    """Values of a list's places (Q, G, K), centred over the group, on the tokens of a phase. -> (B, T).

    A token's place is the number of items that its phase holds before it (an item ends with the last token of its
    label); after the last place it has none.
    """
    centred = pad(values - values.mean(dim=1, keepdim=True), (0, 1)).flatten(0, 1)
    in_phase = rollouts.phase == which
    is_item = rollouts.prompts.choices.repeat(rollouts.group).item_ends(rollouts.completions) & in_phase
    place = (is_item.cumsum(1) - is_item.long()).clamp(max=values.shape[-1])
    return centred.to(place.device).gather(1, place) * in_phase


def check_credit(config: RLConfig) -> None:
    """Raise KitError on an unknown method, or on options that do not fit it."""
    if config.credit not in CREDITS:
        raise KitError(f"credit {config.credit!r} is not known; choose from {', '.join(CREDITS)}.")
    if config.ratio == "sequence" and (config.credit not in JOINT or config.learn != "both"):  # one ratio for all
        raise KitError(f"ratio 'sequence' averages the phases of {config.credit!r}: choose ratio token, item or phase.")
    if (config.credit == "nested") != (config.rankings > 1):
        raise KitError("credit 'nested' compares rankings of one slate: give it, and it alone, --rankings 2 or more.")
    if config.group % config.rankings or config.group < 2 * config.rankings:
        raise KitError(f"group {config.group} must be a multiple of rankings {config.rankings}, two slates at least.")
    if config.credit == "item" and (config.slate_noise or config.rank_noise):
        raise KitError("credit 'item' is paid by item, reward noise by phase: leave out one of them.")
