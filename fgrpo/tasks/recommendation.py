"""Next-item recommendation: MovieLens, and LastFM in two layouts. One relevant item in a pool of 20, keyed by id.

Texts are titles and names only; ids stand in `history_ids` and `candidate_ids`, which no prompt shows.
"""

import math
import re
from collections.abc import Iterator, Set
from pathlib import Path
from random import Random
from typing import Any

from ..config import KitError
from ..data import Example, Splits
from .reading import Notes, csv_rows, field, json_rows, shuffled, split_rows, tenths

MOVIELENS_QUERY = "Which of these films will this viewer watch next?"
LASTFM_QUERY = "Which of these artists does this listener play as well? The history is in no particular order."
MIN_RATING = 3.0
HISTORY = 10
POOL = 20
TRAIN_WINDOWS = 40
"""most training examples per user: each of the last positions of a training user's sequence is one target"""
LATIN = "iso-8859-1"
Rows = Iterator[tuple[str, list[str]]]


def load_movielens(
    folder: str | Path, notes: Notes | None = None, seed: int = 0, train_windows: int = TRAIN_WINDOWS
) -> Splits:
    """MovieLens as next-item recommendation, by the protocol of LLaRA (arXiv 2312.02445).

    Ratings of 3 and more, each user's in order of time (equal times in a seeded random order, since the files are
    sorted by movie); users in order of their first rating, split 8:1:1 by user; the last film is the positive, up to
    10 before it the history; 19 negatives drawn uniformly from the catalogue without history and positive; the pool is
    shuffled. Training users give one example for each of their last `train_windows` positions. Films are keyed by id.
    """
    notes, folder = notes or Notes(), Path(folder)
    titles, ratings, path = _read_movielens(folder)
    rng = Random(f"movielens {seed}")
    sequences: dict[str, list[tuple[float, float, str]]] = {}
    for user, film, rating, time in ratings:
        notes.read[path.name] += 1
        if rating >= MIN_RATING:
            sequences.setdefault(user, []).append((time, rng.random(), film))
        else:
            notes.drop(path, "rating below 3")
    films = sorted({film for events in sequences.values() for _, _, film in events})
    users = sorted((sorted(events), user) for user, events in sequences.items())
    people = [(user, [film for _, _, film in events]) for events, user in users]
    return _by_user(people, "rating of 3 or more", path, MOVIELENS_QUERY, films, titles, rng, notes, train_windows)


def _by_user(
    people: list[tuple[str, list[str]]], what: str, path: Path, query: str, every: list[str], names: dict[str, str],
    rng: Random, notes: Notes, train_windows: int = TRAIN_WINDOWS, known: bool = False,
) -> Splits:  # fmt: skip
    """(user, items in order) split 8:1:1 in the order of the list; users of one item are left out and counted."""
    users = [(user, items) for user, items in people if len(items) > 1]
    if len(users) < len(people):
        notes.drop(path, f"the user's only {what}", len(people) - len(users))
    parts = list(zip(tenths(users), (train_windows, 1, 1), strict=True))
    if not all(part for part, _ in parts):
        raise KitError(f"{path}: {len(users)} users with more than one {what} are too few to split 8:1:1.")
    return Splits(*(
        [e for user, items in part for e in _windows(user, items, query, every, names, rng, windows, known)]
        for part, windows in parts
    ))  # fmt: skip


def _windows(
    user: str, items: list[str], query: str, every: list[str], names: dict[str, str], rng: Random, windows: int,
    known: bool,
) -> list[Example]:  # fmt: skip
    """One example for each of the last positions; `known`: none of the user's own items is a negative."""
    own = frozenset(items) if known else frozenset()
    return [
        _next_item(f"{user}-{end}", items[max(0, end - HISTORY) : end + 1], query, every, names, rng, own)
        for end in range(max(1, len(items) - windows), len(items))
    ]


