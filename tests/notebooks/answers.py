"""What students write: wrong answers with words of the message that they must get, and right answers in unusual styles.

`""` instead of words: the mistake is none of the known ones; the counterexample has to be enough.
"""

import math
from collections.abc import Callable
from fractions import Fraction
from statistics import mean, pstdev, stdev
from typing import Any

import numpy as np
import torch

Answers = dict[str, list[tuple[str, Callable[..., Any]]]]


# --- wrong answers that take more than a line -------------------------------------------------------------------------


def recall_returns_in_the_loop(slate, relevant):  # noqa: RET503
    hits = 0
    for item in slate:
        if item in relevant:
            hits += 1
        return hits / len(relevant)


def recall_stops_one_early(slate, relevant):
    hits = 0
    for i in range(len(slate) - 1):
        if slate[i] in relevant:
            hits += 1
    return hits / len(relevant)


def recall_of_positions(slate, relevant):
    hits = 0
    for i in range(len(slate)):
        if i in relevant:
            hits += 1
    return hits / len(relevant)


def recall_by_position(slate, relevant):
    return sum(1 / i for i, item in enumerate(slate, start=1) if item in relevant) / len(relevant)


def recall_printed(slate, relevant):
    print(len(set(slate) & relevant) / len(relevant))


def recall_misspelt(slate, relevant):
    hits = sum(item in relevant for item in slate)
    return hits / len(relevents)  # noqa: F821


def ndcg_of(discount, first=1, best=lambda ranked, relevant, k: min(k, len(relevant)), cut=True):
    def answer(ranked, relevant, k):
        listed = ranked[:k] if cut else ranked
        dcg = sum(discount(i) for i, item in enumerate(listed, first) if item in relevant)
        return dcg / sum(discount(i) for i in range(first, first + best(ranked, relevant, k)))

    return answer


def usual(i):
    return 1 / math.log2(i + 1)


def ndcg_breaks(ranked, relevant, k):
    dcg = 0
    for i, item in enumerate(ranked[:k]):
        if item in relevant:
            dcg = 1 / math.log2(i + 2)
            break
    return dcg / sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant))))


def ndcg_against_itself(ranked, relevant, k):
    found = [1 if item in relevant else 0 for item in ranked[:k]]
    ideal = sum(g / math.log2(i + 2) for i, g in enumerate(sorted(found, reverse=True)))
    return sum(g / math.log2(i + 2) for i, g in enumerate(found)) / ideal if ideal > 0 else 0


def ndcg_two_logs(ranked, relevant, k):
    dcg = sum(1 / math.log2(i + 2) for i, item in enumerate(ranked[:k]) if item in relevant)
    return dcg / sum(1 / math.log(i + 2) for i in range(min(k, len(relevant))))


def ndcg_of_a_set(ranked, relevant, k):
    hits = [usual(i) for i, item in enumerate(set(ranked[:k]), 1) if item in relevant]
    return sum(hits) / sum(usual(i) for i in range(1, min(k, len(relevant)) + 1))


def ndcg_of_ranks(ranked, relevant, k):
    dcg = 0.0
    for i in range(min(k, len(ranked))):
        if i in relevant:
            dcg += 1 / math.log2(i + 2)
    return dcg / sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant))))


def ndcg_up_to_k(ranked, relevant, k):
    dcg = 0.0
    for i, item in enumerate(ranked, start=1):
        if i == k:
            break
        if item in relevant:
            dcg += usual(i)
    return dcg / sum(usual(i) for i in range(1, min(k, len(relevant)) + 1))


def ndcg_past_the_end(ranked, relevant, k):
    dcg = 0.0
    for i in range(k):
        if ranked[i] in relevant:
            dcg += 1 / math.log2(i + 2)
    return dcg / sum(1 / math.log2(i + 2) for i in range(min(k, len(relevant))))


def ndcg_of_tensors_from_zero(ranked, relevant, k):
    discount = 1 / torch.arange(k).float().log2()
    gain = torch.tensor([float(item in relevant) for item in ranked[:k]])
    return (gain * discount[: len(gain)]).sum() / discount[: len(relevant)].sum()


