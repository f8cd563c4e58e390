"""The size of a task in numbers: `statistics` of its splits, and the table that the command line prints."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from ..data import Example, Splits, Stream
from .next_item import Histories
from .reading import FileRows, Notes, catalogue

CountTokens = Callable[[Example], tuple[int, int, int]]
"""Tokens of an example's prompt, number of its texts that were truncated, and number of tokens cut from them."""


class Statistics(TypedDict):
    """Sizes of a task, as `statistics` describes them."""

    items: int
    files: dict[str, FileRows]
    remarks: dict[str, int]
    splits: dict[str, dict[str, int | dict[str, float]]]


def statistics(splits: Splits, notes: Notes | None = None, count_tokens: CountTokens | None = None) -> Statistics:
    """Sizes of a task: items in the catalogue, rows of each file (read, left out by reason), and numbers for each split.

    `remarks` of the loader are numbers by what they count. For a split: the number of examples; `groups`, the number of
    users or sessions, where the task names them; `duplicates`, the number of pools in which a text appears twice; and
    minimum, median, 95th percentile (nearest rank) and maximum per example of: candidates in the pool, relevant ones
    among them, items of history, characters and words of the texts in a prompt (query, history and candidates, without
    instructions). With `count_tokens` also of: tokens of the prompt, texts cut short, tokens cut.
    """

    remarks, items = notes.remarks if notes else {}, len(catalogue(splits))
    if isinstance(splits.train, Stream):
        remarks = {**remarks, "train: a stream without end, of which a sample is counted": len(splits.train)}
    if isinstance(splits.train, Histories):
        remarks |= {"train: users or sessions": len(splits.train.sequences), "train: positions": splits.train.windows}
    splits = Splits(*map(list, splits))  # a stream makes its examples again whenever it is read

    def of(examples: Sequence[Example]) -> dict[str, int | dict[str, float]]:
        columns = {
            "pool": [len(e.candidates) for e in examples],
            "relevant": [len(e.relevant) for e in examples],
            "history": [len(e.history) for e in examples],
            "characters": [sum(map(len, _texts(e))) for e in examples],
            "words": [sum(len(t.split()) for t in _texts(e)) for e in examples],
        }
        if count_tokens:
            counts = [count_tokens(e) for e in examples]
            for n, name in enumerate(("tokens", "passages cut", "tokens cut")):
                columns[name] = [count[n] for count in counts]
        duplicates = sum(len(set(e.candidates)) < len(e.candidates) for e in examples)
        spread = {name: _spread(values) for name, values in columns.items()}
        groups = len({e.group for e in examples if e.group})
        return {"examples": len(examples), **({"groups": groups} if groups else {}), "duplicates": duplicates, **spread}

    return {
        "items": items,
        "files": notes.to_dict() if notes else {},
        "remarks": remarks,
        "splits": {name: of(part) for name, part in splits._asdict().items() if part},
    }


def _texts(example: Example) -> tuple[str, ...]:
    return (example.query, *example.history, *example.candidates)


def _spread(values: Sequence[int]) -> dict[str, float]:
    ordered, n = sorted(values), len(values)
    median = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
    return {"min": ordered[0], "median": median, "p95": ordered[-(-95 * n // 100) - 1], "max": ordered[-1]}


def format_statistics(found: Statistics) -> str:
    """`statistics` as a table for a terminal."""
    lines = [f"{found['items']:,} items in the catalogue"]
    for name, file in found["files"].items():
        lost = "".join(f", {count:,} left out ({reason})" for reason, count in file["dropped"].items())
        lines.append(f"{name}: {file['read']:,} rows read{lost}")
    lines += [f"{what}: {count:,}" for what, count in found["remarks"].items()]
    for split, part in found["splits"].items():
        groups = f" in {part['groups']:,} groups (users, sessions)" if "groups" in part else ""
        twice = f"{part['duplicates']:,} pools with a text twice"
        lines.append(f"\n{split}: {part['examples']:,} examples{groups}, {twice}")
        lines.append(f"  {'per example':<14}{'min':>10}{'median':>10}{'p95':>10}{'max':>10}")
        for name, spread in part.items():
            if isinstance(spread, dict):
                lines.append(f"  {name:<14}" + "".join(f"{value:>10,.10g}" for value in spread.values()))
    return "\n".join(lines)
