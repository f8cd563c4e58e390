"""What the loaders of real data sets share: rows of JSON, and the count of rows that were left out."""

import io
import json
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TextIO, TypedDict, TypeVar, overload

from ..config import KitError
from ..data import Example, Splits, Stream
from .files import lines_of, open_data, unreadable

T = TypeVar("T")
KEPT = 20
"""messages of broken rows that are kept; all are counted"""
CHUNK = 1 << 16
"""characters of a JSON array that are read at a time"""
ROW_LIMIT = 16 << 20
"""characters after which a row of a JSON array that has not ended counts as broken, so that memory stays bounded"""
DEPTH_LIMIT = 100
"""maximum depth of nesting in a row of a JSON array"""


class FileRows(TypedDict):
    """Rows of one file: how many were read, and how many left out, by reason."""

    read: int
    dropped: dict[str, int]


class Notes:
    """How many rows each file holds, and how many were left out for which reason; files by name.

    `remarks` are numbers that a reader of the data should know, by what they count.
    """

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.dropped: dict[str, Counter[str]] = {}
        self.remarks: dict[str, int] = {}

    def drop(self, path: Path, reason: str, rows: int = 1) -> None:
        """Count rows that give no example."""
        self.dropped.setdefault(path.name, Counter())[reason] += rows

    def sentences(self) -> list[str]:
        """One line for each file that lost rows, and for each remark."""
        lines = [f"{name}: {self.read[name]:,} rows read, {self.lost(name)}" for name in self.dropped]
        return lines + [f"{what}: {count:,}" for what, count in self.remarks.items()]

    def lost(self, name: str) -> str:
        """How many rows of a file were left out, by reason: `2 left out (why: 2)`."""
        reasons = self.dropped.get(name, Counter())
        why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons.items())
        return f"{reasons.total():,} left out" + f" ({why})" * bool(why)

    def to_dict(self) -> dict[str, FileRows]:
        """Rows read and left out by reason, for each file: `{"a.json": {"read": 9, "dropped": {"why": 1}}}`."""
        return {name: {"read": n, "dropped": dict(self.dropped.get(name, {}))} for name, n in self.read.items()}


class Faults(list[str]):
    """Messages `FILE, line N: REASON` about broken rows: the list holds the first KEPT, and all are counted by reason.

    Reasons differ in more than numbers.
    """

    def __init__(self, messages: Iterable[str] = ()) -> None:
        super().__init__()
        self.reasons = Counter[str]()
        for message in messages:
            self.append(message)

    def append(self, message: str) -> None:
        """Count the message, and keep it if it is one of the first."""
        if len(self) < KEPT:
            super().append(message)
        reason = re.sub(r"^.*?, (line|row) \d+: ", "", message)
        reason = re.sub(r"(?<![-\w])\d+([.,]\d+)*", "N", reason).rstrip(".")
        self.reasons[reason if reason in self.reasons or len(self.reasons) < 1000 else "other"] += 1

    @property
    def total(self) -> int:
        """Number of broken rows."""
        return self.reasons.total()

    def __str__(self) -> str:
        """The most frequent reasons, counted: `WHY: 2; WHY: 1`."""
        counts = [f"{reason}: {count:,}" for reason, count in self.reasons.most_common(5)]
        if others := sum(count for _, count in self.reasons.most_common()[5:]):
            counts.append(f"other reasons: {others:,}")
        return "; ".join(counts)


def counted(bad: list[str]) -> Faults:
    """The messages with their counts: `bad` itself, or made from a plain list."""
    return bad if isinstance(bad, Faults) else Faults(bad)


def split_by_position(
    rows: Sequence[T], path: str | Path, lost: str = ""
) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """Training, validation and test rows, 8:1:1 in the order of the file. Raises KitError on fewer than ten rows.

    `lost`: what was left out of the file, for the message.
    """
    if len(rows) < 10:
        why = f" ({lost})" if lost else ""
        raise KitError(f"{path}: {len(rows)} examples are too few to split 8:1:1: give ten or more{why}.")
    return tenths(rows)