def ndcg_averaged_with_recall(ranked, relevant, k):
    return (len(set(ranked[:k]) & relevant) / len(relevant) + ndcg_against_itself(ranked, relevant, k)) / 2


def standardised_by_hand(reward):
    rows = []
    for row in reward.tolist():
        rows.append([(x - mean(row)) / (pstdev(row) + 1e-8) for x in row])
    return torch.tensor(rows)


def standardised_if_it_can_be(reward):
    std = reward.std(dim=1, keepdim=True)
    return (reward - reward.mean(dim=1, keepdim=True)) / torch.where(std > 0, std, torch.ones_like(std))


def leave_one_out(reward):
    others = (reward.sum(1, keepdim=True) - reward) / (reward.shape[1] - 1)
    return reward - others


def half_in_place(reward):
    for q in range(len(reward)):
        for g in range(reward.shape[1]):
            reward[q, g] -= reward[q].mean()  # the mean changes on the way
    return reward


def c(x):
    return x - x.mean(dim=1, keepdim=True)


def std(x):
    return x.std(dim=1, keepdim=True)


def masks(tokens, close_slate, end):
    closed, ended = (tokens == close_slate).cumsum(1), (tokens == end).cumsum(1)
    in_slate, real = closed - (tokens == close_slate).long() == 0, ended - (tokens == end).long() == 0
    return in_slate & real, ~in_slate & real


def spread(pay):
    """An answer to my_credit with right masks: pay(slate, rank, lam) are the numbers (Q, G) of the phases."""

    def answer(slate, rank, lam, tokens, close_slate, end):
        in_slate, in_rank = masks(tokens, close_slate, end)
        a, b = pay(slate, rank, lam)
        return torch.where(in_slate, a.reshape(-1, 1), b.reshape(-1, 1)) * (in_slate | in_rank)

    return answer


def by_counts(before_slate, before_end):
    """An answer to my_credit with wrong masks, from how many tags were written up to and including each token."""

    def answer(slate, rank, lam, tokens, close_slate, end):
        in_slate = before_slate((tokens == close_slate).cumsum(1), tokens == close_slate)
        real = before_end((tokens == end).cumsum(1), tokens == end)
        return torch.where(in_slate, c(slate).reshape(-1, 1), lam * c(rank).reshape(-1, 1)) * real

    return answer


def exclusive(count, here):
    return count == 0


def inclusive(count, here):
    return (count == 0) | (here & (count == 1))


def credit_in_a_loop_without_the_last(slate, rank, lam, tokens, close_slate, end):
    result = torch.zeros(tokens.shape)
    groups = slate.shape[1]
    for b, row in enumerate(tokens.tolist()):
        q, g = divmod(b, groups)
        own = slate[q, g] - slate[q].mean()
        for t, token in enumerate(row):
            if token == end:
                break
            result[b, t] = own
            if token == close_slate:
                own = lam * (rank[q, g] - rank[q].mean())
    return result


def credit_rows_by_column(slate, rank, lam, tokens, close_slate, end):
    result = torch.zeros(tokens.shape)
    in_slate, in_rank = masks(tokens, close_slate, end)
    for b in range(len(tokens)):
        g, q = divmod(b, len(slate))
        result[b] = c(slate)[q, g] * in_slate[b] + lam * c(rank)[q, g] * in_rank[b]
    return result


def credit_of_the_last_tokens(slate, rank, lam, tokens, close_slate, end):
    return c(slate).reshape(-1, 1) * (tokens == close_slate) + lam * c(rank).reshape(-1, 1) * (tokens == end)


def credit_without_columns(slate, rank, lam, tokens, close_slate, end):
    in_slate, in_rank = masks(tokens, close_slate, end)
    return c(slate) * in_slate + lam * c(rank) * in_rank


def credit_in_blocks(slate, rank, lam, tokens, close_slate, end):
    in_slate, in_rank = (m.view(*slate.shape, -1) for m in masks(tokens, close_slate, end))
    return c(slate).unsqueeze(2) * in_slate + lam * c(rank).unsqueeze(2) * in_rank


def credit_while(slate, rank, lam, tokens, close_slate, end):
    t = 0
    while tokens[0, t] != end:
        pass
    return slate


