"""Tasks by name: the lab task, MovieLens in its official layouts, or a JSONL file of your own. -> Splits of Examples."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from .config import Config, KitError
from .data import Example, Splits, build_lab, lab_catalogue, read_jsonl

DATA = Path(__file__).parent.parent / "data"
TASKS = ("lab-rec", "movielens")

MOVIELENS_QUERY = "Which of these films will this viewer watch next?"
MIN_RATING = 3.0
HISTORY = 10
POOL = 20
TRAIN_WINDOWS = 40
"""most training examples per user: each of the last positions of a training user's sequence is one target"""


def load_task(config: Config, bad: list[str] | None = None) -> tuple[Splits, list[str]]:
    """Splits of a task, and the catalogue of item keys that its policies know. Raises KitError on an unknown task.

    `bad` collects broken lines of a JSONL file instead of raising (`--skip-bad`).
    """
    if config.task == "lab-rec":
        items = [film.title for film in lab_catalogue()]
        if config.one_relevant or config.pool != 20:
            return build_lab(config.one_relevant, pool=config.pool), items
        return Splits(*(read_jsonl(DATA / "lab-rec" / f"{split}.jsonl") for split in Splits._fields)), items
    if config.task == "movielens":
        splits = load_movielens(config.data)
        return splits, catalogue(splits)
    if config.task.endswith(".jsonl"):
        splits = split_by_position(read_jsonl(config.task, bad))
        return splits, catalogue(splits)
    raise KitError(f"task {config.task!r} is not known: use {', '.join(TASKS)}, or the path of a .jsonl file.")


def split_by_position(examples: list[Example]) -> Splits:
    """First eight tenths to train, a tenth to validate, the last tenth to test. Raises KitError on fewer than ten."""
    if len(examples) < 10:
        raise KitError(f"{len(examples)} examples are too few to split into training, validation and test: give ten.")
    a, b = len(examples) * 8 // 10, len(examples) * 9 // 10
    return Splits(examples[:a], examples[a:b], examples[b:])


def catalogue(splits: Splits) -> list[str]:
    """Every item of the splits, in a fixed order."""
    return sorted({key for part in splits for e in part for key in (*e.history_keys, *e.candidate_keys)})


def load_movielens(folder: str | Path, seed: int = 0, train_windows: int = TRAIN_WINDOWS) -> Splits:
    """MovieLens as next-item recommendation, by the protocol of LLaRA (arXiv 2312.02445).

    Ratings of 3 and more, each user's in order of time (equal times in a seeded random order, since the files are
    sorted by movie); users in order of their first rating, split 8:1:1 by user; the last film is the positive, up to
    10 before it the history; 19 negatives drawn uniformly from the catalogue without history and positive; the pool is
    shuffled. Training users give one example for each of their last `train_windows` positions. Films are keyed by id.
    """
    titles, ratings = _read_movielens(Path(folder))
    rng = Random(f"movielens {seed}")
    sequences: dict[str, list[tuple[float, float, str]]] = {}
    for user, film, rating, time in ratings:
        if rating >= MIN_RATING:
            sequences.setdefault(user, []).append((time, rng.random(), film))
    films = sorted({film for events in sequences.values() for _, _, film in events})
    users = sorted((sorted(events), user) for user, events in sequences.items() if len(events) > 1)

    def examples(part: list, windows: int) -> list[Example]:
        return [
            _next_item(f"{user}-{end}", [film for _, _, film in events[max(0, end - HISTORY) : end + 1]], films, titles, rng)
            for events, user in part
            for end in range(max(1, len(events) - windows), len(events))
        ]  # fmt: skip

    a, b = len(users) * 8 // 10, len(users) * 9 // 10
    if not users[:a] or not users[a:b] or not users[b:]:
        raise KitError(f"{folder}: {len(users)} users with two ratings of 3 or more are too few to split 8:1:1.")
    return Splits(examples(users[:a], train_windows), examples(users[a:b], 1), examples(users[b:], 1))


def _next_item(name: str, films: list[str], every: list[str], titles: dict[str, str], rng: Random) -> Example:
    *history, positive = films
    taken, pool = set(films), [positive]
    if len(every) - len(taken) < POOL - 1:
        raise KitError(f"the catalogue of {len(every)} films is too small for {POOL - 1} negatives.")
    while len(pool) < POOL:
        film = every[int(rng.random() * len(every))]
        if film not in taken:
            taken.add(film)
            pool.append(film)
    pool = [film for _, film in sorted((rng.random(), film) for film in pool)]
    return Example(
        name, MOVIELENS_QUERY, tuple(titles[f] for f in history), tuple(titles[f] for f in pool),
        frozenset([pool.index(positive)]), tuple(history), tuple(pool),
    )  # fmt: skip


def _read_movielens(folder: Path) -> tuple[dict[str, str], list[tuple[str, str, float, float]]]:
    """Titles by film id, and (user, film, rating, time) rows, from whichever official layout the folder holds."""
    if (folder / "ratings.csv").is_file():  # ml-latest, ml-latest-small, ml-20m, ml-25m
        films, rows = _csv(folder / "movies.csv", 2), _csv(folder / "ratings.csv", 4)
    elif (folder / "ratings.dat").is_file():  # ml-1m, ml-10m
        films, rows = _split(folder / "movies.dat", "::", 2), _split(folder / "ratings.dat", "::", 4)
    elif (folder / "u.data").is_file():  # ml-100k
        films, rows = _split(folder / "u.item", "|", 2), _split(folder / "u.data", "\t", 4)
    else:
        raise KitError(
            f"{folder}: no MovieLens here; name with --data the folder that holds ratings.csv, ratings.dat or u.data."
        )
    titles, ratings = {}, []
    for _, (film, title, *_) in films:
        titles[film] = readable_title(title)
    for where, (user, film, rating, time, *_) in rows:
        try:
            ratings.append((user, film, float(rating), float(time)))
        except ValueError:
            raise KitError(f"{where}: rating and time must be numbers, found {rating!r} and {time!r}.") from None
        if film not in titles:
            raise KitError(f"{where}: film {film!r} is not in the list of films.")
    return titles, ratings


def readable_title(title: str) -> str:
    """`Matrix, The (1999)` -> `The Matrix (1999)`."""
    return re.sub(r"^(.+), (The|A|An|Les?|La|Il|El|Das|Der|Die|Los?|L')( \(.*)?$", r"\2 \1\3", title.strip())


def _csv(path: Path, columns: int) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            yield from _checked(path, csv.reader(file), columns, skip=1)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise KitError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from None


def _split(path: Path, separator: str, columns: int) -> Iterator[tuple[str, list[str]]]:
    try:
        with path.open(encoding="iso-8859-1") as file:
            yield from _checked(path, (line.rstrip("\r\n").split(separator) for line in file if line.strip()), columns)
    except OSError as error:
        raise KitError(f"{path}: cannot be read ({error.strerror}).") from None


def _checked(path: Path, rows: Iterator[list[str]], columns: int, skip: int = 0) -> Iterator[tuple[str, list[str]]]:
    for number, row in enumerate(rows, start=1):
        if number <= skip or not row:
            continue
        if len(row) < columns:
            raise KitError(f"{path}, line {number}: expected {columns} columns, found {len(row)}.")
        yield f"{path}, line {number}", row
