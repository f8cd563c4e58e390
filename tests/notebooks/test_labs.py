"""The checks of the labs: a stub is not solved, every known wrong answer gets its own message, every solution passes."""

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nbformat import NotebookNode

from notebooks import build, checks

MASTERS = {path.stem: build.read_source(path) for path in sorted(build.SOURCES.glob("*.py"))}
EXERCISES = [(name, cell) for name, source in MASTERS.items() for cell in build.marked(source, "exercise")]
WRONG = [(name, cell) for name, source in MASTERS.items() for cell in build.marked(source, "wrong")]


def called(pair: tuple[str, NotebookNode]) -> str:
    return f"{pair[0][:2]}-{pair[1].metadata.get('exercise') or pair[1].metadata['says']}"


def function(source: str) -> Callable[..., Any]:
    """The function that a cell defines."""
    names: dict[str, Any] = {}
    exec(source, {"torch": torch, "math": math}, names)
    (found,) = names.values()
    return found


def check_of(name: str, exercise: str) -> Callable[[Callable[..., Any]], str]:
    """The check that the notebook calls on an exercise."""
    text = "\n".join(cell.source for cell in MASTERS[name].cells)
    (check,) = re.findall(rf"print\(checks\.(\w+)\({exercise}\)\)", text)
    return getattr(checks, check)


def stub(cell: NotebookNode) -> str:
    return cell.source.split(build.SOLUTION)[0] + build.STUB


@pytest.mark.parametrize("exercise", EXERCISES, ids=called)
def test_the_solution_passes_and_the_stub_is_not_solved(exercise: tuple[str, NotebookNode]) -> None:
    name, cell = exercise
    check = check_of(name, cell.metadata["exercise"])
    assert check(function(cell.source)).startswith(checks.RIGHT)
    assert check(function(stub(cell))) == checks.NOT_SOLVED


@pytest.mark.parametrize("wrong", WRONG, ids=called)
def test_a_known_wrong_answer_gets_its_own_message(wrong: tuple[str, NotebookNode]) -> None:
    name, cell = wrong
    message = check_of(name, cell.metadata["wrong"])(function(cell.source))
    assert message.startswith("Not yet.") and cell.metadata["says"] in message
    others = {c.metadata["says"] for n, c in WRONG if c.metadata["wrong"] == cell.metadata["wrong"] and n == name}
    assert [says for says in others if says in message] == [cell.metadata["says"]], (
        "each mistake has a message of its own"
    )


def test_every_exercise_has_level_minutes_and_two_wrong_answers() -> None:
    assert EXERCISES
    for name, cell in EXERCISES:
        marks = cell.metadata
        assert 1 <= marks["difficulty"] <= 5 and marks["minutes"] > 0
        assert sum(c.metadata["wrong"] == marks["exercise"] and n == name for n, c in WRONG) >= 2


def test_stubs_and_solutions_are_where_they_belong() -> None:
    for path in sorted(build.SOURCES.glob("*.py")):
        for target, notebook in build.generate(path).items():
            texts = [cell.source for cell in notebook.cells]
            for name, cell in EXERCISES:
                if name != path.stem:
                    continue
                solved = target.parent.name == "solutions"
                assert texts.count(stub(cell)) == (not solved)
                assert texts.count(cell.source.replace(build.SOLUTION, "")) == solved
                folded = [t for t in texts if t.startswith("<details>") and f"<code>{cell.metadata['exercise']}<" in t]
                assert len(folded) == (not solved)


@pytest.mark.parametrize(
    "check",
    [
        checks.recall, checks.ndcg, checks.advantage, checks.factorised, checks.surrogate, checks.normalised, checks.fate,
        checks.reward_to_go, checks.chance, checks.overlap,
    ],
)  # fmt: skip
@pytest.mark.parametrize(
    "answer",
    [lambda *a: None, lambda *a: 1 / 0, lambda: 1, lambda *a: 3.0, lambda *a: torch.zeros(1), lambda *a: "0.5"],
)
def test_a_check_never_raises(check: Callable[..., str], answer: Callable[..., Any]) -> None:
    assert check(answer).startswith("Not yet.")
