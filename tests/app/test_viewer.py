"""A viewer made by choosing films: the lab's own rule, bad input, the panel."""

import html
import re

import numpy as np
import pytest

from app.playground import Form, example_from, typed
from app.viewer import (
    attributes,
    catalogue,
    catalogue_panel,
    draw_appeal,
    draw_pool,
    log_likelihood,
    make_viewer,
    toggled,
)
from fgrpo.config import KitError
from fgrpo.tasks.lab import HISTORY, Viewers, _gumbel, lab_catalogue

PLACE = {film.title: n for n, film in enumerate(catalogue())}


def test_appeal_and_pool_are_the_labs() -> None:
    """From the random numbers of a viewer of the lab, its appeals and its pool."""
    viewers = Viewers()
    has, spread = attributes()
    for number in range(40):
        (example,) = viewers.take(number, 1, 3)
        parts = {name: x[0] for name, x in viewers._random(number, 1, 3, "train").items()}
        appeal = has @ (spread * _gumbel(parts["taste"]))
        assert [appeal[PLACE[c]] for c in example.candidates] == pytest.approx(viewers.appeals([example])[0])
        watched = [PLACE[title] for title in example.history]
        numbers = _gumbel(parts["liked"]), _gumbel(parts["hard"]), parts["easy"]
        pool, relevant = draw_pool(appeal, watched, len(example.relevant), 20, *numbers)
        assert {catalogue()[i].title for i in pool} == set(example.candidates)
        assert {catalogue()[i].title for i in pool[:relevant]} == {example.candidates[i] for i in example.relevant}


def test_the_likelihood_of_a_history_is_softmax_item_after_item() -> None:
    appeal = np.random.default_rng(0).normal(size=300)
    left, expected = np.exp(appeal), 0.0
    for film in (5, 17, 250):
        expected += np.log(left[film] / left.sum())
        left[film] = 0.0
    assert log_likelihood([5, 17, 250], appeal) == pytest.approx(expected)
    assert np.isfinite(log_likelihood([0, 1], np.array([-5000.0, -5000.0, *np.zeros(298)])))


def test_tastes_fit_the_history() -> None:
    """A taste drawn given the history of a viewer of the lab finds its relevant films; one of the prior does not."""
    random, hits = np.random.default_rng(0), {20: [], 0: []}
    for example in Viewers().take(0, 40, 0, "validation"):
        watched = [PLACE[title] for title in example.history]
        for sweeps, found in hits.items():
            appeal = draw_appeal(watched, random, sweeps)
            scores = [appeal[PLACE[c]] for c in example.candidates]
            best = sorted(range(20), key=lambda i: -scores[i])[: len(example.relevant)]
            found.append(len(set(best) & example.relevant) / len(best))
    assert np.mean(hits[0]) < 0.3 < 0.5 < np.mean(hits[20])


@pytest.mark.parametrize("liked", [(7,), (7, 12, 250), tuple(range(0, 240, 30))])
@pytest.mark.parametrize("size", [5, 20, 200])
def test_a_viewer_is_an_example_of_the_lab(liked, size) -> None:
    example = make_viewer(liked, size, 3)
    assert example == make_viewer(liked, size, 3) != make_viewer(liked, size, 4)
    assert example.history == example.history_ids == tuple(catalogue()[i].title for i in liked)
    assert example.candidates == example.candidate_ids and len(set(example.candidates)) == size
    assert 2 <= len(example.relevant) <= 4 and not set(example.history) & set(example.candidates)
    other = make_viewer(liked, 20, 3)  # as in the lab, another pool keeps the relevant films
    films = [{e.candidates[i] for i in e.relevant} for e in (example, other)]
    assert films[0] == films[1]


def test_relevant_films_lie_in_the_pool_at_random() -> None:
    places = [i for seed in range(30) for i in make_viewer([3], 20, seed).relevant]
    assert min(places) < 4 and max(places) > 15


def test_the_playground_keeps_its_catalogue_ids() -> None:
    example = make_viewer([0, 31, 62])
    found = example_from(Form(*typed(example), 1.0, 10, 5, "constrained", 4, 0), example)
    assert found == example


def test_toggled_adds_and_takes_out() -> None:
    assert toggled((4, 2), 9) == (4, 2, 9) and toggled((4, 2, 9), 2) == (4, 9)
    full = tuple(range(HISTORY))
    assert toggled(full, 0) == full[1:] and toggled((), "299") == (299,)
    for film in ("300", "-1", "\N{SUPERSCRIPT TWO}", "7.0", None, True, "9" * 5000):
        with pytest.raises(KitError, match="is not in the catalogue of 300 films"):
            toggled((), film)
    with pytest.raises(KitError, match="take one out"):
        toggled(full, 100)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([],), "between 1 and 8"),
        ((range(9),), "9 are chosen"),
        (([300],), "film '300' is not in the catalogue"),
        (([-1],), "film .* is not in the catalogue"),
        ((["<b>"],), "film '<b>' is not"),
        (([True],), "film 'True' is not"),
        (([1, 1],), "chosen twice"),
        (([1], 4), "pool size: enter a whole number between 5 and 200"),
        (([1], 20.5), "pool size"),
        (([1], 20, -1), "seed"),
    ],
)
def test_bad_choices_are_one_sentence(arguments, words) -> None:
    with pytest.raises(KitError, match=words):
        make_viewer(*arguments)


def test_the_panel_has_a_button_for_each_film() -> None:
    panel = catalogue_panel([12, 40])
    assert sorted(map(int, re.findall(r'data-film="(\d+)"', panel))) == list(range(300))
    assert re.findall(r'data-film="(\d+)" aria-pressed="true"', panel) == ["12", "40"]
    film = lab_catalogue()[12]
    assert f'data-film="12" aria-pressed="true">{film.title} <small>{film.tone}, {film.era}</small></button>' in panel
    assert panel.count("<fieldset") == 10 and "2 of 8 films chosen: " in panel
    assert "<legend>Noir (1 chosen)</legend>" in panel


def test_the_panel_searches_by_words_and_escapes_them() -> None:
    panel = catalogue_panel([299], "NOIR bleak")
    films = [lab_catalogue()[int(n)] for n in re.findall(r'data-film="(\d+)"', panel)]
    assert len(films) == 6 and films[-1] == lab_catalogue()[299]  # what is chosen is always shown
    assert all((film.genre, film.tone) == ("noir", "bleak") for film in films[:-1])
    nothing = catalogue_panel([], "<script>${x}")
    assert "No film has every word of" in html.unescape(nothing) and "data-film" not in nothing
    assert "<script" not in nothing and "${" not in nothing
    assert catalogue_panel([], "  ").count("data-film") == 300
    assert "No film" not in catalogue_panel([0], lab_catalogue()[0].title)
    with pytest.raises(KitError, match="is not in the catalogue"):
        catalogue_panel([300])
