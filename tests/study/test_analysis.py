"""The oracle against finite differences and Monte Carlo, and the bias it finds in each credit method."""

import math
from dataclasses import replace

import pytest
import torch

from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.credit import CREDITS, advantage, by_phase
from fgrpo.policy import Sampling
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.rewards import output_lists, score
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with
from fgrpo.study import analysis
from fgrpo.study.analysis import (
    bias_and_variance,
    interference,
    oracle_table,
    phase_gradient,
    phase_probabilities,
    separability,
    stepped,
)
from fgrpo.study.apart import PhasePolicy
from fgrpo.study.oracle import Oracle, enumerate_outputs, small_pool
from tests.conftest import spread_policy

GRAMMAR = GrammarConfig(slate_size=2, rank_size=2)
CONFIG = Config(grammar=GRAMMAR)


@pytest.fixture(scope="module")
def oracle(lab) -> Oracle:
    """Made once: tests that change weights change those of the policy of their own fixture, which begins alike."""
    return enumerate_outputs(spread_policy(), small_pool(lab.test[0], 4), CONFIG)


def expected_rewards(policy, example) -> tuple[float, float]:
    o = enumerate_outputs(policy, example, CONFIG)
    return tuple(float((o.probability * x[0]).sum()) for x in (o.rewards.slate, o.rewards.rank))


def test_every_output_is_listed_once(oracle, policy, lab) -> None:
    """4 candidates: 4 slates of one with 1 ranking each, 12 of two with 2 + 2."""
    assert len(oracle.probability) == 4 * 1 + 12 * 4 == len(set(oracle.rollouts.outputs))
    assert oracle.probability.sum().item() == pytest.approx(1, abs=1e-6)
    assert not any(o.error for o in oracle.rollouts.outputs)
    five = enumerate_outputs(policy, small_pool(lab.test[0], 5), replace(CONFIG, grammar=GrammarConfig(3, 1)))
    assert len(five.probability) == 5 * 1 + 20 * 2 + 60 * 3
    assert five.probability.sum().item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(KitError, match="take fewer"):
        enumerate_outputs(policy, lab.test[0], config_with(slate_size=5, rank_size=2))


def test_probabilities_and_rewards_are_those_of_sampling(oracle, policy, lab) -> None:
    example = small_pool(lab.test[0], 4)
    r = rollout(policy, [example], Sampling(GRAMMAR), 1500, 0)
    rewards = score(r, [example], RLConfig())
    for name in ("slate", "rank"):
        exact = float((oracle.probability * getattr(oracle.rewards, name)[0]).sum())
        assert getattr(rewards, name).mean().item() == pytest.approx(exact, abs=0.03)


def test_the_gradient_is_that_of_the_expected_reward(oracle, policy, lab) -> None:
    """A small step along the gradient of E[R], in weights, changes E[R] by its squared length."""
    example = small_pool(lab.test[0], 4)
    pay = (oracle.rewards.slate + oracle.rewards.rank)[0]
    logp, _ = policy.logprobs(
        oracle.rollouts.prompts,
        oracle.rollouts.completions,
        oracle.rollouts.mask,
        oracle.rollouts.sampling,
        shared=False,
    )
    expected = (logp.double().sum(1).exp() * pay).sum()
    gradient = torch.autograd.grad(expected, list(policy.model.parameters()))
    squared = sum(float((g.double() ** 2).sum()) for g in gradient)
    weights = oracle.gradient(pay)
    assert float(oracle.dot(weights, weights)) == pytest.approx(squared, rel=1e-3)
    before = sum(expected_rewards(policy, example))
    step = 1e-3 / squared**0.5
    with torch.no_grad():
        for p, g in zip(policy.model.parameters(), gradient, strict=True):
            p.add_(step * g)
    assert sum(expected_rewards(policy, example)) - before == pytest.approx(step * squared, rel=0.05)


def test_a_step_of_one_phase_changes_the_others_gradient_as_separability_says(oracle, policy, monkeypatch) -> None:
    """To first order: half the step, half the change. The policy is left as it was, bit for bit."""
    before = [p.clone() for p in policy.parameters()]
    whole = separability(policy, oracle)
    assert all(map(torch.equal, before, policy.parameters()))
    monkeypatch.setattr(analysis, "RAISED", analysis.RAISED / 2)
    half = separability(policy, oracle)
    assert set(whole) == {"rank_given_slates", "rank_shared", "rank_separate", "slate_shared"}
    for name, change in whole.items():
        assert 0.001 < change == pytest.approx(2 * half[name], rel=0.1), name


