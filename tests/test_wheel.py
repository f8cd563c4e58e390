"""An installed kit: a wheel is built, installed into an environment of its own, and works from an empty folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from fgrpo.runs.policies import policy_folder
from fgrpo.tasks.jsonl import to_json
from fgrpo.tasks.lab import lab_task

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

COMMANDS = """
import sys
from pathlib import Path
import fgrpo
from fgrpo.cli.main import main
from fgrpo.runs.warm_start import SHIPPED

assert Path(fgrpo.__file__).is_relative_to(sys.prefix) and SHIPPED.is_relative_to(sys.prefix), fgrpo.__file__
for line in sys.argv[1:]:
    print("\\n$", line, flush=True)
    assert main(line.replace("SHIPPED", str(SHIPPED)).split()) == 0, line
"""
SMALL = "--hidden-size 32 --layers 1 --heads 2 --sft-steps 2 --sft-batch 8"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the repository's files, so that no earlier build is in it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0"):
        if name and (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    command = [
        sys.executable,
        *["-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w"],
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=source, env=environment())
    return next(out.glob("fgrpo-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a fresh environment with the wheel. Its dependencies are those of this environment, without this kit."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=os.name != "nt")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=folder, env=environment())
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    # a plain path: the .pth files in that folder, by which a development install finds this repository, do not count
    (Path(site.stdout.strip()) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def environment() -> dict[str, str]:
    """Variables of a process that knows nothing of the repository."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    return kept | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(python: Path, folder: Path, *args: str) -> subprocess.Popen[str]:
    """A process of the fresh environment in a folder."""
    return subprocess.Popen(
        [python, *args], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_the_wheel_holds_the_package_and_the_warm_start_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    shipped = [n for n in names if n.startswith("fgrpo/runs/shipped/")]
    assert {Path(n).name for n in shipped} >= {"model.safetensors", "items.json", "SHA256SUMS", "metrics.jsonl"}
    assert all("/shipped/lab-rec/" in n and "trace" not in n for n in shipped)
    assert [n for n in names if not n.startswith(("fgrpo/", "fgrpo-"))] == ["app/__main__.py"]
    assert wheel.stat().st_size < 2_000_000


def test_every_command_works_from_an_empty_folder(python: Path, tmp_path: Path) -> None:
    process = start(
        python, tmp_path, "-c", COMMANDS, "data stats", "train --steps 2 --save-every 2 --out runs/mine",
        "evaluate --checkpoint SHIPPED --limit 4",
        "trace --checkpoint SHIPPED --limit 4 --out trace.jsonl --html page.html",
        "compare --credits grpo --steps 2 --seeds 1 --jobs 1 --limit 4 --baselines random --out runs/two",
        f"train --sft --policy-only --out runs/small {SMALL}",
        "analyse --checkpoint runs/small --credits grpo --groups 2 --pools 1 --batches 1 --limit 4",
        "analyse --signs --credits grpo --groups 2 --pools 1", "demo --steps 1 --seeds 1 --jobs 1",
    )  # fmt: skip
    try:
        printed, _ = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, printed[-2000:]
    for some in ("Angles in degrees", "opposite sign", "16,384 examples"):
        assert some in printed and str(ROOT) not in printed
    assert {p.name for p in tmp_path.iterdir()} == {"runs", "trace.jsonl", "page.html"}
    assert (tmp_path / "runs/two/comparison.csv").is_file() and not (tmp_path / "runs/mine/checkpoints/sft").exists()
    shipped = policy_folder(ROOT / "data/checkpoints/lab-rec")
    installed = next(python.parents[1].rglob(f"shipped/lab-rec/checkpoints/{shipped.name}"))
    assert (installed / "model.safetensors").read_bytes() == (shipped / "model.safetensors").read_bytes()


def test_the_lab_is_made_as_it_is_in_the_repository(python: Path, tmp_path: Path) -> None:
    script = (
        "from fgrpo.config import Config; from fgrpo.tasks import DATA, load_task; from fgrpo.tasks.jsonl import to_json\n"
        "assert not DATA.exists(), DATA\n"
        "for e in load_task(Config())[0].test: print(to_json(e))"
    )
    out, _ = start(python, tmp_path, "-c", script).communicate(timeout=120)
    assert out == "".join(f"{to_json(e)}\n" for e in lab_task().test)


def test_the_app_says_where_it_runs(python: Path, tmp_path: Path) -> None:
    process = start(python, tmp_path, "-m", "app")
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and out.count("\n") == 1 and "runs from a clone" in out
