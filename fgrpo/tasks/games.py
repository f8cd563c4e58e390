"""Amazon Games in the layout of LLMRank (arXiv 2305.08845): rank what a retriever found for each user."""

import html
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from random import Random

from ..config import KitError
from ..data import Example, Splits
from .files import contents, lines_of, open_text, unreadable
from .next_item import HISTORY, POOL, histories, item_example, names_by_id
from .reading import Notes, shuffled
from .tables import Column, table

QUERY = "Which of these video games and accessories will this customer buy next?"
ITEMS = (Column("item_id:token", other="item_id"), Column("title:token_seq", other="title:token"))
USERS = (Column("user_id:token"), Column("item_id_list:token_seq"), Column("item_id:token"))
ATOMIC = ("inter", "item", "user", "kg", "link", "net")
"""endings of RecBole's files, which are no retriever's"""
MOST = {"games-union": 500}
"""most candidates in a pool, by task; elsewhere the published pools' 100"""


def load_games(
    folder: str | Path, notes: Notes | None = None, seed: int = 0, task: str = "games-mixed", pool: int = POOL,
    negatives: str = "mixed", has_gt: bool = True,
) -> Splits:  # fmt: skip
    """Next items over the pools of a retriever: `games-NAME` of file `*.NAME`, `games-mixed` of one at random a user.

    `games-union` has the lists of all retrievers in turn: the first item of each, the second of each, and so on.

    The folder holds `*.item` (id and title), `*.test.inter` (user, item ids in order of time, next item) and one file a
    retriever (`user<TAB>item item ...`, best first). Users with a pool of any retriever are held out, half of them for
    validation and half for test by a seeded shuffle, the same for every task name; the sequences of all others, with
    their next item, are the training stream, whose pools are drawn by `negatives`.

    A held-out pool is the first `pool` items of the retriever's list after the user's own items were taken out of it,
    in a seeded random order; a list that has too few left gives a smaller pool, as `notes` remark. If it lacks the next
    item, the last one is replaced by that (`has_gt`, LLMRank's rule); without `has_gt` nothing in the pool is relevant
    then, which bounds recall. `notes` remark for how many queries the retriever found it, in both cases.

    Items are keyed by id, because titles repeat. Raises KitError if a file is missing, or a row is broken.
    """
    notes, folder = notes or Notes(), Path(folder)
    inter = _only(folder, "*.test.inter")
    titles = names_by_id(_only(folder, "*.item"), ITEMS, "\t", notes)
    titles = {item: " ".join(html.unescape(title).split()) for item, title in titles.items()}
    sequences = _sequences(inter, titles, notes)
    stem, name, files = inter.name.removesuffix("test.inter"), task.removeprefix("games-"), _retrievers(inter)
    several = name in ("mixed", "union")
    if not files or not (several or name in files):
        there = ", ".join(files) or f"none; {contents(folder)}"
        raise KitError(f"{folder}: no file {stem}{'RETRIEVER' if several else name} (retrievers here: {there}).")
    lists = {ending: _lists(path, sequences, notes) for ending, path in files.items()}

    held = [user for user in sequences if any(user in found for found in lists.values())]
    chosen = [user for user in held if several or user in lists[name]]
    if lost := len(held) - len(chosen):
        notes.drop(inter, f"a user that other retrievers have a pool for, and {name} has not", lost)
    order, cut = shuffled(held, Random(f"games {seed}")), len(held) // 2
    kept, splits = {*chosen}, []
    for split, users in zip(Splits._fields[1:], (order[:cut], order[cut:]), strict=True):
        examples, found, short = [], 0, 0
        for user in (user for user in users if user in kept):
            rng = Random(f"games {seed} {user}")
            names = [ending for ending in lists if user in lists[ending]] if several else [name]
            ending = names[int(rng.random() * len(names))]
            *history, positive = sequences[user]
            if name == "union":
                ending, own = "union", {*history}
                for retriever in names:
                    _without(*lists[retriever][user], titles, history)
                items = [item for item in _in_turn(lists, user) if item not in own][:pool]
            else:
                items = _without(*lists[ending][user], titles, history)[:pool]
            found += positive in items
            if has_gt and positive not in items:
                items = [*items[: pool - 1], positive]
            short += len(items) < pool
            shown = shuffled(items, rng)
            examples.append(item_example(QUERY, titles, f"{ending}-{user}", history[-HISTORY:], shown, positive, user))
        what = "is put in" if has_gt else "is not in the pool"
        label = (
            f"{split}: next items that the retriever has in its first {pool} (any other {what}), of {len(examples):,}"
        )
        notes.remarks[label] = found
        if short:
            notes.remarks[f"{split}: pools of fewer than {pool} items, as the rest of the list is the user's own"] = (
                short
            )
        splits.append(examples)
    if not all(splits):
        raise KitError(f"{folder}: {len(chosen)} users with a pool are too few for validation and test.")
    apart = {*held}
    others = {user: sequence for user, sequence in sequences.items() if user not in apart}
    return Splits(histories(inter, QUERY, titles, others, negatives, pool), *splits)


