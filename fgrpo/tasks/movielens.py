"""MovieLens, in the layout of each of its releases, as next-item recommendation."""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from random import Random

from ..config import KitError
from ..data import Example, Splits
from .files import layout_of
from .next_item import ItemTask, histories, names_by_id, split_by_user
from .reading import Notes
from .tables import Cells, Column, table

QUERY = "Which of these films will this viewer watch next?"
MIN_RATING = 3.0
BEST_RATING = 5.0
FILM = Column("movieId", number=True, other="itemId")
FILMS = (FILM, Column("title", other="movieTitle"))
RATINGS = (Column("userId", number=True), FILM, Column("rating", number=True), Column("timestamp", number=True))
LAYOUTS = {
    "ratings.csv": (",", "movies.csv", ","),  # ml-latest, ml-latest-small, ml-20m, ml-25m
    "ratings.dat": ("::", "movies.dat", "::"),  # ml-1m, ml-10m
    "u.data": ("\t", "u.item", "|"),  # ml-100k
}
"""Separator of the file of ratings, the file of films and its separator, by the name of the first"""


def load_movielens(folder: str | Path, notes: Notes | None = None, seed: int = 0) -> Splits:
    """MovieLens as next-item recommendation, by the protocol of LLaRA (arXiv 2312.02445).

    Ratings of 3 and more, each user's in order of time (ties in a seeded random order, because the files are sorted by
    film). Users in order of their first rating, split 8:1:1 by user. The last film is the positive, up to 10 films
    before it are the history. The 19 negatives are drawn uniformly from the catalogue without history and positive, and
    the pool is shuffled. Training users give one example for each of their last TRAIN_WINDOWS positions. Films are
    keyed by id. A negative may thus be a film that the user liked at another time: `notes` remark how many pools hold
    one. Raises KitError on a folder without MovieLens and on a broken row.
    """
    notes, rng = notes or Notes(), Random(f"movielens {seed}")
    titles, users, path = _users(Path(folder), notes, rng)
    task = ItemTask(QUERY, sorted({film for _, films in users for film in films}), titles, path)
    return split_by_user(task, users, rng, path, notes, "rating of 3 or more")


def load_movielens_loo(
    folder: str | Path, notes: Notes | None = None, seed: int = 0, negatives: str = "uniform"
) -> Splits:
    """MovieLens with one film of every user held out (leave-one-out), which gives a test query a user.

    Ratings and their order are those of `load_movielens`. A user's last film is the positive of a test query, the one
    before it that of a validation query, and the films before these are a sequence of the training stream. No film that
    the user rated 3 or more at any time is a negative. Negatives are drawn uniformly from the films of all users or, if
    `popular`, by the number of training sequences that hold a film, in all three splits. Users of fewer than three
    films are left out and counted. Raises KitError as `load_movielens` does.
    """
    if negatives == "mixed":
        raise KitError("--negatives mixed is for test pools of a retriever; movielens-loo takes uniform or popular.")
    notes = notes or Notes()
    titles, users, path = _users(Path(folder), notes, Random(f"movielens {seed}"))
    kept = [(user, films) for user, films in users if len(films) > 2]
    if len(kept) < len(users):
        lost = sum(len(films) for _, films in users if len(films) < 3)
        notes.drop(path, "rating of a user with fewer than three films rated 3 or more", lost)
    items = {film: titles[film] for film in sorted({film for _, films in users for film in films})}
    train = histories(path, QUERY, items, {user: films[:-2] for user, films in kept}, negatives)
    held: list[list[Example]] = [[], []]
    for back, split, part in zip((2, 1), Splits._fields[1:], held, strict=True):
        for user, films in kept:
            rng = Random(f"movielens-loo {seed} {split} {user}")
            part.append(train.example(f"{split}-{user}", user, films[:-back], films[-back], rng, films))
    return Splits(train, *held)


def _users(folder: Path, notes: Notes, rng: Random) -> tuple[dict[str, str], list[tuple[str, list[str]]], Path]:
    """Title of each film id, (user, films in order of time) in order of the first rating, and the file of ratings."""
    titles, ratings, path = _read(folder, notes)
    sequences: dict[str, list[tuple[float, float, str]]] = {}  # user -> (time, tie-break, film)
    for user, film, rating, time in ratings:
        notes.read[path.name] += 1
        if rating >= MIN_RATING:
            sequences.setdefault(user, []).append((time, rng.random(), film))
        else:
            notes.drop(path, "rating below 3")
    in_order = sorted((sorted(events), user) for user, events in sequences.items())
    users = [(user, list(dict.fromkeys(film for _, _, film in events))) for events, user in in_order]
    if twice := sum(map(len, sequences.values())) - sum(len(films) for _, films in users):
        notes.drop(path, "film rated again by the same user", twice)  # else the answer could be in the history
    return titles, users, path


def _read(folder: Path, notes: Notes) -> tuple[dict[str, str], Iterator[tuple[str, str, float, float]], Path]:
    """Title of each film id, (user, film, rating, time) rows and the file of the rows."""
    name = layout_of(folder, tuple(LAYOUTS), "MovieLens")
    separator, films, between = LAYOUTS[name]
    titles = names_by_id(folder / films, FILMS, between, notes)
    titles = {film: readable_title(title) for film, title in titles.items()}
    path = folder / name
    return titles, _ratings(table(path, RATINGS, separator, notes), titles), path


def _ratings(rows: Iterator[Cells], titles: dict[str, str]) -> Iterator[tuple[str, str, float, float]]:
    same = {film: film for film in titles}  # one string per film, not one per rating: less memory
    for where, (user, film, rating, time) in rows:
        try:
            stars, when = float(rating), float(time)
        except ValueError:
            stars = when = math.nan
        if not math.isfinite(stars + when):
            raise KitError(f"{where}: rating and time must be numbers, found {rating!r:.40} and {time!r:.40}.")
        if not 0 <= stars <= BEST_RATING or when < 0:
            raise KitError(f"{where}: rating {rating:.40} must be from 0 to 5 and time {time:.40} at least 0.")
        if film not in titles:
            raise KitError(f"{where}: film {film!r:.40} is not in the list of films.")
        yield user, same[film], stars, when


def readable_title(title: str) -> str:
    """`Matrix, The (1999)` -> `The Matrix (1999)`."""
    return re.sub(r"^(.+), (The|A|An|Les?|La|Il|El|Das|Der|Die|Los?|L')( \(.*)?$", r"\2 \1\3", title.strip())
