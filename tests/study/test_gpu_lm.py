"""What the script for a GPU decides, without a model: how many steps of SFT, which run is next, who reads."""

import importlib.util
from pathlib import Path

import pytest
import torch

from fgrpo.data import Example
from fgrpo.prompt import Output
from fgrpo.study.compare import Result
from fgrpo.study.reads import reads_rows

SPEC = importlib.util.spec_from_file_location("gpu_lm", Path(__file__).parents[2] / "data/results/gpu_lm.py")
assert SPEC and SPEC.loader
gpu_lm = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(gpu_lm)


def test_a_round_of_sft_leaves_time_for_its_check() -> None:
    for left, a_step in ((100.0, 0.1), (100.0, 0.7), (37.0, 0.29)):
        steps = gpu_lm.round_steps(left, a_step, 250)
        assert 0 < steps <= 250 and steps * a_step <= 0.8 * left
        assert steps == 250 or (steps + 1) * a_step > 0.8 * left
    assert gpu_lm.round_steps(100.0, 0.5, 250, check=40.0) == 120  # as long as the check before took
    assert gpu_lm.round_steps(100.0, 0.1, 250, check=120.0) == 0
    assert gpu_lm.round_steps(100.0, 2.0, 250) == 0  # 40 steps: not worth a round
    assert gpu_lm.round_steps(-5.0, 0.1, 250) == gpu_lm.round_steps(0.0, 0.1, 250) == 0


def planned(seconds: float, a_run: float, finished: set[tuple[str, int]] = frozenset()) -> list[tuple[str, int]]:  # type: ignore[assignment]
    """The runs of one call, each of which takes as long as expected."""
    done, order = set(finished), []
    while key := gpu_lm.next_run(done, done, seconds - a_run * len(order), a_run):
        done.add(key)
        order.append(key)
    return order


def test_methods_alternate_and_no_seed_is_begun_that_does_not_fit() -> None:
    one = [("grpo", 0), ("fgrpo", 0)]
    assert planned(100, 49) == one and planned(100, 51) == [] and planned(-1, 0.1) == []
    assert planned(100, 24) == [*one, ("grpo", 1), ("fgrpo", 1)]
    assert planned(100, 49, {*one}) == [("grpo", 1), ("fgrpo", 1)]  # a later call
    assert planned(100, 60, {("grpo", 0)}) == [("fgrpo", 0)]  # the second run of a seed that was begun


def test_a_seed_that_was_begun_goes_on_until_the_time_is_up() -> None:
    begun = {("grpo", 0)}
    assert gpu_lm.next_run(set(), begun, 5, 60) == ("grpo", 0)
    assert gpu_lm.next_run(begun, begun, 5, 60) == ("fgrpo", 0)
    assert gpu_lm.next_run(set(), begun, -1, 60) is None


def pools(count: int = 60) -> list[Example]:
    """Each query names its relevant candidate, which is never the same place twice in a row."""
    films = [f"film {n}" for n in range(count)]
    return [
        Example(
            f"q{n}",
            films[n],
            (),
            tuple(films[(n + 7 * i - n % 12 * 7) % count] for i in range(12)),
            frozenset({n % 12}),
        )
        for n in range(count)
    ]


def reader(examples) -> list[Output]:
    """Ranks what the query names first, the rest by name."""
    ranked = [sorted(range(12), key=lambda i: (e.candidates[i] != e.query, e.candidates[i])) for e in examples]
    return [Output(tuple(r[:10]), tuple(r[:5])) for r in ranked]


def by_name(examples) -> list[Output]:
    """Reads the pool and not the query."""
    ranked = [sorted(range(12), key=lambda i: e.candidates[i]) for e in examples]
    return [Output(tuple(r[:10]), tuple(r[:5])) for r in ranked]


def by_place(examples) -> list[Output]:
    return [Output(tuple(range(10)), tuple(range(5))) for _ in examples]


@pytest.mark.parametrize("counted", [False, True])
def test_only_who_reads_pool_and_query_passes(counted) -> None:
    train = [Example("t", "", (), ("film 1", "film 2"), frozenset({0}))] if counted else []
    found = {name: gpu_lm.passes(reads_rows(answer, pools(), train))
             for name, answer in (("reader", reader), ("by name", by_name), ("by place", by_place))}  # fmt: skip
    assert found == {"reader": True, "by name": False, "by place": False}


def test_who_is_not_above_popularity_does_not_pass() -> None:
    train = [Example(f"t{n}", "", (), (f"film {n}",), frozenset({0})) for n in range(1, 60, 2)]
    rows = reads_rows(reader, pools(), train)
    assert gpu_lm.passes(rows)
    level = [{**r, "low": -0.01} if r["measure"] == "NDCG@5 minus popularity's" else r for r in rows]
    assert level != rows and not gpu_lm.passes(level)


def test_queries_are_taken_from_all_over_a_split() -> None:
    assert gpu_lm.spread(range(10), None) == list(range(10)) and gpu_lm.spread(range(10), 99) == list(range(10))
    for count in (1, 3, 7):
        found = gpu_lm.spread(range(100), count)
        assert 1 <= len(found) <= count and found[-1] >= 100 - 100 // len(found) - 1


def test_a_result_is_measured_once(tmp_path) -> None:
    result = Result({"ndcg@5": torch.rand(5, dtype=torch.float64)}, 7, 1.5)
    for measure in (lambda: result, lambda: pytest.fail("measured again")):
        found = gpu_lm.kept(tmp_path / "x.json", measure)
        assert torch.equal(found.metrics["ndcg@5"], result.metrics["ndcg@5"]) and (found.tokens, found.seconds) == (
            7,
            1.5,
        )
