"""The stream over users' sequences: what it draws, how often, and that number i depends on nothing else."""

from collections import Counter
from random import Random

import pytest
import torch

from fgrpo.baselines import sequential
from fgrpo.baselines.rankers import popularity
from fgrpo.baselines.sequential import gru4rec_ranker
from fgrpo.config import KitError
from fgrpo.data import Example, Splits
from fgrpo.runs.origin import digest_of
from fgrpo.tasks import next_item
from fgrpo.tasks.next_item import HISTORY, TRAIN_WINDOWS, Histories
from fgrpo.tasks.reading import catalogue
from fgrpo.tasks.stats import statistics

ITEMS = {f"i{n}": f"Item {n % 90}" for n in range(100)}  # ten texts appear twice
KEYS = list(ITEMS)
SEQUENCES = {f"u{n}": Random(n).sample(KEYS[: 40 + n], 3 + n % 9) for n in range(30)} | {"one": ["i0"], "none": []}


def stream(**options) -> Histories:
    return Histories("Which?", ITEMS, SEQUENCES, **options)


@pytest.mark.parametrize("negatives", ["uniform", "popular", "mixed"])
@pytest.mark.parametrize("in_order", [True, False])
def test_an_example_is_a_position_of_a_user(negatives, in_order) -> None:
    some = stream(negatives=negatives, in_order=in_order, pool=12)
    for e in some.take(0, 300):
        own, (positive,) = SEQUENCES[e.group], e.relevant
        answer = e.candidate_ids[positive]
        assert len(e.candidate_ids) == len({*e.candidate_ids}) == 12 and {*e.candidate_ids} & {*own} == {answer}
        assert 1 <= len(e.history) <= HISTORY and {*e.history_ids} <= {*own} - {answer}
        assert [ITEMS[i] for i in (*e.history_ids, *e.candidate_ids)] == [*e.history, *e.candidates]
        if in_order:
            end = own.index(answer)
            assert list(e.history_ids) == own[max(0, end - HISTORY) : end]
    assert in_order or len({e.history_ids for e in some.take(0, 300)}) > 250  # the orders are fresh


def test_number_i_of_a_seed_is_a_pure_function(lab) -> None:
    some = stream(negatives="mixed")
    many = some.take(1000, 50, 3, "rl")
    assert some.take(1017, 3, 3, "rl") == many[17:20] and stream(negatives="mixed").take(1000, 50, 3, "rl") == many
    parts = [many, some.take(1000, 50, 4, "rl"), some.take(1000, 50, 3, "sft"), some.take(1050, 50, 3, "rl"), some[:50]]
    assert len({e.id for part in parts for e in part}) == 250 == len({e.candidate_ids for part in parts for e in part})
    assert some.take(10**15, 1)[0].id == f"train-0-{10**15}"


def test_positions_are_drawn_uniformly() -> None:
    long = {"a": [f"i{n}" for n in range(3)], "b": [f"i{n}" for n in range(61)]}
    some = Histories("Which?", ITEMS, long)
    assert some.windows == 2 + TRAIN_WINDOWS == len(some)
    drawn = Counter((e.group, e.candidate_ids[next(iter(e.relevant))]) for e in some.take(0, 4200))
    places = {("a", "i1"), ("a", "i2"), *(("b", f"i{n}") for n in range(21, 61))}
    assert {*drawn} == places and all(60 < n < 145 for n in drawn.values())  # 100 each
    assert Counter((e.group, e.candidate_ids[next(iter(e.relevant))]) for e in some) == dict.fromkeys(places, 1)


def test_negatives_have_the_frequencies_of_their_kind() -> None:
    """Of 0: neighbours are 1 (two users), 2 (one of them); 3 is popular but no neighbour; 4 to 9 are in no sequence."""
    items = {f"i{n}": f"Item {n}" for n in range(100)}
    sequences = {
        "a": ["i0", "i99"],
        "b": ["i0", "i1"],
        "c": ["i2", "i1", "i0"],
        **{f"d{n}": ["i3", "i98"] for n in range(6)},
    }
    counts = {}
    for kind in ("uniform", "popular", "mixed"):
        # an example of user a alone: the history is i0, the answer i99; two or three negatives, drawn in turn
        some = Histories("Which?", items, sequences, negatives=kind, pool=4 if kind == "mixed" else 2)
        rngs = [Random(n) for n in range(4000)]
        pools = [some.example("x", "a", ["i0"], "i99", rng, ["i0", "i99"]).candidate_ids for rng in rngs]
        counts[kind] = Counter(item for pool in pools for item in pool if item != "i99")
    assert len(counts["uniform"]) == 98 and max(counts["uniform"].values()) < 80  # 41 each
    shares = {item: n / 4000 for item, n in counts["popular"].items()}
    assert shares == pytest.approx({"i3": 6 / 15, "i98": 6 / 15, "i1": 2 / 15, "i2": 1 / 15}, abs=0.03)
    third = {item: n / 4000 for item, n in counts["mixed"].items()}  # about a 1/98 more of each from the uniform one
    assert third["i3"] == pytest.approx(6 / 15, abs=0.04) == third["i98"]
    # the neighbour is i1 or i2, 2 to 1; of those that popularity has taken before it draws the other
    assert 0.7 < third["i1"] < 0.85 and 0.35 < third["i2"] < 0.5 and third["i50"] < 0.03


