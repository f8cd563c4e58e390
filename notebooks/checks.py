"""The checks of the labs: each takes a student's function and returns one sentence that names the mistake it found.

A check first tries small cases with known answers, each of which separates one mistake from the others. Then it compares
with the kit's own function on random cases. It works without a notebook too: `print(checks.recall(my_recall))`.
"""

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fgrpo import credit, loss, rewards
from fgrpo.config import RLConfig
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, phases

NOT_SOLVED = "Not solved yet: write the function above, run its cell, then run this cell again."
RIGHT = "Right."
UNKNOWN = "Not yet. This is not one of the known mistakes; compare your function with the formula."

Check = Callable[[Callable[..., Any]], str]


def check(compare: Check) -> Check:
    """Turn exceptions of the student's function into messages."""

    @functools.wraps(compare)
    def answer(student: Callable[..., Any]) -> str:
        try:
            return compare(student)
        except NotImplementedError:
            return NOT_SOLVED
        except Exception as error:
            return f"Not yet. Your function stopped with {type(error).__name__}: {error}"

    return answer


def close(a: Any, b: Any) -> bool:
    """Whether two numbers or tensors are equal, with equal shapes."""
    a, b = (torch.as_tensor(x, dtype=torch.float64) for x in (a, b))
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-5)


def number(found: Any) -> float:
    """A student's number. Raises TypeError on anything else, such as None (a forgotten return)."""
    if isinstance(found, Tensor) and found.numel() == 1:
        return float(found)
    if not isinstance(found, int | float):
        raise TypeError(f"a number was expected, not {found!r}" + (" (is `return` missing?)" if found is None else ""))
    return float(found)


def same(found: Any, wanted: Tensor) -> str:
    """Empty if the student's result is a tensor of the right shape, else a message."""
    if not isinstance(found, Tensor):
        return f"Not yet. A tensor was expected, your function returned {type(found).__name__}."
    if found.shape != wanted.shape:
        return f"Not yet. The shape should be {tuple(wanted.shape)}, yours is {tuple(found.shape)}."
    return ""


# --- 02 two rewards ---------------------------------------------------------------------------------------------------


@check
def recall(student: Callable[..., Any]) -> str:
    """my_recall(slate, relevant) against fgrpo.rewards.recall."""
    found = number(student([4, 0, 7, 2], {0, 9}))  # 1 of 2 relevant, in a slate of 4
    case = f"For the slate [4, 0, 7, 2] and the relevant {{0, 9}} you returned {found}, not 0.5: "
    if close(found, 0.25):
        return f"Not yet. {case}you divided by the slate's length, which is precision."
    if close(found, 1):
        if close(student([0, 9, 7, 2], {0, 9}), 2):
            return f"Not yet. {case}that is a count; divide it by how many are relevant."
        return f"Not yet. {case}that is whether there was any hit, not the share of the relevant candidates that were found."
    for seed in range(20):
        items, gains = _lists(seed)
        slate, relevant = items.tolist(), set(gains.nonzero().flatten().tolist())
        wanted = float(rewards.recall(items, gains))
        if not close(student(slate, relevant), wanted):
            return f"{UNKNOWN} The slate {slate} with the relevant {relevant} has recall {wanted:.3f}."
    return f"{RIGHT} It agrees with fgrpo.rewards.recall."


@check
def ndcg(student: Callable[..., Any]) -> str:
    """my_ndcg(ranked, relevant, k) against fgrpo.rewards.ndcg."""
    try:
        found = number(student([3, 0, 9], {0, 9, 8}, 5))  # 2 of 3 relevant, at ranks 2 and 3
    except (ZeroDivisionError, ValueError):
        return "Not yet. You divided by log2(1) = 0 or used log2(0): you counted from 0, but the first rank is i = 1."
    discount = (1 / torch.arange(2, 7).double().log2()).tolist()
    dcg = discount[1] + discount[2]
    wanted = dcg / sum(discount[:3])
    case = f"For the list [3, 0, 9], the relevant {{0, 8, 9}} and k = 5 you returned {found:.3f}, not {wanted:.3f}: "
    if close(found, dcg):
        return f"Not yet. {case}that is DCG, not normalised by the DCG of the best order."
    if close(found, dcg / sum(discount[:2])):
        return (
            f"Not yet. {case}you divided by the list's own best order, so missed candidates do not count. "
            "Use the best order of the whole pool."
        )
    if close(found, dcg / sum(discount)):
        return f"Not yet. {case}your best order has always k relevant candidates, but this pool has only 3."
    if close(student([0], {0, 1, 2}, 1), 1 / sum(discount[:3])):
        return "Not yet. With 3 relevant candidates and k = 1 your best order is longer than k; it must also end at rank k."
    if found > 0 and close(student([3, 1, 0], {0}, 2), discount[2]):
        return "Not yet. You counted the relevant candidate at rank 3 although k = 2: nothing beyond rank k counts."
    for seed in range(20):
        items, gains = _lists(seed)
        ranked, relevant = items.tolist(), set(gains.nonzero().flatten().tolist())
        for k in (1, 3, 5, 8):
            wanted = float(rewards.ndcg(items, gains, k))
            if not close(student(ranked, relevant, k), wanted):
                return f"{UNKNOWN} The list {ranked} with the relevant {relevant} has NDCG@{k} {wanted:.3f}."
    return f"{RIGHT} It agrees with fgrpo.rewards.ndcg."