def _next_item(
    name: str, items: list[str], query: str, every: list[str], names: dict[str, str], rng: Random, own: Set[str]
) -> Example:
    *history, positive = items
    taken, pool = {*own, *items}, [positive]
    if len(every) - len(taken) < POOL - 1:
        raise KitError(f"the catalogue of {len(every)} items is too small for {POOL - 1} negatives.")
    while len(pool) < POOL:
        item = every[int(rng.random() * len(every))]
        if item not in taken:
            taken.add(item)
            pool.append(item)
    return _example(name, query, history, shuffled(pool, rng), positive, names)


def _example(
    name: str, query: str, history: list[str], pool: list[str], positive: str, names: dict[str, str]
) -> Example:
    return Example(
        name, query, tuple(names[i] for i in history), tuple(names[i] for i in pool),
        frozenset([pool.index(positive)]), tuple(history), tuple(pool),
    )  # fmt: skip


def _read_movielens(folder: Path) -> tuple[dict[str, str], Iterator[tuple[str, str, float, float]], Path]:
    """Titles by film id, (user, film, rating, time) rows and their file, from whichever layout the folder holds."""
    if (path := folder / "ratings.csv").is_file():  # ml-latest, ml-latest-small, ml-20m, ml-25m
        films, rows = csv_rows(folder / "movies.csv", 2), csv_rows(path, 4)
    elif (path := folder / "ratings.dat").is_file():  # ml-1m, ml-10m
        films, rows = split_rows(folder / "movies.dat", "::", 2, LATIN), split_rows(path, "::", 4, LATIN)
    elif (path := folder / "u.data").is_file():  # ml-100k
        films, rows = split_rows(folder / "u.item", "|", 2, LATIN), split_rows(path, "\t", 4, LATIN)
    else:
        raise KitError(
            f"{folder}: no MovieLens here; name with --data the folder that holds ratings.csv, ratings.dat or u.data."
        )
    titles = {film: readable_title(title) for _, (film, title, *_) in films}
    return titles, _ratings(rows, titles), path


def _ratings(rows: Rows, titles: dict[str, str]) -> Iterator[tuple[str, str, float, float]]:
    same = {film: film for film in titles}  # one string a film, not one a rating
    for where, (user, film, rating, time, *_) in rows:
        try:
            stars, when = float(rating), float(time)
        except ValueError:
            stars = when = math.nan
        if not math.isfinite(stars + when):
            raise KitError(f"{where}: rating and time must be numbers, found {rating!r} and {time!r}.")
        if film not in titles:
            raise KitError(f"{where}: film {film!r} is not in the list of films.")
        yield user, same[film], stars, when


def readable_title(title: str) -> str:
    """`Matrix, The (1999)` -> `The Matrix (1999)`."""
    return re.sub(r"^(.+), (The|A|An|Les?|La|Il|El|Das|Der|Die|Los?|L')( \(.*)?$", r"\2 \1\3", title.strip())


def load_lastfm(folder: str | Path, notes: Notes | None = None, seed: int = 0) -> Splits:
    """LastFM artists, from the hetrec2011 layout (`user_artists.dat`) or LLaRA's (`train_sessions.jsonl`).

    Neither layout knows time. hetrec2011 lists each user's artists by play count; in LLaRA's sessions they stand in
    ascending artist id, so that "the next larger id" alone finds the positive far more often than chance. Here every
    user's artists are put in a seeded random order before anything else: the last one is held out as the positive, up
    to 10 others are the history, and the order tells nothing. It is not next-item prediction, and the query says so.

    hetrec2011: users in a seeded random order, split 8:1:1; play counts say only that an artist was played. Training
    users give up to 40 examples each. Negatives: 19, drawn uniformly from the artists that the user never played.
    LLaRA: training examples from the sessions in the same way. `val.jsonl` keeps its positives and its candidates in
    their order (the histories are shuffled): its first half is the validation split, its second half the test split.
    Artists are keyed by id. Raises KitError on a folder with neither layout, and on a broken row.
    """
    notes, folder, rng = notes or Notes(), Path(folder), Random(f"lastfm {seed}")
    if (folder / "user_artists.dat").is_file():
        return _hetrec(folder, notes, rng)
    if (folder / "train_sessions.jsonl").is_file():
        return _llara(folder, notes, rng)
    raise KitError(
        f"{folder}: no LastFM here; name with --data the folder that holds user_artists.dat or train_sessions.jsonl."
    )


