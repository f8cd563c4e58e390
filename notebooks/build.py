"""Make the notebooks from their sources: `python notebooks/build.py [--no-run | --check] [NN ...]`.

Each notebook has one source, `src/NN_title.py` in jupytext's percent format, with text, exercises, hints and solutions.
Its header holds the notebook's time budget in seconds on two cores:

    # ---
    # jupyter:
    #   fgrpo: {budget: 20}
    # ---

Cells may have these marks, written as cell metadata on the `# %%` line:

    # %% exercise="my_recall" difficulty=1 minutes=5
        An exercise: one complete function. The line `    # solution` separates what the student is given from what
        has to be written. The cell before it is a text cell, to which a line with difficulty and minutes is added.
    # %% [markdown] hints="my_recall"
        Two paragraphs after the exercise: a question that leads on, and nearly the formula. The cell after them is the
        check.

A source makes one or two notebooks: `NN_title.ipynb`, where the body of an exercise is a stub, and its hints and its
solution are collapsed below the check, and, if there are exercises, `solutions/NN_title.ipynb`, where every exercise is
solved. Both are run in a fresh kernel and keep their outputs, but no paths, times or versions of the machine that ran
them. What students answer wrongly is in tests/notebooks/answers.py.

The first cell gets the address from which to clone the kit, `Repository` under [project.urls] in pyproject.toml; if that
is on GitHub, a badge below the title opens the notebook in Colab. While there is none, the cell says where it would stand.
"""

import argparse
import html
import json
import re
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "src"
SOLUTION = "    # solution\n"
STUB = '    raise NotImplementedError("write this function, then run the next cell")'
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
LINK = re.compile(r"\]\((\d\d_\w+\.ipynb)\)")  # to another notebook
ADDRESS = "ADDRESS-OF-THE-REPOSITORY"  # in the first cell of every source
COLAB = "https://colab.research.google.com"
WIDGET = "application/vnd.jupyter.widget-view+json"


def read_source(path: Path) -> NotebookNode:
    """A source as a notebook, with the marks in the metadata of its cells."""
    return jupytext.read(path, fmt="py:percent")


def budget(notebook: NotebookNode) -> float:
    """Maximum number of seconds that the notebook may take on two cores."""
    return float(notebook.metadata["fgrpo"]["budget"])


def marked(notebook: NotebookNode, mark: str) -> list[NotebookNode]:
    """The cells with a mark, in order."""
    return [cell for cell in notebook.cells if mark in cell.metadata]


