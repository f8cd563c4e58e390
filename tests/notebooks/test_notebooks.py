"""Every notebook runs in a fresh kernel, offline and within its budget, and matches its source."""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbformat import NotebookNode

from notebooks import build
from notebooks.live import live

SOURCES = sorted(build.SOURCES.glob("*.py"))
COMMITTED = sorted([*build.HERE.glob("*.ipynb"), *build.HERE.glob("solutions/*.ipynb")])
STUB = build.STUB.strip()
SAME = ("02", "03", "05", "08")
"""notebooks whose numbers follow from exact sums and recorded tables: others sample, and another processor rounds otherwise
(`build.py --check` compares those on one machine)"""
CORES = 2
"""a budget is in seconds on two cores, which are so many CPU seconds a second"""
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.])")


def named(path: Path) -> str:
    return str(path.relative_to(build.HERE))


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def without_outputs(notebook: NotebookNode) -> dict:
    cells = [
        {name: value for name, value in cell.items() if name not in ("outputs", "execution_count")}
        for cell in notebook.cells
    ]
    return {**notebook, "cells": cells}


def seconds_of_children() -> float:
    """CPU time of the ended processes that this one started: other work beside them adds little to it."""
    spent = os.times()
    return spent.children_user + spent.children_system


@pytest.mark.parametrize("path", COMMITTED, ids=named)
def test_runs_from_a_fresh_kernel_within_twice_its_budget(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):  # any use of the network fails at once
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = read(path)
    before = seconds_of_children()
    build.execute(notebook, path.parent, 10 * build.budget(notebook), env=dict(os.environ))  # so much only if it hangs
    assert seconds_of_children() - before < 2 * CORES * build.budget(notebook)
    assert not build.leaks(notebook)
    if path.stem[:2] in SAME:
        stored, found = build.texts(read(path)), build.texts(notebook)
        assert [cell for cell, _ in stored] == [cell for cell, _ in found]
        for (cell, old), (_, new) in zip(stored, found, strict=True):
            assert NUMBER.split(old) == NUMBER.split(new), cell
            for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
                assert float(b) == pytest.approx(float(a), rel=0.02, abs=0.02), (cell, a, b)
    stderr = [o["text"] for cell in notebook.cells for o in cell.get("outputs", []) if o.get("name") == "stderr"]
    assert not [text for text in stderr if "font cache" not in text]  # matplotlib's, once on a new machine


def test_a_moved_slider_draws_again(tmp_path: Path) -> None:
    drawn = []

    def draw(size: float, colour: str) -> Path:
        drawn.append((size, colour))
        (tmp_path / "a.png").write_bytes(f"{size} {colour}".encode())
        return tmp_path / "a.png"

    size, colour, picture = live(draw, size=(0.0, 4.0, 0.5, 1.5), colour=["red", "blue"]).children
    assert picture.value == b"1.5 red"
    size.value, colour.value = 3.5, "blue"
    assert picture.value == b"3.5 blue" and drawn == [(1.5, "red"), (3.5, "red"), (3.5, "blue")]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_committed_notebooks_are_what_their_source_makes(path: Path) -> None:
    for target, notebook in build.generate(path).items():
        assert without_outputs(read(target)) == without_outputs(build.clean(notebook)), (
            f"run notebooks/build.py {path.stem[:2]}"
        )


def test_no_notebook_is_without_a_source() -> None:
    assert sorted(target for path in SOURCES for target in build.generate(path)) == COMMITTED


@pytest.mark.parametrize("path", COMMITTED, ids=named)
def test_shape_of_a_notebook(path: Path) -> None:
    notebook, solved = read(path), path.parent.name == "solutions"
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 30
    assert max(len(cell.source.splitlines()) for cell in notebook.cells) <= 25
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    raising = [cell for cell in code if "NotImplementedError" in cell.source]
    assert all(cell.source.endswith(STUB) for cell in raising) and not (solved and raising)
    assert all(cell.execution_count for cell in code), "committed without outputs"
    assert not build.leaks(notebook)
    assert notebook.metadata["kernelspec"]["name"] == "python3" and notebook.metadata["language_info"] == {
        "name": "python"
    }
    assert all(not cell.metadata for cell in notebook.cells)


def test_every_notebook_opens_with_the_same_cell() -> None:
    first = {next(c for c in read(path).cells if c.cell_type == "code").source for path in COMMITTED}
    assert len(first) == 1 and "SEED = " in first.pop()


def test_the_first_cell_finds_the_kit_or_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = next(c for c in read(COMMITTED[0]).cells if c.cell_type == "code").source
    monkeypatch.setattr("sys.path", [])
    beside = tmp_path / "beside"  # as on Colab: the notebook is next to the checkout
    (beside / "kit" / "fgrpo").mkdir(parents=True)
    (beside / "kit" / "fgrpo" / "__init__.py").touch()
    inside = [(folder, build.HERE.parent) for folder in (build.HERE, build.HERE / "solutions", build.HERE.parent)]
    for folder, root in [*inside, (beside, beside / "kit")]:
        monkeypatch.chdir(folder)
        names: dict = {}
        exec(source, names)
        assert names["ROOT"] == root
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    monkeypatch.setenv("FGRPO_REPOSITORY", "https://example.org/kit.git")
    with pytest.raises(SystemExit, match=r"git clone https://example\.org/kit\.git kit && pip install -e kit"):
        exec(source, {})


@pytest.mark.parametrize("address", ["https://github.com/somebody/kit.git", "https://example.org/kit", ""])
def test_with_a_public_address_the_notebooks_clone_from_it_and_open_in_colab(address, tmp_path, monkeypatch) -> None:
    """The address stands in one place, pyproject.toml."""
    monkeypatch.setattr(build, "HERE", tmp_path / "notebooks")
    urls = f'[project.urls]\nRepository = "{address}"\n' if address else "[project.urls]\n"
    (tmp_path / "pyproject.toml").write_text(urls)
    opened = "https://colab.research.google.com/github/somebody/kit/blob/main/"
    for path, notebook in build.generate(build.SOURCES / "02_two_rewards.py").items():
        title, first = notebook.cells[0].source, next(c for c in notebook.cells if c.cell_type == "code").source
        place = path.relative_to(tmp_path).as_posix()
        assert ("colab" in title) == (f"({opened}{place})" in title) == ("github" in address)
        assert title.startswith("# 2. ") and (build.HERE.parents[0] / place).name.endswith(".ipynb")
        assert f'"FGRPO_REPOSITORY", "{address.removesuffix(".git") or build.ADDRESS}"' in first


def test_links_lead_somewhere() -> None:
    for path in COMMITTED:
        for cell in read(path).cells:
            for target in build.re.findall(r"\]\(([^):#]+)\)", cell.source if cell.cell_type == "markdown" else ""):
                assert (path.parent / target).is_file(), f"{named(path)} links to {target}"
