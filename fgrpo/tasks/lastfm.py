"""LastFM, in three layouts that are different tasks: hetrec2011 (play counts), LLaRA's sessions, S-DPO's rows."""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..config import KitError
from ..data import Example, Splits
from .files import layout_of
from .next_item import ItemTask, histories, item_example, names_by_id, split_by_user
from .reading import Notes, field, json_rows, shuffled
from .tables import Column, table

QUERY = "Which of these artists does this listener play as well? The history is in no particular order."
SDPO, SESSIONS, HELD = "lastfm-val.json", "train_sessions.jsonl", "val.jsonl"
LAYOUTS = {"lastfm-hetrec": "user_artists.dat", "lastfm-llara": SESSIONS, "lastfm-sdpo": SDPO}
"""The file by which the folder of each task is known"""
ARTISTS = (Column("id", number=True, other="artistID"), Column("name"))
PLAYED = (Column("userID", number=True), Column("artistID", number=True), Column("weight", number=True))


def lastfm_task(folder: str | Path, task: str = "lastfm") -> str:
    """The task that a folder holds: `lastfm-hetrec`, `lastfm-llara` or `lastfm-sdpo`.

    LLaRA's sessions without its held-out rows are no task of their own beside S-DPO's rows, which are trained on them.
    Raises KitError if the folder holds none, not the named one, or several.
    """
    folder = Path(folder)
    there = [name for name, layout in LAYOUTS.items() if (folder / layout).exists()]
    if "lastfm-sdpo" not in there and _inside(folder, SDPO):
        there.append("lastfm-sdpo")
    if "lastfm-sdpo" in there and "lastfm-llara" in there and not (folder / HELD).exists():
        there.remove("lastfm-llara")
    if task == "lastfm" and len(there) > 1:
        raise KitError(f"{folder}: holds several data sets: name one with --task {' or '.join(there)}.")
    names = {name: layout for layout, name in LAYOUTS.items() if task in ("lastfm", layout)}
    if there and (task == "lastfm" or task in there):
        return there[0] if task == "lastfm" else task
    return names[layout_of(folder, tuple(names), "LastFM" if task == "lastfm" else task)]


def load_lastfm(
    folder: str | Path, notes: Notes | None = None, seed: int = 0, task: str = "lastfm", negatives: str = "uniform"
) -> Splits:
    """LastFM artists, in the layout of hetrec2011, LLaRA (arXiv 2312.02445) or S-DPO (arXiv 2406.09215).

    No layout records time. hetrec2011 lists each user's artists by play count. The sessions of the other two are sorted
    by artist id, so that choosing the next larger id finds the positive far more often than chance. Here artists are
    put in a seeded random order before one is held out and up to 10 others are the history, or where the held-out one is
    published, the history is. It is therefore not next-item prediction, and the query says so.

    hetrec2011 (`user_artists.dat`): users in a seeded random order, split 8:1:1; play counts only say that an artist was
    played. Training users give up to 40 examples each. The 19 negatives are drawn uniformly from the artists that the
    user never played.

    LLaRA (`train_sessions.jsonl`, `val.jsonl`, `id2name.txt`): training is a stream over the sessions, each example with
    an order of its own and negatives of the kind `negatives`. `val.jsonl` keeps its positives and its candidates in
    their order: its first half is the validation split, its second half the test split. Artists are keyed by id.

    S-DPO (`lastfm-val.json`): training is the same stream over LLaRA's sessions in the folder or in one inside it; else
    over those of `lastfm-train.json`; else over LLaRA's in a folder beside that of `lastfm-val.json`. `lastfm-val.json`
    is the validation split and `lastfm-test.json` beside it the test split; if that is missing, the first half of the
    sessions of `lastfm-val.json` is the validation split, the second half the test split. Rows are all prefixes of few
    sessions: `group` is the session. Pools are those published, in a seeded random order. Artists are keyed by name.

    Raises KitError on a folder without one of these layouts, and on a broken row.
    """
    notes, folder = notes or Notes(), Path(folder)
    layout = lastfm_task(folder, task)
    if layout == "lastfm-sdpo":
        return _sdpo(folder, notes, seed, negatives)
    if layout == "lastfm-llara":
        return _llara(folder, notes, seed, negatives)
    return _hetrec(folder, notes, Random(f"lastfm {seed}"))