def test_with_a_model_for_each_phase_only_the_slates_that_are_asked_about_change(oracle) -> None:
    """The same numbers from a policy of two models, whose weights are separate indeed."""
    one, two = separability(spread_policy(), oracle), separability(PhasePolicy.twice(spread_policy()), oracle)
    assert two["rank_given_slates"] == 0 and two["slate_shared"] < 1e-5  # exactly, and to the rounding of a sum
    assert two["rank_shared"] == pytest.approx(two["rank_separate"], rel=1e-4)
    assert two["rank_separate"] == pytest.approx(one["rank_separate"], rel=1e-2) and one["rank_given_slates"] > 0.001


def test_a_step_raises_its_own_reward_by_what_it_is_said_to(oracle, policy, lab) -> None:
    example = small_pool(lab.test[0], 4)
    slates, ranks = phase_probabilities(policy, oracle)
    along = phase_gradient(policy, oracle, PHASE_RANK, slates * ranks * oracle.rewards.rank[0])
    before = expected_rewards(policy, example)[1]
    with pytest.raises(ZeroDivisionError), stepped(policy, along * (0.001 / along.square().sum())):
        given = float((slates * phase_probabilities(policy, oracle)[1] * oracle.rewards.rank[0]).sum())
        assert given - before == pytest.approx(0.001, rel=0.1)  # for the slates as they were
        raise ZeroDivisionError  # whatever happens inside, the weights come back
    assert expected_rewards(policy, example)[1] == before


UNBIASED = [
    {"credit": "grpo"}, {"credit": "rloo"}, {"credit": "reward_to_go"}, {"credit": "anchor"}, {"credit": "control"},
    {"credit": "nested", "rankings": 2, "group": 4},
]  # fmt: skip


@pytest.mark.parametrize("options", UNBIASED)
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_unbiased_for_the_joint_objective(oracle, options, lam) -> None:
    """Exactly, over all groups: the direction is the true gradient's, the length 1 - 1/G of it (nested, rloo: all)."""
    found = bias_and_variance(oracle, RLConfig(**{"group": 3, "lam": lam, **options}), torch.Generator(), exact=True)
    assert max(found["angle"], found["angle_slate"], found["angle_rank"]) < 0.1
    assert found["norm"] == pytest.approx(1.0 if options["credit"] in ("nested", "rloo") else 2 / 3, rel=1e-4)


def by_set_mean(rewards, rollouts, config) -> torch.Tensor:
    """anchor as it would be with the mean over ALL rollouts with the same slate as baseline, the rollout's own included."""
    slates = output_lists(rollouts)[0].sort(dim=-1).values
    same = (slates.unsqueeze(2) == slates.unsqueeze(1)).all(-1)
    same = torch.where(same.sum(-1, keepdim=True) > 1, same, True)
    rank = config.lam * (rewards.rank - (rewards.rank.unsqueeze(1) * same).sum(-1) / same.sum(-1))
    return by_phase(advantage(rewards.slate + config.lam * rewards.rank, config), rank, rollouts)


def by_one_line(rewards, rollouts, config) -> torch.Tensor:
    """control as it would be with the residuals of one least-squares line through all rollouts of a group."""
    slate, rank = advantage(rewards.slate, config), config.lam * advantage(rewards.rank, config)
    slope = (slate * rank).sum(1, keepdim=True) / (slate.square().sum(1, keepdim=True) + 1e-6)
    joint = advantage(rewards.slate + config.lam * rewards.rank, config)
    return by_phase(joint, rank - slope * slate, rollouts)


@pytest.mark.parametrize("credit, biased, degrees", [("anchor", by_set_mean, 0.34), ("control", by_one_line, 8.7)])
def test_a_baseline_that_holds_the_rollout_itself_would_be_biased(oracle, credit, biased, degrees, monkeypatch) -> None:
    """In the rank phase: rankings of common slates, or of extreme ones, would lose a larger part of their credit."""
    config = RLConfig(credit=credit, group=3)
    right = bias_and_variance(oracle, config, torch.Generator(), exact=True)
    monkeypatch.setitem(CREDITS, credit, biased)
    wrong = bias_and_variance(oracle, config, torch.Generator(), exact=True)
    assert wrong["angle_rank"] == pytest.approx(degrees, rel=0.05) and right["angle_rank"] < 0.01


