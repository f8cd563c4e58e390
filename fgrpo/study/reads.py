"""Does a policy read its pool and its query, or does it answer by position or by popularity?

The same queries are asked with their pools as they are, reversed, and shuffled. A policy that reads its pool gives the
same candidates each time; one that is blind to it gives the same positions. Then every pool is asked for with the query
and history of another query: a policy that reads its query must lose NDCG@5. Lists are filled, since short ones hide what
a policy prefers.

Chance is what answers give that are drawn uniformly from the pool, each independently of all others.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations
from random import Random

import torch
from scipy.special import stdtrit
from torch import Tensor

from ..baselines.rankers import by_popularity
from ..config import KitError
from ..data import Example
from ..prompt import Output
from ..rewards import discounts, ndcg, pad, pool_gains
from ..tasks.next_item import counts as counted
from ..tasks.reading import shuffled
from .plots import Row
from .report import columns
from .significance import paired, share_interval

Answer = Callable[[Sequence[Example]], Sequence[Output]]
"""a policy, or anything else that gives one Output per example: partial(greedy, policy, sampling=...)"""

ORDERS = ("as it is", "reversed", "shuffled")
K = 5
LEAST = 3
"""groups of queries without which there is no interval"""
CLEAR = 0.5
"""overlap of ranked lists, corrected for chance, from which a policy reads or answers by position not only in part"""
FEW = 0.15
"""share of first choices below which a policy does neither"""
SAME_LISTS, SAME_NDCG = 0.95, 0.02
"""overlap above which lists are the same, and difference below which there is no gain"""


def reads_rows(answer: Answer, examples: Sequence[Example], train: Sequence[Example], seed: int = 0) -> list[Row]:
    """All checks, a row each: `part`, `measure`, `value` with its 95 % interval `low`, `high`, `chance`, `queries`.

    The popularity of an item is counted in `train`. Intervals are over queries, those of one `Example.group` together;
    `groups` says how many there are. Each example is answered four times. Rows of `popularity` are about the queries
    whose candidates are not all equally popular, rows of `query` about those for which another query was found; a part
    that has fewer than LEAST groups of them has no rows. A query without relevant candidates has an NDCG@5 of 0. Raises
    KitError if there are fewer groups in all, or on an empty list.
    """
    if (found := _clusters(examples)) < LEAST:
        raise KitError(
            f"{len(examples)} queries of {found} groups are too few for intervals: give {LEAST} groups or more."
        )
    pools = [examples, *reordered(examples, seed)]
    outputs = [answer(pool) for pool in pools]
    rows = order_rows(pools, outputs) + position_rows(pools[-1:], outputs[-1:])
    rows += popularity_rows(pools, outputs, counted(train), seed)
    chosen, others = of_others(examples, seed)
    if _clusters(others) >= LEAST:
        own = [outputs[0][q] for q in chosen]
        rows += query_rows([examples[q] for q in chosen], own, others, answer(others))
    return rows


# --- the questions ---


def reordered(examples: Sequence[Example], seed: int) -> list[list[Example]]:
    """The examples with their pools reversed, and with their pools in an order that depends on seed and example alone."""
    orders = [range(len(e.candidates)) for e in examples]
    mixed = [shuffled(order, Random(f"reads {seed} {e.id}")) for order, e in zip(orders, examples, strict=True)]
    return [
        [_permuted(e, order[::-1]) for e, order in zip(examples, orders, strict=True)],
        [_permuted(e, order) for e, order in zip(examples, mixed, strict=True)],
    ]


def _permuted(example: Example, order: Sequence[int]) -> Example:
    """The example with candidate order[i] at position i."""
    return replace(
        example, candidates=tuple(example.candidates[i] for i in order),
        candidate_ids=tuple(example.candidate_ids[i] for i in order if example.candidate_ids),
        gains=tuple(example.gains[i] for i in order if example.gains),
        relevant=frozenset(place for place, i in enumerate(order) if i in example.relevant),
    )  # fmt: skip


def of_others(examples: Sequence[Example], seed: int) -> tuple[list[int], list[Example]]:
    """The examples with the query and history of another one: their indices, and as many examples.

    No example gets those of its own group: groups, in random order, follow each other on a circle, and each example takes
    from the one that is as many places further as the largest group has members. If a group holds more than half of the
    examples, that is impossible, and only as many of it are used as all others have. Left out are also examples whose own
    query and history are the same as the other's. What a pool holds is taken out of the history that comes to it.
    """
    members: dict[Hashable, list[int]] = {}
    for q in shuffled(range(len(examples)), Random(f"reads {seed} others")):
        members.setdefault(examples[q].group or q, []).append(q)
    largest = max(members.values(), key=len)
    del largest[max(1, len(examples) - len(largest)) :]
    circle = [q for group in members.values() for q in group]
    chosen, others = [], []
    for place, q in enumerate(circle):
        own, other = examples[q], examples[circle[(place + len(largest)) % len(circle)]]
        if (own.query, own.history_keys) == (other.query, other.history_keys):
            continue
        kept = [i for i, key in enumerate(other.history_keys) if key not in own.candidate_keys]
        chosen.append(q)
        others.append(replace(
            own, query=other.query, history=tuple(other.history[i] for i in kept),
            history_ids=tuple(other.history_ids[i] for i in kept if other.history_ids),
        ))  # fmt: skip
    return chosen, others


# --- what the answers show ---


def order_rows(
    pools: Sequence[Sequence[Example]], outputs: Sequence[Sequence[Output]], names: Sequence[str] = ORDERS
) -> list[Row]:
    """Agreement between orders of the same pools, for candidates and for positions, and NDCG@5 in each order.

    pools[o][q] is query q with its pool in order o, outputs[o][q] the answer to it; `names` are those of the orders.
    The overlap of two lists is the number of items in both over the number in at least one, a mean over pairs of orders.
    `spread` is the standard deviation of a query's NDCG@5 over orders.

    A choice is `blind` if the first candidate of the ranked list is at the same position in all orders, without being the
    same candidate in all: 1 for a policy that always takes one position, 0 for one that reads. It is `reading` if it is
    the same candidate in all orders, without being at the same position in all. By chance each is one in N^(orders - 1).
    """
    first, pairs = pools[0], list(combinations(range(len(pools)), 2))
    for some, answers in zip(pools, outputs, strict=True):
        _check(some, answers)
    groups, sizes = _groups(first), [len(e.candidates) for e in first]

    def agreement(part: str, measure: str, same: Callable[..., float], chance: Callable[..., float]) -> list[Row]:
        """Of lists read as candidates, and of the same lists as positions."""
        lists = [[getattr(answer, part) for answer in answers] for answers in outputs]
        named = [
            [[e.candidate_keys[i] for i in x] for e, x in zip(some, own, strict=True)]
            for some, own in zip(pools, lists, strict=True)
        ]
        luck = [
            sum(chance(len(lists[a][q]), len(lists[b][q]), n) for a, b in pairs) / len(pairs)
            for q, n in enumerate(sizes)
        ]
        values = [
            torch.tensor([sum(same(x[a][q], x[b][q]) for a, b in pairs) / len(pairs) for q in range(len(first))])
            for x in (named, lists)
        ]
        return [_row("orders", f"{measure}: same {what}", x, groups, _mean(luck))
                for what, x in zip(("candidates", "positions"), values, strict=True)]  # fmt: skip

    rows = agreement("rank", "first choice", lambda a, b: float(a[0] == b[0]), lambda a, b, n: 1 / n)
    rows += agreement("rank", "ranked list", _overlap, overlap_by_chance)
    rows += agreement("slate", "slate", _overlap, overlap_by_chance)
    tops = [[(e.candidate_keys[o.rank[0]], o.rank[0]) for e, o in zip(*both, strict=True)]
            for both in zip(pools, outputs, strict=True)]  # fmt: skip
    alike = torch.tensor(
        [[len(set(x)) == 1 for x in zip(*answers, strict=True)] for answers in zip(*tops, strict=True)]
    )
    luck = _mean([n ** (1 - len(pools)) for n in sizes])
    rows.append(_row("orders", "blind choices", (alike[:, 1] & ~alike[:, 0]).double(), groups, luck))
    rows.append(_row("orders", "reading choices", (alike[:, 0] & ~alike[:, 1]).double(), groups, luck))
    scores = torch.stack([_ndcg(some, [o.rank for o in answers]) for some, answers in zip(pools, outputs, strict=True)])
    luck = _mean(ndcg_by_chance(first, [len(o.rank) for o in outputs[0]]))
    rows += [_row("orders", f"NDCG@5, pool {name}", x, groups, luck) for name, x in zip(names, scores, strict=True)]
    return [*rows, _row("orders", "NDCG@5, spread over orders", scores.std(0), groups, None)]


def position_rows(pools: Sequence[Sequence[Example]], outputs: Sequence[Sequence[Output]]) -> list[Row]:
    """Which positions a policy prefers, in orders that are random: elsewhere the data may prefer some themselves.

    `preference` compares two different queries: the probability that they choose the same position, beyond chance, over
    its maximum (Fleiss' kappa, Psychological Bulletin 76:378, 1971); for slates, the inner product of their positions. It
    is 0 if no position is preferred, 1 if it is always the same one (in pools of one size), and b^2 if a share b of the
    choices takes one position. As a mean over pairs of different clusters it has no bias, while the distance of observed
    shares from uniform ones is too large with few queries. Its interval is a jackknife over clusters.

    `slate order follows pool order` is Kendall's tau of the two. Rows with a `position`, counted from 1, hold the share of
    queries that rank it first, or have it in the slate.
    """
    groups, sizes = _groups(pools[0]), torch.tensor([len(e.candidates) for e in pools[0]])
    exists = torch.arange(int(sizes.max())) < sizes[:, None]  # (Q, N)
    rows, shares = [], list[Row]()
    for what, short, lists in (
        ("preference for positions, first choice", "first choice", [[o.rank[:1] for o in own] for own in outputs]),
        ("preference for positions, slate", "slate", [[o.slate for o in own] for own in outputs]),
    ):
        chosen = torch.zeros(len(outputs), *exists.shape, dtype=torch.float64)
        for order, own in enumerate(lists):
            for q, x in enumerate(own):
                chosen[order, q, list(x)] = 1.0
        length, chosen = chosen.sum(-1).mean(0), chosen.mean(0)  # (Q,), (Q, N)
        apart = chosen / length[:, None] - exists / sizes[:, None].double()
        longest = (1 / length - 1 / sizes.double()).clamp(min=0).sqrt()  # of `apart`, for one order
        if longest.any():
            value, low, high = preference(apart, longest, groups)
            rows.append(_made("positions", what, value, low, min(1.0, high), 0.0, groups))
        for place in range(exists.shape[1]):
            has = exists[:, place].nonzero()[:, 0]
            some = [groups[q] for q in has]
            row = _row("positions", short, chosen[has, place], some, float((length / sizes)[has].mean()))
            shares.append({**row, "position": place + 1})
    tau = [_mean_of([kendall(range(len(own[q].slate)), own[q].slate) for own in outputs]) for q in range(len(groups))]
    return [*rows, *_defined("positions", "slate order follows pool order", tau, groups), *shares]


def popularity_rows(
    pools: Sequence[Sequence[Example]], outputs: Sequence[Sequence[Output]], counts: Mapping[str, int], seed: int = 0
) -> list[Row]:
    """How much of the answers is popularity alone; all numbers of a query are means over the orders of its pool.

    `rank correlation` is (C - D) / (C + D) over pairs of candidates of which the answer prefers one (ranked before the rest
    of the slate before the rest of the pool) and which are not equally popular, C of them ordered alike: Goodman and
    Kruskal's gamma, 1 for an answer by popularity alone. `most popular first`: the first choice is as popular as any
    candidate. The less popular half are the queries whose relevant candidates have the lowest mean count.
    """
    known = [[counts.get(key, 0) for key in e.candidate_keys] for e in pools[0]]
    kept = [q for q, own in enumerate(known) if min(own) < max(own)]
    first = [pools[0][q] for q in kept]
    if _clusters(first) < LEAST:
        return []
    groups, answered = (
        _groups(first),
        [[(some[q], answers[q]) for q in kept] for some, answers in zip(pools, outputs, strict=True)],
    )
    own = torch.stack([_ndcg([e for e, _ in both], [o.rank for _, o in both]) for both in answered]).mean(0)
    by_count = _ndcg(first, [by_popularity(e, counts)[:K] for e in first])
    luck = torch.tensor(ndcg_by_chance(first, [len(o.rank) for _, o in answered[0]]))
    correlation, top = [], []
    for both in zip(*answered, strict=True):
        numbers = [[counts.get(key, 0) for key in e.candidate_keys] for e, _ in both]
        correlation.append(_mean_of([
            kendall([-_place(o, i) for i in range(len(e.candidates))], n) for (e, o), n in zip(both, numbers, strict=True)
        ]))  # fmt: skip
        top.append(_mean([float(n[o.rank[0]] == max(n)) for (_, o), n in zip(both, numbers, strict=True)]))
    part, ties = "popularity", [own.count(max(own)) / len(own) for own in (known[q] for q in kept)]
    rows = [
        _row(part, "NDCG@5", own, groups, float(luck.mean())),
        _row(part, "NDCG@5 of popularity", by_count, groups, float(luck.mean())),
        _row(part, "NDCG@5 minus popularity's", own - by_count, groups, None, True),
        *_defined(part, "rank correlation with popularity", correlation, groups),
        _row(part, "most popular first", torch.tensor(top), groups, _mean(ties)),
    ]
    rng = Random(f"reads {seed} halves")
    relevant = {
        n: _mean([known[q][i] for i in pools[0][q].relevant]) for n, q in enumerate(kept) if pools[0][q].relevant
    }
    order = sorted(relevant, key=lambda n: (relevant[n], rng.random()))
    for name, half in (("less", order[: len(order) // 2]), ("more", order[len(order) // 2 :])):
        if _clusters([first[n] for n in half]) < LEAST:
            continue
        some = [groups[n] for n in half]
        for what, x in (("NDCG@5", own), ("NDCG@5 of popularity", by_count)):
            rows.append(_row(part, f"{what}, {name} popular half", x[half], some, float(luck[half].mean())))
    return rows


def query_rows(
    examples: Sequence[Example], outputs: Sequence[Output], others: Sequence[Example], answers: Sequence[Output]
) -> list[Row]:
    """NDCG@5 with the query and history of another query (`others`, the pools unchanged) against that with its own."""
    _check(others, answers)
    groups = _groups(examples)
    own, other = (_ndcg(examples, [o.rank for o in some]) for some in (outputs, answers))
    sizes = [(len(a.rank), len(b.rank), len(e.candidates)) for a, b, e in zip(outputs, answers, examples, strict=True)]
    same = torch.tensor([_overlap(a.rank, b.rank) for a, b in zip(outputs, answers, strict=True)])
    luck = _mean(ndcg_by_chance(examples, [size[0] for size in sizes]))
    return [
        _row("query", "NDCG@5, own query", own, groups, luck),
        _row("query", "NDCG@5, query of another", other, groups, luck),
        _row("query", "NDCG@5, own minus another's", own - other, groups, 0.0, True),
        _row("query", "ranked list: same candidates", same, groups, _mean([overlap_by_chance(*s) for s in sizes])),
    ]


# --- statistics ---


@cache
def overlap_by_chance(a: int, b: int, pool: int) -> float:
    """Expected overlap of two sets of a and b candidates drawn at random from a pool (hypergeometric)."""
    return sum(
        math.comb(a, both) * math.comb(pool - a, b - both) / math.comb(pool, b) * both / (a + b - both)
        for both in range(1, min(a, b) + 1)
    )


def ndcg_by_chance(examples: Sequence[Example], lengths: Sequence[int]) -> list[float]:
    """Expected NDCG@5 of lists of these lengths drawn at random from the pools."""
    gains = pool_gains(examples, dtype=torch.float64)
    weight = discounts(K, gains)
    best = gains.sort(-1, descending=True).values[:, :K]
    ideal = (best * weight[: best.shape[1]]).sum(-1).clamp(min=1e-6)  # without a relevant candidate: 0
    return [
        float(own.sum() / len(e.candidates) * weight[:n].sum() / most)
        for own, e, n, most in zip(gains, examples, lengths, ideal, strict=True)
    ]


def kendall(a: Sequence[float], b: Sequence[float]) -> float | None:
    """(C - D) / (C + D) over pairs that neither order ties, C concordant and D discordant; None without such a pair."""
    x, y = (torch.tensor(list(v), dtype=torch.float64) for v in (a, b))
    signs = (x[:, None] - x).sign() * (y[:, None] - y).sign()
    return float(signs.sum() / signs.abs().sum()) if signs.any() else None


def preference(apart: Tensor, longest: Tensor, groups: Sequence[str]) -> tuple[float, float, float]:
    """Mean inner product of `apart` (Q, N) over pairs of queries of different clusters, relative to that of `longest` (Q,).

    With its 95 % interval: jackknife over clusters, t with one degree of freedom less.
    """
    labels = [g or i for i, g in enumerate(groups)]
    number = {label: n for n, label in enumerate(dict.fromkeys(labels))}
    index, c = torch.tensor([number[label] for label in labels]), len(number)
    x = torch.zeros(c, apart.shape[1], dtype=torch.float64).index_add_(0, index, apart)
    w = torch.zeros(c, dtype=torch.float64).index_add_(0, index, longest.double())
    x_all, w_all, xx, ww = x.sum(0), w.sum(), (x**2).sum(1), w**2

    def ratio(total: Tensor, squares: Tensor, weight: Tensor, weights: Tensor) -> Tensor:
        return ((total**2).sum(-1) - squares) / (weight**2 - weights)

    value = float(ratio(x_all, xx.sum(), w_all, ww.sum()))
    without = ratio(x_all - x, xx.sum() - xx, w_all - w, ww.sum() - ww)  # (C,): each cluster left out
    half = float(stdtrit(c - 1, 0.975) * ((c - 1) * without.var(unbiased=False)).sqrt())
    return value, value - half, value + half


def _row(
    part: str, measure: str, values: Tensor, groups: Sequence[str], chance: float | None, signed: bool = False
) -> Row:
    """A mean over queries; `signed` if values are differences, else they are in [0, 1]."""
    if signed and values.abs().max() > 0:
        found = paired(values[None], groups=groups)
        (low, high), mean = found.interval(), found.mean
    else:
        low, high = share_interval(values, groups)
        mean, low = float(values.double().mean()), -high if signed else low
    return _made(part, measure, mean, low, high, chance, groups)


def _made(
    part: str, measure: str, value: float, low: float, high: float, chance: float | None, groups: Sequence[str]
) -> Row:
    return {"part": part, "measure": measure, "position": None, "value": value, "low": low, "high": high,
            "chance": chance, "queries": len(groups), "groups": _distinct(groups)}  # fmt: skip


def _defined(part: str, measure: str, values: Sequence[float | None], groups: Sequence[str]) -> list[Row]:
    """The row of a correlation, over the queries that have one."""
    kept = [q for q, value in enumerate(values) if value is not None]
    own = [groups[q] for q in kept]
    if _distinct(own) < LEAST:
        return []
    row = _row(part, measure, torch.tensor([values[q] for q in kept], dtype=torch.float64), own, 0.0, True)
    return [{**row, "low": max(-1.0, row["low"]), "high": min(1.0, row["high"])}]


def _ndcg(examples: Sequence[Example], ranks: Sequence[Sequence[int]]) -> Tensor:
    return ndcg(pad(ranks, max(map(len, ranks))), pool_gains(examples, dtype=torch.float64), K)


def _overlap(a: Sequence[Hashable], b: Sequence[Hashable]) -> float:
    return len({*a} & {*b}) / len({*a} | {*b})


def _place(output: Output, candidate: int) -> int:
    """Place in the ranked list; the rest of the slate has one place behind it, the rest of the pool one behind that."""
    if candidate in output.rank:
        return output.rank.index(candidate)
    return len(output.rank) + (candidate not in output.slate)


def _check(examples: Sequence[Example], outputs: Sequence[Output]) -> None:
    for e, o in zip(examples, outputs, strict=True):
        if not o.slate or not o.rank:
            raise KitError(f"example {e.id!r}: the answer has an empty list; decode with full lists.")


def _groups(examples: Sequence[Example]) -> list[str]:
    return [e.group for e in examples]


def _clusters(examples: Sequence[Example]) -> int:
    return _distinct(_groups(examples))


def _distinct(groups: Sequence[str]) -> int:
    """Number of clusters; "" is one of its own."""
    return len({g or n for n, g in enumerate(groups)})


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _mean_of(values: Sequence[float | None]) -> float | None:
    own = [x for x in values if x is not None]
    return _mean(own) if own else None


# --- in words ---


def verdict(rows: Sequence[Row]) -> str:
    """One sentence: whether the policy reads its pool and its query, with the numbers."""
    return f"{pool_verdict(rows)}; {_query_verdict(rows)}{_popularity(rows)}."


def pool_verdict(rows: Sequence[Row]) -> str:
    """Whether first choices follow candidates or positions, from the rows of `order_rows`.

    A policy is said to read, or to answer by position, if the interval of that share is above 1 / N: one that does
    only the other cannot have more by chance, whatever it prefers.
    """
    same, place, reads, blind = (_find(rows, "orders", name) for name in (
        "ranked list: same candidates", "ranked list: same positions", "reading choices", "blind choices"))  # fmt: skip
    most = _find(rows, "orders", "first choice: same candidates")["chance"]
    numbers = (
        f"{_text(reads)} of the first choices follow the candidate through all orders and {_text(blind)} the position, and "
        f"ranked lists share {_text(same)} of the candidates and {_text(place)} of the positions ({same['chance']:.2f} "
        "by chance)"
    )
    shown = {"reads its pool": (reads, same), "is blind to its pool and answers by position": (blind, place)}
    kinds = [
        f"{kind}{'' if (lists['value'] - lists['chance']) >= CLEAR * (1 - lists['chance']) else ' in part'}"
        for kind, (choices, lists) in shown.items() if choices["low"] > most
    ]  # fmt: skip
    if len(kinds) == 2:
        return f"reads its pool for some queries and answers by position for others: {numbers}"
    if kinds:
        return f"{kinds[0]}: {numbers}"
    if max(reads["high"], blind["high"]) < FEW:
        return f"neither reads its pool nor answers by position: {numbers}"
    return f"whether it reads its pool cannot be told with {_size(same)}: {numbers}"


def _query_verdict(rows: Sequence[Row]) -> str:
    if not any(r["part"] == "query" for r in rows):
        return "whether it reads its query cannot be told, since too few queries differ"
    apart, same = (_find(rows, "query", x) for x in ("NDCG@5, own minus another's", "ranked list: same candidates"))
    numbers = (
        f"NDCG@5 with its own query minus that with another's is {_text(apart, '+.3f')}, and the two ranked lists share "
        f"{_text(same)} of the candidates"
    )
    if apart["low"] > 0:
        return f"reads its query: {numbers}"
    if same["low"] > SAME_LISTS:
        return f"does not read its query: {numbers}"
    if apart["high"] < SAME_NDCG:
        return f"gains nothing from its query: {numbers}"
    return f"whether it reads its query cannot be told with {_size(apart)}: {numbers}"


def _popularity(rows: Sequence[Row]) -> str:
    if not any(r["part"] == "popularity" for r in rows):
        return ""
    own, other, apart = (
        _find(rows, "popularity", x) for x in ("NDCG@5", "NDCG@5 of popularity", "NDCG@5 minus popularity's")
    )
    return f"; its NDCG@5 is {own['value']:.3f}, popularity's {other['value']:.3f} (difference {_text(apart, '+.3f')})"


def format_reads(rows: Sequence[Row]) -> str:
    """The verdict, and the rows as text; of the positions only those that are chosen most often."""
    titles = {"orders": "the same pools in three orders", "positions": "positions, in shuffled pools",
              "popularity": "popularity", "query": "the query and history of another"}  # fmt: skip
    lines: list[tuple[str, ...]] = [("", "value", "95 %", "by chance", "queries", "groups")]
    for part, title in titles.items():
        own = [r for r in rows if r["part"] == part and r["position"] is None]
        lines += [(title, *[""] * 5)] if own else []
        lines += [
            (f"  {r['measure']}", f"{r['value']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}",
             "" if r["chance"] is None else f"{r['chance']:.3f}", str(r["queries"]),
             str(r["groups"])) for r in own
        ]  # fmt: skip
    most = []
    for what in ("first choice", "slate"):
        own = sorted((r for r in rows if r["position"] and r["measure"] == what), key=lambda r: -r["value"])[:3]
        if own:
            named = ", ".join(f"{r['position']} ({r['value']:.2f}, by chance {r['chance']:.2f})" for r in own)
            most.append(f"Most frequent positions, {what}: {named}.")
    if not any(r["part"] == "popularity" for r in rows):
        most.append("Popularity: too few pools hold candidates that differ in it, so nothing is measured.")
    said = verdict(rows)
    return "\n\n".join((said[0].upper() + said[1:], columns(lines), "\n".join(most)))


def _find(rows: Sequence[Row], part: str, measure: str) -> Row:
    return next(r for r in rows if r["part"] == part and r["measure"] == measure and r["position"] is None)


def _text(row: Row, digits: str = ".2f") -> str:
    return f"{row['value']:{digits}} [{row['low']:{digits}}, {row['high']:{digits}}]"


def _size(row: Row) -> str:
    return f"{row['queries']} queries" + (f" of {row['groups']} groups" if row["groups"] < row["queries"] else "")
