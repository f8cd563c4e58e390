"""The trace that every run leaves behind, and those of the shipped runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.config import Config
from fgrpo.credit import CREDITS, with_credit
from fgrpo.data import Splits
from fgrpo.evaluate import evaluate, measure_outputs
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.runs.policies import load_policy, write_policy
from fgrpo.runs.run import Run, read_config, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.runs.trace import credit_of, read_trace, trace_policy
from fgrpo.runs.warm_start import TRACED, tracer
from fgrpo.study.compare import train_and_test
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import fit

ROOT = Path(__file__).parents[2]
SHIPPED = ("lab-rec", "lab-rec-grpo", "lab-rec-fgrpo")


def train(config: Config, lab: Splits, folder: Path, sft=False, resume=False, trace=True) -> Run:
    run = Run(folder, config, resume=resume, save_every=2)
    look = {"after_save": tracer(run, lab.validation)} if trace else {}
    policy = SharedPolicy.tiny([f.title for f in lab_catalogue()], config.model, config.seed)
    fit(policy, lab.train, config, run, sft_stage(config) if sft else None, quiet=True, **look)
    return run


def groups(run: Run) -> list[str]:
    """Every line but the header, which tells how and when the file was made."""
    return run.trace.read_text(encoding="utf-8").splitlines()[1:]


def weights(run: Run) -> bytes:
    return (run.latest() / "model.safetensors").read_bytes()


@pytest.fixture
def longer(config) -> Config:
    return replace(config, rl=replace(config.rl, steps=5), sft=replace(config.sft, sft_steps=5))


@pytest.mark.parametrize("sft", [False, True])
def test_a_run_is_traced_at_every_checkpoint_and_trains_as_without(longer, lab, tmp_path, sft) -> None:
    traced, plain = (train(longer, lab, tmp_path / name, sft, trace=name == "a") for name in "ab")
    assert weights(traced) == weights(plain) and not plain.trace.exists()
    a, b = ([{k: v for k, v in r.items() if k != "seconds"} for r in read_metrics(x.folder)] for x in (traced, plain))
    assert a == b
    found = read_trace(traced.trace)
    assert found.name == "a" and found.config == longer
    assert [g.step for g in found.groups] == [s for s in (2, 4, 5) for _ in range(TRACED)]
    for step in range(3):
        some = found.groups[step * TRACED : (step + 1) * TRACED]
        assert [g.example for g in some] == lab.validation[:TRACED]
        assert all(g.greedy.logprobs and [bool(r.entropy) for r in g.rollouts] == [True] * 4 for g in some)


@pytest.mark.parametrize("lost", ["in a step", "between checkpoint and trace"])
def test_a_stopped_run_resumes_to_the_same_trace(longer, lab, tmp_path, monkeypatch, lost) -> None:
    whole = train(longer, lab, tmp_path / "whole")
    with monkeypatch.context() as patch:
        if lost == "in a step":
            logged = Run.log
            patch.setattr(Run, "log", lambda self, row: logged(self, row) if row["step"] < 4 else _stop())
        else:
            patch.setattr("fgrpo.runs.warm_start.write_trace", lambda *args, **kwargs: _stop())
        with pytest.raises(KeyboardInterrupt):
            train(longer, lab, tmp_path / "cut")
    assert [p.name for p in sorted((tmp_path / "cut/checkpoints").iterdir())] == ["step-000000", "step-000002"]
    cut = train(longer, lab, tmp_path / "cut", resume=True)
    assert groups(cut) == groups(whole)
    again = train(longer, lab, tmp_path / "cut", resume=True)  # nothing left to do
    assert groups(again) == groups(whole)


def _stop() -> None:
    raise KeyboardInterrupt


def test_a_compared_run_keeps_its_test_lists(config, lab, tmp_path) -> None:
    small = Splits(lab.train[:64], lab.validation[:8], lab.test[:12])
    start = SharedPolicy.tiny([f.title for f in lab_catalogue()], config.model, seed=1)
    write_policy(start, tmp_path / "start")
    result = train_and_test(config, small, tmp_path / "start", tmp_path / "a", quiet=True, resume=False)
    found = read_trace(tmp_path / "a/trace.jsonl")
    assert [g.example for g in found.groups] == small.test and {g.step for g in found.groups} == {config.rl.steps}
    assert [len(g.rollouts) for g in found.groups] == [4] * TRACED + [0] * 8
    measured = measure_outputs([g.greedy.output for g in found.groups], small.test, config.grammar)
    policy = load_policy(tmp_path / "a")
    for name, values in evaluate(policy, small.test, config).items():
        assert torch.equal(values, measured[name]) and torch.equal(values, result.metrics[name]), name


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_runs_are_whole_and_their_lists_are_those_of_the_policy(name, lab) -> None:
    folder = ROOT / "data/checkpoints" / name
    found, config, trained = read_trace(folder / "trace.jsonl"), read_config(folder), read_metrics(folder)
    shown = lab.test[:100]
    assert found.name == name and not found.notes and [g.example for g in found.groups] == shown
    assert len(trained) == (config.sft.sft_steps if name == "lab-rec" else config.rl.steps)
    assert [len(g.rollouts) for g in found.groups] == [8] * 100
    assert found.groups[0].rankings == 2 and not list(folder.glob("checkpoints/*/trainer*"))
    for method in CREDITS:
        rewards, advantages = credit_of(found.groups[0], replace(found.config, rl=with_credit(found.config.rl, method)))
        assert rewards.rank.shape == (1, 8) and advantages.isfinite().all() and advantages.any()
    outputs = [g.greedy.output for g in found.groups]
    policy = load_policy(folder)
    own = evaluate(policy, shown, config)["ndcg@5"]
    assert torch.equal(measure_outputs(outputs, shown, config.grammar)["ndcg@5"], own)
    again = trace_policy(policy, shown[:2], found.config, 2, seed=found.config.seed)
    assert [[r.output for r in g.rollouts] for g in again] == [[r.output for r in g.rollouts] for g in found.groups[:2]]


def test_shipped_runs_name_the_command_that_made_them() -> None:
    script = (ROOT / "data/results/make.py").read_text(encoding="utf-8")
    for name in SHIPPED:
        made = json.loads((ROOT / "data/checkpoints" / name / "config.json").read_text(encoding="utf-8"))["made"]
        assert made["command"].startswith("python -m fgrpo train ")
        assert f"--out data/checkpoints/{name}" in made["command"] and f'"{name}": ' in script
        found = read_trace(ROOT / "data/checkpoints" / name / "trace.jsonl")
        rl = found.config.rl
        assert found.made["command"] and (rl.credit, rl.group, rl.rankings) == ("nested", 8, 2)
