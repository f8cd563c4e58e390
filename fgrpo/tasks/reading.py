"""What the loaders of real data sets share: rows of JSON and of tables, and the count of what was left out."""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, TextIO, TypeVar

from ..config import KitError
from ..data import Splits

T = TypeVar("T")
CHUNK = 1 << 20
_SPACE = re.compile(r"\s*")
ROW_LIMIT = 16 << 20
"""characters after which a row of a JSON array that is still not whole counts as broken"""


class Notes:
    """How many rows each file held, and how many were left out for which reason; files by name."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}

    def drop(self, path: Path, reason: str, rows: int = 1) -> None:
        """Count rows that no example is made of."""
        self.dropped.setdefault(path.name, Counter())[reason] += rows

    def sentences(self) -> list[str]:
        """One line for each file that lost rows."""
        lines = []
        for name, reasons in self.dropped.items():
            why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
            lines.append(f"{name}: {self.read[name]:,} rows read, {reasons.total():,} left out ({why})")
        return lines

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Rows read and left out by reason, for each file: `{"a.json": {"read": 9, "dropped": {"why": 1}}}`."""
        return {name: {"read": n, "dropped": dict(self.dropped.get(name, {}))} for name, n in self.read.items()}


def split_by_position(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """First eight tenths to train, a tenth to validate, the last tenth to test. Raises KitError on fewer than ten."""
    if len(rows) < 10:
        raise KitError(f"{len(rows)} examples are too few to split into training, validation and test: give ten.")
    return tenths(rows)


def tenths(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """Cut 8:1:1; of few rows a part may be empty."""
    a, b = len(rows) * 8 // 10, len(rows) * 9 // 10
    return rows[:a], rows[a:b], rows[b:]


def shuffled(items: Iterable[T], rng: Random) -> list[T]:
    """The items in random order. Python keeps the stream of `Random.random` stable, that of `shuffle` it does not."""
    return [item for _, item in sorted((rng.random(), item) for item in items)]  # type: ignore[type-var]


def catalogue(splits: Splits) -> list[str]:
    """Every item of the splits, in a fixed order."""
    return sorted({key for part in splits for e in part for key in (*e.history_keys, *e.candidate_keys)})


def csv_rows(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of each row below the header of a UTF-8 CSV file. Raises KitError on a row with too few columns."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from _checked(path, csv.reader(file), columns, skip=1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unreadable(path, error) from None


def split_rows(
    path: Path, separator: str, columns: int, encoding: str, skip: int = 0
) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of each line, cut at a separator. Raises KitError on a line with too few columns."""
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            yield from _checked(path, (line.rstrip("\r\n").split(separator) for line in file), columns, skip)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _checked(path: Path, rows: Iterator[list[str]], columns: int, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    for number, row in enumerate(rows, start=1):
        if number <= skip or not "".join(row).strip():
            continue
        if len(row) < columns:
            raise KitError(f"{path}, line {number}: expected {columns} columns, found {len(row)}.")
        yield f"{path}, line {number}", row


def json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each row of a JSON array or a JSONL file, read piece by piece.

    A line of JSONL that is no JSON comes as a KitError in place of its value, so that the caller may go on; a broken
    array cannot be gone on with, and raises KitError, as does a file that cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            while (first := file.read(1)).isspace():
                pass
            if first == "[":
                yield from _array(path, file)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", _value(f"{path}, line {number}", line)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def _value(where: str, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        return KitError(f"{where}: not a JSON object ({getattr(error, 'msg', type(error).__name__)}).")


def _array(path: Path, file: TextIO) -> Iterator[tuple[str, Any]]:
    """The rows of an array whose opening bracket is read already."""
    decode, text, start, number = json.JSONDecoder().raw_decode, "", 0, 1
    while True:
        start = _SPACE.match(text, start).end()  # type: ignore[union-attr]
        if number > 1 and text[start : start + 1] == ",":
            start = _SPACE.match(text, start + 1).end()  # type: ignore[union-attr]
        if text[start : start + 1] == "]":
            return
        try:
            value, end = decode(text, start)
        except (ValueError, RecursionError) as error:
            room = len(text) - start < ROW_LIMIT and not isinstance(error, RecursionError)
            piece = file.read(CHUNK) if room else ""
            if not piece:
                why = getattr(error, "msg", type(error).__name__)
                if room and (why.startswith("Unterminated") or getattr(error, "pos", len(text)) >= len(text.rstrip())):
                    why = "the file ends inside it"
                raise KitError(f"{path}, row {number}: not a whole JSON object ({why}).") from None
            text, start = text[start:] + piece, 0
            continue
        yield f"{path}, row {number}", value
        start, number = end, number + 1


def field(row: Any, name: str, kind: type[T]) -> T:
    """A field of a row. Raises KitError naming it where it is absent or of another type."""
    if not isinstance(row, dict):
        raise KitError(f"expected a JSON object, found {type(row).__name__}.")
    value = row.get(name)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        names = {str: "a string", list: "a list", int: "a whole number", bool: "true or false"}
        raise KitError(f"field '{name}' must be {names[kind]}.")
    return value


def unreadable(path: Path, error: Exception) -> KitError:
    """The sentence for a file that cannot be opened or decoded."""
    return KitError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).")
