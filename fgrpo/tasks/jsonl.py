"""Examples as JSONL: `read_jsonl`, `write_jsonl`. One object a line:

    {"id": "u1", "query": "...", "history": ["..."], "candidates": ["...", ...], "relevant": [3, 7]}

Optional: `history_ids` and `candidate_ids` where a catalogue has ids of its own; `gains`, graded labels, a list of one
number per candidate (`relevant` may then be left out: it is where a gain is above 0); `group`, the user or session.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ..config import KitError
from ..data import Example
from .atomic import write_text
from .reading import counted, field, json_lines, read_object, wrong

SUFFIXES = (".jsonl", ".ndjson")
"""how the name of a task file ends, in any case"""
FIELDS = {name.replace("_", "").rstrip("s"): name for name in Example.__dataclass_fields__}
"""the fields of a line, by what is left of a name that is spelt otherwise"""


def parse_example(line: str | bytes) -> Example:
    """One JSONL line to an Example. Raises KitError naming the field and what was expected."""
    return example_of(read_object(line))


def example_of(row: dict[str, object]) -> Example:
    """The Example that a JSON object describes. Raises KitError naming the field and what was expected."""

    def texts(name: str, required: bool = True) -> tuple[str, ...]:
        value = row.get(name)
        if value is None and not required:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise wrong(row, name, "a list of strings", (str,))
        return tuple(value)

    for name in row.keys() - FIELDS.values():  # a 'Gains' that is ignored would be labels lost
        if meant := FIELDS.get(re.sub(r"[\W_]", "", name).lower().rstrip("s")):
            raise KitError(f"field {name!r:.40} is not known: write '{meant}'")
    key, query = field(row, "id", str), field(row, "query", str)
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
    gains = _gains(row, len(candidates))
    relevant = _relevant(row, gains, len(candidates))
    return Example(key, query, history, candidates, relevant, history_ids, candidate_ids, gains, group or "")


def check_pool(example: Example) -> None:
    """Raise KitError naming the field if a policy cannot be trained on the example: no choice, a blank, or a double."""
    if len(example.candidates) < 2:
        raise KitError("field 'candidates' has one entry: the pool needs at least two candidates to choose from")
    if len(example.candidates) == 2 == len(example.relevant) and not example.gains:
        raise KitError(
            "field 'relevant' holds both candidates, and nothing to choose; it takes indices, not a 0/1 mask"
        )
    for name in ("candidates", "candidate_ids", "history", "history_ids"):
        if blank := [i for i, text in enumerate(getattr(example, name)) if is_blank(text)]:
            raise KitError(f"field '{name}': entry {blank[0]} is blank")
    if is_blank(example.id) or (is_blank(example.query) and not example.history):
        raise KitError("field 'id' is blank" if is_blank(example.id) else "field 'query' is blank, without a history")
    keys, name = example.candidate_keys, "candidate_ids" if example.candidate_ids else "candidates"
    if len(set(keys)) < len(keys):
        double = next(key for key in keys if keys.count(key) > 1)
        first, second = [i for i, key in enumerate(keys) if key == double][:2]
        how = "" if example.candidate_ids else ", or tell them apart by 'candidate_ids'"
        raise KitError(f"field '{name}': entries {first} and {second} are the same item; take one out{how}")


def is_blank(text: str) -> bool:
    """Whether nothing of a text can be seen: it is empty, or of spaces, marks without width and control characters."""
    return not any(c.isprintable() and not c.isspace() for c in text)


def _gains(row: dict[str, object], pool: int) -> tuple[float, ...]:
    """Graded labels, one per candidate; () if there are none."""
    value = row.get("gains")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(g) in (int, float) for g in value):
        raise wrong(row, "gains", "a list of numbers, one for each candidate", (int, float))
    if len(value) != pool:
        raise KitError(f"field 'gains' has {len(value)} entries for {pool} candidates")
    for g in value:
        if g and not 1e-6 <= g <= 1e6:
            raise KitError(f"field 'gains' holds {str(g)[:20]}: a gain is 0, or from 0.000001 to 1,000,000")
    if not any(value):
        raise KitError("field 'gains' holds no gain above 0: at least one candidate must be relevant")
    return tuple(map(float, value))


def _relevant(row: dict[str, object], gains: tuple[float, ...], pool: int) -> frozenset[int]:
    """Indices of the relevant candidates: as listed, or where a gain is above 0."""
    value = row.get("relevant")
    positive = frozenset(i for i, g in enumerate(gains) if g)
    if value is None and gains:
        value = sorted(positive)
    if not isinstance(value, list) or not all(type(i) is int for i in value):
        why = ""
        if not isinstance(value, list | dict):
            raise wrong(row, "relevant", "a list of indices into 'candidates'")
        if isinstance(value, list) and any(isinstance(i, str) for i in value):
            why = "; a title or an id is none: give its place there, 0 for the first"
        elif isinstance(value, list) and value and all(type(i) is bool for i in value):
            why = f"; as such this mask is {[i for i, x in enumerate(value) if x]!r:.60}"
        else:
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
            why = "; indices count from 0" if i == pool else ""
            raise KitError(
                f"field 'relevant' holds index {str(i)[:20]}, but the pool has candidates 0 to {pool - 1}{why}"
            )
    if gains and positive != set(value):
        raise KitError(f"field 'relevant' must be where 'gains' are above 0, {sorted(positive)!r:.60}, or be left out")
    return frozenset(value)


def read_jsonl(path: str | Path, bad: list[str] | None = None) -> list[Example]:
    """All examples of a file, in order.

    A bad line raises KitError with file, line number and field; if the list `bad` is given (`Faults` are one of bounded
    size), the message is appended to it and the line is skipped. A file without a good line raises KitError with the
    reasons, counted.
    """
    path, examples = Path(path), []
    for where, row in json_lines(path):
        try:
            if isinstance(row, KitError):
                raise row
            examples.append(_located(where, row))
        except KitError as error:
            if bad is None:
                raise KitError(f"{error}. Fix the line, or pass --skip-bad.") from None
            bad.append(str(error))
    if not examples:
        why = f"; {counted(bad).total:,} bad lines ({counted(bad)}), the first is {bad[0]}" if bad else ""
        raise KitError(f"{path}: no usable example in the file{why}.")
    return examples


def _located(where: str, row: dict[str, object]) -> Example:
    try:
        example = example_of(row)
        check_pool(example)
    except KitError as error:
        raise KitError(f"{where}: {error}") from None
    return example


def with_own_ids(examples: Iterable[Example]) -> list[Example]:
    """The examples, of which those with the id of an earlier one get a number (`u1#2`): random draws depend on the id."""
    last, found = dict[str, int](), []  # the last number of each id
    for example in examples:
        key, number = example.id, last.get(example.id, 0)
        while key in last:
            number += 1
            key = f"{example.id}#{number}"
        last[example.id], last[key] = max(number, 1), 1
        found.append(example if key == example.id else replace(example, id=key))
    return found


def doubts(examples: Sequence[Example], name: str) -> dict[str, int]:
    """What may be wrong with valid examples: how many, by what. `name`: of the file.

    Where a label stands is doubted if chance would give it less than once in 20,000 files (exp -10).
    """
    n, zero = len(examples), sum(0 in e.relevant for e in examples)
    chance = sum(len(e.relevant) / len(e.candidates) for e in examples)
    distinct = len({(e.query, e.history_keys, frozenset(e.candidate_keys)) for e in examples})
    found = {
        "lines with the id of an earlier line, which get a number (ID#2)": n - len({e.id for e in examples}),
        "lines with ids of the candidates or of the history alone, so that no item of one is known in the other":
            sum(bool(e.candidate_ids) != bool(e.history_ids) for e in examples if e.history),
        "lines with the query, history and pool of an earlier line, perhaps of another split": n - distinct,
        "lines in which every candidate is relevant, so that there is nothing to choose":
            sum(len(e.relevant) == len(e.candidates) for e in examples),
        "lines, in all of which candidate 0 is relevant: shuffle the pools, or their order gives the answer away":
            n * (zero == n and n - chance > 10),
        "lines, in none of which candidate 0 is relevant: indices count from 0, not from 1": n * (not zero and chance > 10),
    }  # fmt: skip
    return {f"{name}: {what}": count for what, count in found.items() if count}


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