def surrogate_of_floats(ratio, advantages, low, high):
    result = torch.zeros(ratio.shape)
    for i in range(ratio.numel()):
        r, a = float(ratio.flatten()[i]), float(advantages.flatten()[i])
        result.view(-1)[i] = min(r * a, min(max(r, 1 - low), 1 + high) * a)
    return result


def surrogate_half_detached(ratio, advantages, low, high):
    with torch.no_grad():
        clipped = ratio.clamp(1 - low, 1 + high) * advantages
    return torch.minimum(ratio * advantages, clipped)


def fate_below(candidate, slate, ranked, relevant):
    if candidate not in slate:
        return "slate_miss"
    if candidate not in ranked:
        return "rank_drop"
    for other in ranked[ranked.index(candidate) :]:
        if other not in relevant:
            return "rank_drop"
    return "right"


def fate_returns_in_the_loop(candidate, slate, ranked, relevant):
    if candidate not in slate:
        return "slate_miss"
    if candidate not in ranked:
        return "rank_drop"
    for other in ranked[: ranked.index(candidate)]:
        return "right" if other in relevant else "rank_drop"
    return "right"


def fate_without_else(candidate, slate, ranked, relevant):  # noqa: RET503
    if candidate not in slate:
        return "slate_miss"
    if candidate in ranked and set(ranked[: ranked.index(candidate)]) <= relevant:
        return "right"


def fate_in_other_words(candidate, slate, ranked, relevant):
    return {"right": "right", "slate_miss": "slate miss", "rank_drop": "rank drop"}[
        fate_in_one_pass(candidate, slate, ranked, relevant)
    ]


def fate_by_index(candidate, slate, ranked, relevant):
    if candidate not in slate:
        return "slate_miss"
    return "right" if all(o in relevant for o in ranked[: ranked.index(candidate)]) else "rank_drop"


def by_drawing(n, pool, relevant):
    generator = torch.Generator().manual_seed(0)
    found = [int((torch.randperm(pool, generator=generator)[:n] < relevant).sum()) for _ in range(400)]
    return sum(found) / len(found) / relevant


# --- the tables -------------------------------------------------------------------------------------------------------

