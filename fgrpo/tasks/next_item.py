"""What MovieLens, LastFM and Games share: one example per position of a user's items, and sampled negatives.

Pools hold one relevant item and its negatives. Items are keyed by id (`history_ids`, `candidate_ids`); a prompt shows
names only.
"""

import hashlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from random import Random
from typing import NamedTuple

from ..config import KitError
from ..data import Example, Splits
from .reading import Notes, Sampled, shuffled, tenths
from .tables import Column, table

HISTORY = 10
"""maximum number of items in a history"""
POOL = 20
"""candidates per query"""
TRAIN_WINDOWS = 40
"""maximum number of training positions of a user: the last ones of the user's sequence"""
SAMPLE = 65_536
"""maximum number of examples in a stream as a finite sequence"""
TRIES = 100
"""draws of one negative, all of them of items that the pool may not hold, after which it is drawn uniformly"""


def item_example(
    query: str, names: Mapping[str, str], name: str, history: Sequence[str], pool: Sequence[str], positive: str, group: str
) -> Example:  # fmt: skip
    """An example from ids; nothing is relevant if the positive is not in the pool. `group` names the user or session."""
    return Example(
        name, query, tuple(names[i] for i in history), tuple(names[i] for i in pool),
        frozenset(i for i, item in enumerate(pool) if item == positive), tuple(history), tuple(pool), group=group,
    )  # fmt: skip


