"""Credit methods against plain loops, and what must hold between them."""

from dataclasses import replace

import pytest
import torch

from fgrpo.config import KitError, RLConfig
from fgrpo.credit import CREDITS, JOINT, assign_credit, check_credit, zero_variance
from fgrpo.policy import Sampling
from fgrpo.prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE
from fgrpo.rewards import Rewards
from fgrpo.rollout import Rollouts

Q, G, T = 3, 4, 7


@pytest.fixture
def rollouts() -> Rollouts:
    """Phases of different lengths: row b has 3 + b % 2 slate tokens, 2 rank tokens, then padding."""
    phase = torch.full((Q * G, T), PHASE_PAD)
    for b in range(Q * G):
        phase[b, : 3 + b % 2] = PHASE_SLATE
        phase[b, 3 + b % 2 : 5 + b % 2] = PHASE_RANK
    mask = phase != PHASE_PAD
    return Rollouts(None, torch.zeros(Q * G, T).long(), mask, phase, torch.zeros(Q * G, T), [], G, None)  # type: ignore[arg-type]


@pytest.fixture
def rewards() -> Rewards:
    generator = torch.Generator().manual_seed(0)
    slate, rank = torch.rand(2, Q, G, generator=generator)
    slate[1] = 0.1  # a group that the slate reward cannot tell apart
    form = torch.zeros(Q, G)
    form[2, 3] = -0.5
    return Rewards(slate, rank, form)


def by_loop(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> torch.Tensor:
    """The three methods, one token at a time."""
    out = torch.zeros(Q * G, T)
    for q in range(Q):
        slate, rank, form = (x[q].tolist() for x in (rewards.slate, rewards.rank, rewards.format))
        joint = [s + config.lam * r + f for s, r, f in zip(slate, rank, form, strict=True)]
        own_slate = [s + f for s, f in zip(slate, form, strict=True)]
        own_rank = [r + f for r, f in zip(rank, form, strict=True)]
        paid_rank = [config.lam * r + f for r, f in zip(rank, form, strict=True)]
        for g in range(G):

            def spread(values: list[float]) -> float:
                mean = sum(values) / G
                return (sum((v - mean) ** 2 for v in values) / (G - 1)) ** 0.5 + 1e-4 if config.scale == "std" else 1.0

            def centred(values: list[float], over: list[float], g: int = g) -> float:
                return (values[g] - sum(values) / G) / spread(over)

            pay = {
                "grpo": (centred(joint, joint), centred(joint, joint)),
                "fgrpo": (centred(own_slate, own_slate), centred(paid_rank, own_rank)),
                "reward_to_go": (centred(joint, joint), centred(paid_rank, own_rank)),
            }[config.credit]
            for t in range(T):
                phase = int(rollouts.phase[q * G + g, t])
                out[q * G + g, t] = pay[0] if phase == PHASE_SLATE else pay[1] if phase == PHASE_RANK else 0.0
    return out


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_agrees_with_the_plain_loop(rewards, rollouts, credit, scale, lam) -> None:
    config = RLConfig(credit=credit, scale=scale, lam=lam, group=G)
    found = assign_credit(rewards, rollouts, config)
    assert torch.allclose(found, by_loop(rewards, rollouts, config), atol=1e-6)
    assert (found[~rollouts.mask] == 0).all()


def test_equal_rewards_in_both_phases_make_fgrpo_equal_grpo(rewards, rollouts) -> None:
    """The joint reward is then (1 + lambda) times each phase's own, a scale that dividing by the spread removes."""
    same = replace(rewards, rank=rewards.slate, format=torch.zeros(Q, G))
    plain = {c: assign_credit(same, rollouts, RLConfig(credit=c)) for c in ("grpo", "fgrpo")}
    assert torch.allclose(plain["grpo"], 2 * plain["fgrpo"], atol=1e-6)
    scaled = {c: assign_credit(same, rollouts, RLConfig(credit=c, scale="std")) for c in ("grpo", "fgrpo")}
    assert torch.allclose(scaled["grpo"], scaled["fgrpo"], atol=2e-3)
    assert scaled["grpo"].abs().max() > 0.5


def test_fgrpo_keeps_the_phases_apart(rewards, rollouts) -> None:
    before = assign_credit(rewards, rollouts, RLConfig(credit="fgrpo"))
    after = assign_credit(replace(rewards, rank=rewards.rank.flip(1)), rollouts, RLConfig(credit="fgrpo"))
    slate = rollouts.phase == PHASE_SLATE
    assert torch.equal(before[slate], after[slate]) and not torch.equal(before, after)


def test_groups_are_centred_and_rewards_left_alone(rewards, rollouts) -> None:
    kept = replace(rewards, slate=rewards.slate.clone(), rank=rewards.rank.clone())
    for credit in CREDITS:
        first = assign_credit(rewards, rollouts, RLConfig(credit=credit))[:, 0].view(Q, G)
        assert first.sum(1).abs().max() < 1e-6
    assert torch.equal(kept.slate, rewards.slate) and torch.equal(kept.rank, rewards.rank)


def test_a_group_without_variance_gives_exactly_zero(rewards, rollouts) -> None:
    assert zero_variance(rewards.slate).tolist() == [False, True, False]
    for scale in ("none", "std"):
        found = assign_credit(rewards, rollouts, RLConfig(credit="fgrpo", scale=scale))
        assert (found[G : 2 * G][rollouts.phase[G : 2 * G] == PHASE_SLATE] == 0).all()


def test_a_sequence_ratio_is_refused_for_factorised_credit() -> None:
    for credit in CREDITS:
        for ratio in ("token", "item", "phase"):
            check_credit(RLConfig(credit=credit, ratio=ratio))
        if credit in JOINT:
            check_credit(RLConfig(credit=credit, ratio="sequence"))
        else:
            with pytest.raises(KitError, match="averages the phases"):
                check_credit(RLConfig(credit=credit, ratio="sequence"))
    with pytest.raises(KitError, match="'who' is not known"):
        check_credit(RLConfig(credit="who"))


def test_phases_of_real_rollouts_get_their_own_number(policy, queries) -> None:
    from fgrpo.config import GrammarConfig
    from fgrpo.rewards import score
    from fgrpo.rollout import rollout

    r = rollout(policy, queries, Sampling(GrammarConfig()), 6, torch.Generator().manual_seed(0))
    rewards = score(r, queries, RLConfig())
    advantages = assign_credit(rewards, r, RLConfig(credit="fgrpo"))
    end = r.mask.sum(1) - 1
    rank = (rewards.rank - rewards.rank.mean(1, keepdim=True)).flatten()
    assert torch.allclose(advantages[torch.arange(len(end)), end], rank, atol=1e-6)  # the end token has credit