WRONG: Answers = {
    "my_recall": [
        ("precision", lambda slate, relevant: len(set(slate) & relevant) / len(slate)),
        ("precision", lambda s, r: np.mean([x in r for x in s]) if s else 0.0),
        ("count", lambda slate, relevant: float(len([x for x in slate if x in relevant]))),
        ("any hit", lambda slate, relevant: any(x in relevant for x in slate)),
        ("shorter of the two", lambda s, r: len(set(s) & r) / min(len(s), len(r)) if s else 0),
        ("Jaccard", lambda s, r: len(set(s).intersection(r)) / len(set(s).union(r))),
        ("F1", lambda s, r: 2 * len(set(s) & r) / (len(s) + len(r))),
        ("was missed", lambda s, r: len(r - set(s)) / len(r)),
        ("without remainder", lambda s, r: len(set(s) & r) // len(r)),
        ("in percent", lambda s, r: 100 * sum(x in r for x in s) / len(r)),
        ("longer of the two", lambda s, r: sum(x in r for x in s) / max(len(s), len(r))),
        ("inside the loop", recall_returns_in_the_loop),
        ("left out", recall_stops_one_early),
        ("positions of the slate", recall_of_positions),
        ("depends on the order", recall_by_position),
        ("`return` missing", recall_printed),
        ("stopped with NameError", recall_misspelt),
        ("make it a set first", lambda slate, relevant: len(slate & relevant) / len(relevant)),
        ("", lambda s, r: round(len(set(s) & r) / len(r), 1)),
    ],
    "my_ndcg": [
        ("not normalised", lambda x, r, k: sum(1 / math.log2(i + 2) for i, c in enumerate(x[:k]) if c in r)),
        ("own best order", ndcg_against_itself),
        ("best order of the list's own hits", ndcg_of(usual, best=lambda x, r, k: max(1, min(k, len(set(x) & r))))),
        ("length of this list", ndcg_of(usual, best=lambda x, r, k: max(1, min(k, len(r), len(x))))),
        ("always k relevant", ndcg_of(usual, best=lambda x, r, k: k)),
        ("longer than k", ndcg_of(usual, best=lambda x, r, k: len(r))),
        ("beyond rank k", ndcg_of(usual, cut=False)),
        ("`k` was not used", ndcg_of(usual, best=lambda x, r, k: len(r), cut=False)),
        ("log2(1) = 0", ndcg_of(lambda i: 1 / math.log2(i + 1), first=0)),
        ("log2(1) = 0", ndcg_of(lambda i: 1 / math.log2(i))),
        ("log2(0)", ndcg_of(lambda i: 1 / math.log2(i), first=0)),
        ("rank i itself", ndcg_of(lambda i: 1 / i)),
        ("inside the logarithm", ndcg_of(lambda i: 1 / (math.log2(i) + 1))),
        ("one too large", ndcg_of(lambda i: 1 / math.log2(i + 2))),
        ("multiplied by log2", ndcg_of(lambda i: math.log2(1 + i))),
        ("Every rank counted the same", ndcg_of(lambda i: 1)),
        ("precision at k", lambda x, r, k: sum(c in r for c in x[:k]) / k),
        ("reciprocal rank", lambda x, r, k: max([1 / (i + 1) for i, c in enumerate(x[:k]) if c in r], default=0)),
        ("Only the first hit", ndcg_breaks),
        ("different logarithms", ndcg_two_logs),
        ("a set has no order", ndcg_of_a_set),
        ("looked up ranks", ndcg_of_ranks),
        ("from the end", lambda x, r, k: ndcg_of(usual)(x[:k][::-1], r, k)),
        ("too early", ndcg_up_to_k),
        ("divided by k", lambda x, r, k: sum(usual(i) for i, c in enumerate(x[:k], 1) if c in r) / k),
        ("shorter than your loop", ndcg_past_the_end),
        ("", ndcg_of_tensors_from_zero),
        ("", ndcg_averaged_with_recall),
    ],
    "my_advantage": [
        ("keepdim", lambda reward: reward - reward.mean(dim=1)),
        ("keepdim", lambda reward: reward - torch.mean(reward, 1)),
        ("over all queries", lambda reward: reward - reward.mean()),
        ("dim 0", lambda reward: reward - reward.mean(dim=0)),
        ("standard deviation", lambda reward: c(reward) / (reward.std(dim=1, keepdim=True) + 1e-4)),
        ("standard deviation", lambda reward: c(reward) / (reward.std(dim=1, keepdim=True, correction=0) + 1e-8)),
        ("standard deviation", standardised_by_hand),
        ("standard deviation", standardised_if_it_can_be),
        ("standard deviation", lambda r: torch.tensor([[(x - mean(q)) / (stdev(q) + 1e-6) for x in q] for q in r.tolist()])),
        ("mean and standard deviation over all", lambda r: (r - r.mean()) / (r.std() + 1e-8)),
        ("sign is reversed", lambda reward: reward.mean(dim=1, keepdim=True) - reward),
        ("leave-one-out", leave_one_out),
        ("best reward", lambda reward: reward - reward.max(dim=1, keepdim=True).values),
        ("median", lambda reward: reward - reward.median(dim=1, keepdim=True)[0]),
        ("baseline alone", lambda reward: reward.mean(dim=1, keepdim=True)),
        ("divided by the mean", lambda reward: reward / reward.mean(dim=1, keepdim=True)),
        ("a list", lambda reward: [[x - mean(row) for x in row] for row in reward.tolist()]),
        ("a ndarray of shape (3, 3)", lambda reward: reward.numpy() - reward.numpy().mean(1, keepdims=True)),
        ("A tensor was expected", lambda reward: 0.0),
        ("stopped with TypeError", lambda reward: reward - reward.mean(axis=1, keepdims="yes")),
        ("", half_in_place),
        ("", lambda reward: reward.softmax(1)),
    ],
    "my_credit": [
        ("joint credit", spread(lambda s, r, lam: (c(s + lam * r),) * 2)),
        ("And `lam` is missing", spread(lambda s, r, lam: (c(s + r),) * 2)),
        ("phases are swapped", spread(lambda s, r, lam: (lam * c(r), c(s)))),
        ("`lam` is missing", spread(lambda s, r, lam: (c(s), c(r)))),
        ("wrong phase", spread(lambda s, r, lam: (lam * c(s), c(r)))),
        ("both phases", spread(lambda s, r, lam: (lam * c(s), lam * c(r)))),
        ("reward to go", spread(lambda s, r, lam: (c(s + lam * r), lam * c(r)))),
        ("not centred", spread(lambda s, r, lam: (s, lam * r))),
        ("sign is reversed", spread(lambda s, r, lam: (s.mean(1, keepdim=True) - s, lam * (r.mean(1, keepdim=True) - r)))),
        ("over all queries", spread(lambda s, r, lam: (s - s.mean(), lam * (r - r.mean())))),
        ("dim 0", spread(lambda s, r, lam: (s - s.mean(0), lam * (r - r.mean(0))))),
        ("keepdim", spread(lambda s, r, lam: (s - s.mean(1), lam * (r - r.mean(1))))),
        ("standard deviation", spread(lambda s, r, lam: (c(s) / (std(s) + 1e-4), lam * c(r) / (std(r) + 1e-4)))),
        ("wrong order", spread(lambda s, r, lam: (c(s).T, lam * c(r).T))),
        ("wrong order", credit_rows_by_column),
        ("The end token has no credit", by_counts(inclusive, exclusive)),
        ("The end token has no credit", credit_in_a_loop_without_the_last),
        ("paid as a rank token", by_counts(exclusive, inclusive)),
        ("Both tags", by_counts(exclusive, exclusive)),
        ("Padding got credit", by_counts(inclusive, lambda count, here: count >= 0)),
        ("one token too long", by_counts(
            lambda count, here: inclusive(count, here) | (here.roll(1, 1) & (count == 1)), inclusive)),
        ("Only the last token", credit_of_the_last_tokens),
        ("make it a column", credit_without_columns),
        ("The shape should be", credit_in_blocks),
        ("does not end", credit_while),
        ("", spread(lambda s, r, lam: (c(s), lam * c(r) + 0.1))),
    ],
    "my_surrogate": [
        ("Nothing is clipped", lambda ratio, advantages, low, high: advantages * ratio),
        ("always clipped", lambda ratio, a, low, high: torch.clip(ratio, 1 - low, 1 + high) * a),
        ("took the maximum", lambda ratio, a, low, high: torch.max(ratio * a, ratio.clamp(1 - low, 1 + high) * a)),
        ("before the advantage", lambda ratio, a, low, high: torch.min(ratio, ratio.clamp(1 - low, 1 + high)) * a),
        ("widths are swapped", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - high, 1 + low) * a)),
        ("`low` on both sides", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + low) * a)),
        ("These are widths", lambda r, a, low, high: torch.minimum(r * a, r.clamp(low, high) * a)),
        ("interval around 0", lambda r, a, low, high: torch.minimum(r * a, r.clamp(-low, high) * a)),
        ("clipped the product", lambda r, a, low, high: torch.minimum(r * a, torch.clamp(r * a, 1 - low, 1 + high))),
        ("no lower bound", lambda r, a, low, high: torch.minimum(r * a, r.clamp(max=1 + high) * a)),
        ("no upper bound", lambda r, a, low, high: torch.minimum(r * a, r.clamp_min(1 - low) * a)),
        ("not multiplied", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high))),
        ("sign is reversed", lambda r, a, low, high: torch.max(-r * a, -r.clamp(1 - low, 1 + high) * a)),
        ("old / new", lambda r, a, low, high: torch.minimum(1 / r * a, (1 / r).clamp(1 - low, 1 + high) * a)),
        ("took exp", lambda r, a, low, high: torch.minimum(r.exp() * a, r.exp().clamp(1 - low, 1 + high) * a)),
        ("logarithm", lambda r, a, low, high: torch.log(r) * a),
        ("returned 0", lambda r, a, low, high: r * a * ((r >= 1 - low) & (r <= 1 + high))),
        ("one number of all", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a).mean()),
        ("one number of all", lambda r, a, low, high: min((r * a).min(), (r.clamp(1 - low, 1 + high) * a).min())),
        ("has no gradient", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a).detach()),
        ("has no gradient", surrogate_of_floats),
        ("a part of the result was detached", surrogate_half_detached),
        ("`torch.minimum`", lambda r, a, low, high: min(r * a, r.clamp(1 - low, 1 + high) * a)),
        ("", lambda r, a, low, high: torch.minimum(r * a, r.clamp(1 - low, 1 + high) * a) * 2),
    ],
    "my_loss": [
        ("minus sign is missing", lambda x, mask, longest: (x * mask).sum() / (len(x) * longest)),
        ("mask is missing", lambda x, mask, longest: -x.sum() / (x.shape[0] * longest)),
        ("turned around", lambda x, mask, longest: -x[~mask].sum() / (len(x) * longest)),
        ("its own length", lambda x, mask, longest: -((x * mask).sum(1) / mask.sum(1)).mean()),
        ("number of real tokens", lambda x, mask, longest: -x[mask].mean()),
        ("width of this batch", lambda x, mask, longest: -(x * mask).mean()),
        ("mean over all places", lambda x, mask, longest: -x.mean()),
        ("longest output of this batch", lambda x, mask, longest: -(x * mask).sum() / (len(x) * mask.sum(1).max())),
        ("by `longest` only", lambda x, mask, longest: -(x * mask).sum() / longest),
        ("number of outputs only", lambda x, mask, longest: -(x * mask).sum() / len(x)),
        ("put brackets", lambda x, mask, longest: -(x * mask).sum() / len(x) * longest),
        ("not divided", lambda x, mask, longest: -(x * mask).sum()),
        ("one number per output", lambda x, mask, longest: -(x * mask).sum(dim=1) / longest),
        ("one number per token", lambda x, mask, longest: -(x * mask) / (len(x) * longest)),
        ("a float", lambda x, mask, longest: -(x * mask).sum().item() / (len(x) * longest)),
        ("has no gradient", lambda x, mask, longest: -(x.detach() * mask).sum() / (len(x) * longest)),
        ("stopped with AttributeError", lambda x, mask, longest: -(x * mask).total() / (len(x) * longest)),
        ("The shape should be", lambda x, mask, longest: -x * mask.sum() / (len(x) * longest)),
        ("", lambda x, mask, longest: (x * mask).sum().abs() / (len(x) * longest)),
    ],
    "my_fate": [
        ("its rank matters", lambda c, s, x, r: "right" if c in x else "rank_drop" if c in s else "slate_miss"),
        ("look at the slate", lambda c, s, x, r: "slate_miss" if c not in x else
            "right" if set(x[: x.index(c)]) <= r else "rank_drop"),
        ("Only the first rank", lambda c, s, x, r: "slate_miss" if c not in s else
            "right" if x and x[0] == c else "rank_drop"),
        ("anywhere in the list", lambda c, s, x, r: "slate_miss" if c not in s else
            "right" if c in x and all(o in r for o in x) else "rank_drop"),
        ("ranked *below*", fate_below),
        ("directly above", lambda c, s, x, r: "slate_miss" if c not in s else "rank_drop" if c not in x else
            "right" if x.index(c) == 0 or x[x.index(c) - 1] in r else "rank_drop"),
        ("among the first ranks", lambda c, s, x, r: "slate_miss" if c not in s else
            "right" if c in x[: len(r)] else "rank_drop"),
        ("are swapped", lambda c, s, x, r: "rank_drop" if c not in s else "slate_miss" if c not in x else
            "right" if set(x[: x.index(c)]) <= r else "slate_miss"),
        ("order of the slate", lambda c, s, x, r: "slate_miss" if c not in s else "rank_drop" if c not in x else
            "right" if set(s[: s.index(c)]) <= r else "rank_drop"),
        ("*all* of them", lambda c, s, x, r: "slate_miss" if c not in s else "rank_drop" if c not in x else
            "right" if any(o in r for o in x[: x.index(c)]) else "rank_drop"),
        ("every branch", fate_without_else),
        ("must be one of", fate_in_other_words),
        ("ask with `in` before", fate_by_index),
        ("", fate_returns_in_the_loop),
    ],
    "my_reward_to_go": [
        ("joint credit", lambda s, r, lam, a, b: c(s + lam * r).reshape(-1, 1) * (a | b)),
        ("factorised credit", lambda s, r, lam, a, b: c(s).view(-1, 1) * a + c(lam * r).view(-1, 1) * b),
        ("came before them", lambda s, r, lam, a, b: c(s).reshape(-1, 1) * a + c(s + lam * r).reshape(-1, 1) * b),
        ("missing in the rank phase", lambda s, r, lam, a, b: c(s + lam * r).view(-1, 1) * a + c(r).view(-1, 1) * b),
        ("missing in the slate phase", lambda s, r, lam, a, b: c(s + r).view(-1, 1) * a + lam * c(r).view(-1, 1) * b),
        ("in both phases", lambda s, r, lam, a, b: c(s + r).view(-1, 1) * a + c(r).view(-1, 1) * b),
        ("not centred", lambda s, r, lam, a, b: (s + lam * r).view(-1, 1) * a + (lam * r).view(-1, 1) * b),
        ("phases are swapped", lambda s, r, lam, a, b: c(s + lam * r).view(-1, 1) * b + lam * c(r).view(-1, 1) * a),
        ("on top of the other", lambda s, r, lam, a, b: c(s + lam * r).view(-1, 1) * (a | b) + lam * c(r).view(-1, 1) * b),
        ("Padding", lambda s, r, lam, a, b: torch.where(a, c(s + lam * r).view(-1, 1), lam * c(r).view(-1, 1))),
        ("sign is reversed", lambda s, r, lam, a, b: -c(s + lam * r).view(-1, 1) * a - lam * c(r).view(-1, 1) * b),
        ("wrong order", lambda s, r, lam, a, b: c(s + lam * r).T.reshape(-1, 1) * a + lam * c(r).T.reshape(-1, 1) * b),
        ("make it a column", lambda s, r, lam, a, b: c(s + lam * r) * a + lam * c(r) * b),
    ],
    "my_chance": [
        ("number of hits", lambda n, pool, relevant: n * relevant / pool),
        ("expected precision", lambda n, pool, relevant: relevant / pool),
        ("at least one hit", lambda n, pool, relevant: 1 - math.prod(
            max(0, pool - relevant - i) / (pool - i) for i in range(n))),
        ("at least one hit", lambda n, pool, relevant: 1 - (1 - relevant / pool) ** n),
        ("all relevant candidates are found", lambda n, pool, relevant: (n / pool) ** relevant),
        ("maximum recall", lambda n, pool, relevant: min(n, relevant) / relevant),
        ("upside down", lambda n, pool, relevant: pool / n),
        ("once too often", lambda n, pool, relevant: n / pool / relevant),
        ("in percent", lambda n, pool, relevant: n / pool * 100),
        ("a simulation", by_drawing),
        ("depends on `relevant`", lambda n, pool, relevant: n / pool + 0.2 * relevant),
    ],
    "my_overlap": [
        ("position by position", lambda a, b: sum(x == y for x, y in zip(a, b, strict=False)) / max(len(a), len(b))),
        ("divide it", lambda a, b: len([x for x in a if x in b])),
        ("first list", lambda a, b: sum(x in b for x in a) / len(a)),
        ("second list", lambda a, b: sum(x in b for x in a) / len(b)),
        ("Dice", lambda a, b: 2 * len(set(a) & set(b)) / (len(a) + len(b))),
        ("shorter length", lambda a, b: len(set(a) & set(b)) / min(len(a), len(b))),
        ("longer length", lambda a, b: len(set(a) & set(b)) / max(len(a), len(b))),
        ("twice below the line", lambda a, b: len(set(a) & set(b)) / len(a + b)),
        ("distance", lambda a, b: 1 - len(set(a) & set(b)) / len(set(a + b))),
        ("An overlap can be partial", lambda a, b: set(a) == set(b)),
        ("same from both sides", lambda a, b: len(set(a) - set(b)) / len(a)),
        ("stopped with TypeError", lambda a, b: len(a & b) / len(a | b)),
        ("", lambda a, b: (len(set(a) & set(b)) / len(set(a) | set(b))) ** 0.5),
    ],
}  # fmt: skip


