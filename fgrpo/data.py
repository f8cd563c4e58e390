"""`Example` and `Splits`, what a task is made of. fgrpo.tasks.jsonl reads and writes them as JSONL.

An item is its id where a catalogue has ids of its own, else its text: titles of real catalogues are not unique.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

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
    gains: tuple[float, ...] = ()  # graded labels, one per candidate, 0 or 1e-6 to 1e6; empty: all are 1
    group: str = ""  # examples of one group are not independent: a user or session

    def __post_init__(self) -> None:
        labels, gains, n = self.relevant, self.gains, len(self.candidates)
        ok = isinstance(labels, (frozenset, set, list, tuple)) and all(type(i) is int and 0 <= i < n for i in labels)
        if not ok or len(frozenset(labels)) < len(labels):
            raise KitError(f"example {self.id!r}: 'relevant' must be distinct indices below {n}; grades are 'gains'.")
        ok = type(gains) in (tuple, list) and len(gains) == n and {*map(type, gains)} <= {int, float}
        if len(gains) and not (ok and all(1e-6 <= g <= 1e6 if i in labels else g == 0 for i, g in enumerate(gains))):
            raise KitError(f"example {self.id!r}: 'gains' must be {n} numbers, 0 where irrelevant, else 1e-6 to 1e6.")
        if gains or type(labels) is not frozenset:  # lists are welcome
            self.__dict__.update(relevant=frozenset(labels), gains=tuple(gains))

    @property
    def history_keys(self) -> tuple[str, ...]:
        """Catalogue identity of the history: ids where the data have them, else texts."""
        return self.history_ids or self.history

    @property
    def candidate_keys(self) -> tuple[str, ...]:
        """Catalogue identity of each candidate, in pool order."""
        return self.candidate_ids or self.candidates


class Stream(Sequence[Example]):
    """Training examples without end, made when they are asked for. As a sequence: a finite sample of them."""

    @cached_property  # and not a property, so that a dataclass may have a field of this name
    def items(self) -> Mapping[str, str]:
        """Text of every item that an example may hold, by its key."""
        raise NotImplementedError

    @abstractmethod
    def take(self, first: int, count: int, seed: int = 0, use: str = "train") -> list[Example]:
        """Examples `first` to `first + count - 1`: a pure function of the arguments. Another `use` has other examples."""


class Splits(NamedTuple):
    """Training, validation and test examples of one task."""

    train: Sequence[Example]  # perhaps a Stream
    validation: list[Example]
    test: list[Example]