def _lists(seed: int) -> tuple[Tensor, Tensor]:
    """A list of 6 indices into a pool of 12, and the gains of the pool: 1 to 6 candidates are relevant."""
    generator = torch.Generator().manual_seed(seed)
    gains = torch.zeros(12)
    gains[torch.randperm(12, generator=generator)[: 1 + seed % 6]] = 1
    return torch.randperm(12, generator=generator)[:6], gains


# --- 03 advantages ----------------------------------------------------------------------------------------------------


@check
def advantage(student: Callable[..., Any]) -> str:
    """my_advantage(reward) against fgrpo.credit.advantage; both (Q, G) -> (Q, G)."""
    reward = torch.tensor([[1.0, 0.5, 0.5, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 0.5], [0.25, 0.5, 0.0, 0.0, 0.0]])
    wanted = credit.advantage(reward, RLConfig())
    found = student(reward.clone())
    if wrong := same(found, wanted):
        return wrong
    if close(found, wanted):
        return f"{RIGHT} It agrees with fgrpo.credit.advantage."
    centred = reward - reward.mean(dim=1, keepdim=True)
    if close(found, reward - reward.mean()):
        return (
            "Not yet. You normalised across queries, not within the group: every query has its own mean. "
            "Otherwise all rollouts of an easy query would have a positive advantage."
        )
    if close(found, reward - reward.mean(dim=0)):
        return "Not yet. You took the mean over queries (dim 0); the rollouts of one query are along dim 1."
    if any(close(found * centred.std(1, keepdim=True, correction=c), centred) for c in (0, 1)) or any(
        torch.allclose(found.double(), (centred / (centred.std(1, keepdim=True, correction=c) + eps)).double(), atol=1e-3)
        for c in (0, 1) for eps in (1e-8, 1e-6, 1e-4)
    ):  # fmt: skip
        return (
            "Not yet. You divided by the standard deviation, as the original GRPO does; here, as in Dr. GRPO, "
            "the mean is only subtracted, so that a group with small differences has small advantages."
        )
    if close(found, -wanted):
        return "Not yet. The sign is reversed: a rollout better than its group must have a positive advantage."
    return UNKNOWN


TOKENS = {"slate": [2, 20, 21, 22, 3], "rank": [4, 21, 20, 5, 1], "pad": [0, 0]}