def _hetrec(folder: Path, notes: Notes, rng: Random) -> Splits:
    names = {artist: name for _, (artist, name, *_) in split_rows(folder / "artists.dat", "\t", 2, "utf-8", skip=1)}
    path, played = folder / "user_artists.dat", dict[str, dict[str, None]]()
    for where, (user, artist, weight, *_) in split_rows(path, "\t", 3, "utf-8", skip=1):
        notes.read[path.name] += 1
        if not weight.isdecimal():
            raise KitError(f"{where}: field 'weight' must be a whole number, found {weight!r}.")
        if artist not in names:
            raise KitError(f"{where}: field 'artistID': artist {artist!r} is not in artists.dat.")
        if artist in played.setdefault(user, {}):
            notes.drop(path, "artist listed twice for one user")
        played[user][artist] = None
    people = [(user, shuffled(list(played[user]), rng)) for user in shuffled(list(played), rng)]
    every = sorted({artist for artists in played.values() for artist in artists})
    return _by_user(people, "artist", path, LASTFM_QUERY, every, names, rng, notes, known=True)


def _llara(folder: Path, notes: Notes, rng: Random) -> Splits:
    names: dict[str, str] = {}
    for where, (artist, *name) in split_rows(folder / "id2name.txt", "::", 2, "utf-8"):
        if artist in names:
            raise KitError(f"{where}: id {artist!r} stands twice.")
        names[artist] = "::".join(name)
    every = sorted(names)

    def rows(path: Path) -> list[tuple[str, Any]]:
        found = list(json_rows(path))
        notes.read[path.name] += len(found)
        return found

    def ids(where: str, row: Any, name: str) -> list[str]:
        if isinstance(row, KitError):
            raise row
        try:
            found = [str(i) for i in field(row, name, list)]
        except KitError as error:
            raise KitError(f"{where}: {error}") from None
        if unknown := [i for i in found if i not in names]:
            raise KitError(f"{where}: field '{name}': artist {unknown[0]!r} is not in id2name.txt.")
        return found

    path, train = folder / "train_sessions.jsonl", []
    for number, (where, row) in enumerate(rows(path)):
        session = shuffled(list(dict.fromkeys(ids(where, row, "items"))), rng)
        if len(session) < 2:
            notes.drop(path, "session of fewer than two artists")
        train += _windows(f"session-{number}", session, LASTFM_QUERY, every, names, rng, TRAIN_WINDOWS, known=True)
    held = []
    for number, (where, row) in enumerate(rows(folder / "val.jsonl")):
        pool, history = ids(where, row, "candidates"), shuffled(ids(where, row, "history"), rng)
        relevant = row.get("relevant")
        if not (isinstance(relevant, list) and len(relevant) == 1 and relevant[0] in range(len(pool))):
            raise KitError(f"{where}: field 'relevant' must hold one index into 'candidates'.")
        if str(row.get("next", pool[relevant[0]])) != pool[relevant[0]]:
            raise KitError(f"{where}: field 'next' must be the artist that 'relevant' points at.")
        if len(set(pool)) < len(pool):
            raise KitError(f"{where}: field 'candidates' holds an artist twice.")
        held.append(_example(f"val-{number}", LASTFM_QUERY, history, pool, pool[relevant[0]], names))
    if not train or len(held) < 2:
        raise KitError(f"{folder}: {len(train)} training examples and {len(held)} rows in val.jsonl are too few.")
    return Splits(train, held[: len(held) // 2], held[len(held) // 2 :])
