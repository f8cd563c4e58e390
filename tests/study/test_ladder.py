"""The ladder of the positive control: its runs, its predictions from gradients, its table and its command."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.cli.main import main
from fgrpo.config import Config, GrammarConfig, KitError
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.runs.fields import with_fields
from fgrpo.runs.policies import save_policy
from fgrpo.study import control, plots
from fgrpo.study.analysis import phase_gradient, phase_probabilities
from fgrpo.study.apart import PhasePolicy
from fgrpo.study.ladder import (
    ALONE,
    BEGIN,
    METHODS,
    RANKER,
    RUNGS,
    SEPARATE,
    SHARED,
    Prediction,
    format_ladder,
    gradients,
    joined,
    ladder_experiments,
    ladder_rows,
    predict,
)
from fgrpo.study.oracle import enumerate_outputs, small_pool
from tests.conftest import spread_policy
from tests.study.test_control import made


def test_the_rungs_differ_in_what_learns_and_in_nothing_else() -> None:
    found = ladder_experiments(with_fields(Config(), pool=30, learn="slate"))
    assert tuple(found) == RUNGS and set(BEGIN) == {SEPARATE}
    for rung, by_method in found.items():
        for method, own in by_method.items():
            assert (own.rl.credit, own.rl.learn) == (method, "rank" if rung == ALONE else "both")
            assert replace(own, rl=replace(own.rl, learn="rank")) == found[ALONE][method]
    with pytest.raises(KitError, match="leave out --model"):
        ladder_experiments(with_fields(Config(), model="folder"))


def test_the_true_gradient_is_the_oracles(lab) -> None:
    """Of one query, over many groups: both phases' gradients of E[R_rank] in the direction of the exact ones."""
    policy, example = spread_policy(), small_pool(lab.test[0], 4)
    config = with_fields(Config(), slate_size=2, rank_size=2, group=256, slate_noise=1.0)
    oracle = enumerate_outputs(policy, example, config)
    slates, ranks = phase_probabilities(policy, oracle)
    drawn = [gradients(policy, [example], config, number) for number in range(24)]
    for name, phase in (("slate", PHASE_SLATE), ("rank", PHASE_RANK)):
        exact = phase_gradient(policy, oracle, phase, slates * ranks * oracle.rewards.rank[0])
        found = torch.stack([g[f"true {name}"] for g in drawn]).mean(0)
        assert torch.cosine_similarity(exact, found, dim=0) > 0.95
        assert found.norm() == pytest.approx(float(exact.norm()), rel=0.15)
    assert torch.allclose(drawn[0]["fgrpo rank"], drawn[0]["true rank"], atol=1e-6)  # its own reward has no noise
    assert not torch.allclose(drawn[0]["grpo rank"], drawn[0]["true rank"], atol=1e-3)


def test_in_separate_weights_the_same_gradients_are_side_by_side(lab, config) -> None:
    """Which is why one model's gradients predict all three rungs."""
    one, two = (gradients(p, lab.test[:4], config) for p in (spread_policy(), PhasePolicy.twice(spread_policy())))
    for name, vector in one.items():
        empty = torch.zeros_like(vector)
        parts = (vector, empty) if name.endswith("slate") else (empty, vector)
        assert torch.allclose(two[name], torch.cat(parts), atol=1e-5), name


@pytest.fixture(scope="module")
def prediction(tmp_path_factory, lab):
    folder = tmp_path_factory.mktemp("start") / "policy"
    save_policy(spread_policy(), folder)
    config = with_fields(Config(), queries=8, group=16, slate_noise=1.0, slate_size=6, rank_size=3, full=True)
    return predict(folder, lab.test[:8], config, 24), folder, config


def test_noise_in_the_slates_reward_hides_the_ranker_from_joint_credit_and_from_shared_weights(prediction, lab) -> None:
    found, folder, config = prediction
    gain = {(rung, m): found[rung][m].gain("ranker")[0] for rung in RUNGS for m in METHODS}
    assert gain[ALONE, "fgrpo"] > gain[ALONE, "grpo"] + 0.1  # the control
    assert [gain[SEPARATE, m] for m in METHODS] == [gain[ALONE, m] for m in METHODS]
    assert gain[SHARED, "fgrpo"] < 0.6 * gain[ALONE, "fgrpo"]  # crowded out by the slate's noise
    assert found[ALONE]["fgrpo"].raises("ranker")[0] > found[SHARED]["fgrpo"].raises("ranker")[0]
    clean = predict(folder, lab.test[:8], with_fields(config, slate_noise=0.0), 24)
    assert clean[SHARED]["fgrpo"].gain("ranker")[0] > gain[SHARED, "fgrpo"] + 0.1
    assert not found[ALONE]["grpo"].leak.any() and not found[SEPARATE]["grpo"].leak.any()
    assert clean[SHARED]["fgrpo"].leak.mean() > 0.02  # slates that are paid for coverage teach the ranker, too
    with pytest.raises(KitError, match="needs 2"):
        predict(folder, lab.train, config, 1)