def test_rloo_is_grpo_at_another_rate(oracle) -> None:
    groups = oracle.sample(200, RLConfig(group=4), torch.Generator().manual_seed(0))
    for scale in ("none", "std"):
        rloo, grpo = (oracle.estimates(groups, RLConfig(credit=c, group=4, scale=scale)) for c in ("rloo", "grpo"))
        assert torch.allclose(rloo, 4 / 3 * grpo, atol=1e-7) and grpo.abs().max() > 0.01


def test_fgrpo_is_biased_in_its_slate_phase_alone(oracle) -> None:
    """Its slate phase follows E[R_slate] and ignores what the ranker could use; its rank phase is the true one's."""
    found = bias_and_variance(oracle, RLConfig(credit="fgrpo", group=3), torch.Generator(), exact=True)
    assert found["angle_slate"] > 1 and found["angle_rank"] < 0.1
    slate = oracle.gradient(oracle.rewards.slate[0]) * (oracle.phase == PHASE_SLATE)
    groups, weights = oracle.all_groups(RLConfig(credit="fgrpo", group=2))
    mean = weights @ oracle.estimates(groups, RLConfig(credit="fgrpo", group=2))
    away = mean * (oracle.phase == PHASE_SLATE) - slate / 2  # it follows the gradient of E[R_slate]
    assert float(oracle.dot(away, away)) < 1e-6 * float(oracle.dot(slate, slate))


def test_shapley_credit_lengthens_what_f1_cuts(lab) -> None:
    """Change of the expected slate length along the slate tokens' expected step, F1 as slate reward: item < shapley."""
    config = Config(grammar=GrammarConfig(3, 1), rl=RLConfig(slate_reward="f1", group=4))
    for query, relevant in ((0, 1), (2, 2)):
        oracle = enumerate_outputs(spread_policy(), small_pool(lab.test[query], 5, relevant), config)
        groups = oracle.sample(2000, config.rl, torch.Generator().manual_seed(0))
        length = oracle.gradient(torch.tensor([float(len(o.slate)) for o in oracle.rollouts.outputs]).double())
        along = {}
        for credit in ("item", "shapley"):
            step = oracle.estimates(groups, replace(config.rl, credit=credit)).mean(0)
            along[credit] = oracle.cosine(step * (oracle.phase == PHASE_SLATE), length)
        assert along["item"] < 0 and along["item"] + 0.04 < along["shapley"], (query, relevant, along)


BIASED = [{"credit": "grpo", "scale": "std"}, {"credit": "gdpo"}, {"credit": "item"}, {"credit": "shapley"}]


@pytest.mark.parametrize("options", BIASED)
def test_dividing_by_the_spread_and_item_credit_are_biased(oracle, options) -> None:
    found = bias_and_variance(oracle, RLConfig(**{"group": 3, **options}), torch.Generator(), exact=True)
    assert found["angle"] > 0.5


def test_sampled_groups_agree_with_all_groups(oracle) -> None:
    for options in ({"credit": "fgrpo", "group": 2}, {"credit": "nested", "group": 4, "rankings": 2}):
        config = RLConfig(**options)
        exact = bias_and_variance(oracle, config, torch.Generator(), exact=True)
        drawn = bias_and_variance(oracle, config, torch.Generator().manual_seed(0), count=20_000)
        assert drawn["variance"] == pytest.approx(exact["variance"], rel=0.05)
        assert drawn["tokens"] == pytest.approx(exact["tokens"], rel=0.02)
        assert drawn["angle"] < exact["angle"] + 3 * drawn["angle_error"]
    groups = oracle.sample(50, RLConfig(credit="nested", group=4, rankings=2), torch.Generator().manual_seed(0))
    slates = oracle.slate_of[groups]
    assert torch.equal(slates[:, 0], slates[:, 1]) and not torch.equal(slates[:, 0], slates[:, 2])