def repository() -> str:
    """The public address of the kit, or nothing while there is none."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return str(project["urls"].get("Repository", "")).rstrip("/").removesuffix(".git")


def badge(address: str, path: Path) -> str:
    """A link that opens a notebook in Colab, which reads from GitHub; nothing for another address."""
    name = address.partition("https://github.com/")[2]
    place = f"{COLAB}/github/{name}/blob/main/{path.relative_to(HERE.parent).as_posix()}"
    return f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({place})" if name else ""


def generate(path: Path) -> dict[Path, NotebookNode]:
    """The notebooks of a source, without outputs, by their paths."""
    source = read_source(path)
    folders = {HERE: False, HERE / "solutions": True} if marked(source, "exercise") else {HERE: False}
    made = {folder / path.with_suffix(".ipynb").name: solved for folder, solved in folders.items()}
    return {target: _assemble(source, target, solved) for target, solved in made.items()}


def _assemble(source: NotebookNode, target: Path, solved: bool) -> NotebookNode:
    address, number = repository(), target.stem[:2]
    cells: list[tuple[str, str]] = []
    folded = ""  # hints and a solution, to be added after the next check
    for cell in source.cells:
        marks, text = cell.metadata, cell.source.replace(ADDRESS, address or ADDRESS)
        if "hints" in marks:
            folded = "\n".join([*_hints(text), folded])
            continue
        if "exercise" in marks:
            given, written = text.split(SOLUTION)
            level = "●" * marks["difficulty"] + "○" * (5 - marks["difficulty"])
            line = f"**Exercise `{marks['exercise']}`** · difficulty {level} · about {marks['minutes']} minutes"
            cells[-1] = ("markdown", f"{cells[-1][1]}\n\n{line}")
            cells.append(("code", given + (written if solved else STUB)))
            folded = f"<details><summary>Solution of <code>{marks['exercise']}</code></summary>\n\n```python\n"
            folded += f"{given}{written}\n```\n\n</details>"
            continue
        cells.append((cell.cell_type, text))
        if folded:
            if not solved:
                cells.append(("markdown", folded))
            folded = ""
    if solved:
        title, *rest = cells[0][1].split("\n")
        cells[0] = ("markdown", "\n".join([f"{title}, with solutions", *rest]))
        cells = [(kind, LINK.sub(r"](../\1)", text)) for kind, text in cells]
    if link := badge(address, target):
        title, *rest = cells[0][1].split("\n")
        cells[0] = ("markdown", "\n".join([title, "", link, *rest]))
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [new[kind](text, id=f"{number}-{index:02d}") for index, (kind, text) in enumerate(cells)]
    return nbformat.v4.new_notebook(cells=made, metadata={**METADATA, "fgrpo": dict(source.metadata["fgrpo"])})


def _hints(text: str) -> list[str]:
    """Each paragraph collapsed, on one line: Markdown leaves such a line alone, so `code` and *emphasis* are marked here."""

    def mark(found: re.Match[str]) -> str:
        code, stressed = found.groups()
        return f"<code>{code}</code>" if code else f"<em>{stressed}</em>"

    lines = [html.escape(" ".join(paragraph.split()), quote=False) for paragraph in text.split("\n\n")]
    marked = [re.sub(r"`([^`]+)`|\*(\w[^*`]*)\*", mark, line) for line in lines]
    return [f"<details><summary>Hint {i}</summary>{line}</details>" for i, line in enumerate(marked, start=1)]


def execute(notebook: NotebookNode, folder: Path, seconds: float, **options: Any) -> NotebookNode:
    """Run a notebook in place, in a fresh kernel started in `folder`. Raises CellTimeoutError after `seconds` in all."""
    begun: list[float] = []

    def left(cell: NotebookNode) -> float:
        begun.append(time.monotonic())
        return max(0.01, begun[0] + seconds - time.monotonic())

    client = NotebookClient(
        notebook, timeout_func=left, startup_timeout=120, kernel_name="python3", record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute(**options)
    return notebook


def clean(notebook: NotebookNode) -> NotebookNode:
    """Remove what depends on the machine: widgets, versions, timings."""
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", {})]
    notebook.metadata = {**METADATA, "fgrpo": notebook.metadata["fgrpo"]}
    return notebook


def leaks(notebook: NotebookNode) -> list[str]:
    """Paths of this machine in the outputs."""
    text = json.dumps([cell.get("outputs", []) for cell in notebook.cells])
    return [path for path in (str(HERE.parent), str(Path.home()), sys.prefix) if path in text]


def texts(notebook: NotebookNode) -> list[tuple[int, str]]:
    """What its cells print and show as text, with the number of the cell; figures are left out."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            text = (
                output.get("text") or data.get("text/markdown") or data.get("text/html") or data.get("text/plain", "")
            )
            if "image/png" not in data and WIDGET not in data:
                found.append((number, "".join(text)))
    return found


def write(notebook: NotebookNode, path: Path) -> None:
    """Write a notebook. The same notebook gives the same bytes."""
    text = json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Make the notebooks from notebooks/src.")
    parser.add_argument("numbers", nargs="*", metavar="NN", help="notebooks to make, such as 03 (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--no-run", action="store_true", help="write them without outputs")
    how.add_argument(
        "--check", action="store_true", help="write nothing: report where outputs differ from the stored ones"
    )
    options = parser.parse_args()
    known = {path.stem[:2]: path for path in sorted(SOURCES.glob("[0-9][0-9]_*.py"))}
    differ = 0
    for number in options.numbers or known:
        if number not in known:
            parser.error(f"there is no notebook {number}; choose from {', '.join(known)}")
        for path, notebook in generate(known[number]).items():
            began = time.monotonic()
            path.parent.mkdir(exist_ok=True)
            if options.check:
                stored = dict(enumerate(texts(nbformat.read(path, as_version=4))))
                found = dict(enumerate(texts(clean(execute(notebook, path.parent, 10 * budget(notebook))))))
                wrong = [x for i in stored.keys() | found.keys() if (x := found.get(i)) != stored.get(i)]
                differ += bool(wrong)
                print(f"{path.relative_to(HERE.parent)}: {len(found)} texts, {len(wrong)} differ")
                for cell, text in filter(None, wrong):
                    print(f"--- cell {cell}\n{text}")
                continue
            if not options.no_run:
                execute(notebook, path.parent, 10 * budget(notebook))
                if found := leaks(notebook):
                    parser.exit(1, f"{path.name}: an output contains a path of this machine: {', '.join(found)}\n")
            write(clean(notebook), path)
            print(f"{path.relative_to(HERE.parent)}: {len(notebook.cells)} cells, {time.monotonic() - began:.0f} s")
    if differ:
        parser.exit(1, f"{differ} notebooks have other outputs than those stored\n")


if __name__ == "__main__":
    main()
