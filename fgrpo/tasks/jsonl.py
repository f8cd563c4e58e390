"""Examples as JSONL: `read_jsonl`, `write_jsonl`. One object a line:

    {"id": "u1", "query": "...", "history": ["..."], "candidates": ["...", ...], "relevant": [3, 7]}

`history_ids` and `candidate_ids` may be added where a catalogue has ids of its own.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ..config import KitError
from ..data import Example, write_text


def parse_example(line: str | bytes) -> Example:
    """One JSONL line to an Example. Raises KitError naming the field and what was expected."""
    return example_of(read_object(line))


def read_object(line: str | bytes) -> dict[str, object]:
    """One JSONL line to a dictionary. Raises KitError on anything else."""
    try:
        text = (line.encode() if isinstance(line, str) else line).decode("utf-8-sig")
        row = json.loads(text, object_pairs_hook=_object)
        if r"\ud" in text.lower():  # half of a surrogate pair is no text, and cannot be written
            json.dumps(row, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise KitError(f"not a JSON object ({reason})") from None
    if not isinstance(row, dict):
        raise KitError(f"expected a JSON object, found {type(row).__name__}")
    return row


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise KitError("not a JSON object (a field appears twice)")
    return row


def example_of(row: dict[str, object]) -> Example:
    """The Example that a JSON object describes. Raises KitError naming the field and what was expected."""

    def texts(name: str, required: bool = True) -> tuple[str, ...]:
        value = row.get(name)
        if value is None and not required:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise KitError(f"field '{name}' must be a list of strings")
        return tuple(value)

    key, query = row.get("id"), row.get("query")
    if not isinstance(key, str) or not isinstance(query, str):
        raise KitError(f"field '{'query' if isinstance(key, str) else 'id'}' must be a string")
    candidates, relevant = texts("candidates"), row.get("relevant")
    if not candidates:
        raise KitError("field 'candidates' is empty: the pool needs at least one candidate")
    if not isinstance(relevant, list) or not all(type(i) is int for i in relevant):
        raise KitError("field 'relevant' must be a list of indices into 'candidates'")
    if not relevant:
        raise KitError("field 'relevant' is empty: at least one candidate must be relevant")
    for i in relevant:
        if not 0 <= i < len(candidates):
            raise KitError(f"field 'relevant' holds index {i}, but the pool has candidates 0 to {len(candidates) - 1}")
    history, history_ids = texts("history"), texts("history_ids", required=False)
    candidate_ids = texts("candidate_ids", required=False)
    for name, ids, items in (("history_ids", history_ids, history), ("candidate_ids", candidate_ids, candidates)):
        if ids and len(ids) != len(items):
            raise KitError(f"field '{name}' has {len(ids)} entries for {len(items)} items")
    return Example(key, query, history, candidates, frozenset(relevant), history_ids, candidate_ids)


def read_jsonl(path: str | Path, bad: list[str] | None = None) -> list[Example]:
    """All examples of a file, in order.

    A bad line raises KitError with file, line number and field; if the list `bad` is given, the message is appended
    to it and the line is skipped.
    """
    examples, number = [], 0
    try:
        with Path(path).open("rb") as file:
            for number, line in enumerate(file, start=1):
                try:
                    if line.strip():
                        examples.append(parse_example(line))
                except KitError as error:
                    if bad is None:
                        raise KitError(f"{path}, line {number}: {error}. Fix the line, or pass --skip-bad.") from None
                    bad.append(f"{path}, line {number}: {error}")
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}).") from None
    if not examples:
        raise KitError(f"{path}: no usable example in the file.")
    return examples


def to_row(example: Example) -> dict[str, object]:
    """The JSON object that describes an Example; empty id lists are left out."""
    row = {k: v for k, v in asdict(example).items() if v != ()}
    return row | {"history": example.history, "relevant": sorted(example.relevant)}


def to_json(example: Example) -> str:
    """One compact JSONL line, without the newline."""
    return json.dumps(to_row(example), ensure_ascii=False, separators=(",", ":"))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples, whole or not at all."""
    write_text(path, "".join(to_json(e) + "\n" for e in examples))
