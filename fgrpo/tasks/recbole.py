"""RecBole's atomic files as next-item recommendation."""

import math
from collections import Counter
from pathlib import Path
from random import Random

from ..config import KitError
from ..data import Splits
from .files import LINE_LIMIT, matching, only, open_data, unreadable
from .jsonl import is_blank
from .next_item import ItemTask, split_by_user
from .reading import Notes, shuffled
from .tables import Column, table

QUERY = "Which of these items will this user choose next?"


def load_recbole(folder: str | Path, notes: Notes | None = None, seed: int = 0) -> Splits:
    """RecBole (arXiv 2011.01731): X.inter and X.item, whose header gives each column as `name:type`, between tabs.

    X.inter holds one interaction a row (user_id, item_id, timestamp), or a sequence in order of time (user_id,
    item_id_list, item_id); of a user's sequences the longest counts. A column session_id may stand for user_id. The text
    of an item is the first column of X.item whose name ends in `title`, else in `name`. Each user's items are put in
    order of time (ties in a seeded order); an item met again counts once, at its first time; ratings are not used.

    Users in order of their first interaction (those of sequences: in a seeded order) are split 8:1:1, so that nothing of
    a test user is trained on, which leave-one-out does not give; the last item of a held-out user is the positive. The 19
    negatives are drawn uniformly from the items that the user never met. Items are keyed by id.

    `notes` remark interactions with items without a title, and files that are not read. Raises KitError on a missing
    file or column, and on a broken row.
    """
    folder, notes, rng = Path(folder), notes or Notes(), Random(f"recbole {seed}")
    path, items = (
        only(matching(folder, [f"*.{kind}"], f"RecBole .{kind} file"), f".{kind} file") for kind in ("inter", "item")
    )
    if unused := [p.name for p in sorted(folder.iterdir()) if p.suffix in (".user", ".link", ".kg", ".net")]:
        notes.remarks[f"files that are not used ({', '.join(unused)})"] = len(unused)
    titles, users, lost = _titles(items, notes), list[tuple[str, list[str]]](), Counter[str]()
    events = _events(path, notes)
    for user in sorted(shuffled(events, rng), key=lambda user: min(events[user])[0]):
        sequence = [item for *_, item in sorted((time, rng.random(), item) for time, item in events[user])]
        named = [item for item in sequence if item in titles]
        users.append((user, list(dict.fromkeys(named))))
        lost[f"of an item without a title in {items.name}"] += len(sequence) - len(named)
        lost["of a user and item again"] += len(named) - len(users[-1][1])
    notes.remarks |= {f"{path.name}: interactions left out, {what}": count for what, count in lost.items() if count}
    known = sorted({item for _, sequence in users for item in sequence})
    return split_by_user(ItemTask(QUERY, known, titles, folder, exclude_own=True), users, rng, path, notes, "item")


def _events(path: Path, notes: Notes) -> dict[str, list[tuple[float, str]]]:
    """(time, item) of each interaction of each user; in a sequence the time is the place."""
    header, events = _header(path), dict[str, list[tuple[float, str]]]()
    listed = "item_id_list" in header
    names = (
        "session_id" if "session_id" in header else "user_id",
        "item_id",
        "item_id_list" if listed else "timestamp",
    )
    same: dict[str, str] = {}  # one string an item, not one an interaction: less memory
    for where, (user, item, other) in table(path, [Column(header.get(name, name)) for name in names], "\t", notes):
        notes.read[path.name] += 1
        if is_blank(user) or is_blank(item):
            raise KitError(f"{where}: field '{names[0] if is_blank(user) else 'item_id'}' is empty.")
        if listed:
            if user in events:
                notes.drop(path, "another sequence of the same user")
            sequence = [(float(n), same.setdefault(x, x)) for n, x in enumerate([*other.split(), item])]
            events[user] = max(events.get(user, []), sequence, key=len)
            continue
        try:
            time = float(other)
        except ValueError:
            time = math.nan
        if not math.isfinite(time):
            raise KitError(f"{where}: field 'timestamp' must be a number, found {other!r:.40}.")
        events.setdefault(user, []).append((time, same.setdefault(item, item)))
    return events


def _titles(path: Path, notes: Notes) -> dict[str, str]:
    """The text of each item that has one."""
    header, titles = _header(path), dict[str, str]()
    named = sorted((n for n in header if n.endswith(("title", "name"))), key=lambda n: not n.endswith("title"))
    if not named:
        raise KitError(f"{path}, line 1: no column whose name ends in title or name, by which an item is shown; found "
                       f"{', '.join(header)!r:.200}.")  # fmt: skip
    columns, seen = (Column(header.get("item_id", "item_id")), Column(header[named[0]])), set[str]()
    for where, (item, title) in table(path, columns, "\t", notes):
        notes.read[path.name] += 1
        if item in seen:
            raise KitError(f"{where}: item {item!r:.40} appears twice.")
        seen.add(item)
        if is_blank(title):
            notes.drop(path, f"{named[0]} is empty")
        else:
            titles[item] = title.strip()
    return titles


def _header(path: Path) -> dict[str, str]:
    """The columns of a file, `item_id:token`, by their names, `item_id`."""
    try:
        with open_data(path) as file:
            line = file.readline(LINE_LIMIT).decode("utf-8-sig", "replace").rstrip("\r\n")
    except OSError as error:
        raise unreadable(path, error) from None
    columns = line.split("\t")
    if not all(":" in column for column in columns):
        raise KitError(f"{path}, line 1: the header must name each column with its type, as in user_id:token, with tabs "
                       f"between them; found {line!r:.100}.")  # fmt: skip
    return {column.partition(":")[0]: column for column in columns}
