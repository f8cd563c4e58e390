"""What MovieLens and LastFM share: one example per position of a user's items, and 19 sampled negatives.

Pools hold one relevant item and 19 negatives. Items are keyed by id (`history_ids`, `candidate_ids`); a prompt shows
names only.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..config import KitError
from ..data import Example, Splits
from .reading import Notes, shuffled, tenths
from .tables import Column, table

HISTORY = 10
"""maximum number of items in a history"""
POOL = 20
"""candidates per query"""
TRAIN_WINDOWS = 40
"""maximum number of training examples per user: one for each of the last positions of the user's sequence"""


class ItemTask(NamedTuple):
    """What all examples of one data set have in common."""

    query: str
    items: list[str]
    """ids from which negatives are drawn, sorted"""
    names: dict[str, str]
    """text of each id"""
    source: Path
    """file or folder of the items, for messages"""
    exclude_own: bool = False
    """no item of the user is a negative (else: no item of the history shown)"""

    def example(self, name: str, history: list[str], pool: list[str], positive: str, group: str) -> Example:
        """An example from ids. `group` names the user or session."""
        return Example(
            name, self.query, tuple(self.names[i] for i in history), tuple(self.names[i] for i in pool),
            frozenset([pool.index(positive)]), tuple(history), tuple(pool), group=group,
        )  # fmt: skip

    def examples(self, user: str, sequence: list[str], rng: Random, windows: int) -> list[Example]:
        """One example for each of the last `windows` positions but the first; the item there is the positive.

        Raises KitError if the catalogue is too small for the negatives.
        """
        made = []
        for end in range(max(1, len(sequence) - windows), len(sequence)):
            history, positive = sequence[max(0, end - HISTORY) : end], sequence[end]
            taken = {*history, positive, *(sequence if self.exclude_own else ())}
            if len(self.items) - len(taken) < POOL - 1:
                few = f"the catalogue of {len(self.items)} items is too small for {POOL - 1} negatives."
                raise KitError(f"{self.source}: {few}")
            pool = [positive]
            while len(pool) < POOL:
                item = self.items[int(rng.random() * len(self.items))]
                if item not in taken:
                    taken.add(item)
                    pool.append(item)
            made.append(self.example(f"{user}-{end}", history, shuffled(pool, rng), positive, user))
        return made


def names_by_id(path: Path, columns: Sequence[Column], separator: str, notes: Notes, parts: int = 0) -> dict[str, str]:
    """Name of each id, from a table of ids and names. Raises KitError on an id that appears twice or has no name."""
    names: dict[str, str] = {}
    for where, (item, name) in table(path, columns, separator, notes, parts):
        if item in names:
            raise KitError(f"{where}: id {item!r:.40} appears twice.")
        if not name.strip():
            raise KitError(f"{where}: id {item!r:.40} has no {columns[1].name}: a prompt shows it by that.")
        names[item] = name
    return names


def split_by_user(
    task: ItemTask, users: list[tuple[str, list[str]]], rng: Random, path: Path, notes: Notes, what: str
) -> Splits:
    """Users, given as (user, items in order), split 8:1:1 in the order of the list.

    Training users give up to TRAIN_WINDOWS examples each; validation and test users give one, their last item. Users
    of a single item (`what`, for the notes) are left out and counted. Where a pool of 20 may hold other items of its
    user than the positive, the notes remark how many do. Raises KitError if there are too few users.
    """
    kept = [(user, sequence) for user, sequence in users if len(sequence) > 1]
    if len(kept) < len(users):
        notes.drop(path, f"the user's only {what}", len(users) - len(kept))
    parts = tenths(kept)
    if not all(parts):
        raise KitError(f"{path}: {len(kept)} users with more than one {what} are too few to split 8:1:1 "
                       f"({notes.read[path.name]:,} rows read, {notes.lost(path.name)}).")  # fmt: skip
    splits: list[list[Example]] = [[], [], []]
    for name, split, part, windows in zip(Splits._fields, splits, parts, (TRAIN_WINDOWS, 1, 1), strict=True):
        mixed = 0
        for user, sequence in part:
            made, own = task.examples(user, sequence, rng, windows), set(sequence)
            mixed += sum(len(own.intersection(e.candidate_ids)) > 1 for e in made)
            split += made
        if not task.exclude_own:
            label = f"{path.name}: {name} pools where a negative is another {what} of the same user"
            notes.remarks[f"{label}, of {len(split):,}"] = mixed
    return Splits(*splits)