@check
def factorised(student: Callable[..., Any]) -> str:
    """my_credit(slate, rank, lam, tokens, close_slate, end) against fgrpo.credit.fgrpo.

    slate, rank (Q, G); tokens (B, T), B = Q * G, padded with 0 after the end token -> (B, T).
    """
    close_slate, end, lam = 3, 1, 0.5
    long = TOKENS["slate"] + TOKENS["rank"] + TOKENS["pad"]
    short = [2, 23, 3, 4, 23, 5, 1] + [0] * 5
    tokens = torch.tensor([long, short, long, short])
    slate = torch.tensor([[1.0, 0.5], [0.25, 0.75]])
    rank = torch.tensor([[0.2, 0.6], [0.9, 0.1]])
    found = student(slate.clone(), rank.clone(), lam, tokens.clone(), close_slate, end)
    mask = (tokens == end).cumsum(1) - (tokens == end).long() == 0
    phase = phases(tokens, mask, close_slate)
    a_slate, a_rank = (credit.advantage(x, RLConfig()).flatten().unsqueeze(1) for x in (slate, rank))
    paid = rewards.Rewards(slate, rank, *torch.zeros(2, 2, 2), *torch.empty(3, 0))
    rollouts: Any = SimpleNamespace(phase=phase)  # all that these methods read
    wanted, joint = (method(paid, rollouts, RLConfig(lam=lam)) for method in (credit.fgrpo, credit.grpo))
    if wrong := same(found, wanted):
        return wrong
    if close(found, wanted):
        return f"{RIGHT} It agrees with fgrpo.credit.fgrpo."
    if close(found, joint):
        return "Not yet. Every token got the advantage of the sum of both rewards: that is joint credit, GRPO's."
    if close(found, a_slate * (phase == 2) + lam * a_rank * (phase == 1)):
        return "Not yet. The phases are swapped: slate tokens got the rank advantage, rank tokens the slate advantage."
    if close(found, a_slate * (phase == 1) + a_rank * (phase == 2)):
        return "Not yet. lam is missing: the rank phase learns from lam times its advantage."
    if close(found * (tokens != end), wanted * (tokens != end)) and close(found[tokens == end], torch.zeros(4)):
        return "Not yet. The end token has no credit: ending the list is a decision of the rank phase."
    if close(found * mask, wanted) and bool((found[~mask] != 0).any()):
        return "Not yet. Padding got credit: after the end token every advantage is 0."
    if close(found * (tokens != close_slate), wanted * (tokens != close_slate)):
        return "Not yet. The token </SLATE> has the wrong credit: closing the slate is the last decision of the slate phase."
    return UNKNOWN


# --- 04 the loss ------------------------------------------------------------------------------------------------------


@check
def surrogate(student: Callable[..., Any]) -> str:
    """my_surrogate(ratio, advantages, low, high) against fgrpo.loss.clipped_surrogate."""
    low, high = 0.2, 0.3
    ratio = torch.tensor([1.0, 1.1, 2.0, 0.5, 1.0, 0.9, 2.0, 0.5])
    advantages = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    wanted = loss.clipped_surrogate(ratio, advantages, low, high)
    found = student(ratio.clone(), advantages.clone(), low, high)
    if wrong := same(found, wanted):
        return wrong
    if close(found, wanted):
        return f"{RIGHT} It agrees with fgrpo.loss.clipped_surrogate."
    clipped = ratio.clamp(1 - low, 1 + high) * advantages
    if close(found, ratio * advantages):
        return "Not yet. Nothing is clipped: several steps could move the policy arbitrarily far on one rollout."
    if close(found, clipped):
        return (
            "Not yet. You always clipped. Take the minimum of both: if the policy moved in the wrong direction "
            "(ratio 0.5, advantage +1) the gradient must not vanish, so that it can move back."
        )
    if close(found, torch.maximum(ratio * advantages, clipped)):
        return "Not yet. You took the maximum: the gradient is then 0 where it is needed, and not 0 where it should be."
    if close(found, torch.minimum(ratio, ratio.clamp(1 - low, 1 + high)) * advantages):
        return (
            "Not yet. You took the minimum of the ratios, before the advantage: for a negative advantage "
            "the smaller product belongs to the larger ratio."
        )
    if close(found, torch.minimum(ratio * advantages, ratio.clamp(1 - high, 1 + low) * advantages)):
        return "Not yet. The widths are swapped: the ratio is limited to the interval from 1 - low to 1 + high."
    return UNKNOWN


@check
def normalised(student: Callable[..., Any]) -> str:
    """my_loss(per_token, mask, longest): minus the sum over real tokens, over B * longest."""
    generator = torch.Generator().manual_seed(0)
    per_token = torch.randn(4, 6, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [5], [2], [3]])
    longest = 10
    wanted = -(per_token * mask).sum() / (4 * longest)
    found = student(per_token.clone(), mask.clone(), longest)
    if wrong := same(found, wanted):
        return wrong
    if close(found, wanted):
        return f"{RIGHT} It is the last step of fgrpo.loss.policy_loss."
    if close(found, -wanted):
        return "Not yet. The minus sign is missing: an optimizer makes the loss smaller, and the surrogate should grow."
    if close(found, -per_token.sum() / (4 * longest)):
        return "Not yet. Padding was counted: the mask is missing."
    if close(found, -((per_token * mask).sum(1) / mask.sum(1)).mean()):
        return (
            "Not yet. You divided each output by its own length: a token of a short output then weighs more "
            "than one of a long output. Divide by the constant longest."
        )
    if close(found, -loss.masked_mean(per_token, mask)):
        return (
            "Not yet. You divided by the number of real tokens of this batch: the weight of a token then depends "
            "on the length of the other outputs. Divide by the constant B * longest."
        )
    if close(found, -(per_token * mask).sum() / (4 * 6)):
        return "Not yet. You divided by the width of this batch; longest is the longest output that the grammar allows."
    return UNKNOWN