def test_a_step_and_its_own_gradient_are_of_different_batches(tmp_path, lab) -> None:
    """A policy paid noise alone gains nothing: a batch that judged itself would always praise its own step."""
    save_policy(spread_policy(), tmp_path)
    config = with_fields(Config(), queries=2, group=2, slate_size=6, rank_size=3, lam=0.0, slate_noise=1.0)
    found = predict(tmp_path, lab.train, config, 40)[ALONE]["grpo"]
    assert found.gain("ranker")[1] < 0.1 and 0.2 < found.raises("ranker")[0] < 0.8


def test_shares_and_means_have_their_intervals() -> None:
    x = torch.tensor([1.0, 1.0, 1.0, -1.0], dtype=torch.float64)
    share, low, high = Prediction(x, x, x).raises("lists")
    assert (share, low, high) == (0.75, pytest.approx(0.3006, abs=1e-3), pytest.approx(0.9544, abs=1e-3))  # Wilson's
    mean, low, high = Prediction(x, x, x).gain("ranker")
    assert mean == 0.5 and high - mean == pytest.approx(mean - low) == pytest.approx(1.96 * 1 / 2)


def test_the_table_holds_differences_of_measured_and_predicted_gains(prediction) -> None:
    predictions, _, _ = prediction
    results = {}
    for rung, joint, own in ((ALONE, -0.05, 0.01), (SEPARATE, 0.0, 0.02), (SHARED, 0.02, 0.02)):
        ((_, by_method),) = made(joint, own, 6).items()
        for runs in by_method.values():
            runs[:] = [replace(r, metrics={**r.metrics, RANKER: r.metrics["ndcg@5"] / 2}) for r in runs]
        results[rung] = by_method
    starts = [0, 1, 2] * 2
    rows = {(r["rung"], r["method"]): r for r in ladder_rows(results, starts, predictions)}
    assert len(rows) == 9
    for rung, apart in ((ALONE, 0.06), (SEPARATE, 0.02), (SHARED, 0.0)):
        row, joint, own = (rows[rung, m] for m in ("fgrpo minus grpo", "grpo", "fgrpo"))
        assert row["gain"] == pytest.approx(apart, abs=0.01) == pytest.approx(own["gain"] - joint["gain"], abs=0.01)
        assert row["ranker_gain"] == pytest.approx(row["gain"] / 2)
        assert row["simultaneous_low"] < row["low"] < row["gain"] < row["high"] < row["simultaneous_high"]
        for name in ("predicted", "predicted_ranker"):
            assert row[name] == pytest.approx(own[name] - joint[name])
            assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
        assert row["raises"] is None and joint["p_holm"] is None and joint["raises_low"] < joint["raises"]
        assert (row["seeds"], row["starts"]) == (6, 3) and 0 < row["detectable"] < 0.1
    assert rows[ALONE, "fgrpo minus grpo"]["p_holm"] < 0.05 < rows[SHARED, "fgrpo minus grpo"]["p_holm"]
    few = {rung: {m: runs[:1] for m, runs in by_method.items()} for rung, by_method in results.items()}
    assert all(r["p_holm"] is None and r["detectable"] is None for r in ladder_rows(few, [0], predictions))
    text = format_ladder(list(rows.values()))
    assert all(rung in text for rung in RUNGS) and "Seeds: 6; warm starts: 3" in text
    assert len(plots.ladder(list(rows.values())).axes) == 2


def test_batches_of_all_warm_starts_are_put_together(prediction) -> None:
    one, _, _ = prediction
    both = joined([one, one])
    assert len(both[SHARED]["grpo"].leak) == 2 * len(one[SHARED]["grpo"].leak)
    assert both[ALONE]["fgrpo"].gain("lists")[0] == pytest.approx(one[ALONE]["fgrpo"].gain("lists")[0])


def test_the_command_trains_all_rungs_and_can_be_resumed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(control.OPTIONS, "steps", 3)
    argv = ["compare", "--control", "--ladder", "--seeds", "1", "--limit", "16", "--jobs", "1", "--out",
            "runs/l", "--json", "--hidden-size", "32", "--layers", "1", "--heads", "2", "--sft-steps", "3", "--sft-batch",
            "8", "--queries", "2", "--group", "2"]  # fmt: skip
    status = main(argv)
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert status == 1 and not err and report["holds"] is False  # one seed decides nothing
    assert [r["rung"] for r in report["rows"]] == [rung for rung in RUNGS for _ in range(3)]
    head, *lines = Path("runs/l/ladder.csv").read_text().splitlines()
    assert json.loads(head[2:])["config"]["rl"]["steps"] == 3 and len(list(csv.DictReader(lines))) == 9
    assert Path("runs/l/ladder.png").stat().st_size
    parts = {p.name for p in Path("runs/l/separate_weights/grpo-seed0/checkpoints/step-000003").iterdir()}
    assert {"slate", "rank", "trainer.json"} <= parts
    main([*argv, "--resume"])
    again = json.loads(capsys.readouterr().out)
    assert again["rows"] == report["rows"]


def test_the_grammar_of_the_control_fills_lists() -> None:
    assert ladder_experiments(Config())[SHARED]["grpo"].grammar == GrammarConfig(full=True)
