"""LastFM, in two layouts that are two different tasks: hetrec2011 (play counts) and LLaRA's sessions."""

from pathlib import Path
from random import Random

from ..config import KitError
from ..data import Splits
from .files import layout_of
from .next_item import TRAIN_WINDOWS, ItemTask, names_by_id, split_by_user
from .reading import Notes, field, json_rows, shuffled
from .tables import Column, table

QUERY = "Which of these artists does this listener play as well? The history is in no particular order."
LAYOUTS = {"lastfm-hetrec": "user_artists.dat", "lastfm-llara": "train_sessions.jsonl"}
"""The file by which the folder of each task is known"""
ARTISTS = (Column("id", number=True, other="artistID"), Column("name"))
PLAYED = (Column("userID", number=True), Column("artistID", number=True), Column("weight", number=True))


def lastfm_task(folder: str | Path, task: str = "lastfm") -> str:
    """The task that a folder holds, `lastfm-hetrec` or `lastfm-llara`. Raises KitError if none, or not the named one."""
    names = {name: layout for layout, name in LAYOUTS.items() if task in ("lastfm", layout)}
    if len(names) > 1 and all((Path(folder) / name).exists() for name in names):
        raise KitError(f"{folder}: holds two data sets: name one with --task {' or '.join(LAYOUTS)}.")
    return names[layout_of(Path(folder), tuple(names), "LastFM" if task == "lastfm" else task)]


def load_lastfm(folder: str | Path, notes: Notes | None = None, seed: int = 0, task: str = "lastfm") -> Splits:
    """LastFM artists, from hetrec2011 (`user_artists.dat`) or LLaRA (`train_sessions.jsonl`); `task` may say which.

    Neither layout records time. hetrec2011 lists each user's artists by play count. LLaRA's sessions are sorted by
    artist id, so that choosing the next larger id finds the positive far more often than chance. Here every user's
    artists are first put in a seeded random order: the last one is held out as the positive and up to 10 others are the
    history, so that the order gives nothing away. It is therefore not next-item prediction, and the query says so.

    hetrec2011: users in a seeded random order, split 8:1:1; play counts only say that an artist was played. Training
    users give up to 40 examples each. The 19 negatives are drawn uniformly from the artists that the user never played.
    LLaRA: training examples are made from the sessions in the same way. `val.jsonl` keeps its positives and its
    candidates in their order (only the histories are shuffled): its first half is the validation split, its second half
    the test split. Artists are keyed by id. Raises KitError on a folder with neither layout, and on a broken row.
    """
    notes, folder, rng = notes or Notes(), Path(folder), Random(f"lastfm {seed}")
    return (_hetrec if lastfm_task(folder, task) == "lastfm-hetrec" else _llara)(folder, notes, rng)


def _hetrec(folder: Path, notes: Notes, rng: Random) -> Splits:
    names = names_by_id(folder / "artists.dat", ARTISTS, "\t", notes)
    path, played = folder / "user_artists.dat", dict[str, dict[str, None]]()  # a dict as an ordered set
    for where, (user, artist, weight) in table(path, PLAYED, "\t", notes):
        notes.read[path.name] += 1
        if not weight.isdecimal():
            raise KitError(f"{where}: field 'weight' must be a whole number, found {weight!r:.40}.")
        if artist not in names:
            raise KitError(f"{where}: field 'artistID': artist {artist!r:.40} is not in artists.dat.")
        if artist in played.setdefault(user, {}):
            notes.drop(path, "artist listed twice for one user")
        played[user][artist] = None
    users = [(user, shuffled(list(played[user]), rng)) for user in shuffled(list(played), rng)]
    every = sorted({artist for artists in played.values() for artist in artists})
    return split_by_user(ItemTask(QUERY, every, names, folder, exclude_own=True), users, rng, path, notes, "artist")


def _llara(folder: Path, notes: Notes, rng: Random) -> Splits:
    names = names_by_id(folder / "id2name.txt", ARTISTS, "::", notes, parts=2)  # a name may hold "::"
    task = ItemTask(QUERY, sorted(names), names, folder, exclude_own=True)

    def rows(path: Path) -> list[tuple[str, object]]:
        found = list(json_rows(path))
        notes.read[path.name] += len(found)
        return found

    def ids(where: str, row: object, name: str) -> list[str]:
        if isinstance(row, KitError):
            raise row
        try:
            found = [str(i) for i in field(row, name, list)]
        except KitError as error:
            raise KitError(f"{where}: {error}") from None
        if unknown := [i for i in found if i not in names]:
            raise KitError(f"{where}: field '{name}': artist {unknown[0]!r:.40} is not in id2name.txt.")
        return found

    path, train = folder / "train_sessions.jsonl", []
    for number, (where, row) in enumerate(rows(path)):
        session = shuffled(list(dict.fromkeys(ids(where, row, "items"))), rng)
        if len(session) < 2:
            notes.drop(path, "session of fewer than two artists")
        train += task.examples(f"session-{number}", session, rng, TRAIN_WINDOWS)
    held = []
    for number, (where, row) in enumerate(rows(folder / "val.jsonl")):
        pool, history = ids(where, row, "candidates"), shuffled(ids(where, row, "history"), rng)
        assert isinstance(row, dict)  # `ids` has read two of its fields
        relevant = row.get("relevant")
        place = relevant[0] if isinstance(relevant, list) and len(relevant) == 1 else None
        if type(place) is not int or not 0 <= place < len(pool):
            raise KitError(f"{where}: field 'relevant' must hold one index into 'candidates'.")
        positive = pool[place]
        if str(row.get("next", positive)) != positive:
            raise KitError(f"{where}: field 'next' must be the artist that 'relevant' points at.")
        if len(set(pool)) < len(pool) or len(pool) < 2:
            what = "an artist twice" if len(pool) > 1 else "one artist: there is nothing to choose"
            raise KitError(f"{where}: field 'candidates' holds {what}.")
        held.append(task.example(f"val-{number}", history, pool, positive, f"val-{number}"))
    if not train or len(held) < 2:
        raise KitError(f"{folder}: {len(train)} training examples and {len(held)} rows in val.jsonl are too few "
                       f"({path.name}: {notes.lost(path.name)}).")  # fmt: skip
    return Splits(train, held[: len(held) // 2], held[len(held) // 2 :])
