"""Rankers that are not trained here: each orders a pool, its first n are the slate, its first k the ranked list."""

from collections import Counter
from collections.abc import Sequence
from random import Random

import torch
from torch import Tensor

from .config import GrammarConfig
from .data import Example
from .evaluate import measure
from .rewards import pad


def random_order(train: Sequence[Example], test: Sequence[Example]) -> list[list[int]]:
    """Each pool in a seeded random order."""
    rng = Random("random baseline")
    return [sorted(range(len(e.candidates)), key=lambda _: rng.random()) for e in test]


def popularity(train: Sequence[Example], test: Sequence[Example]) -> list[list[int]]:
    """By the number of training examples in whose history or relevant set an item stands; ties in pool order."""
    counts = Counter(
        key for e in train for key in {*e.history_keys, *(e.candidate_keys[i] for i in e.relevant)}
    )  # fmt: skip
    return [sorted(range(len(e.candidates)), key=lambda i, e=e: -counts[e.candidate_keys[i]]) for e in test]  # type: ignore[misc]


BASELINES = {"random": random_order, "popularity": popularity}


def measure_order(orders: list[list[int]], test: Sequence[Example], grammar: GrammarConfig) -> dict[str, Tensor]:
    """Metrics of full orders of the pools, cut to the lengths that the policy may write."""
    slates, ranks = (pad([order[:n] for order in orders], n) for n in (grammar.slate_size, grammar.rank_size))
    return measure(slates, ranks, torch.zeros(len(test), dtype=torch.bool), test)