def tenths(rows: Sequence[T]) -> tuple[Sequence[T], Sequence[T], Sequence[T]]:
    """Rows cut 8:1:1; a part may be empty if there are fewer than ten."""
    a, b = len(rows) * 8 // 10, len(rows) * 9 // 10
    return rows[:a], rows[a:b], rows[b:]


def shuffled(items: Iterable[T], rng: Random) -> list[T]:
    """The items in random order. Python keeps the stream of `Random.random` stable, but not that of `Random.shuffle`."""
    return [item for _, item in sorted((rng.random(), item) for item in items)]  # type: ignore[type-var]


class Sampled(Stream):
    """A stream whose finite sample is made by number."""

    @abstractmethod
    def sampled(self, numbers: range) -> list[Example]:
        """Examples of the sample, numbers 0 to len(self) - 1."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        chosen = range(len(self))[index]
        return self.sampled(range(chosen, chosen + 1))[0] if isinstance(chosen, int) else self.sampled(chosen)

    def __iter__(self) -> Iterator[Example]:
        return iter(self[:])


def catalogue(splits: Splits) -> list[str]:
    """Every item of the splits, in a fixed order; of a stream every item that it may give."""
    parts = [part for part in splits if not isinstance(part, Stream)]
    items = {key for part in parts for e in part for key in (*e.history_keys, *e.candidate_keys)}
    return sorted(items.union(splits.train.items if isinstance(splits.train, Stream) else ()))


def texts_of(splits: Splits) -> dict[str, str]:
    """The text of every item of the splits, in the order of the catalogue; of a stream of every item that it may give."""
    found: dict[str, str] = dict(splits.train.items) if isinstance(splits.train, Stream) else {}
    for e in (e for part in splits if not isinstance(part, Stream) for e in part):
        found.update(zip((*e.history_keys, *e.candidate_keys), (*e.history, *e.candidates), strict=True))
    return dict(sorted(found.items()))


def json_rows(path: Path) -> Iterator[tuple[str, object]]:
    """(where, value) of each row of a JSON array or a JSONL file, in bounded memory.

    A line of JSONL that is not a JSON object gives a KitError in place of its value, so that the caller may skip it. A
    broken array cannot be read further: it raises KitError, and so does a file that cannot be read.
    """
    try:
        with open_data(path) as blob:
            while (first := blob.read(1)) and first in b"\xef\xbb\xbf \t\r\n":
                pass
            if first != b"[":
                yield from json_lines(path)
                return
            blob.seek(0)
            yield from _array(path, io.TextIOWrapper(blob, encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None


def json_lines(path: Path) -> Iterator[tuple[str, dict[str, object] | KitError]]:
    """(where, object) of each line of a JSONL file but blank ones; a line that is no object gives a KitError instead.

    Raises KitError on a file that cannot be read, or is JSON of another form.
    """
    try:
        # bytes that are not UTF-8 spoil their line alone
        with io.TextIOWrapper(open_data(path), encoding="utf-8-sig", errors="surrogateescape") as file:
            begun = False
            for number, line in enumerate(lines_of(path, file), start=1):
                if not line.strip():
                    continue
                if not begun and line.strip() in ("[", "[{"):
                    raise KitError(f"{path}: is a JSON array; JSONL is one object a line, without brackets or commas.")
                begun, where = True, f"{path}, line {number}"
                try:
                    yield where, read_object(line)
                except KitError as error:
                    yield where, KitError(f"{where}: {error}")
    except OSError as error:
        raise unreadable(path, error) from None


def read_object(line: str | bytes) -> dict[str, object]:
    """One JSONL line to a dictionary. Raises KitError on anything else."""
    try:
        text = (line.encode() if isinstance(line, str) else line).decode("utf-8-sig")
        row = json.loads(text, object_pairs_hook=_object)
        if r"\ud" in text.lower():  # half of a surrogate pair is no text, and cannot be written
            json.dumps(row, ensure_ascii=False).encode()
    except RecursionError:
        raise KitError("not a JSON object (nested too deep)") from None
    except UnicodeError:
        raise KitError("not a JSON object (not UTF-8 text)") from None
    except json.JSONDecodeError as error:
        if line.strip() in ("{", b"{"):
            raise KitError("not a JSON object (it goes on in the next line); JSONL is one object a line") from None
        after = "; JSONL is one object a line, and nothing after it" if error.msg == "Extra data" else ""
        raise KitError(f"not a JSON object ({error.msg}), character {error.pos + 1}{after}") from None
    except ValueError:
        raise KitError("not a JSON object (a number of too many digits)") from None
    if isinstance(row, list) and row and isinstance(row[0], dict):
        raise KitError("a JSON array; JSONL is one object a line, without brackets or commas")
    return as_object(row)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise KitError("not a JSON object (a field appears twice)")
    return row


class _RowTooLong(Exception):
    """A row of a JSON array that is not read further."""


class _Pieces:
    """What ijson reads from: UTF-8 bytes, and how many characters were read since the last row ended."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.pending, self.ended = file, 0, False

    def read(self, size: int) -> bytes:
        piece = self.file.read(size)
        self.pending, self.ended = self.pending + len(piece), not piece and size > 0
        if self.pending > ROW_LIMIT + CHUNK:  # the row may have begun anywhere in the first piece
            raise _RowTooLong(f"longer than {ROW_LIMIT:,} characters")
        return piece.encode()


