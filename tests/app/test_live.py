"""One step on a group, and a race: their numbers against the trainer's own, bad input, their HTML."""

import re
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from markupsafe import Markup

from app.live import (
    SETTINGS,
    Likelihoods,
    Point,
    RaceState,
    StepResult,
    contrast,
    likelihoods,
    race,
    race_config,
    race_panel,
    reading,
    rollouts_of,
    step_panel,
    take_step,
)
from fgrpo.config import Config, KitError, ModelConfig
from fgrpo.credit import with_credit
from fgrpo.data import Example, Splits
from fgrpo.evaluate import evaluate
from fgrpo.lm import text
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.lm.rows import RowPolicy
from fgrpo.prompt import PHASE_SLATE, Output
from fgrpo.runs.fields import with_fields
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.trace import Group, credit_of, from_lists, trace_policy
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import fit, make_optimizer, rl_stage, step
from tests.conftest import SMALL
from tests.lm.test_text import made
from tests.lm.test_text import words as vectors

HOSTILE = "<img src=x onerror=alert(1)>${y}"


@pytest.fixture
def group(policy, lab, config) -> Group:
    """A group as `step` number 0 samples it."""
    return trace_policy(policy, lab.test[:1], config, 1, seed=config.seed)[0]


def group_of(example: Example, *lists: tuple[tuple[int, ...], tuple[int, ...]], rankings: int = 1) -> Group:
    rows = [from_lists(Output(*both), len(example.candidates)) for both in lists]
    return Group(example, None, tuple(rows), rankings)


# --- one step ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "fgrpo", "item"])
@pytest.mark.parametrize("full", [False, True])
def test_a_step_is_that_of_the_trainer(method, full, policy, lab, config) -> None:
    """On the group that `fgrpo.trainer.step` samples, the policy ends where that takes it."""
    config = with_fields(config, queries=1, lr=1e-4, full=full, credit=method)
    group = trace_policy(policy, lab.test[:1], config, 1, seed=config.seed)[0]
    start = {n: p.clone() for n, p in policy.model.named_parameters()}
    result = take_step(policy, group, config, [method], 1e-4)
    assert all(torch.equal(p, start[n]) for n, p in policy.model.named_parameters())
    sampled = [sum(x for x, p in zip(r.logprobs, r.phases, strict=True) if p == PHASE_SLATE) for r in group.rollouts]
    assert result.before.slate == pytest.approx(sampled, abs=1e-3)
    trained = deepcopy(policy)
    step(trained, make_optimizer(trained, rl_stage(config)), lab.test[:1], config)
    found, after = (
        likelihoods(trained, rollouts_of(policy, group, config), group.example, config, result.given),
        result.after[method],
    )
    assert after.slate == pytest.approx(found.slate, abs=1e-3) and after.rank == pytest.approx(found.rank, abs=1e-3)
    assert after.first_slate == pytest.approx(found.first_slate, abs=1e-4) and after.greedy == found.greedy
    assert max(abs(x - y) for x, y in zip(after.slate, result.before.slate, strict=True)) > 0.01


def test_advantages_and_rewards_are_those_of_the_trace(policy, config, group) -> None:
    result = take_step(policy, group, config, ("grpo", "fgrpo"))
    for method in ("grpo", "fgrpo"):
        rewards, advantages = credit_of(group, replace(config, rl=with_credit(config.rl, method)))
        slate, rank = result.advantages[method]
        ends = [len(r.tokens) - 1 for r in group.rollouts]
        assert slate == pytest.approx(advantages[:, 0].tolist())
        assert rank == pytest.approx([advantages[n, end].item() for n, end in enumerate(ends)])
        assert result.slate_reward == pytest.approx(rewards.slate[0].tolist())
        assert result.rank_reward == pytest.approx(rewards.rank[0].tolist())


@pytest.mark.parametrize("decoding", ["constrained", "free"])
def test_first_choices_are_the_policys(policy, config, group, decoding) -> None:
    """Against the log-probability of completions that begin with each candidate."""
    config = with_fields(config, decoding=decoding)
    rollouts, count = rollouts_of(policy, group, config), len(group.example.candidates)
    given = (4, 2, 7)
    found = likelihoods(policy, rollouts, group.example, config, given)
    if decoding == "constrained":
        assert sum(found.first_slate) == pytest.approx(1) and sum(found.first_rank) == pytest.approx(1)
        assert all((p > 0) == (i in given) for i, p in enumerate(found.first_rank))
    for lists, at, expected in (
        ([((i,), (i,)) for i in range(count)], 1, found.first_slate),
        ([(given, (i,)) for i in given], 6, [found.first_rank[i] for i in given]),
    ):
        completions, mask = policy.spell([group.example] * len(lists), lists)
        with torch.no_grad():
            logps, _ = policy.logprobs(rollouts.prompts, completions, mask, rollouts.sampling, shared=False)
        assert logps[:, at].exp().tolist() == pytest.approx(expected, abs=1e-5)
    assert likelihoods(policy, rollouts, group.example, config, ()).first_rank == (0.0,) * count


