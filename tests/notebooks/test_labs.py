"""The checks of the labs: a stub is not solved, solutions pass in any style, mistakes are named and shown by an example."""

import inspect
import math
import re
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from nbformat import NotebookNode

from fgrpo.evaluate import FATES, fates
from notebooks import build, checks
from tests.notebooks.answers import UNUSUAL, WRONG

MASTERS = {path.stem: build.read_source(path) for path in sorted(build.SOURCES.glob("*.py"))}
EXERCISES = [(name, cell) for name, source in MASTERS.items() for cell in build.marked(source, "exercise")]
PAIRS = [(exercise, says, answer) for exercise, rows in WRONG.items() for says, answer in rows]


def called(pair: tuple[str, NotebookNode]) -> str:
    return f"{pair[0][:2]}-{pair[1].metadata['exercise']}"


def function(source: str) -> Callable[..., Any]:
    """The function that a cell defines."""
    names: dict[str, Any] = {}
    exec(source, {"torch": torch, "math": math}, names)
    (found,) = names.values()
    return found


def check_of(name: str, exercise: str) -> checks.Check:
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


@pytest.mark.parametrize(("exercise", "says", "answer"), PAIRS, ids=[f"{e}-{n}" for n, (e, _, _) in enumerate(PAIRS)])
def test_a_wrong_answer_hears_of_its_mistake_and_sees_a_case(
    exercise: str, says: str, answer: Callable[..., Any]
) -> None:
    message = checks.CHECKS[exercise](answer)
    words, *example = message.split("\n    ")
    assert words.startswith("Not yet.") and (says or checks.UNKNOWN) in message
    assert example[0].startswith("input ")
    assert re.search(r"^    (gradient )?expected +\S", message, re.M) and re.search(r"^    got +\S", message, re.M)


def test_most_of_what_students_write_is_named() -> None:
    """A mistake is named if its message is neither the general one nor just what Python says about an error."""
    messages = [checks.CHECKS[exercise](answer).split("\n")[0] for exercise, _, answer in PAIRS]
    bare = [m for m in messages if "stopped with" in m and not m.endswith(tuple(checks.ADVICE.values()))]
    general = [m for m in messages if checks.UNKNOWN in m] + bare
    assert len(messages) >= 60 and len(general) <= len(messages) / 10
    assert all(len(rows) >= 10 for rows in WRONG.values()), "for each exercise"


@pytest.mark.parametrize("exercise", checks.CHECKS)
def test_every_known_mistake_is_told_apart_from_all_others(exercise: str) -> None:
    check = checks.CHECKS[exercise]
    for mistake, words in check.mistakes:
        assert check(mistake).startswith(f"Not yet. {words}\n")


@pytest.mark.parametrize("exercise", checks.CHECKS)
def test_a_right_answer_passes_in_any_style(exercise: str) -> None:
    for answer in UNUSUAL[exercise]:
        assert checks.CHECKS[exercise](answer).startswith(checks.RIGHT), inspect.getsource(answer)
    assert sum(map(len, UNUSUAL.values())) >= 15


def test_prints_of_an_answer_are_shown_with_the_case_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for answer in (a for _, _, a in PAIRS if a.__name__ == "recall_printed"):
        assert re.search(r"^    printed +0\.5$", checks.recall(answer), re.M)
    assert not capsys.readouterr().out


def test_the_line_that_stopped_is_shown_with_its_cell() -> None:
    shell = InteractiveShell.instance()
    try:
        shell.run_cell(
            "def my_recall(slate, relevant):\n    size = len(relevant)\n    return hits / size", store_history=True
        )
        message = checks.recall(shell.user_ns["my_recall"])
        assert "stopped with NameError: name 'hits' is not defined" in message
        assert re.search(r"in cell In\[\d+\], line 3:  return hits / size$", message, re.M)
        assert "checks.py" not in message
    finally:
        InteractiveShell.clear_instance()


def test_an_endless_loop_is_stopped_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(slate: list[int], relevant: set[int]) -> float:
        while True:
            try:
                slate.sort()
            except Exception:
                return 0.0

    before = sys.gettrace()
    assert "does not end" in checks.recall(endless)
    assert sys.gettrace() is before


def test_a_right_answer_is_used_and_another_is_not() -> None:
    def mine(slate: list[int], relevant: set[int]) -> float:
        return len(relevant.intersection(slate)) / len(relevant)

    assert checks.recall.use(mine) == (mine, "your `my_recall`")
    kits, words = checks.recall.use(lambda slate, relevant: 1.0)
    assert kits([4, 0, 7, 2], {0, 9}) == 0.5 and "the kit's own" in words


def test_the_fate_that_the_check_knows_is_the_kits() -> None:
    for seed in range(50):
        for candidate, slate, ranked, relevant in checks._outputs(seed):
            gains = torch.zeros(1, 12)
            gains[0, list(relevant)] = 1
            codes = fates(torch.tensor([slate]), torch.tensor([ranked]), torch.tensor([False]), gains)
            assert checks.fate.right(candidate, slate, ranked, relevant) == FATES[codes[0, candidate]]


def test_every_exercise_has_level_minutes_and_two_hints_that_do_not_give_it_away() -> None:
    assert {cell.metadata["exercise"] for _, cell in EXERCISES} == set(WRONG) == set(UNUSUAL) == set(checks.CHECKS)
    for name, cell in EXERCISES:
        marks = cell.metadata
        assert 1 <= marks["difficulty"] <= 5 and marks["minutes"] > 0
        (hints,) = [c for c in MASTERS[name].cells if c.metadata.get("hints") == marks["exercise"]]
        first, second = hints.source.split("\n\n")
        assert "?" in first and "`" in second
        assert cell.source.split(build.SOLUTION)[1].strip() not in hints.source


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
                assert all(re.findall(r"<summary>(\w+)", t) == ["Hint", "Hint", "Solution"] for t in folded)


@pytest.mark.parametrize("exercise", checks.CHECKS)
@pytest.mark.parametrize(
    "answer",
    [
        lambda *a: None, lambda *a: 1 / 0, lambda: 1, lambda *a: 3.0, lambda *a: torch.zeros(1), lambda *a: "0.5",
        lambda *a: (x for x in a), lambda *a: math.nan, lambda *a: torch.zeros(2, 2, 2, 2), lambda *a: sys.exit(1),
        lambda *a: [[[]]], lambda *a: 1j, lambda *a: torch.tensor([], dtype=torch.long), print, max, torch.Tensor,
    ],
)  # fmt: skip
def test_a_check_never_raises(exercise: str, answer: Callable[..., Any]) -> None:
    assert checks.CHECKS[exercise](answer).startswith("Not yet.")
