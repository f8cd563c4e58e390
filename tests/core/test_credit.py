"""Credit methods against plain loops, and what must hold between them."""

from dataclasses import replace

import pytest
import torch

from fgrpo.config import GrammarConfig, KitError, RLConfig
from fgrpo.credit import BY_ITEM, CREDITS, JOINT, RIDGE, assign_credit, check_credit, zero_variance
from fgrpo.policy import Prompts, Sampling
from fgrpo.prompt import PHASE_PAD, PHASE_RANK, PHASE_SLATE, ItemChoices, Output
from fgrpo.rewards import WORTH, Rewards, score
from fgrpo.rollout import Rollouts, rollout

Q, G, T = 3, 4, 7
SLATES = [  # two pairs, in any order; all different; three of a kind
    (0, 1), (3, 2), (1, 0), (2, 3), (0, 1), (0, 2), (0,), (1,), (1, 2), (3,), (2, 1), (1, 2),
]  # fmt: skip


@pytest.fixture
def rollouts() -> Rollouts:
    """Phases of different lengths: row b has 3 + b % 2 slate tokens, 2 rank tokens, then padding."""
    phase = torch.full((Q * G, T), PHASE_PAD)
    for b in range(Q * G):
        phase[b, : 3 + b % 2] = PHASE_SLATE
        phase[b, 3 + b % 2 : 5 + b % 2] = PHASE_RANK
    mask = phase != PHASE_PAD
    # tokens 0 to 3 are the pool; every phase begins with a tag (9) and, but for long slates, ends with one
    tokens = torch.tensor([9, 0, 1, 9, 2, 9, 9]).repeat(Q * G, 1)
    tokens[1::2, :5] = torch.tensor([9, 3, 2, 9, 9])
    tokens[1::2, 5] = 2
    choices = ItemChoices(torch.tensor([[0, 1, 2, 3, 9, 9, 9, 9, 9]]).repeat(Q, 1))
    prompts = Prompts(torch.zeros(Q, 1).long(), torch.ones(Q, 1).bool(), choices)
    sampling = Sampling(GrammarConfig(2, 2))
    return Rollouts(prompts, tokens, mask, phase, torch.zeros(Q * G, T), [Output(s) for s in SLATES], G, sampling)


@pytest.fixture
def rewards() -> Rewards:
    generator = torch.Generator().manual_seed(0)
    slate, rank = torch.rand(2, Q, G, generator=generator)
    slate[1] = 0.1  # a group that the slate reward cannot tell apart
    slate_format, rank_format = torch.zeros(2, Q, G)
    slate_format[2, 3], rank_format[0, 1] = -0.5, -0.5
    return Rewards(slate, rank, slate_format, rank_format, *torch.rand(3, Q, G, 2, generator=generator))


def by_loop(rewards: Rewards, rollouts: Rollouts, config: RLConfig) -> torch.Tensor:
    """The methods that pay by phase, one token at a time."""
    out = torch.zeros(Q * G, T)
    for q in range(Q):
        both = rewards.slate, rewards.rank, rewards.slate_format, rewards.rank_format
        slate, rank, slate_form, rank_form = (x[q].tolist() for x in both)
        joint = [s + config.lam * r + f + g for s, r, f, g in zip(slate, rank, slate_form, rank_form, strict=True)]
        own_slate = [s + f for s, f in zip(slate, slate_form, strict=True)]
        own_rank = [r + f for r, f in zip(rank, rank_form, strict=True)]
        paid_rank = [config.lam * r + f for r, f in zip(rank, rank_form, strict=True)]
        for g in range(G):

            def spread(values: list[float]) -> float:
                mean = sum(values) / G
                return (sum((v - mean) ** 2 for v in values) / (G - 1)) ** 0.5 + 1e-4 if config.scale == "std" else 1.0

            def centred(values: list[float], over: list[float], g: int = g) -> float:
                return (values[g] - sum(values) / G) / spread(over)

            others = [j for j in range(G) if j != g]
            peers = [j for j in others if set(SLATES[q * G + j]) == set(SLATES[q * G + g])] or others
            apart = (paid_rank[g] - sum(paid_rank[j] for j in peers) / len(peers)) * (1 - 1 / G)
            # a line through the others, with the slope of a ridge regression
            mean_x, mean_y = (sum(values[j] for j in others) / (G - 1) for values in (slate, paid_rank))
            along = sum((slate[j] - mean_x) * (paid_rank[j] - mean_y) for j in others)
            slope = along / (sum((slate[j] - mean_x) ** 2 for j in others) + RIDGE)
            beyond = (paid_rank[g] - mean_y - slope * (slate[g] - mean_x)) * (1 - 1 / G)
            alone = (joint[g] - sum(joint[j] for j in others) / (G - 1)) / spread(joint)

            pay = {
                "grpo": (centred(joint, joint), centred(joint, joint)),
                "rloo": (alone, alone),
                "fgrpo": (centred(own_slate, own_slate), centred(paid_rank, own_rank)),
                "reward_to_go": (centred(joint, joint), centred(paid_rank, own_rank)),
                "anchor": (centred(joint, joint), apart / spread(own_rank)),
                "control": (centred(joint, joint), beyond / spread(own_rank)),
            }[config.credit]
            for t in range(T):
                phase = int(rollouts.phase[q * G + g, t])
                out[q * G + g, t] = pay[0] if phase == PHASE_SLATE else pay[1] if phase == PHASE_RANK else 0.0
    return out


