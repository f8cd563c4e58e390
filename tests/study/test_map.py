"""The map: its sketches against exact gradients, its numbers against the oracle, its signs, its files."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from fgrpo.cli.main import main
from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.credit import CREDITS, fgrpo, with_credit
from fgrpo.data import Example, Splits
from fgrpo.loss import policy_loss
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE, max_tokens
from fgrpo.rollout import rollout
from fgrpo.runs.fields import with_fields
from fgrpo.runs.presets import LADDER
from fgrpo.study import map as study
from fgrpo.study import plots
from fgrpo.study.gradients import (
    PHASES,
    CountSketch,
    Estimates,
    add_estimates,
    advantages_of,
    basis_of,
    group_gradients,
)
from fgrpo.study.map import BASE, CELLS, PARTS, TRUTH, Moments
from fgrpo.study.oracle import Oracle, enumerate_outputs, small_pool
from fgrpo.study.signs import GRAMMAR, POOL, exact_signs, sampled_signs, shares, sign_rows, true_advantages
from fgrpo.trainer import sampling_of
from tests.conftest import spread_policy

METHODS = study.all_methods()
SMALL = Config(grammar=GrammarConfig(slate_size=2, rank_size=2))


def copies(example: Example, count: int) -> list[Example]:
    """One query under many names, so that each time other rollouts are drawn."""
    return [replace(example, id=f"{example.id}-{n}") for n in range(count)]


def sketched(policy, examples, methods, config, batch: int = 50) -> Estimates:
    found, sketch = Estimates(list(methods)), CountSketch(sum(p.numel() for p in policy.parameters()))
    for number, first in enumerate(range(0, len(examples), batch)):
        add_estimates(found, policy, examples[first : first + batch], methods, config, number, sketch)
    return found


@pytest.fixture(scope="module")
def gathered(lab) -> tuple[Oracle, Estimates]:
    """The oracle of a pool of 4 at lambda 2, and 600 groups drawn from it."""
    example, policy, rl = small_pool(lab.test[0], 4), spread_policy(), replace(SMALL.rl, lam=2.0)
    methods = {(name, 2.0): replace(rl, credit=name) for name in (BASE, "fgrpo", "reward_to_go", "item")}
    methods[TRUTH, 2.0] = replace(rl, credit="reward_to_go")
    return enumerate_outputs(policy, example, SMALL), sketched(policy, copies(example, 600), methods, SMALL)


def test_gradients_of_the_basis_are_those_of_the_loss(policy, queries, config) -> None:
    """Of every method and lambda, from one set of backward passes: policy_loss computes each by itself."""
    config, example = with_fields(config, full=True), queries[0]
    methods = {(name, lam): replace(config.rl, credit=name, lam=lam) for name in METHODS for lam in (0.0, 0.5, 4.0)}
    rollouts = rollout(policy, [example], sampling_of(config), config.rl.group, 0, 3)
    found = Estimates(list(methods))
    add_estimates(found, policy, [example], methods, with_fields(config, seed=0), 3, lambda x: x)
    assert len(found.sketches[0]) < len(methods)  # or nothing is saved
    for key, advantages in advantages_of(rollouts, [example], methods, 0, 3).items():
        own = torch.zeros(())
        for phase, number in PHASES.items():
            policy.model.zero_grad()
            loss, _ = policy_loss(policy, rollouts, advantages * (rollouts.phase == number), config.rl)
            loss.backward()
            direct = -torch.cat([p.grad.flatten() for p in policy.parameters()]) * max_tokens(config.grammar)
            own = found.of(key, phase)[0]
            assert torch.allclose(own, direct, atol=2e-4 * float(direct.abs().max()) + 1e-7), (key, phase)
    policy.model.zero_grad(set_to_none=True)
    assert own.abs().max() > 0


def test_one_pass_for_all_of_a_basis_or_one_each(policy, queries, config, monkeypatch) -> None:
    rollouts = rollout(policy, queries[:1], sampling_of(config), config.rl.group, 0)
    weights = torch.randn(3, rollouts.completions.numel(), generator=torch.Generator().manual_seed(0))
    rows, sketch = slice(0, config.rl.group), CountSketch(sum(p.numel() for p in policy.parameters()))
    together = group_gradients(policy, queries[0], rollouts, rows, weights, sketch)
    monkeypatch.setattr("fgrpo.study.gradients.BATCHED", 0)
    assert torch.allclose(together, group_gradients(policy, queries[0], rollouts, rows, weights, sketch), atol=1e-5)
    assert group_gradients(policy, queries[0], rollouts, rows, weights[:0], sketch).shape == (0, sketch.buckets)


def test_basis_has_the_rank_of_the_rows() -> None:
    rows = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    mixed = torch.cat((rows, rows[:1] + 2 * rows[1:2], torch.zeros(1, 40), 1e-4 * rows[2:]))
    basis, coefficients = basis_of(mixed)
    assert basis.shape == (3, 40) and torch.allclose(basis @ basis.T, torch.eye(3).double(), atol=1e-9)
    assert torch.allclose(coefficients @ basis, mixed.double(), atol=1e-6)
    assert basis_of(torch.zeros(2, 5))[0].shape == (0, 5) and basis_of(torch.zeros(0, 5))[0].shape == (0, 5)


def test_inner_products_of_sketches_are_unbiased(policy, queries, config) -> None:
    """Of real gradients, whose large entries are not spread evenly; the error of one is about 1/64 of the lengths."""
    rollouts = rollout(policy, queries[:1], sampling_of(config), config.rl.group, 0)
    weights = torch.randn(4, rollouts.completions.numel(), generator=torch.Generator().manual_seed(0))
    exact = group_gradients(policy, queries[0], rollouts, slice(0, config.rl.group), weights)
    sketches = [CountSketch(exact.shape[1], seed=seed)(exact) for seed in range(200)]
    grams = torch.stack([s @ s.T for s in sketches]) / (exact @ exact.T).diag().mean()
    away = grams - exact @ exact.T / (exact @ exact.T).diag().mean()
    assert away.std(0).max() < 4 / 64
    assert (away.mean(0).abs() < 4 * away.std(0) / 200**0.5 + 1e-6).all()


def test_efficiency_and_angle_are_those_of_the_oracle(gathered) -> None:
    """Means and variances over 40,000 groups of listed outputs, with exact inner products."""
    oracle, estimates = gathered
    rl = replace(SMALL.rl, lam=2.0)
    groups = oracle.sample(40_000, rl, torch.Generator().manual_seed(0))
    pay = oracle.gradient((oracle.rewards.slate + 2 * oracle.rewards.rank)[0])
    masks = {"slate": oracle.phase == PHASE_SLATE, "rank": oracle.phase == PHASE_RANK}
    masks["whole"] = masks["slate"] | masks["rank"]
    moments, exact = Moments.of(estimates, [BASE, "fgrpo", "reward_to_go", "item"], 2.0, 0), {}
    for name in (BASE, "fgrpo", "reward_to_go", "item"):
        drawn = oracle.estimates(groups, replace(rl, credit=name))
        for part, mask in masks.items():
            own, true = drawn * mask, pay * mask
            mean = own.mean(0)
            variance = float(oracle.dot(own, own).mean() - oracle.dot(mean, mean))
            along = float(oracle.dot(mean, true))
            exact[name, part] = along**2 / variance
            row = moments.row(name, part)
            low, high = row["efficiency_low"], row["efficiency_high"]
            assert low - 1e-6 <= exact[name, part] / exact[BASE, part] <= high + 1e-6, (name, part)
            assert high / low < 2  # an interval that says something
            angle = oracle.angle(mean, true)
            assert row["angle_low"] - 3 <= angle <= row["angle_high"] + 3, (name, part, angle, row)
            signal = (exact[name, part] / float(oracle.dot(true, true))) ** 0.5
            assert row["signal"] == pytest.approx(signal, rel=0.15)
    assert exact["fgrpo", "rank"] > 1.02 * exact[BASE, "rank"]  # there is something to be seen
    assert moments.row("item", "whole")["angle_low"] > 1 > moments.row("reward_to_go", "whole")["angle_low"]


def test_grpo_and_its_multiples_have_an_efficiency_of_1(gathered, policy, lab, monkeypatch) -> None:
    _, estimates = gathered
    moments = Moments.of(estimates, [BASE], 2.0, 0)
    for part in PARTS:
        assert moments.efficiency(BASE, part).tolist() == pytest.approx([1.0] * (1 + study.RESAMPLES))
    monkeypatch.setitem(CREDITS, "thrice", lambda *given: 3 * fgrpo(*given))
    monkeypatch.setitem(CREDITS, "more", lambda *given: 8 / 7 * CREDITS["grpo"](*given))
    splits = Splits(lab.train, [], [])
    names = [name for name in ("fgrpo", "thrice", "more", "rloo") if name in CREDITS]
    rows = study.measure(policy, splits, Config(), names, [1.0], 24)
    found = {(r["method"], r["part"]): r for r in rows}
    same = ("efficiency", "efficiency_low", "efficiency_high", "angle", "signal", "wrong")
    for part in PARTS:
        for column in same:
            close = 0.2 if column == "angle" else 1e-6  # the angle of a cosine that rounding takes from 1
            a, b = (found[name, part][column] for name in ("thrice", "fgrpo"))
            assert a == b or a == pytest.approx(b, rel=1e-3, abs=close), (part, column)
        for multiple in {"more", "rloo"} & {*names}:
            assert found[multiple, part]["efficiency"] == pytest.approx(1, rel=1e-3)
    assert found["fgrpo", "whole"]["wrong"] is None is not found["fgrpo", "slate"]["wrong"]


def test_intervals_cover() -> None:
    """Of 150 samples of 120 noisy gradients in 60 dimensions, whose true efficiency is 4 (half the noise)."""
    generator, dims, hits, tight = torch.Generator().manual_seed(0), 60, 0, 0
    mean = torch.randn(dims, generator=generator)
    mean *= 2 / mean.norm()
    for _ in range(150):
        shared, own = torch.randn(2, 120, dims, generator=generator)
        noise = {BASE: 0.5**0.5 * (shared + own), "fgrpo": 0.5 * shared, TRUTH: 0.5**0.5 * (shared - own)}
        found = Estimates([(name, 1.0) for name in noise])
        for n in range(120):
            found.sketches.append(torch.stack([mean + x[n] for x in noise.values()]))
            found.coefficients["slate"].append(torch.eye(3))
            found.coefficients["rank"].append(torch.zeros(3, 3))
        values = Moments.of(found, ["grpo", "fgrpo"], 1.0, 0).efficiency("fgrpo", "slate")
        low, high = study.interval(values)
        hits, tight = hits + (low <= 4 <= high), tight + (high < 8)
    assert hits >= 136 and tight > 75  # 150 of 95 % are 142.5 +- 2.7


def test_signs_where_all_outputs_are_listed(policy, lab) -> None:
    """True advantages against a plain loop; shares against rollouts with nested sampling."""
    example, config = small_pool(lab.test[0], POOL), Config(grammar=GRAMMAR)
    oracle = enumerate_outputs(policy, example, config, gradients=False)
    true = true_advantages(oracle, 0.5)
    value, of = {}, {}
    for p, o, s, r in zip(oracle.probability, oracle.rollouts.outputs, *oracle_rewards(oracle), strict=True):
        of.setdefault(o.slate, []).append((float(p), float(s), 0.5 * float(r)))
    expected = {slate: sum(p * r for p, _, r in some) / sum(p for p, _, _ in some) for slate, some in of.items()}
    value = {slate: some[0][1] + expected[slate] for slate, some in of.items()}
    mean = sum(p * value[slate] for slate, some in of.items() for p, _, _ in some)
    for n, o in enumerate(oracle.rollouts.outputs):
        assert true["slate"][n] == pytest.approx(value[o.slate] - mean, abs=1e-5)
        assert true["rank"][n] == pytest.approx(0.5 * float(oracle.rewards.rank[0, n]) - expected[o.slate], abs=1e-5)

    methods = {(name, 8): replace(with_credit(config.rl, name), group=8) for name in CREDITS}
    exact = exact_signs(policy, [example], methods, config, 400)
    plain = {key: rl for key, rl in methods.items() if rl.rankings == 1}
    drawn = sampled_signs(policy, copies(example, 60), plain, config)
    for key in plain:
        for phase in PHASES:
            a, b = shares(exact[key][phase]), shares(drawn[key][phase])
            assert a["wrong"] == pytest.approx(b["wrong"], abs=0.08), (key, phase)
    wrong = {(r["method"], r["phase"]): r["wrong"] for r in sign_rows(exact, 1.0)}
    assert wrong["fgrpo", "rank"] < wrong["grpo", "rank"] and wrong["fgrpo", "slate"] < wrong["grpo", "slate"]
    assert shares(torch.zeros(3, 3))["wrong"] is None


def oracle_rewards(oracle: Oracle) -> tuple[torch.Tensor, torch.Tensor]:
    return oracle.rewards.slate[0], oracle.rewards.rank[0]


def test_what_the_map_leaves_out() -> None:
    noisy = replace(Config(), rl=RLConfig(slate_noise=1.0))
    assert study.map_methods(["fgrpo", "item"], noisy) == (["grpo", "fgrpo"], ["item"])
    assert study.map_methods(["fgrpo", "item"], Config()) == (["grpo", "fgrpo", "item"], [])
    with pytest.raises(KitError, match="several rankings"):
        study.map_methods(["nested"], Config())
    with pytest.raises(KitError, match="'who' is not known"):
        study.map_methods(["who"], Config())
    assert "nested" not in METHODS and {*METHODS, "nested"} == {*CREDITS}


def test_cells_are_regimes_that_can_be_had() -> None:
    """And their policies are those that --preset names."""
    for name, cell in CELLS.items():
        config = cell.config(5)
        assert config.seed == 5 and config.pool >= config.grammar.slate_size and config.rl.group == 8, name
        assert cell.start_config().grammar == GrammarConfig()
    ladder = {name.removeprefix("lab-"): options.get("sft_steps", 1000) for name, options in LADDER.items()}
    assert ladder == study.STARTS
    assert {*study.COARSE} < {*CELLS} and len({tuple(vars(c).values()) for c in CELLS.values()}) == len(CELLS)


def test_a_map_that_goes_on_has_the_same_bytes(tmp_path, monkeypatch, capsys) -> None:
    """Cut off after its first cell, and on two processes; a warm start that is missing is made once."""
    monkeypatch.chdir(tmp_path)
    argv = ["analyse", "--map", "--cells", "warm,slate-noise", "--credits", "fgrpo,item", "--groups-per-cell", "8",
            "--jobs", "1", "--json", "--out"]  # fmt: skip
    assert main([*argv, "a/map.csv"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    whole = Path("a/map.csv").read_bytes()
    assert Path("a/map.png").stat().st_size > 10_000
    assert [(r["cell"], r["lam"]) for r in rows if (r["method"], r["part"]) == ("fgrpo", "whole")] == [
        ("warm", 0.25), ("warm", 1.0), ("warm", 4.0), ("slate-noise", 1.0)
    ]  # fmt: skip
    assert {r["method"] for r in rows if r["cell"] == "slate-noise"} == {"grpo", "fgrpo"}
    lines = whole.decode().splitlines(keepends=True)
    Path("a/map.csv").write_text("".join(line for line in lines if not line.startswith("slate-noise")))
    assert Path("a/map.csv").read_bytes() != whole
    assert main([*argv, "a/map.csv", "--resume"]) == 0
    assert Path("a/map.csv").read_bytes() == whole and json.loads(capsys.readouterr().out)["rows"] == rows
    for other in (["--seed", "1"], ["--groups-per-cell", "9"], ["--cells", "warm"], ["--credits", "fgrpo"]):
        assert main([*argv, "a/map.csv", "--resume", *other]) == 2
        assert "was measured with other" in capsys.readouterr().err
    assert Path("a/map.csv").read_bytes() == whole
    assert "all tokens" in study.format_map(rows) and len(study.format_map(rows).splitlines()) == 9

    monkeypatch.setitem(study.STARTS, "cold", 2)
    folders = [study.make_start(CELLS["cold-pool50"], Path("starts/cold-pool50")) for _ in range(2)]
    assert folders[0] == folders[1] and (folders[0] / "items.json").is_file()
    assert len(Path("starts/cold-pool50/metrics.jsonl").read_text().splitlines()) == 2


def test_a_run_of_ones_own_is_one_cell(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    size = ["--hidden-size", "32", "--layers", "1", "--heads", "2", "--sft-steps", "2", "--sft-batch", "8"]
    assert main(["train", "--sft", "--out", "p", "--json", *size, "--lam", "0.5", "--group", "4", "--pool", "12"]) == 0
    capsys.readouterr()
    argv = ["analyse", "--map", "--checkpoint", "p", "--groups-per-cell", "8", "--json", "--out", "own.csv"]
    assert main(argv) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(r["cell"], r["start"], r["pool"], r["lam"], r["groups"]) for r in rows} == {
        ("checkpoint", "p", 12, 0.5, 8)
    }
    assert [r["method"] for r in rows if r["part"] == "whole"] == METHODS
    assert (
        Path("own.png").is_file()
        and json.loads(Path("own.csv").read_text().splitlines()[0][2:])["config"]["pool"] == 12
    )


def test_figure_marks_what_is_not_resolved() -> None:
    def row(cell: str, method: str, value: float | None, low: float, high: float) -> plots.Row:
        ends = {"efficiency": value, "efficiency_low": low, "efficiency_high": high}
        return {"cell": cell, "lam": 1.0, "method": method, "part": "whole", **ends}

    rows = [row("a", "fgrpo", 2.0, 1.5, 3.0), row("b", "fgrpo", 1.2, 0.8, 2.0), row("c", "fgrpo", 0.3, -1.0, 9.0),
            row("a", "item", None, 0.0, 0.0)]  # fmt: skip
    figure = plots.credit_map([row("a", "grpo", 1.0, 1.0, 1.0), *rows])
    assert isinstance(figure, Figure)
    first, second = figure.axes[:2]
    assert [axes.get_title() for axes in (first, second)] == ["fgrpo", "item"]
    assert [bool(p.get_hatch()) for p in first.patches] == [False, True, False]
    assert first.images[0].get_array().mask.ravel().tolist() == [False, False, True]
    assert [text.get_text() for text in second.texts] == ["?"]