def test_lists_longer_than_the_grammar_or_not_full_are_taken(policy, config, lab) -> None:
    """A trace may come from a run with other sizes."""
    group = group_of(lab.test[0], (tuple(range(12)), (0, 1, 2, 3, 4, 5, 6)), ((3, 4), (4,)))
    for full in (False, True):
        rollouts = rollouts_of(policy, group, with_fields(config, full=full))
        grammar = rollouts.sampling.grammar
        assert (grammar.slate_size, grammar.rank_size, grammar.full) == (12, 7, False)
        assert rollouts.logprobs.isfinite().all()
    ten = tuple(range(10))
    full_group = group_of(lab.test[0], (ten, ten[:5]), (ten, ten[5:]))
    assert rollouts_of(policy, full_group, with_fields(config, full=True)).sampling.grammar.full


def test_equal_rewards_change_nothing(policy, config, lab) -> None:
    lists = ((0, 1, 2), (0, 1)), ((0, 1, 2), (0, 1))
    result = take_step(policy, group_of(lab.test[0], *lists), config)
    assert reading(result) == [
        "Nothing changed: the rewards of these rollouts are all alike, so no method learns from them."
    ]
    assert contrast(result) is None


def test_nested_compares_rankings_of_a_slate(policy, config, lab) -> None:
    hits = sorted(lab.test[0].relevant)
    miss = next(i for i in range(20) if i not in hits)
    lists = [((hits[0], miss), (hits[0], miss)), ((hits[0], miss), (miss, hits[0]))]
    lists += [((miss,), (miss,)), ((miss,), (miss,))]
    result = take_step(policy, group_of(lab.test[0], *lists, rankings=2), config, ["nested"])
    slate, rank = result.advantages["nested"]
    assert slate[0] == slate[1] > 0 > slate[2] and rank[0] > 0 > rank[1] and rank[2] == 0
    with pytest.raises(KitError, match="one ranking per slate"):
        take_step(policy, group_of(lab.test[0], *lists), config, ["nested"])


def test_a_policy_that_reads_texts_takes_a_step(config, monkeypatch) -> None:
    monkeypatch.setattr(text, "embed", vectors)
    policy, example = made(), Example("q", "red", ("blue",), ("red fox", "blue hen", "old cat"), frozenset({0}))
    result = take_step(policy, group_of(example, ((0, 1), (0,)), ((1, 2), (2, 1))), config)
    assert sum(result.before.first_slate) == pytest.approx(1)
    assert result.after["fgrpo"].slate != pytest.approx(result.before.slate, abs=1e-3)


def test_what_allows_no_step_is_one_sentence(policy, config, group, lab) -> None:
    example = lab.test[0]
    foreign = replace(example, candidates=("Unknown", *example.candidates[1:]))
    lists = ((0, 1), (0,)), ((2, 3), (3,))
    broken = replace(group, rollouts=(*group.rollouts, from_lists(Output((1, 2), (), "duplicate"), 20)))
    long = replace(example, history=tuple(f.title for f in lab_catalogue()) * 3)
    cases = [
        (policy, replace(group, rollouts=group.rollouts[:1]), {}, "fewer than two"),
        (policy, broken, {}, r"rollout 5 breaks the grammar \(duplicate\)"),
        (policy, group_of(foreign, *lists), {}, "'Unknown' is not in the policy's vocabulary"),
        (policy, group_of(example, ((0, 0), (0,)), ((1,), (1,))), {}, "the grammar does not allow"),
        (policy, group_of(long, *lists * 30), {}, "too many for a step"),
        (SharedPolicy.tiny([f.title for f in lab_catalogue()], ModelConfig(**SMALL)), group, {}, "only tiny policies"),
        (policy, group, {"lr": float("nan")}, "learning rate"),
        (policy, group, {"lr": "fast"}, "learning rate"),
        (policy, group, {"methods": ["mystery"]}, "'mystery' is not known"),
        (policy, group, {"methods": []}, "between 1 and 4"),
    ]
    for policy_, group_, options, words in cases:
        with pytest.raises(KitError, match=words):
            take_step(policy_, group_, config, **options)
    with pytest.raises(KitError, match="averages the phases"):
        take_step(policy, group, with_fields(config, ratio="sequence"))