# --- 06 diagnosis -----------------------------------------------------------------------------------------------------


@check
def fate(student: Callable[..., Any]) -> str:
    """my_fate(candidate, slate, ranked, relevant) against fgrpo.evaluate.fates."""
    from fgrpo.evaluate import FATES, fates

    slate, ranked, relevant = [0, 1, 5, 6, 2], [0, 5, 1, 6], {0, 1, 2, 3}  # 5 and 6 are irrelevant, 4 is elsewhere
    case = f"For the slate {slate}, the ranked list {ranked} and the relevant {relevant} you returned "
    known = {0: "right", 1: "rank_drop", 2: "rank_drop", 3: "slate_miss"}
    found = {c: student(c, list(slate), list(ranked), set(relevant)) for c in known}
    if wrong := [x for x in found.values() if x not in FATES[:3]]:
        return f"Not yet. The answer must be one of {', '.join(FATES[:3])}, not {wrong[0]!r}."
    if found[1] == "right":
        return f"Not yet. {case}'right' for 1, but the irrelevant 5 is ranked above it: its rank matters."
    if found[2] == "slate_miss":
        return (
            f"Not yet. {case}'slate_miss' for 2, but 2 is in the slate; only the ranked list left it out. "
            "The ranked list does not tell whether the slate missed a candidate: look at the slate."
        )
    if found[0] != "right":
        return f"Not yet. {case}{found[0]!r} for 0, but nothing is above it. What is ranked below it does not matter."
    if student(1, [0, 1], [0, 1], {0, 1}) != "right":
        return "Not yet. In the ranked list [0, 1] both are relevant and right: not only the first rank counts."
    for c, wanted in known.items():
        if found[c] != wanted:
            return f"{UNKNOWN} {case}{found[c]!r} for {c}, which is a {wanted}."
    for seed in range(30):
        items, gains = _lists(seed)
        slate, ranked, relevant = items.tolist(), items.flip(0)[:4].tolist(), set(gains.nonzero().flatten().tolist())
        codes = fates(items.unsqueeze(0), items.flip(0)[:4].unsqueeze(0), torch.tensor([False]), gains[None])[0]
        for c in sorted(relevant):
            if (own := student(c, list(slate), list(ranked), set(relevant))) != (wanted := FATES[codes[c]]):
                return f"{UNKNOWN} Slate {slate}, ranked {ranked}, relevant {relevant}: {c} is a {wanted}, not {own!r}."
    return f"{RIGHT} It agrees with fgrpo.evaluate.fates."


@check
def reward_to_go(student: Callable[..., Any]) -> str:
    """my_reward_to_go(slate, rank, lam, in_slate, in_rank) against fgrpo.credit.reward_to_go."""
    lam, (slate, rank) = 0.5, torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0))
    slates, ends = torch.tensor([[3], [2], [4], [3], [3], [2]]), torch.tensor([[6], [5], [6], [4], [6], [5]])
    t = torch.arange(7)
    in_slate, in_rank = t < slates, (t >= slates) & (t < ends)  # (6, 7); the last column is padding
    found = student(slate.clone(), rank.clone(), lam, in_slate.clone(), in_rank.clone())
    joint, own, alone, bare = (
        credit.advantage(x, RLConfig()).reshape(-1, 1) for x in (slate + lam * rank, lam * rank, slate, rank)
    )
    paid = rewards.Rewards(slate, rank, *torch.zeros(2, 2, 3), *torch.empty(3, 0))
    rollouts: Any = SimpleNamespace(phase=PHASE_SLATE * in_slate + PHASE_RANK * in_rank)  # all that the method reads
    wanted = credit.reward_to_go(paid, rollouts, RLConfig(lam=lam))
    if wrong := same(found, wanted):
        return wrong
    if close(found, wanted):
        return f"{RIGHT} It agrees with fgrpo.credit.reward_to_go."
    if close(found, joint * (in_slate | in_rank)):
        return "Not yet. The rank tokens also got the slate reward, which they cannot change: that is joint credit."
    if close(found, alone * in_slate + own * in_rank):
        return (
            "Not yet. Each phase got only its own reward: that is factorised credit. The rank reward follows the slate."
        )
    if close(found, alone * in_slate + joint * in_rank):
        return "Not yet. The rank tokens got a reward that came before them: a token can only change later rewards."
    if close(found, joint * in_slate + bare * in_rank):
        return "Not yet. lam is missing: the rank tokens learn from lam times their advantage."
    raw = (slate + lam * rank).reshape(-1, 1) * in_slate + (lam * rank).reshape(-1, 1) * in_rank
    if close(found, raw):
        return "Not yet. The rewards are not centred: an advantage is the reward minus the mean of its group."
    if close(found * (in_slate | in_rank), wanted):
        return "Not yet. Padding got credit: outside both phases every advantage is 0."
    return UNKNOWN


