"""The structure of the project: which room imports which, sizes, environments in step."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from fgrpo.runs.seal import SUMS, check_seal

ROOT = Path(__file__).parents[1]


def tracked() -> list[Path]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_environment_says_only_python_pip_and_the_extras() -> None:
    lines = [
        line.strip() for line in (ROOT / "environment.yml").read_text().splitlines() if line.strip().startswith("- ")
    ]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    python = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    wanted = [name for name in extras if name not in ("peers", "baselines")]
    assert lines == ["- conda-forge", f"- python{python}", "- pip", "- pip:", f"- -e .[{','.join(wanted)}]"]


def test_every_dependency_has_a_tested_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    }
    assert {re.split(r"[<>=\[]", d)[0].lower() for d in named} <= {name.replace("_", "-") for name in pinned}
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


def test_checkpoints_are_small_and_nothing_is_pickled() -> None:
    files = tracked()
    checkpoints = [p for p in files if "checkpoints" in p.parts]
    weights, traces = ([p for p in checkpoints if p.match(name)] for name in ("*.safetensors", "trace.jsonl"))
    rest = set(checkpoints) - {*weights, *traces}
    for some, most in ((weights, 6_000_000), (traces, 2_000_000), (rest, 500_000)):
        assert 0 < sum(p.stat().st_size for p in some) < most
    assert not [p for p in files if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".npy"}]


def test_shipped_policies_are_what_their_sums_say() -> None:
    folders = {p.parent for p in tracked() if p.suffix == ".safetensors"}
    assert len(folders) >= 5 and all((folder / SUMS).is_file() for folder in folders)
    for folder in folders:
        check_seal(folder)


SEES = {
    "core": set(),
    "tasks": {"core"},
    "lm": {"core"},
    "runs": {"core", "tasks", "lm"},
    "baselines": {"core", "tasks", "lm", "runs"},
    "study": {"core", "tasks", "lm", "runs", "baselines"},
    "scale": {"core", "lm", "runs"},
    "interactive": {"core", "tasks", "lm", "runs", "baselines", "study"},
    "cli": {"core", "tasks", "lm", "runs", "baselines", "study", "scale", "interactive"},
    "app": {"core", "tasks", "lm", "runs", "study", "interactive"},
    "notebooks": {"core", "tasks", "lm", "runs", "study", "interactive"},
}
"""What each room may import, besides itself."""


def room_of(parts: tuple[str, ...]) -> str:
    """The room of a module, by its dotted name in parts; files at the top of fgrpo are the core."""
    if parts[0] != "fgrpo":
        return parts[0]
    return parts[1] if len(parts) > 1 and parts[1] in SEES else "core"


def imported(path: Path, module: tuple[str, ...]) -> set[tuple[str, ...]]:
    """The modules of this repository that a file imports, anywhere in it."""
    package, found = module[:-1], set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {tuple(alias.name.split(".")) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            base = (*base, *(node.module.split(".") if node.module else ()))
            found |= {(*base, alias.name) for alias in node.names}
    return {name for name in found if name[0] in ("fgrpo", "app", "notebooks")}


def test_rooms_import_only_what_lies_below_them() -> None:
    files = [
        p for p in tracked() if p.suffix == ".py" and p.relative_to(ROOT).parts[0] in ("fgrpo", "app", "notebooks")
    ]
    wrong = []
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = "cli" if parts == ("fgrpo", "__main__") else room_of(parts)
        for name in imported(path, parts):
            if room_of(name) not in SEES[room] | {room}:
                wrong.append(f"{'/'.join(parts)}.py imports {'.'.join(name)}")
    assert len(files) > 70 and not wrong, wrong


def test_the_core_is_small() -> None:
    """The paper's algorithm, and nothing else. If it does not fit, take something out."""
    assert sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (ROOT / "fgrpo").glob("*.py")) <= 2000


def test_help_imports_nothing_but_the_standard_library() -> None:
    """So it comes at once; what a command needs is imported when it runs. `import fgrpo` by itself imports less still."""
    script = (
        "import sys; before = set(sys.modules)\n"
        "import fgrpo; print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
        "from fgrpo.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({m.split('.')[0] for m in set(sys.modules) - before} - set(sys.stdlib_module_names)))\n"
    )
    for args in (["--help"], ["train", "--help"], ["data", "check", "nothing.jsonl"]):
        out = subprocess.run(
            [sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=ROOT, check=True
        )
        lines = out.stdout.splitlines()
        assert lines[0] == lines[-1] == "['fgrpo']", (args, lines[0], lines[-1])


def test_training_imports_no_optional_package() -> None:
    extras = (
        "gradio",
        "trl",
        "bm25s",
        "sentence_transformers",
        "gguf",
        "jupytext",
        "nbclient",
        "IPython",
        "hypothesis",
    )
    script = (
        "import sys, fgrpo.study.compare, fgrpo.study.report, fgrpo.scale.bench, fgrpo.study.analysis\n"
        f"print([name for name in {extras} if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_every_installed_package_is_listed_with_its_licence() -> None:
    out = subprocess.run([sys.executable, ".ci/licences.py"], capture_output=True, text=True, cwd=ROOT, check=True)
    found = {line[:32].strip().lower(): line[50:].strip() for line in out.stdout.splitlines()}
    for name in (
        "torch",
        "transformers",
        "peft",
        "accelerate",
        "tokenizers",
        "safetensors",
        "numpy",
        "matplotlib",
        "tqdm",
    ):
        assert found[name] not in ("", "not stated"), name
