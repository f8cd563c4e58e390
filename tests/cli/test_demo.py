"""The demo: what it says, in which order, and its figure; its runs are made by hand."""

import json
from pathlib import Path

import pytest

from fgrpo.cli import demo as cli
from fgrpo.cli.main import main
from fgrpo.config import Config
from fgrpo.data import Splits
from fgrpo.study import compare, report
from fgrpo.study.check import manipulation
from fgrpo.study.compare import Results
from tests.study.test_control import made
from tests.study.test_report import NAMES, QUALITY, result, runs


def task(gain: float, seeds: int) -> Results:
    """Results of the full task: methods that gain so much over the warm start with filled lists."""
    curve = [(100 * (n + 1), QUALITY + gain * (n + 1) / 5) for n in range(5)]

    def trained(shift: float, seed: int):
        return [result(run.metrics["ndcg@5"], curve) for run in runs(gain + shift, seeds, seed=seed)]

    rows = {"attributes": 0.1, "taste": 0.3, "sft_full": 0.0, "sft_once": 0.01}
    found = {name: [result(QUALITY + shift)] for name, shift in rows.items()}
    more = {"sft_more": [result(QUALITY + 0.02, curve)], "sft": [result(QUALITY - 0.1)]}
    return {"": found | more | {m: trained(0.001 * k, 9 + k) for k, m in enumerate(cli.METHODS)}}


@pytest.fixture
def demo(tmp_path, monkeypatch, capsys):
    """Run the demo on given results; status, output and what was asked of `compare`."""
    monkeypatch.chdir(tmp_path)
    calls = []

    def call(gain: float, control: tuple[float, float], *options: str, seeds: int = 3):
        def by_hand(experiments, count, folder, load, baselines, start, jobs, quiet, every=0, sft_more=True) -> Results:
            splits, _ = load(Config())
            calls.append((experiments, count, list(baselines), every, sft_more, splits))
            return task(gain, seeds) if every else made(*control, count)

        monkeypatch.setattr(compare, "compare", by_hand)
        monkeypatch.setattr(
            report, "write_report",
            lambda found, *args, starts: (report.table(found, starts=starts), manipulation(found, starts)),
        )  # fmt: skip
        monkeypatch.setattr(cli, "example", lambda config, splits, folder: print("One viewer"))
        status = main(["demo", "--steps", "110", "--seeds", str(seeds), *options])
        return status, capsys.readouterr().out, calls

    return call


def test_it_shows_learning_then_the_control_then_what_is_known(demo) -> None:
    status, out, calls = demo(0.1, (-0.08, 0.02))
    assert status == 0
    parts = ["1. RL learns.", "grpo beats sft_full by", "grpo beats sft_more by", "2. Where credit must matter, it does",
             "The control holds", "3. The full task", "detectable", "One viewer", "demo.png", "make lab",
             "make app"]  # fmt: skip
    places = [out.index(part) for part in parts]
    assert places == sorted(places)
    table = out[out.index("3. The full task") : out.index("One viewer")].splitlines()[1:]
    header, *rows = [line for line in table if line.strip()]
    assert [row.split()[0] for row in rows] == list(cli.METHODS) and "difference to grpo" in header
    assert "attributes" in out and "taste" in out
    (figure,) = Path("runs").glob("demo-*/demo.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    (learns, count, baselines, every, more, splits), (control, _, none, never, no_more, _) = calls
    assert isinstance(splits, Splits) and len(splits.test) == cli.QUERIES and (count, every, more) == (3, 27, True)
    assert list(learns[""]) == list(cli.METHODS) and {c.rl.steps for c in learns[""].values()} == {110}
    assert baselines == ["attributes", "taste"] and (none, never, no_more) == ([], 0, False)
    assert list(control[""]) == ["grpo", "fgrpo"]
    assert all((c.rl.learn, c.rl.slate_noise, c.rl.steps) == ("rank", 3, 80) for c in control[""].values())


@pytest.mark.parametrize(
    ("gain", "control", "seeds", "said", "unsaid"),
    [
        (0.0, (-0.08, 0.02), 3, ["1. Does RL learn?", "RL has not been shown to learn here"], ["1. RL learns"]),
        (0.1, (0.02, 0.02), 3, ["The control FAILS: the instrument is broken"], ["it does.", "The control holds"]),
        (0.1, (-0.08, 0.02), 1, ["1. Does RL learn?", "no verdict: fewer than 3 seeds", "decide nothing"],
         ["1. RL learns", "it does."]),
    ],
)  # fmt: skip
def test_it_claims_nothing_that_its_numbers_do_not_show(demo, gain, control, seeds, said, unsaid) -> None:
    status, out, _ = demo(gain, control, seeds=seeds)
    assert status == 0 and all(text in out for text in said) and not any(text in out for text in unsaid)


def test_few_steps_are_those_of_the_control_too_which_gives_no_verdict_then(demo) -> None:
    for control, said in (((0.0, 0.0), "A verdict needs 80 steps."), ((-0.08, 0.02), "The control holds")):
        status, out, calls = demo(0.1, control, "--steps", "7")
        assert status == 0 and said in out and "FAILS" not in out
        assert {c.rl.steps for c in calls[-1][0][""].values()} == {7} and len(calls[-1][0][""]) == 2


def test_json_is_one_object(demo) -> None:
    status, out, _ = demo(0.1, (-0.08, 0.02), "--json")
    found = json.loads(out)
    assert status == 0 and set(found) == {"task", "rows", "check", "control", "tokens", "seconds"}
    assert found["control"]["holds"] and len(found["check"]) == 2 * len(cli.METHODS)
    assert {row["metric"] for row in found["rows"]} >= set(NAMES)