def _array(path: Path, file: TextIO) -> Iterator[tuple[str, object]]:
    """The rows of an array.

    Rows are built here from the parser's events, not by `ijson.items`, whose memory grows with the square of the depth:
    20,000 brackets took 1 GB.
    """
    import ijson  # here, so that the command line's help and `data check` do not wait for it

    pieces, number, depth, row = _Pieces(file), 1, -1, ijson.ObjectBuilder()  # depth 0: between two rows
    try:
        for event, value in ijson.basic_parse(pieces, buf_size=CHUNK, use_float=True):
            if event in ("start_array", "start_map"):
                depth += 1
                if depth > DEPTH_LIMIT:
                    raise ijson.JSONError(f"nested more than {DEPTH_LIMIT} deep")
                if depth == 0:
                    continue
            elif event in ("end_array", "end_map"):
                depth -= 1
                if depth < 0:
                    continue
            row.event(event, value)
            if depth == 0:
                yield f"{path}, row {number}", row.value
                number, row, pieces.pending = number + 1, ijson.ObjectBuilder(), 0
    except (ijson.JSONError, _RowTooLong) as error:
        (why,) = error.args  # bytes, where the text around the fault was cut inside a character
        why = (why.decode(errors="replace") if isinstance(why, bytes) else str(why)).partition("\n")[0]
        why = "the file ends inside it" if pieces.ended else why
        raise KitError(f"{path}, row {number}: not a whole JSON object ({why}).") from None


def as_object(row: object) -> dict[str, object]:
    """The row, which must be a JSON object. Raises KitError if it is not."""
    if not isinstance(row, dict):
        raise KitError(f"expected a JSON object, found {type(row).__name__}")
    return row


def field(row: object, name: str, kind: type[T]) -> T:
    """A field of a row. Raises KitError naming the field if it is absent or of another type."""
    value = as_object(row).get(name)
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
        raise wrong(as_object(row), name, "a whole number" if kind is int else KINDS[kind])
    return value


KINDS = {str: "a string", list: "a list", int: "a number", float: "a number", bool: "true or false", dict: "an object"}


def kind_of(value: object) -> str:
    """The kind of a JSON value, for a message."""
    return KINDS.get(type(value), "null")


def wrong(row: dict[str, object], name: str, wanted: str, entries: tuple[type, ...] = ()) -> KitError:
    """The error for a field that is absent, or is not what is wanted, such as a list of `entries`."""
    if name not in row:
        there = ", ".join(repr(key) for key in list(row)[:10]) or "no field"
        return KitError(f"field '{name}' must be {wanted}; it is missing, the row has {there:.200}")
    value = row[name]
    if isinstance(value, list) and entries:
        odd, entry = next((i, entry) for i, entry in enumerate(value) if type(entry) not in entries)
        return KitError(f"field '{name}' must be {wanted}, found {kind_of(entry)} at entry {odd}")
    return KitError(f"field '{name}' must be {wanted}, found {kind_of(value)}")
