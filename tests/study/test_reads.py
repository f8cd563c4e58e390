"""Answers of which it is known whether they read; chance, correlations and intervals against plain loops; the command."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, permutations
from pathlib import Path
from random import Random

import pytest
import torch
from scipy import stats

from fgrpo.baselines.rankers import popularity
from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.data import Example, Splits
from fgrpo.evaluate import evaluate, greedy
from fgrpo.policy import Sampling
from fgrpo.prompt import Output
from fgrpo.rewards import ndcg, pad, pool_gains
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.plots import Row
from fgrpo.study.reads import (
    format_reads,
    kendall,
    ndcg_by_chance,
    of_others,
    order_rows,
    overlap_by_chance,
    pool_verdict,
    position_rows,
    preference,
    reads_rows,
    reordered,
    verdict,
)
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.tasks.next_item import counts as counts_of

ITEMS = [f"item {n}" for n in range(60)]
COUNTS = {item: 100 - n // 2 for n, item in enumerate(Random(7).sample(ITEMS, 60))}
"""two items each are equally popular"""
TRAIN = [Example(f"t{n}", "", tuple(i for i in ITEMS if COUNTS[i] > n), ("x",), frozenset()) for n in range(100)]


def queries(count: int, pool: int = 20, seed: int = 0) -> list[Example]:
    """Two relevant candidates each, known by the query alone."""
    rng, made = Random(seed), []
    for n in range(count):
        items = rng.sample(ITEMS, pool + 3)
        relevant = frozenset(rng.sample(range(pool), 2))
        made.append(Example(f"e{n}", f"q{n}", tuple(items[pool:]), tuple(items[:pool]), relevant))
    return made


QUERIES = queries(200)
TRUTH = {e.query: {e.candidates[i] for i in e.relevant} for e in QUERIES}


def lists(order: Sequence[int]) -> Output:
    return Output(tuple(order[:10]), tuple(order[:5]))


def reader(examples: Sequence[Example]) -> list[Output]:
    """What the query is about, the rest by name."""
    return [
        lists(sorted(range(len(e.candidates)), key=lambda i: (e.candidates[i] not in TRUTH[e.query], e.candidates[i])))
        for e in examples
    ]


def blind(examples: Sequence[Example]) -> list[Output]:
    return [lists(range(len(e.candidates))) for e in examples]


def chance(examples: Sequence[Example]) -> list[Output]:
    return [lists(Random(repr(e)).sample(range(len(e.candidates)), 10)) for e in examples]


def popular(examples: Sequence[Example]) -> list[Output]:
    return [lists(sorted(range(len(e.candidates)), key=lambda i: -COUNTS[e.candidates[i]])) for e in examples]


def unwilling(examples: Sequence[Example], share: float = 0.5) -> list[Output]:
    """A share of the queries is answered by position, the others by reading."""
    return [
        a if Random(e.query).random() < share else b
        for a, b, e in zip(blind(examples), reader(examples), examples, strict=True)
    ]


Answers = Callable[[Sequence[Example]], list[Output]]


def rows_of(answer: Answers, examples: Sequence[Example] = QUERIES) -> dict[str, Row]:
    return named(reads_rows(answer, examples, TRAIN))


def named(rows: Sequence[Row]) -> dict[str, Row]:
    return {f"{r['part']}, {r['measure']}" + (f" {r['position']}" if r["position"] else ""): r for r in rows}


def value(rows: dict[str, Row], name: str) -> float:
    return float(rows[name]["value"])


def test_a_reader() -> None:
    rows = reads_rows(reader, QUERIES, TRAIN)
    found = named(rows)
    for part in ("first choice", "ranked list", "slate"):
        assert value(found, f"orders, {part}: same candidates") == 1
    assert value(found, "orders, blind choices") == 0 and value(found, "orders, reading choices") == 1
    assert [value(found, f"orders, NDCG@5, pool {name}") for name in ("as it is", "reversed", "shuffled")] == [1, 1, 1]
    assert value(found, "orders, NDCG@5, spread over orders") == 0
    assert abs(value(found, "positions, preference for positions, first choice")) < 0.02
    assert value(found, "popularity, NDCG@5 minus popularity's") > 0.5
    assert abs(value(found, "popularity, rank correlation with popularity")) < 0.2
    assert found["query, NDCG@5, own minus another's"]["low"] > 0.5
    said = verdict(rows)
    assert (
        said.startswith("reads its pool: 1.00 [0.98, 1.00] of the first choices follow the candidate")
        and "; reads its query: " in said
    )
    assert all(r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9 for r in rows), [
        r for r in rows if r["low"] > r["value"]
    ]
    assert format_reads(rows).startswith("Reads its pool") and "Most frequent positions, slate: " in format_reads(rows)


def test_always_the_same_positions() -> None:
    rows = reads_rows(blind, QUERIES, TRAIN)
    found = named(rows)
    for part in ("first choice", "ranked list", "slate"):
        assert value(found, f"orders, {part}: same positions") == 1
    assert value(found, "orders, blind choices") == 1 and value(found, "orders, reading choices") == 0
    for part in ("first choice", "slate"):
        row = found[f"positions, preference for positions, {part}"]
        assert (row["value"], row["low"], row["high"]) == pytest.approx((1, 1, 1))
    assert value(found, "positions, slate order follows pool order") == pytest.approx(1)
    assert value(found, "positions, first choice 1") == 1 and value(found, "positions, first choice 2") == 0
    assert value(found, "positions, slate 10") == 1 and found["positions, slate 11"]["chance"] == 0.5
    assert value(found, "query, ranked list: same candidates") == 1
    said = verdict(rows)
    assert said.startswith("is blind to its pool and answers by position: ") and "; does not read its query: " in said


def test_answers_by_chance() -> None:
    rows = reads_rows(chance, queries(600, seed=1), TRAIN)
    compared = [r for r in rows if r["chance"] is not None and r["part"] != "popularity"]
    inside = sum(r["low"] <= r["chance"] <= r["high"] for r in compared)
    assert inside >= 0.9 * len(compared) and len(compared) > 50
    assert verdict(rows).startswith("neither reads its pool nor answers by position: ")
    assert verdict(reads_rows(chance, queries(4, seed=1), TRAIN)).startswith(
        "whether it reads its pool cannot be told with 4 queries: "
    )
    pairs = [replace(e, group=str(n // 2)) for n, e in enumerate(queries(6, seed=1))]
    assert "whether it reads its pool cannot be told with 6 queries of 3 groups: " in verdict(
        reads_rows(chance, pairs, TRAIN)
    )
    assert "whether it reads its query cannot be told with 4 queries" in verdict(reads_rows(chance, queries(4), TRAIN))


def test_popularity_alone() -> None:
    rows = reads_rows(popular, QUERIES, TRAIN)
    found = named(rows)
    assert value(found, "popularity, rank correlation with popularity") == pytest.approx(1)
    assert value(found, "popularity, most popular first") == 1
    assert 1 / 20 < found["popularity, most popular first"]["chance"] < 2 / 20  # of ties either will do
    assert abs(value(found, "popularity, NDCG@5 minus popularity's")) < 0.02
    less, more = (value(found, f"popularity, NDCG@5, {name} popular half") for name in ("less", "more"))
    assert less + 0.2 < more
    assert value(found, "orders, blind choices") < 0.05
    said = verdict(rows)
    assert said.startswith("reads its pool: ") and "; does not read its query: " in said


def test_half_of_the_choices_by_position() -> None:
    """A share of blind choices is what its name says, and the preference is its square."""
    found = rows_of(unwilling)
    share = value(found, "orders, blind choices")
    assert share == sum(Random(e.query).random() < 0.5 for e in QUERIES) / len(QUERIES)
    assert found["positions, preference for positions, first choice"]["value"] == pytest.approx(share**2, abs=0.02)
    assert pool_verdict(list(found.values())).startswith("reads its pool for some queries and answers by position for ")
    assert pool_verdict(reads_rows(partial(unwilling, share=1.0), QUERIES, TRAIN)).startswith("is blind to its pool")


def test_half_of_the_choices_by_chance() -> None:
    def wavering(examples: Sequence[Example]) -> list[Output]:
        pairs = zip(chance(examples), reader(examples), examples, strict=True)
        return [a if Random(e.query).random() < 0.7 else b for a, b, e in pairs]

    assert pool_verdict(reads_rows(wavering, QUERIES, TRAIN)).startswith("reads its pool in part: ")


def test_pools_that_are_not_shuffled() -> None:
    """Relevant candidates come first: that is no preference of a reader, and no skill of an answer by position."""
    sorted_pools = [
        replace(e, candidates=(*sorted(TRUTH[e.query]), *sorted({*e.candidates} - TRUTH[e.query])),
                relevant=frozenset({0, 1})) for e in QUERIES
    ]  # fmt: skip
    found = rows_of(reader, sorted_pools)
    assert abs(value(found, "positions, preference for positions, first choice")) < 0.02
    found = rows_of(blind, sorted_pools)
    assert value(found, "orders, NDCG@5, pool as it is") == 1 and value(found, "orders, NDCG@5, pool reversed") == 0
    assert value(found, "orders, NDCG@5, spread over orders") > 0.4
    assert value(found, "query, NDCG@5, own minus another's") == 0
    assert found["query, NDCG@5, own minus another's"]["high"] == pytest.approx(1 - 0.025 ** (1 / 200))


# --- questions ---


def test_orders_carry_labels_gains_and_ids_along() -> None:
    gains = (0, 2.0, 0, 0, 1.0)
    plain = Example("a", "q", (), ("a", "b", "c", "d", "e"), frozenset({1, 4}), (), tuple("vwxyz"), gains)
    backwards, mixed = reordered([plain, replace(plain, id="b")], 3)
    assert backwards[0].candidates == ("e", "d", "c", "b", "a") and backwards[0].gains == (1.0, 0, 0, 2.0, 0)
    for e in (*backwards, *mixed):
        pairs = zip(e.candidates, e.candidate_ids, e.gains, strict=True)
        assert sorted(pairs) == sorted(zip(plain.candidates, plain.candidate_ids, gains, strict=True))
        assert {e.candidates[i] for i in e.relevant} == {"b", "e"}
    assert mixed[0].candidates != mixed[1].candidates
    assert reordered([replace(plain, id="b")], 3)[1][0] == mixed[1] != reordered([replace(plain, id="b")], 4)[1][0]


@pytest.mark.parametrize("sizes", [[1] * 12, [3, 3, 2, 4], [5, 1, 1, 2], [6, 4]])
def test_no_query_gets_one_of_its_own_group(sizes: list[int]) -> None:
    """Each query is given away once at most; of a group larger than all others together as many queries are used."""
    names = [f"group {n}" for n, size in enumerate(sizes) for _ in range(size)]
    examples = [replace(e, group=name) for e, name in zip(queries(len(names)), names, strict=True)]
    chosen, others = of_others(examples, 0)
    by_query = {e.query: e.group for e in examples}
    assert (
        len(chosen)
        == len({*chosen})
        == len({o.query for o in others})
        == min(len(names), 2 * (len(names) - max(sizes)))
    )
    for q, other in zip(chosen, others, strict=True):
        assert by_query[other.query] != examples[q].group == other.group
        assert (other.candidates, other.relevant) == (examples[q].candidates, examples[q].relevant)
        full = next(e.history for e in examples if e.query == other.query)
        assert other.history == tuple(item for item in full if item not in other.candidates)
    if len(examples) > 10:
        assert of_others(examples, 1) != (chosen, others) == of_others(examples, 0)


def test_queries_that_are_all_the_same() -> None:
    same = [replace(e, query="", history=()) for e in QUERIES[:20]]
    assert of_others(same, 0) == ([], [])
    rows = reads_rows(popular, same, TRAIN)
    assert "whether it reads its query cannot be told, since too few queries differ" in verdict(rows)
    assert not [r for r in reads_rows(blind, same, []) if r["part"] in ("popularity", "query")]
    assert "nothing is measured" in format_reads(reads_rows(blind, same, []))


def test_pools_without_a_relevant_candidate() -> None:
    """Their NDCG@5 is 0, of chance, too; they are in neither half."""
    none = [replace(e, id=f"n{n}", relevant=frozenset()) for n, e in enumerate(QUERIES[:40])]
    assert ndcg_by_chance([none[0], QUERIES[0]], [5, 5])[0] == 0 < ndcg_by_chance(QUERIES[:1], [5])[0]
    rows = rows_of(popular, [*QUERIES[40:], *none])
    assert [rows[f"popularity, NDCG@5, {name} popular half"]["queries"] for name in ("less", "more")] == [80, 80]
    assert rows["orders, NDCG@5, pool reversed"]["queries"] == 200
    assert all(r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9 for r in rows.values())


def test_too_few_groups_and_empty_lists() -> None:
    one = [replace(e, group="u") for e in QUERIES[:9]]
    with pytest.raises(KitError, match="9 queries of 1 groups are too few for intervals: give 3 groups or more"):
        reads_rows(blind, one, TRAIN)
    with pytest.raises(KitError, match="example 'e0': the answer has an empty list; decode with full lists"):
        reads_rows(lambda some: [Output((0,), ()) for _ in some], QUERIES[:9], TRAIN)


def test_pools_of_different_sizes() -> None:
    mixed = [*queries(60, 20), *[replace(e, id=f"s{n}") for n, e in enumerate(queries(60, 11, seed=2))]]
    truth = {e.id: {e.candidates[i] for i in e.relevant} for e in mixed}

    def by_id(examples: Sequence[Example]) -> list[Output]:
        return [
            lists(sorted(range(len(e.candidates)), key=lambda i: (e.candidates[i] not in truth[e.id], e.candidates[i])))
            for e in examples
        ]

    found = named(reads_rows(by_id, mixed, TRAIN))
    assert abs(value(found, "positions, preference for positions, first choice")) < 0.03
    assert (
        found["positions, first choice 20"]["queries"] == 60 and found["positions, first choice 11"]["queries"] == 120
    )
    assert found["orders, blind choices"]["chance"] == pytest.approx((1 / 400 + 1 / 121) / 2)
    found = named(reads_rows(blind, mixed, TRAIN))
    assert 0.98 < value(found, "positions, preference for positions, first choice") <= 1


# --- chance, correlations and intervals ---


@pytest.mark.parametrize(("a", "b", "pool"), [(2, 3, 6), (4, 4, 5), (1, 1, 7), (3, 3, 3)])
def test_overlap_by_chance_over_all_pairs_of_sets(a: int, b: int, pool: int) -> None:
    pairs = [({*x}, {*y}) for x in combinations(range(pool), a) for y in combinations(range(pool), b)]
    assert overlap_by_chance(a, b, pool) == pytest.approx(sum(len(x & y) / len(x | y) for x, y in pairs) / len(pairs))


def test_ndcg_by_chance_over_all_lists() -> None:
    small = Example("a", "", (), tuple("abcdef"), frozenset({1, 4}), gains=(0, 3.0, 0, 0, 1.0, 0))
    other = Example("b", "", (), tuple("abcd"), frozenset({0}))
    for example, length in ((small, 5), (small, 2), (other, 3)):
        every = list(permutations(range(len(example.candidates)), length))
        mean = ndcg(pad(every, length), pool_gains([example], torch.float64), 5).mean()
        assert ndcg_by_chance([small, example], [1, length])[1] == pytest.approx(float(mean))


def test_kendall_against_scipy_and_with_ties() -> None:
    rng = Random(0)
    a, b = [rng.random() for _ in range(9)], [rng.random() for _ in range(9)]
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic)
    assert kendall([1, 1, 2, 3], [4, 4, 4, 9]) == 1 and kendall([3, 2, 1], [0, 0, 5]) == -1
    assert kendall([1, 1], [1, 2]) is None and kendall([1], [1]) is None


def test_preference_over_pairs_of_queries() -> None:
    """And its interval by leaving out each cluster."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(9, 4, generator=generator).double(), torch.rand(9, generator=generator).double()
    groups = ["a", "a", "b", "", "", "b", "c", "c", "c"]
    labels = [g or str(n) for n, g in enumerate(groups)]

    def by_loops(skip: str = "") -> float:
        pairs = [
            (i, j) for i in range(9) for j in range(9) if labels[i] != labels[j] and skip not in (labels[i], labels[j])
        ]
        return sum(float(x[i] @ x[j]) for i, j in pairs) / sum(float(w[i] * w[j]) for i, j in pairs)

    found, low, high = preference(x, w, groups)
    assert found == pytest.approx(by_loops())
    left = torch.tensor([by_loops(label) for label in sorted({*labels})], dtype=torch.float64)
    half = stats.t.ppf(0.975, 4) * float((4 / 5 * ((left - left.mean()) ** 2).sum()) ** 0.5)
    assert (low, high) == pytest.approx((found - half, found + half))


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_intervals_of_the_preference_hold(share: float) -> None:
    """Groups of three queries that are answered alike, by position or at random."""
    generator, hits, trials = torch.Generator().manual_seed(1), 0, 200
    groups = [str(n // 3) for n in range(90)]
    for _ in range(trials):
        by_place = (torch.rand(30, generator=generator) < share).repeat_interleave(3)
        place = torch.where(by_place, 7, torch.randint(20, (90,), generator=generator))
        x = torch.nn.functional.one_hot(place, 20).double() - 1 / 20
        _, low, high = preference(x, torch.full((90,), 0.95**0.5), groups)
        hits += low <= share**2 <= high
    assert 0.9 <= hits / trials <= 1


# --- recorded answers, the shipped policy, the command ---


def test_recorded_answers_in_any_number_of_random_orders() -> None:
    """As in notebook 08."""
    orders = [reordered(QUERIES, seed)[1] for seed in range(3)]
    rows = named([*order_rows(orders, [reader(x) for x in orders], ("a", "b", "c")),
                  *position_rows(orders, [blind(x) for x in orders])])  # fmt: skip
    assert value(rows, "orders, ranked list: same candidates") == 1 and "orders, NDCG@5, pool b" in rows
    assert value(rows, "positions, slate 3") == 1
    assert pool_verdict(list(rows.values())).startswith("reads its pool: ")


def test_counts_are_those_of_the_popularity_baseline() -> None:
    assert {**counts_of(TRAIN)} == COUNTS
    train = queries(50, seed=5)
    counts = counts_of(train)
    assert counts[ITEMS[0]] == sum(
        ITEMS[0] in e.history or ITEMS[0] in {e.candidates[i] for i in e.relevant} for e in train
    )
    orders = popularity(Splits(train, [], QUERIES))
    mean = ndcg(pad([x[:5] for x in orders], 5), pool_gains(QUERIES, torch.float64), 5).mean()
    found = named(reads_rows(reader, QUERIES, train))
    assert value(found, "popularity, NDCG@5 of popularity") == pytest.approx(float(mean))


def test_the_shipped_warm_start_reads(lab: Splits) -> None:
    config, policy, some = config_with(full=True), load_policy(SHIPPED), lab.test[:48]
    rows = named(reads_rows(lambda x: greedy(policy, x, Sampling(config.grammar)), some, lab.train[:500]))
    assert value(rows, "orders, NDCG@5, pool as it is") == pytest.approx(
        float(evaluate(policy, some, config)["ndcg@5"].mean())
    )
    assert value(rows, "orders, reading choices") > 0.7 and value(rows, "orders, blind choices") == 0
    assert rows["query, NDCG@5, own minus another's"]["low"] > 0.2
    assert verdict(list(rows.values())).startswith("reads its pool: ")


def test_the_command(
    lab: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["analyse", "--reads", "--limit", "12", "--out", "reads.csv"]
    assert main([*argv, "--json", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert not err and set(report) == {"task", "queries", "verdict", "rows"}
    assert report["queries"] == 12 and "reads its query" in report["verdict"]
    first, *lines = Path("reads.csv").read_text().splitlines()
    made = json.loads(first[2:])
    assert made["verdict"] == report["verdict"] and made["seed"] == 1 and made["config"]["task"] == "lab-rec"
    assert lines[0] == "part,measure,position,value,low,high,chance,queries,groups" and len(lines) == 1 + len(
        report["rows"]
    )
    write_jsonl(Path("own.jsonl"), lab.test[:60])
    assert main([*argv, "--checkpoint", str(SHIPPED), "--task", "own.jsonl", "--split", "train"]) == 0
    text = capsys.readouterr().out
    assert "the query and history of another" in text and not Path("reads.png").exists()