def result_by_hand(
    slate_after: dict[str, tuple[float, float]], rank_after: dict[str, tuple[float, float]]
) -> StepResult:
    """Two rollouts: a good slate badly ranked, and a bad slate well ranked. One candidate, chosen in half of the cases."""

    def one(slate: tuple[float, float], rank: tuple[float, float]) -> Likelihoods:
        return Likelihoods(slate, rank, (0.5, 0.5), (1.0, 0.0), Output((0,), (0,)), {"slate reward (recall)": 1.0})

    advantages = {"grpo": ((-0.1, 0.1), (-0.1, 0.1)), "fgrpo": ((0.25, -0.25), (-0.35, 0.35))}
    after = {m: one(slate_after[m], rank_after[m]) for m in slate_after}
    return StepResult(1e-4, (1.0, 0.5), (0.1, 0.8), one((-2.0, -3.0), (-1.0, -1.5)), after, advantages, (0,), True)


def test_the_reading_names_the_clearest_contrast() -> None:
    rank = {"grpo": (-1.1, -1.4), "fgrpo": (-1.2, -1.3)}
    result = result_by_hand({"grpo": (-2.25, -2.9), "fgrpo": (-1.75, -3.25)}, rank)
    assert reading(result) == [
        "The slate of rollout 1, whose slate reward 1.000 is above the group's mean of 0.750, became less likely under grpo "
        "(advantage −0.10, log-probability −0.250) and more likely under fgrpo (advantage +0.25, log-probability +0.250).",
        "Of the 1 slate with a reward above the mean, 0 under grpo and 1 under fgrpo became more likely.",
    ]
    alike = result_by_hand({"grpo": (-2.25, -2.9), "fgrpo": (-2.1, -3.25)}, rank)
    assert contrast(alike).rollout == 1  # a slate below the mean, which grpo praises
    same = result_by_hand({"grpo": (-2.25, -2.9), "fgrpo": (-2.1, -2.9)}, rank)
    assert contrast(same) is None
    assert (
        reading(same)[0]
        == "Of the 1 slate with a reward above the mean, 0 under grpo and 0 under fgrpo became more likely."
    )


def test_the_panel_marks_what_moves_apart_and_escapes_titles() -> None:
    example = Example("q", "?", (), (HOSTILE, "b"), frozenset({0}))
    rank = {"grpo": (-1.1, -1.4), "fgrpo": (-1.2, -1.3)}
    html = step_panel(result_by_hand({"grpo": (-2.25, -2.9), "fgrpo": (-1.75, -3.25)}, rank), example)
    assert "<mark>−2.25 ↓ −0.250</mark>" in html and "<mark>−1.75 ↑ +0.250</mark>" in html
    assert html.count("<mark>") == 4 and html.count("<table") == 4
    assert "<td>−1.10 ↓ −0.100</td>" in html  # both methods blame the ranking
    assert "sampled by the policy of another run" in html and "50.0 %" in html
    assert "<img" not in html and "${" not in html and "{" not in re.sub(r"&#\d+;", "", html)


# --- a race -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_race_is_the_kits_training(setting, policy, config, lab, tmp_path) -> None:
    """Rewards and NDCG@5 of each method are those of `fit` with the same seed."""
    config = with_fields(race_config(config, setting), queries=3, group=4)
    start = {n: p.clone() for n, p in policy.model.named_parameters()}
    states = list(race(policy, config, lab, steps=5, every=2, seed=7, validation=16))
    assert [s.points["grpo"][-1].step for s in states] == [0, 2, 4, 5]
    assert all(torch.equal(p, start[n]) for n, p in policy.model.named_parameters())
    for method in ("grpo", "fgrpo"):
        own = with_fields(config, steps=5, seed=7, credit=method)
        run = Run(tmp_path / method, own)
        trained = fit(deepcopy(policy), lab.train, own, run, quiet=True)
        rows, points = read_metrics(run.folder), states[-1].points[method]
        for point, some in zip(points[1:], (rows[:2], rows[2:4], rows[4:]), strict=True):
            assert point.slate == pytest.approx(sum(r["reward/slate"] for r in some) / len(some), abs=1e-3)
            assert point.rank == pytest.approx(sum(r["reward/rank"] for r in some) / len(some), abs=1e-3)
            assert point.length == pytest.approx(sum(r["slate_length"] for r in some) / len(some), abs=1e-3)
        for point, of in ((points[0], policy), (points[-1], trained)):
            ndcg = float(evaluate(of, lab.validation[:16], own)["ndcg@5"].mean())
            assert point.ndcg == pytest.approx(ndcg, abs=1e-6)
    assert states[-1].points["grpo"] != states[-1].points["fgrpo"]


