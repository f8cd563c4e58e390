"""Examples in and out as JSONL; bad lines are named."""

import json

import pytest

from fgrpo.config import Config, KitError
from fgrpo.tasks import load_task
from fgrpo.tasks.jsonl import parse_example, read_jsonl, to_json, write_jsonl

GOOD = {"id": "u1", "query": "q", "history": ["a"], "candidates": ["a", "b", "c"], "relevant": [2]}


def test_round_trip(tmp_path) -> None:
    examples = [
        parse_example(json.dumps({**GOOD, "history_ids": ["1"], "candidate_ids": ["1", "2", "3"], "query": "é\n"}))
    ]
    write_jsonl(tmp_path / "x.jsonl", examples * 2)
    assert read_jsonl(tmp_path / "x.jsonl") == examples * 2
    assert examples[0].candidate_keys == ("1", "2", "3") and parse_example(to_json(examples[0])) == examples[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": 7}, "field 'id' must be a string"),
        ({"query": None}, "field 'query' must be a string"),
        ({"history": "a"}, "field 'history' must be a list of strings"),
        ({"candidates": ["a", 1]}, "field 'candidates' must be a list of strings"),
        ({"candidates": []}, "field 'candidates' is empty"),
        ({"relevant": []}, "field 'relevant' is empty"),
        ({"relevant": [3]}, "holds index 3, but the pool has candidates 0 to 2"),
        ({"relevant": [-1]}, "holds index -1"),
        ({"relevant": [True]}, "must be a list of indices"),
        ({"relevant": ["c"]}, "must be a list of indices"),
        ({"candidate_ids": ["1"]}, "'candidate_ids' has 1 entries for 3 items"),
    ],
)
def test_a_broken_line_17_is_named(tmp_path, change, message) -> None:
    path = tmp_path / "x.jsonl"
    lines = [json.dumps(GOOD)] * 16 + [json.dumps({**GOOD, **change})] + [json.dumps(GOOD)] * 3
    path.write_text("\n".join(lines))
    with pytest.raises(KitError) as error:
        read_jsonl(path)
    assert f"{path}, line 17: " in str(error.value) and message in str(error.value)
    bad: list[str] = []
    assert len(read_jsonl(path, bad)) == 19 and len(bad) == 1 and "line 17" in bad[0]


@pytest.mark.parametrize(
    "line", [b"{", b"[1]", b"\xff{}", b'{"id": "a', b"[" * 100_000, b'{"relevant": [' + b"9" * 5000 + b"]}", b"nul"]
)
def test_what_is_not_json_is_named(tmp_path, line) -> None:
    (tmp_path / "x.jsonl").write_bytes(line)
    with pytest.raises(KitError, match=r"x\.jsonl, line 1: .+"):
        read_jsonl(tmp_path / "x.jsonl")


def test_missing_and_empty_files(tmp_path) -> None:
    with pytest.raises(KitError, match=r"none\.jsonl: cannot be read"):
        read_jsonl(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(KitError, match="no usable example"):
        read_jsonl(tmp_path / "empty.jsonl")


def test_own_jsonl_file_is_a_task(tmp_path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps({**GOOD, "id": f"u{n}"}) + "\n" for n in range(20)))
    splits, items = load_task(Config(task=str(path)))
    assert [len(part) for part in splits] == [16, 2, 2] and items == ["a", "b", "c"]
    path.write_text(json.dumps(GOOD))
    with pytest.raises(KitError, match="too few"):
        load_task(Config(task=str(path)))


def test_unknown_task() -> None:
    with pytest.raises(KitError, match="task 'lab' is not known: use lab-rec, movielens"):
        load_task(Config(task="lab"))
