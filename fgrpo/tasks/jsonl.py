"""Examples as JSONL: `read_jsonl`, `write_jsonl`. One object a line:

    {"id": "u1", "query": "...", "history": ["..."], "candidates": ["...", ...], "relevant": [3, 7]}

Optional: `history_ids` and `candidate_ids` where a catalogue has ids of its own; `gains`, graded labels, a list of one
number per candidate (`relevant` may then be left out: it is where a gain is above 0); `group`, the user or session.
"""

import codecs
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from ..config import KitError
from ..data import Example
from .atomic import write_text
from .files import lines_of, open_data, unreadable
from .reading import tally

SUFFIXES = (".jsonl", ".ndjson")
"""how the name of a task file ends, in any case"""


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
        if isinstance(error, UnicodeError):
            reason = "not UTF-8 text"
        raise KitError(f"not a JSON object ({reason})") from None
    if isinstance(row, list) and row and isinstance(row[0], dict):
        raise KitError("a JSON array; JSONL is one object a line, without brackets or commas")
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
    candidates, history = texts("candidates"), texts("history")
    if not candidates:
        raise KitError("field 'candidates' is empty: the pool needs at least two candidates")
    history_ids, candidate_ids = texts("history_ids", required=False), texts("candidate_ids", required=False)
    for name, ids, items in (("history_ids", history_ids, history), ("candidate_ids", candidate_ids, candidates)):
        if ids and len(ids) != len(items):
            raise KitError(f"field '{name}' has {len(ids)} entries for {len(items)} items")
    group = row.get("group")
    if group is not None and not isinstance(group, str):
        raise KitError("field 'group' must be a string: the user or session")
    gains = _gains(row.get("gains"), len(candidates))
    relevant = _relevant(row.get("relevant"), gains, len(candidates))
    return Example(key, query, history, candidates, relevant, history_ids, candidate_ids, gains, group or "")


def check_pool(example: Example) -> None:
    """Raise KitError naming the field if a policy cannot be trained on the example: one candidate, a blank, or a double."""
    if len(example.candidates) < 2:
        raise KitError("field 'candidates' has one entry: the pool needs at least two candidates to choose from")
    for name, items in (("candidates", example.candidates), ("history", example.history)):
        if blank := [i for i, text in enumerate(items) if not text.strip()]:
            raise KitError(f"field '{name}': entry {blank[0]} is blank")
    keys, name = example.candidate_keys, "candidate_ids" if example.candidate_ids else "candidates"
    if len(set(keys)) < len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        first, second = [i for i, key in enumerate(keys) if key == double][:2]
        how = "" if example.candidate_ids else ", or tell them apart by 'candidate_ids'"
        raise KitError(f"field '{name}': entries {first} and {second} are the same item; take one out{how}")


def _gains(value: object, pool: int) -> tuple[float, ...]:
    """Graded labels, one per candidate; () if there are none."""
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(g) in (int, float) for g in value):
        raise KitError("field 'gains' must be a list of numbers, one for each candidate")
    if len(value) != pool:
        raise KitError(f"field 'gains' has {len(value)} entries for {pool} candidates")
    for g in value:
        if g and not 1e-6 <= g <= 1e6:
            raise KitError(f"field 'gains' holds {str(g)[:20]}: a gain is 0, or from 0.000001 to 1,000,000")
    if not any(value):
        raise KitError("field 'gains' holds no gain above 0: at least one candidate must be relevant")
    return tuple(map(float, value))


def _relevant(value: object, gains: tuple[float, ...], pool: int) -> frozenset[int]:
    """Indices of the relevant candidates: as listed, or where a gain is above 0."""
    positive = frozenset(i for i, g in enumerate(gains) if g)
    if value is None and gains:
        value = sorted(positive)
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        why = ""
        if isinstance(value, list) and value and all(type(i) is bool for i in value):
            why = f"; as such this mask is {[i for i, x in enumerate(value) if x]!r:.60}"
        elif isinstance(value, dict | list):
            why = "; graded labels go into 'gains', a list of one number for each candidate"
        raise KitError(f"field 'relevant' must be a list of indices into 'candidates'{why}")
    if not value:
        raise KitError("field 'relevant' is empty: at least one candidate must be relevant")
    if len(set(value)) < len(value):
        why = "list each index once"
        if set(value) <= {0, 1}:
            why = f"it takes indices, not a 0/1 mask, which would be {[i for i, x in enumerate(value) if x]!r:.60}"
        elif len(value) == pool:
            why = "it takes indices; graded labels go into 'gains'"
        double = str(Counter(value).most_common(1)[0][0])[:20]
        raise KitError(f"field 'relevant' holds index {double} more than once: {why}")
    for i in value:
        if not 0 <= i < pool:
            raise KitError(f"field 'relevant' holds index {str(i)[:20]}, but the pool has candidates 0 to {pool - 1}")
    if gains and positive != set(value):
        raise KitError(f"field 'relevant' must be where 'gains' are above 0, {sorted(positive)!r:.60}, or be left out")
    return frozenset(value)


def read_jsonl(path: str | Path, bad: list[str] | None = None) -> list[Example]:
    """All examples of a file, in order.

    A bad line raises KitError with file, line number and field; if the list `bad` is given, the message is appended
    to it and the line is skipped. A file without a good line raises KitError with the reasons, counted.
    """
    path, examples = Path(path), []
    try:
        with open_data(path) as file:
            for number, line in enumerate(lines_of(path, file), start=1):
                if number == 1 and line.removeprefix(codecs.BOM_UTF8).strip() in (b"[", b"[{"):
                    raise KitError(f"{path}: is a JSON array; JSONL is one object a line, without brackets or commas.")
                try:
                    if line.strip():
                        example = parse_example(line)
                        check_pool(example)
                        examples.append(example)
                except KitError as error:
                    if bad is None:
                        raise KitError(f"{path}, line {number}: {error}. Fix the line, or pass --skip-bad.") from None
                    bad.append(f"{path}, line {number}: {error}")
    except OSError as error:
        raise unreadable(path, error) from None
    if not examples:
        why = f"; {len(bad):,} bad lines ({tally(bad)}), the first is {bad[0]}" if bad else ""
        raise KitError(f"{path}: no usable example in the file{why}.")
    return examples


def to_row(example: Example) -> dict[str, object]:
    """The JSON object that describes an Example; empty optional fields are left out."""
    row = {k: v for k, v in asdict(example).items() if v != () and (v or k != "group")}
    return row | {"history": example.history, "relevant": sorted(example.relevant)}


def to_json(example: Example) -> str:
    """One compact JSONL line, without the newline."""
    return json.dumps(to_row(example), ensure_ascii=False, separators=(",", ":"))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples, whole or not at all."""
    write_text(path, "".join(to_json(e) + "\n" for e in examples))
