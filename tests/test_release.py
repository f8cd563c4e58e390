"""What a release says of itself: one version, one licence, one address, in pyproject.toml, CITATION.cff and notebooks."""

import subprocess
import sys
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import yaml

import fgrpo

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CFF = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PLACEHOLDER = "ADDRESS-OF-THE-REPOSITORY"


def test_citation_and_package_agree() -> None:
    assert CFF["version"] == fgrpo.__version__ and PROJECT["dynamic"] == ["version"]
    assert CFF["license"] == PROJECT["license"] == "Apache-2.0" and (ROOT / "LICENSE").read_text().lstrip().startswith(
        "Apache"
    )
    assert [a["name"] for a in CFF["authors"]] == [a["name"] for a in PROJECT["authors"]]
    assert CFF["keywords"] == PROJECT["keywords"]
    assert CFF["preferred-citation"]["url"] == PROJECT["urls"]["Paper"] and "2605.12995" in PROJECT["description"]


def test_the_public_address_is_everywhere_or_nowhere() -> None:
    """Without one there is no badge and no link that would not work; with one the notebooks clone from it."""
    address = PROJECT["urls"].get("Repository", "")
    assert CFF.get("repository-code", "") == address
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "notebooks").rglob("*.ipynb")]
    badges = sum("colab-badge" in text for text in texts)
    if not address:
        assert len(texts) > 10 and all(PLACEHOLDER in text for text in texts) and not badges
    else:
        assert address.startswith("https://") and not any(PLACEHOLDER in text for text in texts)
        assert all(address.removesuffix(".git") in text for text in texts)
        assert badges == ("github.com" in address) * len(texts)


@pytest.mark.slow
def test_the_metadata_of_a_wheel(tmp_path: Path) -> None:
    """What setuptools makes of pyproject.toml, as an index would show it."""
    source = tmp_path / "source"
    for name in ("pyproject.toml", "README.md", "LICENSE", "fgrpo/__init__.py", "app/elsewhere/__main__.py"):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes((ROOT / name).read_bytes())
    for package in ("tasks", "lm", "runs", "baselines", "study", "scale", "interactive", "cli"):
        (source / "fgrpo" / package).mkdir()
    (source / "data/checkpoints").mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True, cwd=source)
    with zipfile.ZipFile(next(tmp_path.glob("fgrpo-*.whl"))) as wheel:
        about = message_from_bytes(wheel.read(next(n for n in wheel.namelist() if n.endswith("METADATA"))))
    assert about["Version"] == fgrpo.__version__ and about["License-Expression"] == "Apache-2.0"
    assert about.get_all("Project-URL") == [f"{k}, {v}" for k, v in PROJECT["urls"].items()]
    assert about.get_all("Classifier") == PROJECT["classifiers"]
    assert about["Description-Content-Type"] == "text/markdown" and about.get_payload().startswith(
        "# F-GRPO on a laptop"
    )
