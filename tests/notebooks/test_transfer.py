"""The pools of notebook 08: their script makes them, three orders of the same candidates, and traces of these pools."""

import runpy
from pathlib import Path

import pytest

from fgrpo.runs.trace import read_trace
from fgrpo.tasks import DATA
from fgrpo.tasks.jsonl import read_jsonl, write_jsonl

HERE = DATA / "transfer"
TASKS = ("questions", "films")


@pytest.mark.parametrize("task", TASKS)
def test_the_script_makes_what_is_there(task: str, tmp_path: Path) -> None:
    made = runpy.run_path(str(HERE / "make.py"))[task]()
    assert made == read_jsonl(HERE / f"{task}.jsonl")
    write_jsonl(tmp_path / "made.jsonl", made)
    assert (tmp_path / "made.jsonl").read_bytes() == (HERE / f"{task}.jsonl").read_bytes()


@pytest.mark.parametrize("task", TASKS)
def test_three_orders_of_one_pool(task: str) -> None:
    examples = read_jsonl(HERE / f"{task}.jsonl")
    assert len(examples) == 36
    for first in range(0, 36, 3):
        three = examples[first : first + 3]
        assert len({e.candidates for e in three}) == 3 and len({frozenset(e.candidates) for e in three}) == 1
        assert len({frozenset(e.candidates[i] for i in e.relevant) for e in three}) == 1
        assert all(len(set(e.candidates)) == 20 and len(e.relevant) == 2 for e in three)
        assert not set(three[0].history) & set(three[0].candidates)


@pytest.mark.parametrize("path", sorted(HERE.glob("*-*.jsonl")), ids=lambda path: path.stem)
def test_traces_are_of_these_pools(path: Path) -> None:
    trace = read_trace(path)
    assert [g.example for g in trace.groups] == read_jsonl(HERE / f"{path.stem.rpartition('-')[2]}.jsonl")
    assert all(g.greedy and not g.greedy.output.error for g in trace.groups) and len(trace.groups[0].rollouts) == 8
    assert trace.config.lm.passage_tokens == 24