def retrieved(folder: str | Path, examples: Sequence[Example]) -> list[list[int]]:
    """The order of each held-out pool in its retriever's list, best first; an item that was put in comes last."""
    files, orders = _retrievers(_only(Path(folder), "*.test.inter")), list[list[int]]()
    users = {e.id.split("-", 1)[1]: e for e in examples}
    names = {e.id.split("-", 1)[0] for e in examples}
    lists = {name: _lists(files[name], users, Notes()) for name in files if name in names or "union" in names}
    for e in examples:
        name, user = e.id.split("-", 1)
        place = {item: n for n, item in enumerate(_in_turn(lists if name == "union" else {name: lists[name]}, user))}
        orders.append(sorted(range(len(e.candidates)), key=lambda i: place.get(e.candidate_keys[i], len(place))))
    return orders


def _retrievers(inter: Path) -> dict[str, Path]:
    """The file of each retriever, by its name."""
    stem = inter.name.removesuffix("test.inter")
    files = {p.name.removeprefix(stem): p for p in sorted(inter.parent.glob(f"{stem}*")) if p.name.startswith(stem)}
    return {ending: p for ending, p in files.items() if "." not in ending and ending not in ATOMIC}


def _only(folder: Path, pattern: str) -> Path:
    """The one file of a pattern."""
    why, found = contents(folder), sorted(folder.glob(pattern))
    if len(found) == 1:
        return found[0]
    what = f"{', '.join(p.name for p in found)}: keep one" if found else f"no Games here ({why})"
    raise KitError(f"{folder}: {what}; --data must be a folder with one {pattern}.")


def _sequences(path: Path, titles: Mapping[str, str], notes: Notes) -> dict[str, list[str]]:
    """Items of each user in order of time, the next item last."""
    same, sequences = {item: item for item in titles}, dict[str, list[str]]()  # one string per item: less memory
    for where, (user, items, positive) in table(path, USERS, "\t", notes):
        notes.read[path.name] += 1
        if user in sequences:
            raise KitError(f"{where}: user {user!r:.40} appears twice.")
        listed = items.split()
        try:
            sequence = [same[item] for item in dict.fromkeys((*listed, positive))]
        except KeyError as error:
            raise KitError(f"{where}: item {error.args[0]!r:.40} is not in the list of items.") from None
        if positive in listed:
            notes.drop(path, "the next item is in the sequence already")
        elif len(sequence) < 2:
            notes.drop(path, "a user of one item")
        else:
            sequences[user] = sequence
    return sequences


def _lists(path: Path, sequences: Mapping[str, object], notes: Notes) -> dict[str, tuple[str, str]]:
    """(where, items of a retriever) of each user: a text, as most files are read for their users alone."""
    lists: dict[str, tuple[str, str]] = {}
    try:
        with open_text(path)[0] as file:
            for number, line in enumerate(lines_of(path, file), start=1):
                user, tab, items = line.rstrip("\r\n").partition("\t")
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                notes.read[path.name] += 1
                if not tab or not items.strip():
                    raise KitError(f"{where}: expected user, a tab, and item ids with spaces between them.")
                if user in lists:
                    raise KitError(f"{where}: user {user!r:.40} appears twice.")
                if user in sequences:
                    lists[user] = where, items
                else:
                    notes.drop(path, "no sequence of this user")
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error) from None
    return lists


def _in_turn(lists: Mapping[str, Mapping[str, tuple[str, str]]], user: str) -> list[str]:
    """The first item of each retriever that has this user, then the second of each, and so on; each item once."""
    found = [of_users[user][1].split() for of_users in lists.values() if user in of_users]
    return list(dict.fromkeys(item for place in zip_longest(*found) for item in place if item is not None))


def _without(where: str, listed: str, titles: Mapping[str, str], history: list[str]) -> list[str]:
    """A retriever's list without the user's own items."""
    items = listed.split()
    if unknown := [item for item in items if item not in titles]:
        raise KitError(f"{where}: item {unknown[0]!r:.40} is not in the list of items.")
    if len({*items}) < len(items):
        raise KitError(f"{where}: an item appears twice in the list.")
    own = {*history}
    left = [item for item in items if item not in own]
    if len(left) < 2:
        raise KitError(f"{where}: fewer than two items are left without the user's own: there is nothing to choose.")
    return left