def test_a_race_can_be_stopped_between_steps(policy, config, lab) -> None:
    going = race(policy, config, lab, ["grpo", "nested"], steps=4, every=1, validation=4)
    first, second = next(going), next(going)
    assert len(first.points["grpo"]) == 1 and first.points["nested"][0].slate is None  # a state does not change later
    assert [p.step for p in second.points["nested"]] == [0, 1] and second.seconds["nested"] > 0
    going.close()
    with pytest.raises(StopIteration):
        next(going)


def test_what_allows_no_race_is_one_sentence(policy, config, lab) -> None:
    other = SharedPolicy.tiny([f.title for f in lab_catalogue()], ModelConfig(**SMALL))
    cases = [
        (policy, lab, {"steps": 0}, "number of steps"),
        (policy, lab, {"steps": 10_000}, "between 1 and 500"),
        (policy, lab, {"steps": 2.5}, "number of steps"),
        (policy, lab, {"every": 51}, "steps between points"),
        (policy, lab, {"seed": -1}, "seed"),
        (policy, lab, {"methods": ("mystery",)}, "'mystery' is not known"),
        (policy, lab._replace(validation=[]), {}, "no validation queries"),
        (other, lab, {}, "only tiny policies"),
        (RowPolicy.tiny(["a", "b"], ModelConfig(**SMALL)), lab, {}, "use a checkpoint trained on this catalogue"),
    ]
    for policy_, splits, options, words in cases:
        with pytest.raises(KitError, match=words):
            list(race(policy_, config, splits, **options))
    with pytest.raises(KitError, match="at most 256 rollouts"):
        list(race(policy, with_fields(config, queries=100), lab))
    with pytest.raises(KitError, match="setting '<b>' is not known"):
        race_config(config, "<b>")


def test_a_race_that_diverges_says_so(policy, config, lab) -> None:
    with torch.no_grad():
        next(iter(policy.parameters())).fill_(float("nan"))
    policy.checked[4] = 10_000  # as after the comparison of an earlier batch
    with pytest.raises(KitError, match="grpo: not finite at step 1"):
        list(race(policy, config, lab, steps=1, every=1, validation=4))


def test_the_panel_of_a_race() -> None:
    config = race_config(Config(), "control")
    points = {
        "grpo": (Point(0, 0.6), Point(5, 0.55, 0.7, 0.5, 9.0)),
        "<b>": (Point(0, 0.6), Point(5, 0.65, 0.71, 0.52, 10.0)),
    }
    drawn = []

    def draw(series, title, ylabel) -> Markup:
        drawn.append((title, [(name, list(steps), list(values)) for name, steps, values, _ in series]))
        return Markup("<svg></svg>")

    html = race_panel(RaceState(config, 50, 128, points, {"grpo": 1.25, "<b>": 2.0}), draw)
    assert drawn == [
        ("NDCG@5, greedy", [("grpo", [0, 5], [0.6, 0.55]), ("<b>", [0, 5], [0.6, 0.65])]),
        ("sampled slate reward", [("grpo", [5], [0.7]), ("<b>", [5], [0.71])]),
        ("sampled rank reward", [("grpo", [5], [0.5]), ("<b>", [5], [0.52])]),
        ("sampled slate length", [("grpo", [5], [9.0]), ("<b>", [5], [10.0])]),
    ]
    assert html.count("<svg>") == 4 and "<b>" not in html
    assert "rank tokens alone learn, and noise of standard deviation" in html
    assert "One seed of 50 steps decides nothing between methods: fewer than 3 seeds give no verdict" in html
    cells = "<td>5 of 50</td><td>0.600</td><td>0.550</td><td>−0.050</td><td>0.700</td><td>0.500</td><td>9.000</td>"
    assert cells in html and "slate length too" not in html
    start = RaceState(config, 50, 128, {"grpo": points["grpo"][:1]}, {"grpo": 0.0})
    drawn.clear()
    assert "<td>0.000</td><td>–</td><td>–</td><td>–</td>" in race_panel(start, draw) and len(drawn) == 1
    assert "slate length too" in race_panel(replace(start, config=Config(task="/a/<i>.jsonl")), draw)
    assert "of &lt;i&gt;.jsonl, 8 rollouts" in race_panel(replace(start, config=Config(task="/a/<i>.jsonl")), draw)


def test_the_splits_of_a_file_can_be_raced_on(policy, config, lab) -> None:
    """A finite list of training examples instead of a stream."""
    splits = Splits(lab.test[:6], lab.test[6:10], [])
    states = list(race(policy, config, splits, ["fgrpo"], steps=3, every=3, validation=128))
    assert states[-1].queries == 4 and len(states) == 2