def test_knowing_the_slate_lowers_the_variance_of_the_rank_phase(oracle) -> None:
    """Law of total variance: K rankings of one slate differ by less than rankings of different slates.

    The same with what its reward tells of a slate (control), or where a group happens to hold a slate twice (anchor).
    """
    rank = oracle.phase == PHASE_RANK
    spread = {}
    for options in (
        {"credit": "reward_to_go"}, {"credit": "anchor"}, {"credit": "control"}, {"credit": "nested", "rankings": 2},
    ):  # fmt: skip
        config = RLConfig(group=8, **options)
        found = oracle.estimates(oracle.sample(6000, config, torch.Generator().manual_seed(0)), config) * rank
        away = found - found.mean(0)
        spread[options["credit"]] = float(oracle.dot(away, away).mean() / oracle.dot(found.mean(0), found.mean(0)))
    assert all(map(math.isfinite, spread.values())) and len(set(spread.values())) == 4
    assert spread["control"] < 0.75 * spread["reward_to_go"] and spread["anchor"] < 0.95 * spread["reward_to_go"]


def test_noise_in_one_reward_is_variance_not_bias_and_reaches_every_token_under_joint_credit(oracle) -> None:
    clean, rank = {}, oracle.phase == PHASE_RANK
    for credit in ("grpo", "fgrpo"):
        clean[credit] = bias_and_variance(oracle, RLConfig(credit=credit), torch.Generator().manual_seed(0))
        noisy = RLConfig(credit=credit, slate_noise=1.0)
        found = bias_and_variance(oracle, noisy, torch.Generator().manual_seed(0))
        assert found["signal"] < 0.7 * clean[credit]["signal"] and found["norm"] == pytest.approx(
            clean[credit]["norm"], rel=0.2
        )
    groups = oracle.sample(500, RLConfig(), torch.Generator().manual_seed(0))
    for credit, same in (("fgrpo", True), ("grpo", False)):
        noisy = RLConfig(credit=credit, slate_noise=1.0)
        a, b = (oracle.estimates(groups, noisy, g)[:, rank] for g in (None, torch.Generator().manual_seed(1)))
        assert torch.allclose(a, b) == same


def test_table_holds_every_method_and_leaves_out_what_cannot_be(oracle) -> None:
    methods = {"joint": RLConfig(credit="grpo"), "nested": RLConfig(credit="nested", rankings=2)}
    exact = oracle_table([oracle], methods, [2, 3, 4], exact=True)
    assert [(r["method"], r["group"]) for r in exact] == [("joint", 2), ("joint", 3), ("nested", 4)]
    assert oracle.count_groups(RLConfig(group=3)) == 52**3 and exact[0]["pool"] == 4
    rows = oracle_table([oracle, oracle], methods, [2, 4])
    assert [(r["method"], r["group"]) for r in rows] == [("joint", 2), ("joint", 4), ("nested", 4)]
    noisy = {"noisy": RLConfig(credit="grpo", slate_noise=1.0)}
    assert oracle_table([oracle], noisy, [2], exact=True) == [] != oracle_table([oracle], noisy, [2])
    with pytest.raises(KitError, match="'who' is not known"):
        oracle_table([oracle], {"who": RLConfig(credit="who")}, [2])


def test_interference_on_the_real_task(policy, lab, config) -> None:
    queries, config = lab.train[:16], replace(config, rl=replace(config.rl, group=8))
    found = interference(policy, queries, config, 3)
    assert -1 <= found["cosine"] <= 1 and 0 < found["slate_share"] < 1
    assert set(found) == {"tokens", "cosine", "slate_share"} and found["tokens"] > 16 * 8
    assert interference(policy, queries, config, 3) == found != interference(policy, queries, config, 4)
    assert all(p.grad is None for p in policy.model.parameters())


def test_small_pool_keeps_order_and_relevance(lab) -> None:
    e = lab.test[0]
    small = small_pool(e, 6)
    assert len(small.candidates) == 6 and len(small.relevant) == 2
    assert [e.candidates.index(c) for c in small.candidates] == sorted(e.candidates.index(c) for c in small.candidates)
    assert {small.candidates[i] for i in small.relevant} <= {e.candidates[i] for i in e.relevant}


def test_no_method_depends_on_how_many_groups_fit_into_memory(oracle) -> None:
    """GDPO divides by the spread over a batch, which turns no gradient: what is computed together must not matter."""
    groups = oracle.sample(400, RLConfig(group=4), torch.Generator().manual_seed(0))
    for credit in ("gdpo", "fgrpo", "anchor", "control", "shapley"):
        config = RLConfig(credit=credit, group=4, scale="std")
        whole = oracle.estimates(groups, config)
        parts = torch.cat([oracle.estimates(part, config) for part in groups.split(7)])
        assert torch.allclose(whole, parts, atol=1e-9) and whole.abs().max() > 0.01, credit
