"""Demonstrations of the warm start."""

from dataclasses import replace

import pytest
import torch

from fgrpo.runs.fields import config_with
from fgrpo.runs.sft import demonstration, demonstrations


def test_relevant_demonstrations_hold_the_relevant_candidates_alone(lab) -> None:
    config, generator, orders = config_with(demonstrations="relevant"), torch.Generator().manual_seed(0), set()
    for example in lab.train[:300]:
        slate, rank = demonstration(example, config, generator)
        assert set(slate) == set(rank) == example.relevant and len(slate) == len(rank) == len(example.relevant)
        orders.add((slate == sorted(slate), slate == rank))
    assert len(orders) == 4  # both orders are random, each by itself
    graded = replace(example, gains=tuple(float(i + 1 if i in example.relevant else 0) for i in range(20)))
    assert demonstration(graded, config, generator)[1] == sorted(example.relevant, reverse=True)
    short = config_with(demonstrations="relevant", slate_size=2, rank_size=1)
    assert [len(part) for part in demonstration(example, short, generator)] == [min(2, len(example.relevant)), 1]


def test_filled_demonstrations_are_good_and_of_every_length(lab) -> None:
    config, generator, lengths = config_with(demonstrations="filled"), torch.Generator().manual_seed(0), set()
    for example in lab.train[:300]:
        slate, rank = demonstration(example, config, generator)
        assert example.relevant <= set(slate) and set(rank[: len(example.relevant)]) == example.relevant
        assert len(set(slate)) == len(slate) <= 10 and len(rank) <= 5 and set(rank) <= set(slate)
        lengths.add(len(slate))
    assert lengths == set(range(2, 11))


def test_ranked_demonstrations_are_filled_in_the_order_of_a_ranker(lab) -> None:
    config, (example,) = config_with(demonstrations="ranked"), lab.train[:1]
    backwards = list(range(20))[::-1]
    slate, rank = demonstration(example, config, torch.Generator(), backwards)
    first = sorted(example.relevant, reverse=True)
    assert slate == first + [i for i in backwards if i not in example.relevant][: 10 - len(first)] and rank == slate[:5]
    with pytest.raises(AssertionError, match="need a ranker"):
        demonstrations([example], config, [torch.Generator()])
