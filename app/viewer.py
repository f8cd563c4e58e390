"""A viewer of the lab task made by choosing films: a taste that fits them, and a pool drawn as the lab draws pools."""

from collections.abc import Sequence
from functools import cache
from itertools import groupby

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from fgrpo.config import KitError
from fgrpo.data import Example
from fgrpo.tasks.lab import ATTRIBUTES, HISTORY, LAB_QUERY, SPREAD, Film, Viewers, lab_catalogue

from .markup import join, message, printable, tag

POOL_SIZES = (5, 200)
"""smallest and largest pool"""
SEEDS = (0, 2**31 - 1)
SWEEPS = 100
"""number of times that each taste is redrawn to fit the chosen films"""


def catalogue() -> tuple[Film, ...]:
    """The lab's 300 invented films with genre, tone and era; a film is named by its place."""
    return lab_catalogue()


def film_number(value: object) -> int:
    """The place of a film in the catalogue, from a number or from its digits, as a button sends them. Raises KitError."""
    digits = str(value)
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 6 and int(digits) < len(lab_catalogue())):
        raise KitError(f"film {printable(digits, 20)!r} is not in the catalogue of {len(lab_catalogue())} films.")
    return int(digits)


def toggled(liked: Sequence[int], value: object) -> tuple[int, ...]:
    """The chosen films after a click on one: it is added at the end, or taken out.

    `value`: see `film_number`. Raises KitError if the film is unknown, or if there is no room.
    """
    film = film_number(value)
    if film in liked:
        return tuple(x for x in liked if x != film)
    if len(liked) >= HISTORY:
        raise KitError(f"a viewer of the lab has seen {HISTORY} films: take one out before you choose another.")
    return (*liked, film)


def make_viewer(liked: Sequence[int], pool_size: int = 20, seed: int = 0) -> Example:
    """A viewer of the lab who has watched these films, the first one the most liked: 1 to 8 places in the catalogue.

    The lab draws a taste, then history and relevant films by their appeal, item after item. Here the history is known:
    a taste is drawn given it (`draw_appeal`), and the rest from this taste as by fgrpo.tasks.lab.Viewers: 2 to 4 relevant
    films, half of the others hard negatives. A pure function of its arguments. Raises KitError on bad ones.
    """
    if not 1 <= len(liked) <= HISTORY:
        raise KitError(f"choose between 1 and {HISTORY} films; {len(liked)} are chosen.")
    watched, films = list(map(film_number, liked)), lab_catalogue()
    if len(set(watched)) < len(watched):
        raise KitError("a film is chosen twice.")
    for name, value, (low, high) in (("pool size", pool_size, POOL_SIZES), ("seed", seed, SEEDS)):
        if type(value) is not int or not low <= value <= high:
            raise KitError(f"{name}: enter a whole number between {low} and {high:,}.")
    random = np.random.default_rng([seed, *watched])  # whatever the pool's size
    pool, relevant = draw_pool(
        draw_appeal(watched, random),
        watched,
        2 + int(random.integers(3)),
        pool_size,
        *random.gumbel(size=(3, len(films))),
    )
    order = random.permutation(len(pool))
    titles = tuple(films[pool[i]].title for i in order)
    history = tuple(films[i].title for i in watched)
    hits = frozenset(np.flatnonzero(order < relevant).tolist())
    name = f"clicked {seed} {pool_size}: {' '.join(map(str, watched))}"
    return Example(name, LAB_QUERY, history, titles, hits, history_ids=history, candidate_ids=titles)