def _inside(folder: Path, name: str) -> Path | None:
    """A file in the folder, else in a folder inside it. Raises KitError if it is in several of these."""
    if (folder / name).exists():
        return folder / name
    found = sorted(folder.glob(f"*/{name}"))
    if len(found) > 1:
        there = ", ".join(str(path.parent) for path in found[:5])
        raise KitError(f"{folder}: {name} is in several folders ({there}): keep one.")
    return found[0] if found else None


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


def _sessions(path: Path, notes: Notes) -> tuple[dict[str, str], dict[str, list[str]]]:
    """LLaRA's training data: name of each artist id, and the artist ids of each session of two or more."""
    names = names_by_id(path.with_name("id2name.txt"), ARTISTS, "::", notes, parts=2)  # a name may hold "::"
    sessions = {}
    for number, (where, row) in enumerate(json_rows(path)):
        notes.read[path.name] += 1
        session = list(dict.fromkeys(_ids(where, row, "items", names)))
        if len(session) < 2:
            notes.drop(path, "session of fewer than two artists")
        else:
            sessions[f"session-{number}"] = session
    if not sessions:
        raise KitError(f"{path}: no session of two artists or more ({notes.lost(path.name)}).")
    return names, sessions


def _ids(where: str, row: object, name: str, names: dict[str, str]) -> list[str]:
    if isinstance(row, KitError):
        raise row
    try:
        found = [str(i) for i in field(row, name, list)]
    except KitError as error:
        raise KitError(f"{where}: {error}") from None
    if unknown := [i for i in found if i not in names]:
        raise KitError(f"{where}: field '{name}': artist {unknown[0]!r:.40} is not in id2name.txt.")
    return found


