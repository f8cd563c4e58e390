"""Rows of JSON arrays and JSONL: values, bounded memory, and one sentence for whatever is broken."""

import json
import tracemalloc
from pathlib import Path

import pytest

from fgrpo.config import KitError
from fgrpo.tasks.reading import CHUNK, ROW_LIMIT, json_rows

ROWS = [{"a": 0.1, "b": [1, -2, 1e-3, True, None]}, 7, "é\u2009x", [], {}, {"c": {"d": [{"e": ""}]}}, [[1], [2.5]]]


@pytest.mark.parametrize("text", [json.dumps(ROWS), "\ufeff \n" + json.dumps(ROWS, indent=2, ensure_ascii=False)])
def test_an_array_gives_the_values_of_json(tmp_path, text) -> None:
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8")
    rows = list(json_rows(path))
    assert rows == [(f"{path}, row {n}", row) for n, row in enumerate(ROWS, start=1)]
    assert type(rows[0][1]["a"]) is float and type(rows[1][1]) is int  # decimals are floats, not Decimal


def test_a_line_that_is_broken_can_be_skipped_and_a_row_cannot(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a"\n{"b": 2}\n')
    one, broken, two = json_rows(tmp_path / "a.jsonl")
    assert one[1] == {"a": 1} and isinstance(broken[1], KitError) and "line 3: not a JSON object" in str(broken[1])
    assert two == (f"{tmp_path / 'a.jsonl'}, line 4", {"b": 2})
    (tmp_path / "a.json").write_text('[{"a": 1}, {"a", [2]]')
    rows = json_rows(tmp_path / "a.json")
    assert next(rows)[1] == {"a": 1}  # what comes before the fault is not lost
    with pytest.raises(KitError, match=r"a\.json, row 2: not a whole JSON object \([^\n]+\)\.$"):
        next(rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[1, "2', r"row 2: not a whole JSON object \(the file ends inside it\)\.$"),
        ("[1] x", r"row 2: not a whole JSON object \([^\n]+\)\.$"),
        ("[1, é]", r"row 2: not a whole JSON object \([^\n]+\)\.$"),
        ('["' + "é" * 60 + '" x', r"row 2: not a whole JSON object \([a-zA-Z][^\\\n]+\)\.$"),
        ('["' + "é" * 60 + '"  x', r"row 2: not a whole JSON object \([a-zA-Z][^\\\n]+\)\.$"),
        ("[NaN]", r"row 1: not a whole JSON object \([^\n]+\)\.$"),
    ],
)
def test_a_broken_array_is_one_sentence(tmp_path, text, message) -> None:
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    with pytest.raises(KitError, match=message):
        list(json_rows(tmp_path / "a.json"))


def peak(path: Path) -> int:
    """Bytes of memory while the rows are read one by one."""
    tracemalloc.start()
    try:
        for _ in json_rows(path):
            pass
    finally:
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return size


def test_memory_does_not_grow_with_the_file(tmp_path) -> None:
    path, row = tmp_path / "a.json", json.dumps({"text": "x" * 1000, "ids": list(range(50))})
    path.write_text("[" + ",".join([row] * 10_000) + "]")
    assert path.stat().st_size > 10_000_000 and peak(path) < 2_000_000


@pytest.mark.parametrize("row", ['"' + "x" * 2 * ROW_LIMIT, "[" + f'"{"x" * 8000}",' * 4000])
def test_a_row_without_end_is_stopped(tmp_path, row) -> None:
    (tmp_path / "a.json").write_text("[1, " + row)
    rows = json_rows(tmp_path / "a.json")
    assert next(rows)[1] == 1
    with pytest.raises(KitError, match=r"row 2: not a whole JSON object \(longer than 16,777,216 characters\)"):
        next(rows)


def test_nesting_is_limited(tmp_path) -> None:
    """A parser that keeps the path of every level needs memory in the square of the depth."""
    path = tmp_path / "a.json"
    path.write_text("[" * 101 + "]" * 101)
    assert len(list(json_rows(path))) == 1
    path.write_text("[" * (10 * CHUNK))
    with pytest.raises(KitError, match="nested more than 100 deep"):
        peak(path)
