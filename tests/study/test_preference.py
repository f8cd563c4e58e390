"""Offline preferences: the loss, which outputs are preferred to which, and runs that are killed and go on."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.config import KitError
from fgrpo.credit import zero_variance
from fgrpo.data import Example, Splits
from fgrpo.rewards import score
from fgrpo.rollout import rollout
from fgrpo.runs.fields import with_fields
from fgrpo.runs.policies import load_policy, save_policy
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.study.compare import Result, compare, prefer
from fgrpo.study.experiments import grid
from fgrpo.study.preference import (
    PREFERENCES,
    Preference,
    contrasted,
    preference_loss,
    preference_step,
    preferences_by_name,
    preferred,
    preferring,
)  # fmt: skip
from fgrpo.study.sft_more import queries_of
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import fit, make_optimizer, sampling_of

BOTH = pytest.mark.parametrize("negatives", ["worst", "all"])


@pytest.fixture
def start(policy, tmp_path) -> Path:
    save_policy(policy, tmp_path / "start")
    return tmp_path / "start"


@pytest.fixture
def small(lab) -> Splits:
    return Splits(lab.train, lab.validation[:4], lab.test[:8])


def by_hand(ratios: list[float], paid: list[float], beta: float) -> float | None:
    """The loss of one group in plain arithmetic; None where all outputs earn the same."""
    best = max(range(len(paid)), key=lambda i: paid[i])
    worse = [i for i in range(len(paid)) if paid[i] < paid[best]]
    if not worse:
        return None
    total = sum(math.exp(beta * (ratios[i] - ratios[best])) for i in worse)
    return -math.log(1 / (1 + math.exp(math.log(total))))


def test_the_loss_is_that_of_a_plain_loop() -> None:
    """With two outputs DPO's, with more S-DPO's; equals of the best are not rejected, groups of equals have no loss."""
    generator = torch.Generator().manual_seed(0)
    for k in (2, 5):
        ratios = torch.randn(6, k, generator=generator, dtype=torch.float64)
        paid = torch.randint(3, (6, k), generator=generator).double()
        paid[0], paid[1, :2], paid[2, 0] = 1.0, 2.0, 3.0
        for beta in (0.1, 2.0):
            rows = zip(ratios.tolist(), paid.tolist(), strict=True)
            expected = [x for r, p in rows if (x := by_hand(r, p, beta)) is not None]
            found = preference_loss(ratios, paid, beta)
            assert 2 <= len(expected) < 6 and found.tolist() == pytest.approx(expected)
    dpo = preference_loss(torch.tensor([[0.3, -0.5]]), torch.tensor([[1.0, 0.0]]), 0.5)
    assert float(dpo) == pytest.approx(-math.log(1 / (1 + math.exp(-0.5 * 0.8))))
    far = preference_loss(torch.tensor([[-400.0, 400.0]]), torch.tensor([[1.0, 0.0]]), 1.0)
    assert float(far) == pytest.approx(800)  # no overflow


def test_its_gradient_raises_the_best_and_lowers_what_earned_less() -> None:
    ratios = torch.zeros(2, 4, requires_grad=True)
    paid = torch.tensor([[1.0, 2.0, 2.0, 0.5], [1.0, 1.0, 1.0, 1.0]])
    preference_loss(ratios, paid, 0.5).sum().backward()
    assert ratios.grad is not None
    down, up, equal, worst = (-ratios.grad[0]).tolist()
    assert up > 0 > down and worst < 0 and equal == 0 and up == pytest.approx(-down - worst)
    assert ratios.grad[1].tolist() == [0.0] * 4  # nothing to learn, and not a number would spread
    assert preferred(torch.tensor([[0.2, 0.1, 0.9, 0.0]]), paid[:1]) == 0.5


def test_pairs_and_their_order_come_from_the_rewards() -> None:
    paid = torch.tensor([[0.5, 2.0, 0.0, 2.0], [1.0, 0.2, 0.2, 0.7]])
    assert contrasted(paid, "worst").tolist() == [[1, 2], [0, 1]]  # best and worst, the first of equals
    assert contrasted(paid, "all").tolist() == [[0, 1, 2, 3]] * 2


@BOTH
def test_a_step_prefers_what_the_warm_start_drew_and_the_joint_reward_praised(policy, lab, config, negatives) -> None:
    """The first loss is known: all log-ratios are 0. Afterwards the best outputs have gained on the others."""
    config = Preference(negatives, beta=0.5, lr=1e-3).options(with_fields(config, lam=2.0, queries=8))
    queries = queries_of(lab, config)[:8]
    drawn = rollout(policy, queries, sampling_of(config), 4, config.seed, 3)
    rewards = score(drawn, queries, config.rl)
    paid = rewards.slate + 2.0 * rewards.rank
    reference, optimizer = twin_of(policy), make_optimizer(policy, Preference(negatives).stage(config))
    logs = preference_step(policy, optimizer, queries, config, 3, reference, negatives=negatives)
    rejected = [(row < row.max()).sum().item() if negatives == "all" else 1 for row in paid[~zero_variance(paid)]]
    expected = sum(math.log(1 + n) for n in rejected) / len(rejected)
    assert 0 < len(rejected) < 8 and logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["zero_variance"] == pytest.approx(1 - len(rejected) / 8) and logs["tokens"] > 0
    assert logs["reward/slate"] == pytest.approx(float(rewards.slate.mean()))
    now, _ = policy.logprobs(drawn.prompts, drawn.completions, drawn.mask, drawn.sampling)
    ratios = (now - drawn.logprobs).sum(1).view(8, 4)
    best, worst = (ratios.gather(1, x.unsqueeze(1)) for x in (paid.argmax(1), paid.argmin(1)))
    assert (best - worst).sum() > 0.1
    again = rollout(reference, queries, sampling_of(config), 4, config.seed, 3)
    assert torch.equal(again.completions, drawn.completions)  # of the warm start, whatever was learned since


def twin_of(policy):
    """A copy of the policy."""
    return type(policy)(deepcopy(policy.model), policy.tokenizer, policy.labels)


@BOTH
def test_a_few_queries_at_a_time_give_the_same_step(policy, lab, config, negatives) -> None:
    found = []
    for micro in (0, 3):
        own = Preference(negatives).options(with_fields(config, micro=micro, queries=8))
        twin = twin_of(policy)
        optimizer = make_optimizer(twin, Preference().stage(own))
        logs = preference_step(twin, optimizer, queries_of(lab, own)[:8], own, 0, policy, negatives=negatives)
        found.append((logs["loss"], logs["grad_norm"], logs["tokens"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_it_sees_the_queries_of_rl_in_their_order_and_none_to_measure_on(config, small, start, tmp_path) -> None:
    for seed in (0, 3):
        seen: list[Example] = []
        own = replace(config, seed=seed)
        policy, run = preferring(Preference(), own, small, start, tmp_path / f"{seed}")
        stage = Preference().stage(run.config)

        def step(policy, optimizer, queries, *rest, seen=seen, stage=stage):
            seen.extend(queries)
            return stage.step(policy, optimizer, queries, *rest)

        fit(policy, small.train, run.config, run, replace(stage, step=step), quiet=True)
        assert seen == queries_of(small, own) and len(seen) == 16
        assert not {e.id for e in seen} & {e.id for e in (*small.validation, *small.test)}


@BOTH
def test_it_begins_at_the_warm_start_and_is_resumed_bit_identical(
    config, small, start, tmp_path, negatives, monkeypatch
) -> None:
    preference = Preference(negatives, lr=1e-3)

    def train(name: str, resume: bool = False) -> Result:
        return prefer(preference, config, small, start, tmp_path / name, True, resume)

    whole = train("whole")
    first = load_file(tmp_path / "whole/checkpoints/step-000000/model.safetensors")
    assert all(torch.equal(t, first[name]) for name, t in load_file(start / "model.safetensors").items())
    assert whole.metrics["ndcg@5"].shape == (8,) and whole.tokens > 0
    logged = Run.log
    for cut in range(1, 5):
        monkeypatch.setattr(
            Run, "log", lambda self, line, cut=cut: logged(self, line) if line["step"] < cut else _stop()
        )
        with pytest.raises(KeyboardInterrupt):
            train(f"{cut}")
        monkeypatch.setattr(Run, "log", logged)
        found = train(f"{cut}", resume=True)
        assert all(torch.equal(found.metrics[name], values) for name, values in whole.metrics.items())
        assert found.tokens == whole.tokens and len(read_metrics(tmp_path / f"{cut}")) == 4
        a, b = (tmp_path / name / "checkpoints/step-000004/model.safetensors" for name in ("whole", f"{cut}"))
        assert a.read_bytes() == b.read_bytes() != (start / "model.safetensors").read_bytes()


def _stop() -> None:
    raise KeyboardInterrupt


def test_a_comparison_has_a_row_for_each_preference_with_one_run_per_warm_start(config, small, tmp_path) -> None:
    """Before the rows of RL; resumed with other options it is refused before anything is loaded."""
    items = [film.title for film in lab_catalogue()]

    def again(resume: bool = False, load=lambda c: (small, items), **preferences: Preference):
        return compare(
            grid(config, ["nested", "grpo"]), 3, tmp_path, load, {}, jobs=1, quiet=True, resume=resume, starts=2,
            sft_more=False, preferences=preferences,
        )[""]  # fmt: skip

    found = again(**PREFERENCES)
    assert {row: len(runs) for row, runs in found.items()} == {
        "sft_full": 2, "dpo": 2, "s_dpo": 2, "sft": 2, "nested": 3, "grpo": 3
    }  # fmt: skip
    for w, start in enumerate(("warm-start", "warm-start-seed1")):
        begun, own = tmp_path / f"dpo-start{w}", read_config(tmp_path / f"s_dpo-start{w}")
        a, b = begun / "checkpoints/step-000000/model.safetensors", load_policy(tmp_path / start)
        assert all(torch.equal(t, b.model.state_dict()[name]) for name, t in load_file(a).items())
        assert own.seed == w and (own.rl.beta, own.rl.lr, own.rl.rankings) == (0.5, config.rl.lr, 1)
    tokens = [sum(row["tokens"] for row in read_metrics(tmp_path / name)) for name in ("dpo-start0", "s_dpo-start0")]
    assert tokens[0] == tokens[1] == found["dpo"][0].tokens  # the same outputs
    resumed = again(True, **PREFERENCES)
    assert torch.equal(resumed["dpo"][1].metrics["ndcg@5"], found["dpo"][1].metrics["ndcg@5"])

    def load(c):
        raise AssertionError("loaded")

    for changed, said in (
        (Preference(beta=0.2), "with rl.beta = 0.2"), (Preference("all"), "as s_dpo, it began as dpo"),
        (Preference(lr=2e-4), "with rl.lr = 0.0002"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=rf"dpo-start0: cannot resume {said}"):
            again(True, load, dpo=changed)


def test_what_does_not_fit_is_refused_in_one_sentence(config, tmp_path) -> None:
    for wrong, said in (
        ({"negatives": "some"}, "negatives 'some' is not known; choose from worst, all"),
        ({"beta": 0.0}, "beta 0.0 of a preference must be above 0"), ({"beta": math.nan}, "beta nan"),
        ({"beta": math.inf}, "beta inf must be at most"), ({"lr": -1.0}, "lr -1.0 must be at least"),
        ({"lr": 2.0}, "lr 2.0 must be at most"),
    ):  # fmt: skip
        with pytest.raises(KitError, match=said):
            Preference(**wrong)
    with pytest.raises(KitError, match="'best' is not known; choose from dpo, s_dpo"):
        preferences_by_name(["dpo", "best"])

    def refused(said: str, methods=("grpo",), baselines=None, preferences=PREFERENCES, **fields: object) -> None:
        def load(c):
            raise AssertionError("loaded")

        with pytest.raises(KitError, match=said):
            compare(grid(with_fields(config, **fields), methods), 1, tmp_path / "new", load, baselines or {}, quiet=True,
                    preferences=preferences)  # fmt: skip
        assert not (tmp_path / "new").exists()

    refused("about whole outputs, and learn is 'rank'", learn="rank")
    refused("'dpo' names a baseline and a preference", baselines={"dpo": lambda splits: []})
    refused("row 'sft_more' needs another name", preferences={"sft_more": Preference()})
    refused("same name", preferences={"a b": Preference(), "a_b": Preference("all")})