# --- right answers in unusual styles ----------------------------------------------------------------------------------


def recall_that_empties_its_input(slate, relevant):
    total, hits = len(relevant), 0
    while slate:
        hits += slate.pop() in relevant
    print("hits:", hits)
    return Fraction(hits, total)


def ndcg_with_numpy(ranked, relevant, k):
    gain = np.array([item in relevant for item in ranked[:k]], dtype=np.float32)
    ideal = (1 / np.log(np.arange(2, min(k, len(relevant)) + 2))).sum()  # any base
    return np.float32((gain / np.log(np.arange(2, len(gain) + 2))).sum() / ideal)


def advantage_in_a_loop(reward):
    for row in reward:
        row -= row.mean().item()
    return reward


def credit_in_a_loop(slate, rank, lam, tokens, close_slate, end):
    result = torch.zeros(tokens.shape, dtype=torch.float64)
    for b, row in enumerate(tokens.tolist()):
        q, g = divmod(b, slate.shape[1])
        own = slate[q, g] - slate[q].mean()
        for t, token in enumerate(row):
            result[b, t] = own
            if token == close_slate:
                own = lam * (rank[q, g] - rank[q].mean())
            if token == end:
                break
    return result


def surrogate_token_by_token(ratio, advantages, low, high):
    found = []
    for r, a in zip(ratio.flatten(), advantages.flatten(), strict=True):
        limit = (1 + high if a > 0 else 1 - low) * a
        found.append(r * a if r * a < limit else limit)
    return torch.stack(found).view(ratio.shape)