@dataclass(frozen=True)
class Histories(Sampled):
    """Training examples without end over users' sequences: number i of a seed is a pure function of (use, seed, i).

    An example is a position of a user: the item there is the positive, up to HISTORY items before it are the history.
    Positions are drawn uniformly from the last TRAIN_WINDOWS of every user, and negatives and the order of the pool
    with them, from a generator seeded by (use, seed, i): they are fresh in every example, and a run that is resumed
    needs no state. 8,000 examples a second on one core, with `mixed` negatives 5,000.

    As a sequence this is a fixed sample that covers all users: every position once or, where there are more than SAMPLE,
    the last position of each user (of at most SAMPLE users, evenly spaced).
    """

    query: str
    items: Mapping[str, str] = field(repr=False)
    """text of each item by its key; uniform negatives are drawn from all of them"""
    sequences: Mapping[str, Sequence[str]] = field(repr=False)
    """keys of each user's or session's items, in order; none twice in a sequence"""
    exclude_own: bool = True
    """no item of the user's sequence is a negative (else: no item of the history shown)"""
    negatives: str = "uniform"
    """uniform; popular: by the number of sequences that hold an item; or mixed: in turn uniform, popular, and a
    neighbour, which is an item that other users have together with items of the history, by the number of such pairs"""
    pool: int = POOL
    """candidates per query"""
    in_order: bool = True
    """False: sequences have no order, and each example draws one"""

    def __post_init__(self) -> None:
        own = max(map(len, self.sequences.values()), default=0) if self.exclude_own else HISTORY + 1
        if len(self.items) - own < self.pool - 1:
            raise KitError(f"the catalogue of {len(self.items):,} items is too small for {self.pool - 1} negatives.")
        if not self._ends or not self._ends[-1]:
            raise KitError(f"none of {len(self.sequences):,} training sequences has two items.")

    def take(self, first: int, count: int, seed: int = 0, use: str = "train") -> list[Example]:
        """Examples `first` to `first + count - 1`."""
        return [self._drawn(f"{use}-{seed}-{i}") for i in range(first, first + count)]

    def example(
        self, name: str, user: str, history: Sequence[str], positive: str, rng: Random, own: Iterable[str] = ()
    ) -> Example:
        """An example with negatives drawn as in training, none of them in `own`, and its pool in random order."""
        history, taken = history[-HISTORY:], {*history[-HISTORY:], positive, *own}
        draws = {
            "uniform": (self._uniform,), "popular": (self._popular,),
            "mixed": (self._uniform, self._popular, self._neighbour),
        }[self.negatives]  # fmt: skip
        pool = [positive]
        for n in range(self.pool - 1):
            draw, tries = draws[n % len(draws)], 1
            while (item := draw(rng, user, history)) in taken:
                tries += 1
                if tries > TRIES:
                    draw = self._uniform
            taken.add(item)
            pool.append(item)
        return item_example(self.query, self.items, name, history, shuffled(pool, rng), positive, user)

    @cached_property
    def counts(self) -> Counter[str]:
        """Number of sequences that hold an item, by its key."""
        return Counter(item for sequence in self.sequences.values() for item in {*sequence})

    @cached_property
    def windows(self) -> int:
        """Number of (user, position) pairs that examples are drawn from."""
        return self._ends[-1]

    def _drawn(self, name: str) -> Example:
        rng = Random(name)
        user, position = self._window(int(rng.random() * self.windows))
        return self._at(name, user, position, rng, rng)

    def _at(self, name: str, user: str, position: int, rng: Random, order: Random) -> Example:
        sequence = self.sequences[user] if self.in_order else shuffled(self.sequences[user], order)
        own = sequence if self.exclude_own else ()
        return self.example(name, user, sequence[max(0, position - HISTORY) : position], sequence[position], rng, own)

    def _window(self, number: int) -> tuple[str, int]:
        """User and position of window `number`."""
        place = bisect_right(self._ends, number)
        user = self._users[place]
        return user, len(self.sequences[user]) - (self._ends[place] - number)

    @cached_property
    def _users(self) -> list[str]:
        return list(self.sequences)

    @cached_property
    def _ends(self) -> list[int]:
        """Number of windows of all users up to each one."""
        return list(accumulate(min(max(len(s) - 1, 0), TRAIN_WINDOWS) for s in self.sequences.values()))

    @cached_property
    def _keys(self) -> list[str]:
        return list(self.items)

    @cached_property
    def _counted(self) -> tuple[list[str], list[int]]:
        """Items of the sequences, and their counts summed up to each one."""
        keys = [key for key in self.items if self.counts[key]]
        return keys, list(accumulate(self.counts[key] for key in keys))

    @cached_property
    def _holders(self) -> dict[str, tuple[list[str], list[int]]]:
        """Users whose sequences hold an item, and the lengths of these sequences summed up to each one."""
        users: dict[str, list[str]] = {}
        for user, sequence in self.sequences.items():
            for item in sequence:
                users.setdefault(item, []).append(user)
        return {item: (some, list(accumulate(len(self.sequences[u]) for u in some))) for item, some in users.items()}

    def _uniform(self, rng: Random, user: str, history: Sequence[str]) -> str:
        return self._keys[int(rng.random() * len(self._keys))]

    def _popular(self, rng: Random, user: str, history: Sequence[str]) -> str:
        keys, sums = self._counted
        return keys[bisect_right(sums, int(rng.random() * sums[-1]))]

    def _neighbour(self, rng: Random, user: str, history: Sequence[str]) -> str:
        """An item that another user has beside one of the history; an item of the history if the draw finds none.

        The pairs (item of the history, place in a sequence that holds it) are drawn uniformly: an item of the history by
        the summed length of its holders' sequences, a holder by length, a place. So no matrix of counts is needed.
        """
        known = [item for item in history if item in self._holders]
        sums = list(accumulate(self._holders[item][1][-1] for item in known))
        if not known:
            return history[0]
        users, lengths = self._holders[known[bisect_right(sums, int(rng.random() * sums[-1]))]]
        other = users[bisect_right(lengths, int(rng.random() * lengths[-1]))]
        found = self.sequences[other][int(rng.random() * len(self.sequences[other]))]
        return history[0] if other == user else found

    @cached_property
    def _last(self) -> list[int]:
        """The last window of each user that has one."""
        return sorted({end - 1 for end in self._ends if end})

    def __len__(self) -> int:
        return self.windows if self.windows <= SAMPLE else min(len(self._last), SAMPLE)

    def sampled(self, numbers: range) -> list[Example]:
        """Those of the sample; one order for all positions of a session, so that they cover it."""
        made = []
        for number in numbers:
            window = number if self.windows <= SAMPLE else self._last[number * len(self._last) // len(self)]
            user, position = self._window(window)
            rng, order = Random(f"sample-{number}"), Random(f"order {user}")
            made.append(self._at(f"sample-{number}", user, position, rng, order))
        return made

    @cached_property
    def _digest(self) -> str:
        content = repr((self.query, dict(self.items), {user: [*s] for user, s in self.sequences.items()}))
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def __repr__(self) -> str:
        """Options and content: two streams of one repr have the same examples."""
        options = (
            f"exclude_own={self.exclude_own}, negatives={self.negatives!r}, pool={self.pool}, in_order={self.in_order}"
        )
        size = f"{len(self.sequences):,} sequences of {len(self.items):,} items"
        return f"Histories({size}, {options}, sha256={self._digest[:16]})"


def histories(source: Path, query: str, items: Mapping[str, str], sequences: Mapping[str, Sequence[str]],
              negatives: str, pool: int = POOL, in_order: bool = True) -> Histories:  # fmt: skip
    """The stream of a data set, without negatives of the same user. Raises KitError naming `source` if it is too small."""
    try:
        return Histories(query, items, sequences, True, negatives, pool, in_order)
    except KitError as error:
        raise KitError(f"{source}: {error}") from None


class ItemTask(NamedTuple):
    """What all examples of one data set with fixed training examples have in common."""

    query: str
    items: list[str]
    """ids from which negatives are drawn, sorted"""
    names: dict[str, str]
    """text of each id"""
    source: Path
    """file or folder of the items, for messages"""
    exclude_own: bool = False
    """no item of the user is a negative (else: no item of the history shown)"""

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
            pool = shuffled(pool, rng)
            made.append(item_example(self.query, self.names, f"{user}-{end}", history, pool, positive, user))
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


def counts(train: Sequence[Example]) -> Counter[str]:
    """How often an item is met in training: in how many sequences, or examples whose history or relevant set holds it."""
    if isinstance(train, Histories):
        return train.counts
    return Counter(
        key for e in train for key in {*e.history_keys, *(e.candidate_keys[i] for i in e.relevant)}
    )  # fmt: skip
