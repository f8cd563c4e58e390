"""Who gets which credit: one advantage per token from the two rewards of each rollout.

A method is a function (rewards, rollouts, config) -> advantages (B, T). To add one, write it and name it in CREDITS.
Advantages are centred on the mean over the G rollouts of the same query, in the manner of Dr. GRPO (arXiv 2503.20783)
not divided by their standard deviation unless `scale` asks for it. A group whose rewards are all equal gives zero.
The format penalty is added to what the phase at fault is paid.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from .config import KitError, RLConfig
from .prompt import PHASE_RANK, PHASE_SLATE
from .rewards import WORTH, Rewards, check_rewards, output_lists
from .rollout import Rollouts

RIDGE = 0.1  # squared slate reward: in `control`, steadies lines through few points; tuned on lab pools, November 2026


def grpo(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Joint: A(R_slate + lambda R_rank) on every token (GRPO, arXiv 2402.03300)."""
    joint = advantage(rewards.slate + config.lam * rewards.rank + rewards.format, config)
    return by_phase(joint, joint, rollouts)


def rloo(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Joint, against the mean of the group's OTHER rollouts (RLOO, arXiv 2402.14740): G / (G - 1) times grpo."""
    group = rewards.slate.shape[1]
    return grpo(rewards, rollouts, config) * group / (group - 1)


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


def anchor(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """As reward_to_go, but a ranking against those of the same slate, in any order, where the group has others.

    GiGPO's anchor states (arXiv 2505.10978), at no extra tokens. Of two rollouts with one slate, each is the other's
    baseline: a mean that includes the rollout itself would halve their credit and so favour rankings of rare slates.
    All rank tokens get (1 - 1/G) (R - mean of the others), which is what centring on the group's mean comes to: one
    factor for every token, so that the estimate is unbiased in direction. An unreadable slate is the empty set.
    """
    slates = output_lists(rollouts)[0].sort(dim=-1).values  # (Q, G, n)
    same = (slates.unsqueeze(2) == slates.unsqueeze(1)).all(-1)  # (Q, G, G)
    others = ~torch.eye(same.shape[1], dtype=torch.bool).expand_as(same)
    peers = torch.where((same & others).any(-1, keepdim=True), same & others, others)
    paid = config.lam * rewards.rank + rewards.rank_format
    ahead = ((paid.unsqueeze(2) - paid.unsqueeze(1)) * peers).sum(-1) / peers.sum(-1)  # of the mean of its peers
    return _with_rank(ahead * (1 - 1 / same.shape[1]), rewards, rollouts, config)


def control(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """As reward_to_go, but from a ranking's reward is taken what its slate's reward predicts (a control variate).

    The prediction is that of a line through the group's other rollouts, a ridge regression of R_rank on R_slate. It
    knows nothing of the ranking itself, so that the estimate is unbiased, as in `anchor` with the factor 1 - 1/G. The
    residual of one line through all G would be biased: the further a slate's reward is from the mean, the more of its
    own ranking's reward is in the line. Dividing that residual by one minus its leverage gives the one wanted.
    """
    plain = replace(config, scale="none")
    slate, rank = advantage(rewards.slate, plain), rank_advantage(rewards, plain)
    spread = slate.square().sum(1, keepdim=True) + RIDGE
    residual = rank - (slate * rank).sum(1, keepdim=True) / spread * slate
    kept = 1 - 1 / slate.shape[1]
    return _with_rank(residual * kept / (kept - slate.square() / spread), rewards, rollouts, config)


def _with_rank(rank: Tensor, rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """Slate tokens as reward_to_go; rank tokens these advantages (Q, G), over the spread of R_rank if scale is std."""
    joint = advantage(rewards.slate + config.lam * rewards.rank + rewards.format, config)
    if config.scale == "std":
        rank = rank / group_std(rewards.rank + rewards.rank_format)
    return by_phase(joint, rank, rollouts)


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
    return _by_item(rewards.items, rewards, rollouts, config)


def shapley(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """As item, but slate items get their Shapley values, which sum to the slate's reward (ShapE-GRPO, arXiv 2603.29871).

    The same as item where the reward is recall. Under F1 leaving items out one by one pays all of them together less
    than the slate earned, and closes slates early: an item of a slate of 10 that holds the one relevant candidate has to
    be right with a chance of 1 in 11 before it pays, and of 1 in 17 by its Shapley value. Biased, as item is.
    """
    return _by_item(rewards.shapley, rewards, rollouts, config)


def _by_item(items: Tensor, rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> Tensor:
    """The credit of `item` for given values of the slate's items, (Q, G, n)."""
    items = items.masked_fill(zero_variance(rewards.slate).view(-1, 1, 1), 0.0)
    places = rewards.places.masked_fill(zero_variance(rewards.rank).view(-1, 1, 1), 0.0)
    to_go = places.flip(-1).cumsum(-1).flip(-1)
    if config.scale == "std":
        items, to_go = (x / group_std(r).unsqueeze(-1) for x, r in ((items, rewards.slate), (to_go, rewards.rank)))
    slate, rank = _by_place(items, rollouts, PHASE_SLATE), _by_place(to_go, rollouts, PHASE_RANK)
    form = by_phase(advantage(rewards.slate_format, config), advantage(rewards.rank_format, config), rollouts)
    return slate + config.lam * rank + form


Credit = Callable[[Rewards, Rollouts, RLConfig], Tensor]

CREDITS: dict[str, Credit] = {
    "grpo": grpo, "rloo": rloo, "gdpo": gdpo, "fgrpo": fgrpo, "reward_to_go": reward_to_go, "anchor": anchor,
    "control": control, "nested": nested, "item": item, "shapley": shapley,
}  # fmt: skip

JOINT = {"grpo", "rloo", "gdpo"}  # give all tokens of a rollout one advantage, which a sequence-level ratio may carry
BY_ITEM = {"item", "shapley"}  # pay single items, by their labels
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
    check_rewards(config)
    if config.ratio == "sequence" and (config.credit not in JOINT or config.learn != "both"):  # one ratio for all
        raise KitError(f"ratio 'sequence' averages the phases of {config.credit!r}: choose ratio token, item or phase.")
    if (config.credit == "nested") != (config.rankings > 1):
        raise KitError("credit 'nested' compares rankings of one slate: give it, and it alone, --rankings 2 or more.")
    if config.group % config.rankings or config.group < 2 * config.rankings:
        raise KitError(f"group {config.group} must be a multiple of rankings {config.rankings}, two slates at least.")
    if config.credit in BY_ITEM and (config.slate_noise or config.rank_noise):
        raise KitError(f"credit {config.credit!r} is paid by item, reward noise by phase: leave out one of them.")
    if config.credit in BY_ITEM and config.rank_reward != "ndcg":
        raise KitError(f"credit {config.credit!r} divides NDCG among the ranks: leave out rank_reward.")
    if config.credit == "shapley" and config.slate_reward not in WORTH:
        raise KitError(f"credit 'shapley' needs a slate reward in WORTH, which {config.slate_reward!r} is not.")