@check
def chance(student: Callable[..., Any]) -> str:
    """my_chance(n, pool, relevant): the expected recall of a random slate."""
    known = {(10, 20, 2): 0.5, (5, 20, 1): 0.25, (20, 20, 3): 1.0, (3, 20, 4): 0.15}
    found = {case: number(student(*case)) for case in known}

    def all_close(other: Callable[[int, int, int], float]) -> bool:
        return all(close(found[case], other(*case)) for case in known)

    if all(close(found[case], wanted) for case, wanted in known.items()):
        return (
            f"{RIGHT} Each relevant candidate is in a random slate with the same probability, however many there are."
        )
    case = "For a slate of 10 from a pool of 20 with 2 relevant candidates"
    if all_close(lambda n, pool, relevant: n * relevant / pool):
        return f"Not yet. {case} you returned 1: that is the expected number of hits; recall divides it by `relevant`."
    if all_close(lambda n, pool, relevant: relevant / pool):
        return f"Not yet. {case} you returned 0.1: that is the expected precision, the share of the slate that is relevant."
    if all_close(lambda n, pool, relevant: 1 - math.comb(pool - relevant, n) / math.comb(pool, n)):
        return (
            f"Not yet. {case} you returned {found[10, 20, 2]:.2f}: the probability of at least one hit, not the recall."
        )
    if all_close(lambda n, pool, relevant: min(1.0, n / relevant)):
        return (
            f"Not yet. {case} you returned 1: the maximum recall of a slate of this length, not that of a random slate."
        )
    wrong = next(case for case, wanted in known.items() if not close(found[case], wanted))
    return f"{UNKNOWN} For (n, pool, relevant) = {wrong} it is {known[wrong]:g}, you returned {found[wrong]:g}."


@check
def overlap(student: Callable[..., Any]) -> str:
    """my_overlap(a, b): the Jaccard index of two lists."""
    cases: list[tuple[list[Any], list[Any]]] = [
        ([1, 2, 3], [3, 1, 2]), ([1, 2], [3, 4]), ([1, 2, 3], [2, 3, 4, 5]), (["a"], ["b", "a", "c", "d"]),
    ]  # fmt: skip
    wanted = [1.0, 0.0, 0.4, 0.25]
    found = [number(student(list(a), list(b))) for a, b in cases]
    shared = [len(set(a) & set(b)) for a, b in cases]
    if close(found[0], 0.0):
        return "Not yet. [1, 2, 3] and [3, 1, 2] have an overlap of 1, you returned 0: slates have no order."
    if all(close(x, n) for x, n in zip(found, shared, strict=True)):
        return "Not yet. That is the number of items in both; divide it, so that two equal lists give 1."
    if all(close(x, n / len(a)) for x, n, (a, _) in zip(found, shared, cases, strict=True)):
        return 'Not yet. ["a"] and ["b", "a", "c", "d"] give 1: the overlap must be the same from both sides.'
    if all(close(x, 2 * n / (len(a) + len(b))) for x, n, (a, b) in zip(found, shared, cases, strict=True)):
        return "Not yet. You divided by the mean length (Dice's coefficient); divide by the number of items in either list."
    for (a, b), x, right in zip(cases, found, wanted, strict=True):
        if not close(x, right):
            return f"{UNKNOWN} {a} and {b} have an overlap of {right:g}, you returned {x:g}."
    return f"{RIGHT} It is the Jaccard index."
