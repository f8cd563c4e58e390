"""The project's own promises: environments in step, file sizes, nothing of this machine in it."""

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


def test_no_file_of_the_package_is_long() -> None:
    lengths = {p.name: len(p.read_text().splitlines()) for p in (ROOT / "fgrpo").glob("*.py")}
    assert max(lengths.values()) <= 300 and sum(lengths.values()) <= 8700, lengths


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
        "import sys, fgrpo.compare, fgrpo.study.report, fgrpo.bench, fgrpo.analysis\n"
        f"print([name for name in {extras} if name in sys.modules])\n"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert out.stdout.strip() == "[]"


def test_every_dependency_says_what_it_is_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    project = tomllib.loads(text)["project"]
    named = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    lines = [line for line in text.splitlines() if re.match(r'\s+"[^"]+",\s*#\s*\w', line)]
    assert sorted(line.split('"')[1] for line in lines) == sorted(named)


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
