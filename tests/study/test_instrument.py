"""What a policy is before RL: numbers of one that has learned nothing, and of one that writes what it was shown."""

import math

import pytest
import torch

from fgrpo.config import Config
from fgrpo.data import Splits
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.runs.fields import with_fields
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.instrument import instrument
from fgrpo.tasks.lab import lab_catalogue


@pytest.fixture
def part(lab) -> Splits:
    return Splits([], lab.validation[:64], [])


def test_a_policy_that_knows_nothing_chooses_like_a_coin(part, config) -> None:
    policy = SharedPolicy.tiny([film.title for film in lab_catalogue()], config.model)
    found = instrument(policy, part, config)
    assert found["entropy"] == pytest.approx(math.log(20), abs=0.05)  # a slate is never empty: 20 films
    assert 0.1 < found["filled"] < 0.35 and 0 <= found["zero_variance_slate"] < 0.5
    assert instrument(policy, part, config) == found and all(p.grad is None for p in policy.model.parameters())


def test_the_shipped_warm_start_knows_the_taste_and_still_varies(part) -> None:
    """RL has something to choose from: neither a coin nor one answer."""
    found = instrument(load_policy(SHIPPED), part, Config())
    assert 1.0 < found["entropy"] < 2.5 and found["filled"] > found["free"] + 0.05 > 0.45
    assert 1.5 < found["length"] < 4 and found["reward_slate"] > 0.2 and found["reward_rank"] > 0.2
    assert max(found["zero_variance_slate"], found["zero_variance_rank"]) < 0.2


def test_rollouts_of_one_answer_teach_nothing(part, config) -> None:
    """Where the temperature leaves no choice, all rollouts of a query are equal; full lists are of full length."""
    policy = SharedPolicy.tiny([film.title for film in lab_catalogue()], config.model)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(30)  # certain of whatever it writes
    sure = with_fields(config, temperature=0.01, full=True)
    found = instrument(policy, part, sure)
    assert found["zero_variance_slate"] == found["zero_variance_rank"] == 1.0 and found["entropy"] < 0.1
    assert found["length"] == 10.0 and found["free"] == found["filled"]
