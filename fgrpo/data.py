"""`Example`, its JSONL form, and the lab task: invented films, viewers with a latent taste.

One JSON object a line:

    {"id": "u1", "query": "...", "history": ["..."], "candidates": ["...", ...], "relevant": [3, 7]}

`history_ids` and `candidate_ids` may be added where a catalogue has ids of its own. An item is its id where there is
one, else its text: titles of real catalogues are not unique, the titles of the lab are.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from .config import KitError


@dataclass(frozen=True)
class Example:
    """A query, a pool of candidates, and which of them are relevant (indices into `candidates`)."""

    id: str
    query: str
    history: tuple[str, ...]
    candidates: tuple[str, ...]
    relevant: frozenset[int]
    history_ids: tuple[str, ...] = ()
    candidate_ids: tuple[str, ...] = ()

    @property
    def history_keys(self) -> tuple[str, ...]:
        """Catalogue identity of the history: ids where the data have them, else texts."""
        return self.history_ids or self.history

    @property
    def candidate_keys(self) -> tuple[str, ...]:
        """Catalogue identity of each candidate, in pool order."""
        return self.candidate_ids or self.candidates


class Splits(NamedTuple):
    """Training, validation and test examples of one task."""

    train: list[Example]
    validation: list[Example]
    test: list[Example]


def parse_example(line: str | bytes) -> Example:
    """One JSONL line to an Example. Raises KitError naming the field and what was expected."""
    return example_of(read_object(line))


def read_object(line: str | bytes) -> dict[str, Any]:
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise KitError("not a JSON object (a field stands in it twice)")
    return row


def example_of(row: dict[str, Any]) -> Example:
    """The Example that a JSON object describes. Raises KitError naming the field and what was expected."""

    def texts(name: str, required: bool = True) -> tuple[str, ...]:
        value = row.get(name)
        if value is None and not required:
            return ()
        if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
            raise KitError(f"field '{name}' must be a list of strings")
        return tuple(value)

    for name in ("id", "query"):
        if not isinstance(row.get(name), str):
            raise KitError(f"field '{name}' must be a string")
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
    return Example(row["id"], row["query"], history, candidates, frozenset(relevant), history_ids, candidate_ids)


def read_jsonl(path: str | Path, bad: list[str] | None = None) -> list[Example]:
    """All examples of a file, in order.

    A bad line raises KitError with file, line number and field; if the list `bad` is given, the message is appended
    to it and the line is skipped.
    """
    examples = []
    for number, line in _lines(Path(path)):
        try:
            examples.append(parse_example(line))
        except KitError as error:
            message = f"{path}, line {number}: {error}"
            if bad is None:
                raise KitError(f"{message}. Mend the line, or pass --skip-bad.") from None
            bad.append(message)
    if not examples:
        raise KitError(f"{path}: no usable example in the file.")
    return examples


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, line
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}).") from None


def to_row(example: Example) -> dict[str, Any]:
    """The JSON object that describes an Example; empty id lists are left out."""
    row = {k: v for k, v in asdict(example).items() if v != ()}
    return row | {"history": example.history, "relevant": sorted(example.relevant)}


def to_json(example: Example) -> str:
    """One compact JSONL line, without the newline."""
    return json.dumps(to_row(example), ensure_ascii=False, separators=(",", ":"))


def write_jsonl(path: str | Path, examples: Iterable[Example]) -> None:
    """Write examples, whole or not at all."""
    write_text(path, "".join(to_json(e) + "\n" for e in examples))


def write_text(path: str | Path, text: str) -> None:
    """Replace a file atomically: it holds the old text or the new one, never a part. Raises KitError if it cannot."""
    path = Path(path)
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise KitError(f"{path}: cannot be written ({error.strerror}); the file before it is untouched.") from None


# --- the lab task -----------------------------------------------------------------------------------------------------

GENRES = {
    "noir": ("Alibi", "Alley", "Ledger", "Gunsel", "Dahlia"),
    "western": ("Mesa", "Stirrup", "Gulch", "Drover", "Canyon"),
    "space": ("Orbit", "Nebula", "Airlock", "Comet", "Rocket"),
    "heist": ("Vault", "Decoy", "Safe", "Getaway", "Forger"),
    "ghost": ("Attic", "Seance", "Manor", "Wraith", "Crypt"),
    "war": ("Trench", "Convoy", "Bunker", "Armada", "Siege"),
    "romance": ("Waltz", "Letter", "Suitor", "Picnic", "Serenade"),
    "fable": ("Fox", "Lantern", "Orchard", "Giant", "Spindle"),
    "sport": ("Relay", "Umpire", "Knockout", "Paddock", "Regatta"),
    "spy": ("Cipher", "Embassy", "Courier", "Dossier", "Mole"),
}
TONES = {
    "bleak": ("Ashen", "Hollow", "Bitter", "Frozen", "Barren"),
    "tender": ("Gentle", "Tender", "Velvet", "Loving", "Quiet"),
    "comic": ("Silly", "Giddy", "Clumsy", "Wacky", "Jolly"),
    "eerie": ("Eerie", "Pale", "Sunken", "Murky", "Veiled"),
    "heroic": ("Bold", "Mighty", "Valiant", "Noble", "Proud"),
    "dreamy": ("Amber", "Lunar", "Misty", "Silver", "Azure"),
}
ERAS = (1950, 1965, 1980, 1995, 2010)
LAB_SIZES = {"train": 4000, "validation": 512, "test": 512}
LAB_QUERY = "Which of these films would this viewer like?"


class Film(NamedTuple):
    """An invented film: the adjective of its title tells the tone, the noun tells the genre."""

    title: str
    genre: str
    tone: str
    era: int


def lab_catalogue() -> list[Film]:
    """The 300 films: every genre with every tone, five films each, one per era. Titles are unique by construction."""
    return [
        Film(f"{adjectives[(i + g) % 5]} {nouns[i]}", genre, tone, ERAS[(i + 2 * g + 3 * t) % 5])
        for g, (genre, nouns) in enumerate(GENRES.items())
        for t, (tone, adjectives) in enumerate(TONES.items())
        for i in range(5)
    ]


def build_lab(one_relevant: bool = False, seed: int = 0, pool: int = 20) -> Splits:
    """The lab task: each viewer has a latent taste over genres, tones and eras, seen only through 8 films.

    History and relevant films are drawn by taste without replacement (Gumbel top-k); half of the other candidates are
    hard negatives, drawn by an eighth of the taste from what is left, the rest are drawn uniformly. `one_relevant` gives
    exactly one relevant film per pool instead of 2 to 4. Only `Random.random`, whose stream Python keeps stable, is
    drawn from, so that the files are the same everywhere.
    """
    films = lab_catalogue()
    rng = Random(f"lab-rec {seed}")

    def gumbel() -> float:
        return -math.log(-math.log(max(rng.random(), 1e-300)))

    def draw(scores: dict[int, float], count: int) -> list[int]:
        noisy = {i: score + gumbel() for i, score in scores.items()}
        chosen = sorted(noisy, key=noisy.__getitem__, reverse=True)[:count]
        for i in chosen:
            del scores[i]
        return chosen

    def viewer(name: str) -> Example:
        taste: dict[str | int, float] = {
            **{genre: 3.0 * gumbel() for genre in GENRES},
            **{tone: 2.2 * gumbel() for tone in TONES},
            **{era: 0.8 * gumbel() for era in ERAS},
        }
        left = {i: taste[f.genre] + taste[f.tone] + taste[f.era] for i, f in enumerate(films)}
        history = draw(left, 8)
        relevant = draw(left, 1 if one_relevant else 2 + int(3 * rng.random()))
        left = {i: score / 8 for i, score in left.items()}
        hard = draw(left, (pool - len(relevant)) // 2)
        easy = draw(dict.fromkeys(left, 0.0), pool - len(relevant) - len(hard))
        order = draw(dict.fromkeys(relevant + hard + easy, 0.0), pool)
        titles = tuple(films[i].title for i in order)
        return Example(
            name, LAB_QUERY, tuple(films[i].title for i in history), titles,
            frozenset(order.index(i) for i in relevant),
        )  # fmt: skip

    return Splits(*([viewer(f"{split}-{n}") for n in range(size)] for split, size in LAB_SIZES.items()))


def lab_files(folder: str | Path, **options: Any) -> dict[Path, str]:
    """The text of every file of the lab task: the three splits and the catalogue with its attributes."""
    folder = Path(folder)
    splits = build_lab(**options)._asdict()
    files = {folder / f"{name}.jsonl": "".join(to_json(e) + "\n" for e in rows) for name, rows in splits.items()}
    rows = (json.dumps(film._asdict(), ensure_ascii=False) + "\n" for film in lab_catalogue())
    return {**files, folder / "catalogue.jsonl": "".join(rows)}