def _llara(folder: Path, notes: Notes, seed: int, negatives: str) -> Splits:
    names, sessions = _sessions(folder / SESSIONS, notes)
    path, held = folder / HELD, list[Example]()
    for number, (where, row) in enumerate(json_rows(path)):
        notes.read[path.name] += 1
        rng = Random(f"lastfm {seed} {number}")
        pool, history = _ids(where, row, "candidates", names), shuffled(_ids(where, row, "history", names), rng)
        assert isinstance(row, dict)  # `_ids` has read two of its fields
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
        name = f"val-{number}"
        held.append(item_example(QUERY, names, name, history, pool, positive, name))
    if len(held) < 2:
        raise KitError(f"{folder}: {len(held)} rows in {HELD} are too few for validation and test.")
    items = {artist: names[artist] for artist in sorted(names)}
    train = histories(folder, QUERY, items, sessions, negatives, in_order=False)
    return Splits(train, held[: len(held) // 2], held[len(held) // 2 :])


class Row(NamedTuple):
    """A row of S-DPO's files: artists by name."""

    history: tuple[str, ...]
    pool: list[str]
    positive: str


def _sdpo(folder: Path, notes: Notes, seed: int, negatives: str) -> Splits:
    path = _inside(folder, SDPO)
    assert path is not None  # `lastfm_task` has found it
    own, test_path = path.with_name("lastfm-train.json"), path.with_name("lastfm-test.json")
    found = _inside(folder, SESSIONS)
    if not found and not own.exists():
        found = _inside(path.parent.resolve().parent, SESSIONS)
    if found:
        names, by_id = _sessions(found, notes)
        sessions = {name: list(dict.fromkeys(names[i] for i in ids)) for name, ids in by_id.items()}
        items = sorted({*names.values()})
        if twice := len(names) - len(items):
            notes.remarks[f"{found.with_name('id2name.txt').name}: ids that share a name, and are one artist here"] = (
                twice
            )
        if own.exists():
            notes.remarks[f"{own.name} is not read, training sessions are those of {found.name}"] = len(by_id)
    elif own.exists():
        rows = _rows(own, notes)
        numbers, sessions = sessions_of([(row.history, row.positive) for row in rows]), {}
        for row, number in zip(rows, numbers, strict=True):
            artists = sessions.setdefault(f"session-{number}", [])
            artists += [name for name in (*row.history, row.positive) if name not in artists]
        items = sorted({name for row in rows for name in (*row.history, *row.pool)})
    else:
        raise KitError(f"{folder}: no training sessions: put {SESSIONS} and id2name.txt of LLaRA (or lastfm-train.json) "
                       f"in this folder, or in a folder inside or beside it.")  # fmt: skip
    known, train = (
        {*items},
        histories(folder, QUERY, {name: name for name in items}, sessions, negatives, in_order=False),
    )

    def held(path: Path) -> list[Example]:
        rows, made = _rows(path, notes), []
        what = path.stem.removeprefix("lastfm-")
        numbers = sessions_of([(row.history, row.positive) for row in rows])
        for n, (row, number) in enumerate(zip(rows, numbers, strict=True)):
            rng, texts = Random(f"lastfm-sdpo {seed} {what} {n}"), {name: name for name in (*row.history, *row.pool)}
            history, pool = shuffled(row.history, rng), shuffled(row.pool, rng)
            made.append(item_example(QUERY, texts, f"{what}-{n}", history, pool, row.positive, f"{what}-{number}"))
        if new := sum(not known.issuperset((*row.history, *row.pool)) for row in rows):
            notes.remarks[f"{path.name}: rows that hold an artist who is not in the training data"] = new
        return made

    validation = held(path)
    if test_path.exists():
        return Splits(train, validation, held(test_path))
    groups = list(dict.fromkeys(e.group for e in validation))
    if len(groups) < 2:
        raise KitError(
            f"{path}: {len(groups)} session is too few for validation and test; put {test_path.name} beside it."
        )
    notes.remarks[f"{path.name}: sessions, split in halves for validation and test as {test_path.name} is missing"] = (
        len(groups)
    )
    first = {*groups[: len(groups) // 2]}
    halves: tuple[list[Example], list[Example]] = ([], [])
    for e in validation:
        halves[e.group not in first].append(e)
    return Splits(train, *halves)


def _rows(path: Path, notes: Notes) -> list[Row]:
    """The rows of a file of S-DPO. Raises KitError on one that is broken."""
    rows = []
    for where, row in json_rows(path):
        notes.read[path.name] += 1
        try:
            if isinstance(row, KitError):
                raise row
            history = tuple(field(row, "historyList", str).split("::"))
            pool, positive = field(row, "itemList", list), field(row, "trueSelection", str)
            if not all(name.strip() for name in history) or len({*history}) < len(history):
                raise KitError("field 'historyList' must be names of different artists, with '::' between them")
            if not all(isinstance(name, str) and name.strip() for name in pool):
                raise KitError("field 'itemList' must be a list of names")
            if len({*pool}) < len(pool) or len(pool) < 2:
                raise KitError("field 'itemList' must hold two or more names, and none twice")
            if positive not in pool or positive in history:
                where_to = "'historyList'" if positive in history else "'itemList'"
                raise KitError(f"field 'trueSelection' is {'' if positive in history else 'not '}in {where_to}")
        except KitError as error:
            raise error if isinstance(row, KitError) else KitError(f"{where}: {error}.") from None
        rows.append(Row(history, pool, positive))
    if not rows:
        raise KitError(f"{path}: holds no row.")
    return rows


def sessions_of(rows: Sequence[tuple[tuple[str, ...], str]]) -> list[int]:
    """Session of each (history, positive), numbered from 0 by the first row.

    The rows of a session are its prefixes: a row goes on from another if its history is the other's history and positive,
    of which the longest histories show the end alone. The order of the rows does not matter.
    """
    longest = max((len(history) for history, _ in rows), default=0)
    row_before = {(*history, positive)[-longest:]: n for n, (history, positive) in enumerate(rows)}
    sessions, count = [-1] * len(rows), 0
    for n in range(len(rows)):
        path = [n]
        while sessions[path[-1]] < 0 and (before := row_before.get(rows[path[-1]][0], n)) not in path:
            path.append(before)
        session = sessions[path[-1]]
        if session < 0:
            session, count = count, count + 1
        for m in path:
            sessions[m] = session
    return sessions