def test_a_history_without_neighbours_gets_uniform_negatives() -> None:
    sequences = {"a": ["i0", "i1"], "b": ["i2", "i3"]}
    (e,) = Histories("Which?", ITEMS, sequences, negatives="mixed").take(0, 1)
    assert len({*e.candidate_ids}) == 20
    e = Histories("Which?", ITEMS, sequences, negatives="popular").take(0, 1)[0]  # four items, all but two its own
    assert len({*e.candidate_ids}) == 20


def test_as_a_sequence_it_covers_all_users(monkeypatch) -> None:
    some = stream()
    assert len(some) == some.windows == len(list(some)) and {e.group for e in some} == {*SEQUENCES} - {"one", "none"}
    assert some[5] == some[:10][5] and some[-1] == some[len(some) - 1] and some[::7][1] == some[7]
    monkeypatch.setattr(next_item, "SAMPLE", 40)
    last = list(stream())
    assert [e.candidate_ids[next(iter(e.relevant))] for e in last] == [s[-1] for s in SEQUENCES.values() if len(s) > 1]
    monkeypatch.setattr(next_item, "SAMPLE", 10)
    assert [e.group for e in stream()] == [f"u{n}" for n in range(0, 30, 3)]
    orders = {e.history_ids for e in Histories("Which?", ITEMS, {"a": KEYS[:12]}, in_order=False)}
    longest = max(orders, key=len)
    assert all(order == longest[: len(order)] or len(order) == HISTORY for order in orders)  # one order a session


def test_what_is_too_small_is_refused() -> None:
    with pytest.raises(KitError, match="the catalogue of 100 items is too small for 99 negatives"):
        stream(pool=100)
    with pytest.raises(KitError, match="none of 1 training sequences has two items"):
        Histories("Which?", ITEMS, {"a": ["i0"]})


def test_a_stream_is_known_by_its_content() -> None:
    other = SEQUENCES | {"u7": [*SEQUENCES["u7"][::-1]]}
    streams = [stream(), stream(pool=10), stream(negatives="mixed"), stream(in_order=False), stream(exclude_own=False),
               Histories("Which?", ITEMS, other), Histories("Which?", ITEMS | {"i0": "Another"}, SEQUENCES)]  # fmt: skip
    assert len({digest_of(s) for s in streams}) == len({repr(s) for s in streams}) == 7
    assert digest_of(stream()) == digest_of(streams[0]) and max(len(repr(s)) for s in streams) < 200


def test_popularity_and_the_catalogue_read_the_sequences() -> None:
    unseen = Example("t", "Which?", ("new",), ("Item 3", "Item 4", "new"), frozenset([0]), ("x",), ("i3", "i4", "x"))
    splits = Splits(stream(), [unseen], [unseen])
    assert catalogue(splits) == sorted([*ITEMS, "x"])
    counts = Counter(key for s in SEQUENCES.values() for key in s)
    assert popularity(splits) == [sorted(range(3), key=lambda i: -counts[unseen.candidate_keys[i]])]
    assert counts["i3"] != counts["i4"]
    found = statistics(splits)
    assert found["items"] == 101 and found["remarks"]["train: users or sessions"] == 32
    assert found["remarks"]["train: positions"] == splits.train.windows


def test_gru4rec_trains_on_the_sample() -> None:
    some = Histories("Which?", ITEMS, {f"u{n}": [KEYS[(n + k) % 40] for k in range(5)] for n in range(200)})
    held = some.take(0, 40, 0, "held")
    order = gru4rec_ranker(Splits(some, held[:20], held[20:]))(held[20:])
    assert sum(o[0] in e.relevant for o, e in zip(order, held[20:], strict=True)) > 14  # the next number, of 20


def test_unisrec_embeds_the_items_that_the_sample_does_not_hold(monkeypatch) -> None:
    embedded = []

    def embed(texts, model):
        embedded.extend(texts)
        return torch.randn(len(texts), 8, generator=torch.Generator().manual_seed(0))

    monkeypatch.setattr(sequential, "embed", embed)
    monkeypatch.setattr(sequential, "MAX_EPOCHS", 1)
    some = Histories("Which?", ITEMS, {"a": ["i0", "i1", "i2"]}, pool=5)
    held = some.take(0, 4)
    sequential.unisrec(Splits(some, held[:2], held[2:]))
    assert sorted(embedded) == sorted(ITEMS.values())
