"""Demonstrations of the warm start."""

import torch

from fgrpo.config import Config
from fgrpo.runs.sft import demonstration


def test_demonstrations_are_good_and_of_every_length(lab) -> None:
    generator, lengths = torch.Generator().manual_seed(0), set()
    for example in lab.train[:300]:
        slate, rank = demonstration(example, Config(), generator)
        assert example.relevant <= set(slate) and set(rank[: len(example.relevant)]) == example.relevant
        assert len(set(slate)) == len(slate) <= 10 and len(rank) <= 5 and set(rank) <= set(slate)
        lengths.add(len(slate))
    assert lengths == set(range(2, 11))
