"""Two ceilings of the lab task: rankers that know how its viewers were made."""

from ..config import KitError
from ..data import Splits
from ..tasks.lab import ATTRIBUTES, Viewers, lab_catalogue
from .rankers import by_score


def taste(splits: Splits) -> list[list[int]]:
    """By the true appeal of each candidate to its viewer: nobody who sees the history alone can do as well."""
    return [by_score(appeal) for appeal in _viewers(splits).appeals(splits.test)]


def attributes(splits: Splits) -> list[list[int]]:
    """By the number of attributes (genre, tone, era) shared with the films of the history, each film counted."""
    _viewers(splits)
    films = {film.title: film for film in lab_catalogue()}

    def shared(title: str, history: tuple[str, ...]) -> int:
        return sum(getattr(films[title], a) == getattr(films[h], a) for h in history for a in ATTRIBUTES)

    return [by_score([shared(c, e.history) for c in e.candidates]) for e in splits.test]


def _viewers(splits: Splits) -> Viewers:
    if not isinstance(splits.train, Viewers):
        raise KitError(
            "baselines 'taste' and 'attributes' are for task lab-rec, whose viewers they know: leave them out."
        )
    return splits.train