@pytest.mark.parametrize("credit", ["grpo", "rloo", "fgrpo", "reward_to_go", "anchor", "control"])
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_agrees_with_the_plain_loop(rewards, rollouts, credit, scale, lam) -> None:
    config = RLConfig(credit=credit, scale=scale, lam=lam, group=G)
    found = assign_credit(rewards, rollouts, config)
    assert torch.allclose(found, by_loop(rewards, rollouts, config), atol=1e-6)
    assert (found[~rollouts.mask] == 0).all()


def test_equal_rewards_in_both_phases_make_fgrpo_equal_grpo(rewards, rollouts) -> None:
    """The joint reward is then (1 + lambda) times each phase's own, a scale that dividing by the spread removes."""
    same = replace(rewards, rank=rewards.slate, slate_format=torch.zeros(Q, G), rank_format=torch.zeros(Q, G))
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
    for credit in ("grpo", "rloo", "gdpo", "fgrpo", "reward_to_go"):
        first = assign_credit(rewards, rollouts, RLConfig(credit=credit))[:, 0].view(Q, G)
        assert first.sum(1).abs().max() < 1e-6
    assert torch.equal(kept.slate, rewards.slate) and torch.equal(kept.rank, rewards.rank)


def test_a_group_without_variance_gives_exactly_zero(rewards, rollouts) -> None:
    assert zero_variance(rewards.slate).tolist() == [False, True, False]
    for scale in ("none", "std"):
        found = assign_credit(rewards, rollouts, RLConfig(credit="fgrpo", scale=scale))
        assert (found[G : 2 * G][rollouts.phase[G : 2 * G] == PHASE_SLATE] == 0).all()


def test_gdpo_by_hand(rewards, rollouts) -> None:
    """Each reward loses its scale before the sum, so that stretching one changes nothing; the batch has spread one."""
    rewards = replace(rewards, slate_format=torch.zeros(Q, G), rank_format=torch.zeros(Q, G))
    found = assign_credit(rewards, rollouts, RLConfig(credit="gdpo"))[:, 0].view(Q, G)
    z = [(x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-4) for x in (rewards.slate, rewards.rank)]
    z[0][1] = 0  # the group without variance
    joint = z[0] + z[1]
    assert torch.allclose(found, joint / joint.std(), atol=1e-3)
    assert found.std().item() == pytest.approx(1, abs=1e-3)
    stretched = assign_credit(replace(rewards, slate=100 * rewards.slate), rollouts, RLConfig(credit="gdpo"))[:, 0]
    assert torch.allclose(found.flatten(), stretched, atol=5e-3)