@cache
def attributes() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Which of the 21 genres, tones and eras each film has (300, 21), and the factor of the tastes for each (21,)."""
    names = [(kind, name) for kind, some in ATTRIBUTES.items() for name in some]
    has = np.array([[getattr(film, kind) == name for kind, name in names] for film in lab_catalogue()], dtype=float)
    return has, Viewers().taste * np.array([SPREAD[kind] for kind, _ in names])


def draw_appeal(watched: Sequence[int], random: np.random.Generator, sweeps: int = SWEEPS) -> NDArray[np.float64]:
    """The appeal of every film (300,) to a viewer of the lab who has this history: one draw of the posterior.

    Metropolis within Gibbs: each of the 21 tastes in turn is redrawn as the lab draws it, Gumbel-distributed, and the new
    one is taken with the ratio of the likelihoods of the history.
    """
    has, spread = attributes()
    tastes = spread * random.gumbel(size=len(spread))
    appeal = has @ tastes
    likelihood = log_likelihood(watched, appeal)
    for _ in range(sweeps):
        news, bars = spread * random.gumbel(size=len(spread)), np.log(random.random(len(spread)))
        for i, new in enumerate(news):
            other = appeal + (new - tastes[i]) * has[:, i]
            found = log_likelihood(watched, other)
            if bars[i] < found - likelihood:
                tastes[i], appeal, likelihood = new, other, found
    return appeal


def log_likelihood(watched: Sequence[int], appeal: NDArray[np.float64]) -> float:
    """Log-probability that a viewer with this appeal (300,) draws this history, item after item by softmax."""
    worth = np.exp(appeal - appeal.max())
    own = worth[watched]
    worth[watched] = 0.0
    left = worth.sum() + own[::-1].cumsum()[::-1]  # what is left when each is drawn
    return float((np.log(np.maximum(own, 1e-300)) - np.log(np.maximum(left, 1e-300))).sum())


def draw_pool(
    appeal: NDArray[np.float64], watched: Sequence[int], relevant: int, size: int, liked: NDArray[np.float64],
    hard: NDArray[np.float64], easy: NDArray[np.float64],
) -> tuple[list[int], int]:  # fmt: skip
    """A pool as the lab draws it, the relevant films first, then the hard negatives; and the number of relevant ones.

    appeal (300,) of the films to the viewer; liked, hard, easy: random numbers (300,), the first two Gumbel-distributed.
    """

    def best(scores: NDArray[np.float64], count: int) -> list[int]:
        scores = scores.copy()
        scores[[*watched, *pool]] = -np.inf
        return (-scores).argsort(kind="stable")[:count].tolist()

    pool: list[int] = []
    pool += best(appeal + liked, relevant)
    pool += best(Viewers().hard * appeal + hard, (size - relevant) // 2)
    return pool + best(easy, size - len(pool)), relevant


def catalogue_panel(liked: Sequence[int], search: str = "") -> Markup:
    """The films as buttons to choose by, grouped by genre: those chosen, and those that have every word of the search.

    A button has the film's place as `data-film`, and `aria-pressed`. Raises KitError on an unknown film.
    """
    films, words = lab_catalogue(), search.casefold().split()
    texts = [f"{film.title} {film.genre} {film.tone} {film.era}".casefold() for film in films]
    found = {n for n, text in enumerate(texts) if all(word in text for word in words)}
    chosen = list(map(film_number, liked))
    groups = []
    for genre, numbers in groupby(sorted(found.union(chosen)), key=lambda n: films[n].genre):
        some = list(numbers)
        pressed = sum(n in chosen for n in some)
        buttons = join(_button(n, n in chosen) for n in some)
        count = f" ({pressed} chosen)" if pressed else ""
        groups.append(
            tag('<fieldset class="films"><legend>{}{}</legend>{}</fieldset>', genre.capitalize(), count, buttons)
        )
    help_text = (
        f"Choose 1 to {HISTORY} films that a viewer has liked, the favourite first. The pool is then drawn as the lab draws "
        "pools: films that the same taste would like, others that resemble them, and others at random."
    )
    names = ", ".join(films[n].title for n in chosen)
    state = f"{len(chosen)} of {HISTORY} films chosen{': ' if names else '.'}{names}"
    nothing = "" if found else message(f"No film has every word of {printable(search, 60)!r}.")
    return tag('<p>{}</p><p role="status">{}</p>{}{}', help_text, state, nothing, join(groups))


def _button(number: int, chosen: bool) -> Markup:
    film = lab_catalogue()[number]
    return tag(
        '<button type="button" data-film="{}" aria-pressed="{}">{} <small>{}, {}</small></button>',
        number, "true" if chosen else "false", film.title, film.tone, film.era,
    )  # fmt: skip
