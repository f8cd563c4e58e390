"""Data sets by their name on the Hub: what is asked of `datasets`, what is read, what is said if it cannot be."""

import inspect
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from fgrpo.cli.main import main
from fgrpo.config import KitError
from fgrpo.data import Splits
from fgrpo.runs.fields import config_with
from fgrpo.tasks import load_task


def hotpot(first: int, count: int) -> list[dict]:
    """Rows in the Hub's schema of HotpotQA: objects of lists."""
    return [
        {
            "id": f"q{n}", "question": f"Who is {n}?", "answer": "é",
            "supporting_facts": {"title": [f"T{n}.0", f"T{n}.1"], "sent_id": [0, 0]},
            "context": {"title": [f"T{n}.{i}" for i in range(5)], "sentences": [[f"{n} and {i}."] for i in range(5)]},
        }
        for n in range(first, first + count)
    ]  # fmt: skip


class Part(list):
    info = SimpleNamespace(license="cc-by-sa-4.0")


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A module `datasets` that knows one data set, and remembers what it was asked for."""
    module = ModuleType("datasets")
    module.asked = []
    module.parts = {"train": Part(hotpot(0, 40)), "validation": Part(hotpot(40, 10))}

    def load_dataset(path: str, name: str | None = None, *, revision: str | None = None) -> dict:
        module.asked.append((path, name, revision))
        if path != "hotpotqa/hotpot_qa":
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nor cannot be accessed.")
        return module.parts

    module.load_dataset = load_dataset
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return module


def load(data: str, task: str = "hotpotqa") -> Splits:
    return load_task(config_with(task=task, data=data))[0]


def test_hotpotqa_by_its_name(datasets: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    splits = load("hotpotqa/hotpot_qa")
    assert datasets.asked == [("hotpotqa/hotpot_qa", "distractor", None)]
    assert [len(part) for part in splits] == [36, 4, 10] and {e.id for e in splits.test} == {
        f"q{n}" for n in range(40, 50)
    }
    assert "hotpotqa/hotpot_qa of the Hub (licence: cc-by-sa-4.0) is in" in capsys.readouterr().err
    example = splits.train[0]
    assert {example.candidates[i] for i in example.relevant} == {"T0.0: 0 and 0.", "T0.1: 0 and 1."}
    # the same files named as a folder, and the cache
    folder = tmp_path / "cache/fgrpo/hub/hotpotqa--hotpot_qa@distractor"
    assert {p.name for p in folder.iterdir()} == {"train.jsonl", "dev.jsonl"}
    assert load(str(folder)) == splits == load("hotpotqa/hotpot_qa") and len(datasets.asked) == 1
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_configuration_and_revision(datasets: ModuleType, tmp_path: Path) -> None:
    load("hotpotqa/hotpot_qa:fullwiki@refs/pr/1")
    load("hotpotqa/hotpot_qa@abc123")
    assert datasets.asked == [
        ("hotpotqa/hotpot_qa", "fullwiki", "refs/pr/1"), ("hotpotqa/hotpot_qa", "distractor", "abc123")
    ]  # fmt: skip
    assert {p.name for p in (tmp_path / "cache/fgrpo/hub").iterdir()} == {
        "hotpotqa--hotpot_qa@fullwiki@refs-pr-1", "hotpotqa--hotpot_qa@distractor@abc123"
    }  # fmt: skip


def test_one_split_is_cut(datasets: ModuleType) -> None:
    datasets.parts = {"train": Part(hotpot(0, 50))}
    assert [len(part) for part in load("hotpotqa/hotpot_qa")] == [40, 5, 5]


def test_a_path_stays_a_path(
    datasets: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    Path("mine/hotpot").write_text("".join(json.dumps(row) + "\n" for row in hotpot(0, 50)))
    assert [len(part) for part in load("mine/hotpot")] == [40, 5, 5]
    for data in ("./mine/nothing", "/mine/nothing", "mine/hotpot/nothing"):
        with pytest.raises(KitError, match=r"No such file|Not a directory"):
            load(data)
    assert main(["data", "stats", "--task", "movielens", "--data", "org/name"]) == 2
    assert not datasets.asked


def test_what_cannot_be_loaded_is_one_sentence(
    datasets: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    here = "there is no such file or folder here, and as a data set of the Hub it"
    assert main(["data", "stats", "--task", "musique", "--data", "org/nothing"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"org/nothing: {here} cannot be loaded (Dataset 'org/nothing' doesn't exist on the Hub or cannot be" in err
    assert datasets.asked[-1] == ("org/nothing", None, None)
    datasets.parts = {"test": Part(hotpot(0, 4))}
    with pytest.raises(KitError, match=f"{here} has no split 'train' .test."):
        load("hotpotqa/hotpot_qa")
    datasets.parts = {"train": Part([{"id": "q", "question": "Who?"}])}
    with pytest.raises(KitError, match=r"train\.jsonl, line 1: field 'supporting_facts'"):
        load("hotpotqa/hotpot_qa")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        KitError, match=f"{here} needs package 'datasets', which is not installed: pip install datasets"
    ):
        load("other/hotpot_qa")
    assert [p.name for p in (tmp_path / "cache/fgrpo/hub").iterdir()] == ["hotpotqa--hotpot_qa@distractor"]


def test_the_real_module_takes_what_it_is_given() -> None:
    datasets = pytest.importorskip("datasets")
    bound = inspect.signature(datasets.load_dataset).bind("a/b", name="distractor", revision=None).arguments
    assert bound == {"path": "a/b", "name": "distractor", "revision": None}