@pytest.mark.parametrize("lam", [1.0, 0.5])
def test_nested_by_loop(rewards, rollouts, lam) -> None:
    """Rows 2m and 2m + 1 of a query share a slate."""
    rewards = replace(rewards, slate=rewards.slate[:, ::2].repeat_interleave(2, dim=1))
    config = RLConfig(credit="nested", rankings=2, group=G, lam=lam)
    found = assign_credit(rewards, replace(rollouts, rankings=2), config)
    for q in range(Q):
        paid = [(rewards.slate + lam * rewards.rank + rewards.format)[q, 2 * m : 2 * m + 2].mean() for m in range(2)]
        own = (lam * rewards.rank + rewards.rank_format)[q]
        for g in range(G):
            slate = (paid[g // 2] - (paid[0] + paid[1]) / 2) * 2  # M / (M - 1)
            rank = (own[g] - own[g - g % 2 : g - g % 2 + 2].mean()) * 2  # K / (K - 1)
            row = found[q * G + g]
            assert row[0] == pytest.approx(slate.item(), abs=1e-6)
            assert row[5 - (g + 1) % 2] == pytest.approx(rank.item(), abs=1e-6)


@pytest.mark.parametrize("slates", [[(0, 1)] * 3 + [(1, 0)], [(0,), (1,), (0, 1), (1, 2)]])
def test_anchors_that_tell_nothing_apart_leave_reward_to_go(rewards, rollouts, slates) -> None:
    """One slate in all rollouts of a group, or another in each."""
    rollouts = replace(rollouts, outputs=[Output(s) for s in slates * Q])
    found, plain = (assign_credit(rewards, rollouts, RLConfig(credit=c)) for c in ("anchor", "reward_to_go"))
    assert torch.allclose(found, plain, atol=1e-6) and plain.abs().max() > 0.1


def test_rankings_of_one_slate_are_rewarded_for_their_own_differences(rewards, rollouts) -> None:
    """Two pairs: what the slates contribute to the rank reward is gone, the difference within a pair is not halved."""
    rank = torch.tensor([[0.9, 0.1, 0.7, 0.1]] * Q)
    rewards = replace(rewards, rank=rank, rank_format=torch.zeros(Q, G))
    found = assign_credit(rewards, rollouts, RLConfig(credit="anchor"))[:G][rollouts.phase[:G] == PHASE_RANK]
    assert found.view(G, 2).tolist() == pytest.approx(torch.tensor([[0.15] * 2, [0.0] * 2, [-0.15] * 2, [0.0] * 2]))


def test_control_takes_out_what_the_slate_predicts(rewards, rollouts) -> None:
    """Rank rewards on a line over slate rewards are nearly all luck of the slate; flat ones are left as they are."""
    config, nothing = RLConfig(credit="control"), torch.zeros(Q, G)
    slate = torch.tensor([[0.0, 20.0, 40.0, 60.0]] * Q)  # far apart, so that the ridge is small
    line = replace(rewards, slate=slate, rank=0.2 + slate / 100, slate_format=nothing, rank_format=nothing)
    own = rollouts.phase == PHASE_RANK
    assert assign_credit(line, rollouts, config)[own].abs().max() < 1e-3
    flat = replace(line, slate=torch.full((Q, G), 0.5))
    found, plain = (assign_credit(flat, rollouts, replace(config, credit=c)) for c in ("control", "reward_to_go"))
    assert torch.allclose(found[own], plain[own], atol=1e-6) and plain[own].abs().max() > 0.1


@pytest.mark.parametrize("credit, name", [("item", "items"), ("shapley", "shapley")])
def test_item_and_shapley_by_hand(rewards, rollouts, credit, name) -> None:
    """A token is paid for the item at its place, against the group's mean at this place; a closed list counts 0."""
    nothing = torch.zeros(Q, G)
    rewards = replace(rewards, slate=torch.rand(Q, G), slate_format=nothing, rank_format=nothing)
    found, values = assign_credit(rewards, rollouts, RLConfig(credit=credit, lam=0.5)), getattr(rewards, name)
    to_go = torch.stack((rewards.places.sum(-1), rewards.places[..., 1]), dim=-1)
    for b in range(Q * G):
        q, g = divmod(b, G)
        slate = [(values[q, g, j] - values[q, :, j].mean()).item() for j in range(2)] + [0.0]
        rank = [0.5 * (to_go[q, g, j] - to_go[q, :, j].mean()).item() for j in range(2)]
        if b % 2 == 0:  # <SLATE> 0 1 | </SLATE>-less: 9 0 1, then rank 9 2
            expected = [slate[0], slate[0], slate[1], rank[0], rank[0], 0, 0]
        else:  # slate 9 3 2 9, then rank 9 2
            expected = [slate[0], slate[0], slate[1], slate[2], rank[0], rank[0], 0]
        assert found[b].tolist() == pytest.approx(expected, abs=1e-6)


def sampled_and_scored(policy, queries, grammar, group, rankings=1, **options) -> tuple[Rewards, Rollouts]:
    r = rollout(policy, queries, Sampling(grammar), group, 0, rankings=rankings)
    return score(r, queries, RLConfig(**options)), r


@pytest.mark.parametrize("credit", CREDITS)
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("full", [True, False])
def test_rewards_that_are_all_equal_give_zero(policy, queries, credit, scale, full) -> None:
    """Slates that hold the whole pool have a coverage of 1, whatever their order; what single items bring differs."""
    pool = [replace(q, candidates=q.candidates[:6], relevant=frozenset({i, 5})) for i, q in enumerate(queries[:3])]
    pool.append(replace(pool[0], relevant=frozenset(range(6)), id="all"))  # and here every ranking is perfect
    k = 2 if credit == "nested" else 1
    grammar = GrammarConfig(6, 2, full=full)
    rewards, r = sampled_and_scored(policy, pool, grammar, 8, k, scale=scale)
    alike = replace(rewards, slate=torch.ones_like(rewards.slate))
    found = assign_credit(alike, r, RLConfig(credit=credit, scale=scale, group=8, rankings=k))
    if credit not in JOINT | {"nested", "reward_to_go", "anchor", "control"}:  # those pay slates for their rankings too
        assert (found[r.phase == PHASE_SLATE] == 0).all()
    assert found.abs().max() < 10
    both = replace(alike, rank=torch.ones_like(alike.rank))
    assert (assign_credit(both, r, RLConfig(credit=credit, scale=scale, group=8, rankings=k)) == 0).all()


@pytest.mark.parametrize("credit", sorted(BY_ITEM))
def test_item_credit_pushes_at_nothing_where_coverage_is_perfect(policy, queries, credit) -> None:
    """One relevant candidate in a pool of 6, all 6 in every slate: each slate has reward 1, at different places."""
    pool = [replace(q, candidates=q.candidates[:6], relevant=frozenset({2})) for q in queries]
    rewards, r = sampled_and_scored(policy, pool, GrammarConfig(6, 2, full=True), 8)
    assert (rewards.slate == 1).all() and (rewards.items.std(1) > 0).any()
    found = assign_credit(rewards, r, RLConfig(credit=credit, scale="std"))
    assert (found[r.phase == PHASE_SLATE] == 0).all() and 0 < found.abs().max() < 10


@pytest.mark.parametrize("credit", [c for c in CREDITS if c != "nested"])
def test_a_fault_of_the_ranking_is_not_taken_off_the_slate(queries, credit) -> None:
    """Two rollouts write the same perfect slate; the second one ranks a candidate that is not in it."""
    example = replace(queries[0], candidates=("a", "b", "c", "d"), relevant=frozenset({0, 1}))
    outputs = [Output((0, 1), (0, 1)), Output((0, 1), (), "out_of_slate"), Output((), (), "malformed")]
    r = Rollouts(None, None, None, None, None, outputs, 3, Sampling(GrammarConfig()))  # type: ignore[arg-type]
    rewards = score(r, [example], RLConfig(format_penalty=0.5))
    assert rewards.slate.tolist() == [[1, 1, 0]] and rewards.rank.tolist() == [[1, 0, 0]]
    assert rewards.slate_format.tolist() == [[0, 0, -0.5]] and rewards.rank_format.tolist() == [[0, -0.5, 0]]
    assert rewards.format.tolist() == [[0, -0.5, -0.5]]
    tokens = torch.tensor([[9, 0, 1, 9, 9, 0]] * 3)
    phase = torch.tensor([[1, 1, 1, 1, 2, 2]] * 3)
    choices = ItemChoices(torch.tensor([[0, 1, 2, 3, 9, 9, 9, 9, 9]]))
    prompts = Prompts(torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), choices)
    r = replace(r, prompts=prompts, completions=tokens, mask=phase > 0, phase=phase)
    found = assign_credit(rewards, r, RLConfig(credit=credit))
    same = bool((found[0] == found[1])[phase[0] == PHASE_SLATE].all())
    assert same == (credit in {"fgrpo"} | BY_ITEM)  # joint credit tells the two slates apart, by their rankings
    assert found[0, -1] > found[1, -1]


def test_options_that_do_not_fit_are_refused() -> None:
    for credit in CREDITS:
        rankings = 2 if credit == "nested" else 1
        for ratio in ("token", "item", "phase"):
            check_credit(RLConfig(credit=credit, ratio=ratio, rankings=rankings))
        if credit in JOINT:
            check_credit(RLConfig(credit=credit, ratio="sequence"))
        else:
            with pytest.raises(KitError, match="averages the phases"):
                check_credit(RLConfig(credit=credit, ratio="sequence", rankings=rankings))
    for options, message in (
        ({"credit": "who"}, "'who' is not known"),
        ({"credit": "nested"}, "--rankings 2 or more"),
        ({"credit": "fgrpo", "rankings": 2}, "--rankings 2 or more"),
        ({"credit": "nested", "rankings": 3}, "must be a multiple of rankings 3"),
        ({"credit": "nested", "rankings": 8}, "two slates at least"),
        ({"credit": "item", "rank_noise": 0.5}, "leave out one"),
        ({"credit": "shapley", "slate_noise": 0.5}, "'shapley' is paid by item"),
    ):
        with pytest.raises(KitError, match=message):
            check_credit(RLConfig(**options))


def test_a_slate_reward_that_nobody_can_divide_is_refused_by_shapley_alone(policy, queries, monkeypatch) -> None:
    monkeypatch.delitem(WORTH, "f1")  # as of a reward that is added to SLATE_REWARDS only
    rewards, r = sampled_and_scored(policy, queries, GrammarConfig(), 4, slate_reward="f1")
    assert rewards.shapley.isnan().all()
    for credit in CREDITS:
        config = RLConfig(credit=credit, slate_reward="f1", group=4, rankings=2 if credit == "nested" else 1)
        if credit == "shapley":
            with pytest.raises(KitError, match="in WORTH, which 'f1' is not"):
                check_credit(config)
        else:
            check_credit(config)
            assert assign_credit(rewards, replace(r, rankings=config.rankings), config).isfinite().all()


def test_phases_of_real_rollouts_get_their_own_number(policy, queries) -> None:
    r = rollout(policy, queries, Sampling(GrammarConfig()), 6, 0)
    rewards = score(r, queries, RLConfig())
    advantages = assign_credit(rewards, r, RLConfig(credit="fgrpo"))
    end = r.mask.sum(1) - 1
    rank = (rewards.rank - rewards.rank.mean(1, keepdim=True)).flatten()
    assert torch.allclose(advantages[torch.arange(len(end)), end], rank, atol=1e-6)  # the end token has credit


@pytest.mark.parametrize("learn", ["slate", "rank"])
@pytest.mark.parametrize("name", CREDITS)
def test_the_tokens_of_the_phase_that_does_not_learn_have_no_advantage(rollouts, rewards, name, learn) -> None:
    """All others keep theirs, bit by bit."""
    config = RLConfig(credit=name, group=G)
    if name == "nested":
        config, rollouts = replace(config, rankings=2), replace(rollouts, rankings=2)
    both = assign_credit(rewards, rollouts, config)
    found = assign_credit(rewards, rollouts, replace(config, learn=learn))
    kept = rollouts.phase == {"slate": PHASE_SLATE, "rank": PHASE_RANK}[learn]
    assert torch.equal(found[kept], both[kept]) and found[kept].any()
    assert not found[~kept].any() and both[~kept & (rollouts.phase != PHASE_PAD)].any()


@pytest.mark.parametrize("learn", ["slate", "rank"])
def test_a_ratio_of_the_whole_sequence_would_train_both_phases(learn) -> None:
    with pytest.raises(KitError, match="ratio 'sequence' averages the phases of 'grpo'"):
        check_credit(RLConfig(credit="grpo", ratio="sequence", learn=learn))
    check_credit(RLConfig(credit="grpo", ratio="sequence"))
    check_credit(RLConfig(credit="grpo", ratio="phase", learn=learn))
