"""The lab task: invented films, and an endless stream of viewers with a latent taste.

No query is ever seen twice in training, and a run that is resumed needs no state: viewer i of a seed is computed from i.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..data import Example, Splits
from ..rollout import key_of
from .jsonl import to_json
from .reading import Sampled

GENRES = {
    "noir": ("Alibi", "Alley", "Ledger", "Gunsel", "Dahlia"),
    "western": ("Mesa", "Stirrup", "Gulch", "Drover", "Canyon"),
    "space": ("Orbit", "Nebula", "Airlock", "Comet", "Rocket"),
    "heist": ("Vault", "Decoy", "Safe", "Getaway", "Forger"),
    "ghost": ("Attic", "Seance", "Manor", "Wraith", "Crypt"),
    "war": ("Trench", "Convoy", "Bunker", "Armada", "Siege"),
    "romance": ("Waltz", "Letter", "Suitor", "Picnic", "Serenade"),
    "fable": ("Fox", "Lantern", "Orchard", "Giant", "Spindle"),
    "sport": ("Relay", "Umpire", "Knockout", "Paddock", "Regatta"),
    "spy": ("Cipher", "Embassy", "Courier", "Dossier", "Mole"),
}
TONES = {
    "bleak": ("Ashen", "Hollow", "Bitter", "Frozen", "Barren"),
    "tender": ("Gentle", "Tender", "Velvet", "Loving", "Quiet"),
    "comic": ("Silly", "Giddy", "Clumsy", "Wacky", "Jolly"),
    "eerie": ("Eerie", "Pale", "Sunken", "Murky", "Veiled"),
    "heroic": ("Bold", "Mighty", "Valiant", "Noble", "Proud"),
    "dreamy": ("Amber", "Lunar", "Misty", "Silver", "Azure"),
}
ERAS = (1950, 1965, 1980, 1995, 2010)
LAB_QUERY = "Which of these films would this viewer like?"
VALIDATION, TEST = 1024, 2048
"""number of queries of the two fixed splits"""
HISTORY = 8
"""films that a viewer is known by"""
PARTS = {"taste": 21, "relevant": 1, "liked": 300, "hard": 300, "easy": 300, "order": 200, "unused": 2}
"""random numbers of one viewer, by use; their sum is a multiple of 4, so that each viewer begins a block of Philox"""
SPREAD = {"genre": 3.0, "tone": 2.2, "era": 0.8}
"""how strongly each attribute tells viewers apart: the factor of its Gumbel-distributed tastes"""


class Film(NamedTuple):
    """An invented film: the adjective of its title gives the tone away, the noun the genre."""

    title: str
    genre: str
    tone: str
    era: int


@cache
def lab_catalogue() -> tuple[Film, ...]:
    """The 300 films: every genre with every tone, five films each, one per era. No title appears twice."""
    return tuple(
        Film(f"{adjectives[(i + g) % 5]} {nouns[i]}", genre, tone, ERAS[(i + 2 * g + 3 * t) % 5])
        for g, (genre, nouns) in enumerate(GENRES.items())
        for t, (tone, adjectives) in enumerate(TONES.items())
        for i in range(5)
    )


@dataclass(frozen=True)
class Viewers(Sampled):
    """Viewers without end: number i of a seed is a pure function of (use, seed, i) and the options below.

    Each viewer has a latent taste: one Gumbel-distributed number per genre, tone and era, whose sum over the attributes
    of a film is its appeal. History and relevant films are drawn by appeal without replacement (Gumbel top-k: softmax
    sampling, item after item). Half of the other candidates are hard negatives, drawn from the rest by `hard` times the
    appeal; the other half is drawn uniformly. Random numbers are Philox (a counter-based generator), 1,124 a viewer, so
    that a viewer with another `pool` or `one_relevant` keeps taste and history.

    As a sequence these are 16,384 fixed viewers, for what needs a finite sample: `list(viewers)`, `viewers[:100]`.
    """

    one_relevant: bool = False  # exactly one relevant film in each pool instead of 2 to 4
    pool: int = 20
    taste: float = 1.0  # factor of all tastes: 0 is a coin, 2 leaves little to chance
    hard: float = 0.125  # of the appeal, by which hard negatives are drawn: 0 makes them easy

    @cached_property
    def items(self) -> dict[str, str]:
        """The titles of the films, by themselves."""
        return {film.title: film.title for film in lab_catalogue()}

    def __len__(self) -> int:
        return 16_384

    def sampled(self, numbers: range) -> list[Example]:
        """Those of the fixed viewers, in one go where they follow each other."""
        return self.take(numbers.start, len(numbers)) if numbers.step == 1 else [self[n] for n in numbers]

    def take(self, first: int, count: int, seed: int = 0, use: str = "train") -> list[Example]:
        """Viewers `first` to `first + count - 1`, thousands at a time in one go (10,000 a second)."""
        films = lab_catalogue()
        titles = np.array([film.title for film in films], dtype=object)
        parts = self._random(first, count, seed, use)
        appeal = self._appeal(parts["taste"])  # (N, 300)
        liked = _order(appeal + _gumbel(parts["liked"]))[:, : HISTORY + 4]  # (N, 12), most liked first
        relevant = np.full((count, 1), 1) if self.one_relevant else 2 + (3 * parts["relevant"]).astype(int)  # (N, 1)
        n_hard = (self.pool - relevant) // 2

        taken = np.zeros(appeal.shape, dtype=bool)
        np.put_along_axis(taken, liked, np.arange(HISTORY + 4) < HISTORY + relevant, axis=1)
        hard = _order(np.where(taken, -np.inf, self.hard * appeal + _gumbel(parts["hard"])))[:, : self.pool // 2]
        places = np.take_along_axis(taken, hard, axis=1) | (np.arange(hard.shape[1]) < n_hard)
        np.put_along_axis(taken, hard, places, axis=1)
        easy = _order(np.where(taken, -np.inf, parts["easy"]))[:, : self.pool]

        # a pool is its relevant films, then the hard, then the easy negatives: columns of all three side by side
        place, every = np.arange(self.pool), np.concatenate((liked[:, HISTORY:], hard, easy), axis=1)
        negative = np.where(place < relevant + n_hard, 4 - relevant, 4 + hard.shape[1] - relevant - n_hard)
        films_of = np.take_along_axis(every, np.where(place < relevant, place, place + negative), axis=1)  # (N, pool)
        order = parts["order"][:, : self.pool].argsort(axis=1, kind="stable")
        pools = titles[np.take_along_axis(films_of, order, axis=1)].tolist()
        histories = titles[liked[:, :HISTORY]].tolist()
        name = use if use in ("validation", "test") else f"{use}-{seed}"
        return [
            Example(f"{name}-{first + i}", LAB_QUERY, tuple(history), tuple(pool), frozenset(np.flatnonzero(hit).tolist()))
            for i, (history, pool, hit) in enumerate(zip(histories, pools, order < relevant, strict=True))
        ]  # fmt: skip

    def appeals(self, examples: Sequence[Example]) -> list[list[float]]:
        """The true appeal of each candidate to its viewer, which no policy sees: the order by it is the best there is."""
        place, found = {film.title: i for i, film in enumerate(lab_catalogue())}, []
        for example in examples:
            use, *seed, number = example.id.split("-")
            taste = self._random(int(number), 1, int(seed[0]) if seed else 0, use)["taste"]
            appeal = self._appeal(taste)[0]
            found.append([float(appeal[place[title]]) for title in example.candidates])
        return found

    def _appeal(self, taste: NDArray[np.float64]) -> NDArray[np.float64]:
        """Uniform numbers of the tastes (N, 21) -> appeal of every film (N, 300)."""
        spread = np.concatenate([np.full(len(names), SPREAD[kind]) for kind, names in ATTRIBUTES.items()])
        has, tastes = _attributes(), self.taste * spread * _gumbel(taste)
        return sum(tastes[:, i : i + 1] * has[i] for i in range(len(has)))  # in a fixed order, unlike a matrix product

    @staticmethod
    def _random(first: int, count: int, seed: int, use: str) -> dict[str, NDArray[np.float64]]:
        """Uniform numbers in [0, 1), (N, size) for each of PARTS."""
        size = sum(PARTS.values())
        raw = np.random.Philox(key=key_of("lab-rec", use, seed), counter=first * size // 4).random_raw(count * size)
        numbers = (raw.reshape(count, size) >> np.uint64(11)) * 2.0**-53
        ends = np.cumsum(list(PARTS.values()))[:-1]
        return dict(zip(PARTS, np.split(numbers, ends, axis=1), strict=True))


ATTRIBUTES: dict[str, Sequence[object]] = {"genre": list(GENRES), "tone": list(TONES), "era": ERAS}


@cache
def _attributes() -> NDArray[np.float64]:
    """Which attributes each film has, 1 or 0, (21, 300)."""
    names: list[tuple[str, object]] = [(kind, name) for kind, some in ATTRIBUTES.items() for name in some]
    return np.array([[getattr(film, kind) == name for film in lab_catalogue()] for kind, name in names], dtype=float)


def _gumbel(uniform: NDArray[np.float64]) -> NDArray[np.float64]:
    return -np.log(-np.log(np.maximum(uniform, 2.0**-60)))


def _order(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Columns by falling score. (N, K)."""
    return (-scores).argsort(axis=1, kind="stable")


def lab_task(one_relevant: bool = False, pool: int = 20, taste: float = 1.0, hard: float = 0.125) -> Splits:
    """The lab task: a stream to train on, 1,024 viewers to choose by, 2,048 to test on. Made in a second."""
    viewers = Viewers(one_relevant, pool, taste, hard)
    return Splits(viewers, viewers.take(0, VALIDATION, 0, "validation"), viewers.take(0, TEST, 0, "test"))


def lab_files(folder: str | Path, one_relevant: bool = False, train: int = 1000) -> dict[Path, str]:
    """The task as files to look at: the first training viewers, both fixed splits, the catalogue with its attributes."""
    folder, splits = Path(folder), lab_task(one_relevant)
    parts = {"train": splits.train[:train], "validation": splits.validation, "test": splits.test}
    files = {folder / f"{name}.jsonl": "".join(to_json(e) + "\n" for e in rows) for name, rows in parts.items()}
    rows = (json.dumps(film._asdict(), ensure_ascii=False) + "\n" for film in lab_catalogue())
    return {**files, folder / "catalogue.jsonl": "".join(rows)}
