"""The sequential recommenders on a toy whose next item follows from the last one; targets and causality by hand."""

from itertools import accumulate
from pathlib import Path
from random import Random

import pytest
import torch

import fgrpo.baselines.sequential as sequential
from fgrpo.baselines.rankers import random_order
from fgrpo.baselines.sequential import GRU4Rec, SequenceModel, UniSRec, gru4rec, unisrec
from fgrpo.config import KitError
from fgrpo.data import Example, Splits
from fgrpo.rewards import ndcg, pad, pool_gains
from tests.baselines.test_baselines import tiny_bert

ITEMS = [f"w{n}" for n in range(24)]


def following(n: int) -> int:
    return (7 * n + 5) % len(ITEMS)


def title(key: str) -> str:
    return " ".join([key] * 6)  # the mean over a text of one word would be mostly that of its special tokens


def toy(seed: int = 0, unseen: int = 0) -> Splits:
    """Every item is followed by `following` of it; histories of 0 to 4, a few of 60 in test. Texts are `wN wN ...`.

    The last `unseen` candidates of each test pool stand nowhere else.
    """
    rng = Random(seed)

    def example(name: str, length: int, extra: int) -> Example:
        *history, relevant = accumulate([rng.randrange(len(ITEMS))] * (length + 1), lambda n, _: following(n))
        pool = [relevant, *rng.sample([n for n in range(len(ITEMS)) if n != relevant], 7)]
        rng.shuffle(pool)
        keys = (*(ITEMS[n] for n in pool), *(f"new {n}" for n in range(extra)))
        return Example(
            name, "", tuple(title(ITEMS[n]) for n in history), tuple(title(key) for key in keys),
            frozenset({pool.index(relevant)}), tuple(ITEMS[n] for n in history), keys,
        )  # fmt: skip

    def part(count: int, extra: int = 0, long: int = 0) -> list[Example]:
        return [example(str(n), 60 if n < long else 1 + n % 4 if n else 0, extra) for n in range(count)]

    return Splits(part(800), part(60), part(100, unseen, long=5))


@pytest.fixture(autouse=True)
def small_batches(monkeypatch) -> None:
    """So few examples need more than three steps an epoch."""
    monkeypatch.setattr(sequential, "BATCH", 64)


def quality(orders: list[list[int]], splits: Splits) -> float:
    return ndcg(pad([o[:5] for o in orders], 5), pool_gains(splits.test), 5).mean().item()


def test_gru4rec_learns_what_follows_and_repeats_itself(monkeypatch) -> None:
    splits, before = toy(), torch.random.get_rng_state()
    orders = gru4rec(splits)
    assert all(sorted(o) == list(range(8)) for o in orders)
    assert quality(orders, splits) > 0.9 > 0.6 > quality(random_order(splits), splits)
    monkeypatch.setattr(sequential, "MAX_EPOCHS", 2)
    assert gru4rec(splits) == gru4rec(splits) != gru4rec(splits, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())  # the caller's random stream is left alone


def test_unseen_items_of_gru4rec_sink_and_disturb_nothing() -> None:
    splits = toy(unseen=3)
    orders = gru4rec(splits)
    assert quality(orders, splits) > 0.9
    places = [order.index(i) for order in orders for i in (8, 9, 10)]
    assert sum(places) / len(places) > 7  # of 0 to 10, 5 by chance


def test_unisrec_learns_from_texts_alone_and_repeats_itself(tmp_path: Path, monkeypatch) -> None:
    splits = toy(unseen=1)
    model = str(tiny_bert(tmp_path, words=[*ITEMS, "new", "0"]))
    orders = unisrec(splits, model=model)
    assert all(sorted(o) == list(range(9)) for o in orders)
    assert quality(orders, splits) > 0.8
    monkeypatch.setattr(sequential, "MAX_EPOCHS", 2)
    assert unisrec(splits, model=model) == unisrec(splits, model=model)


def test_the_best_epoch_on_validation_is_kept(monkeypatch) -> None:
    splits = toy()
    index = {key: n for n, key in enumerate(ITEMS)}
    seen, real = [], sequential._order

    def watched(model: SequenceModel, examples: list[Example], index: dict[str, int]) -> list[list[int]]:
        orders = real(model, examples, index)
        seen.append(quality(orders, splits._replace(test=examples)))
        return orders

    monkeypatch.setattr(sequential, "_order", watched)
    monkeypatch.setattr(sequential, "LR", 0.3)  # so large that the quality goes up and down
    torch.manual_seed(0)
    model = GRU4Rec(len(ITEMS))
    sequential._fit(model, splits, index)
    assert seen[0] != max(seen) != seen[-1]
    assert quality(real(model, splits.validation, index), splits._replace(test=splits.validation)) == max(seen)


def test_targets_are_all_relevant_candidates_and_each_step_once() -> None:
    index = {key: n for n, key in enumerate("abcdef")}
    rows = [
        Example("0", "", ("a", "b", "c"), ("d", "e", "f"), frozenset({0, 2})),
        Example("1", "", ("b", "c", "d"), ("e", "a"), frozenset({0})),  # overlaps the row before: b c d is its relevant
        Example("2", "", ("a", "b", "e"), ("f",), frozenset({0})),
    ]
    assert sequential._targets(rows, index) == [
        [(3, 3), (3, 5), (0, 0), (1, 1), (2, 2)],
        [(3, 4), (0, 1), (1, 2)],  # step b c d is left out
        [(3, 5), (2, 4)],  # as a, then a b
    ]
    ids, last = sequential._sequences([rows[0], Example("3", "", (), ("a",), frozenset({0}))], index)
    assert ids.tolist() == [[6, 0, 1, 2], [6, 6, 6, 6]] and last.tolist() == [3, 0]


@pytest.mark.parametrize("kind", ["gru4rec", "unisrec"])
def test_no_position_sees_a_later_one_or_another_row(kind: str) -> None:
    torch.manual_seed(0)
    model: SequenceModel = GRU4Rec(9) if kind == "gru4rec" else UniSRec(torch.randn(9, 12))
    model.eval()
    ids = torch.tensor([[9, 1, 2, 3, 4], [9, 5, 6, 9, 9]])
    rows, positions = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    before = model(ids, rows, positions)
    after = model(torch.tensor([[9, 1, 2, 7, 8], [9, 5, 6, 0, 0]]), rows, positions)
    assert torch.allclose(before, after, atol=1e-5) and before.shape == (3, 9)
    assert not torch.allclose(
        before, model(torch.tensor([[9, 3, 2, 3, 4], [9, 8, 6, 9, 9]]), rows, positions), atol=1e-3
    )


def test_an_empty_split_is_said() -> None:
    with pytest.raises(KitError, match="a split is empty"):
        gru4rec(toy()._replace(validation=[]))