def fate_in_one_pass(candidate, slate, ranked, relevant):
    if candidate not in slate:
        return "slate_miss"
    for other in ranked:
        if other == candidate:
            return "right"
        if other not in relevant:
            break
    return "rank_drop"


UNUSUAL: dict[str, list[Callable[..., Any]]] = {
    "my_recall": [
        recall_that_empties_its_input,
        lambda slate, relevant: np.float32(np.isin(list(relevant), slate).mean()),
        lambda slate, relevant: torch.tensor([r in slate for r in relevant]).float().mean(),
        lambda slate, relevant: True if relevant <= set(slate) else len(relevant.intersection(slate)) / len(relevant),
        lambda slate, relevant: np.array([len(relevant & set(slate)) / len(relevant)]),
        lambda slate, relevant: 1 - len(relevant.difference(slate)) / len(relevant),
    ],
    "my_ndcg": [ndcg_with_numpy, lambda x, r, k: torch.tensor(ndcg_of(lambda i: 1 / math.log(i + 1))(x, r, k))],
    "my_advantage": [advantage_in_a_loop, lambda reward: (reward.T - reward.mean(1)).T.double()],
    "my_credit": [credit_in_a_loop],
    "my_surrogate": [
        surrogate_token_by_token,
        lambda r, a, low, high: -torch.max(-r * a, -r.clip(1 - low, 1 + high) * a),
        lambda r, a, low, high: torch.stack([r * a, r.clamp_(1 - low, 1 + high) * a]).amin(0),
    ],
    "my_loss": [
        lambda x, mask, longest: -x[mask].sum() / mask.shape[0] / longest,
        lambda x, mask, longest: -torch.where(mask, x, 0).sum(1).div(longest).mean(),
        lambda x, mask, longest: -sum(row[m].sum() for row, m in zip(x, mask, strict=True)) / (len(x) * longest),
    ],
    "my_fate": [fate_in_one_pass],
    "my_reward_to_go": [
        lambda s, r, lam, a, b: torch.einsum("b,bt->bt", c(s).flatten(), a.float())
        + torch.einsum("b,bt->bt", lam * c(r).flatten(), (a | b).float())
    ],
    "my_chance": [
        lambda n, pool, relevant: Fraction(n, pool),
        lambda n, pool, relevant: sum(
            h * math.comb(relevant, h) * math.comb(pool - relevant, n - h) for h in range(min(n, relevant) + 1)
        ) / math.comb(pool, n) / relevant,
    ],
    "my_overlap": [
        lambda a, b: len(set(a) & set(b)) / (len(a) + len(b) - len(set(a) & set(b))),
        lambda a, b: np.float64(len(np.intersect1d(a, b)) / len(np.union1d(a, b))),
    ],
}  # fmt: skip
