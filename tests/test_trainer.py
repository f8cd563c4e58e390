"""Training: the same seed gives the same run, a killed run resumes to the same bits, failures name what is needed."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.checkpoint import Run, policy_folder, read_config, read_metrics
from fgrpo.config import Config, KitError
from fgrpo.data import lab_catalogue
from fgrpo.policy import Policy
from fgrpo.trainer import batch_of, demonstration, fit

LOGGED = {
    "step", "loss", "approx_kl", "clipfrac/slate", "clipfrac/rank", "entropy/slate", "entropy/rank", "grad_norm",
    "reward/slate", "reward/rank", "reward/format", "zero_variance/slate", "zero_variance/rank",
    "advantage_std/slate", "advantage_std/rank", "slate_length", "format_errors", "tokens", "seconds",
}  # fmt: skip


TINY_MODEL = ["--hidden-size", "32", "--layers", "1", "--heads", "2"]


def fresh(config: Config) -> Policy:
    return Policy.tiny([f.title for f in lab_catalogue()], config.model, config.seed)


def run_to_end(config, lab, folder, sft=False, save_every=2, resume=False) -> Run:
    run = Run(folder, config, resume=resume, save_every=save_every)
    fit(fresh(config), lab.train, config, run, sft=sft, quiet=True)
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.latest() / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def without_times(run: Run) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(run.folder)]


def test_same_seed_same_metrics_and_another_seed_another(config, lab, tmp_path) -> None:
    a, b = (run_to_end(config, lab, tmp_path / name) for name in "ab")
    other = run_to_end(replace(config, seed=1), lab, tmp_path / "c")
    assert without_times(a) == without_times(b) != without_times(other)
    assert same(weights(a), weights(b))
    assert set(read_metrics(a.folder)[0]) == LOGGED and len(read_metrics(a.folder)) == config.rl.steps


@pytest.mark.parametrize("sft", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_resumed_run_is_bit_identical(config, lab, tmp_path, sft, beta, monkeypatch) -> None:
    """Stopped in step 4 of 6, after a checkpoint at 3 and with one more line logged than checkpointed."""
    config = replace(config, rl=replace(config.rl, steps=6, beta=beta, epochs=2), sft=replace(config.sft, sft_steps=6))
    whole = run_to_end(config, lab, tmp_path / "whole", sft, save_every=3)
    logged = Run.log
    monkeypatch.setattr(Run, "log", lambda self, row: logged(self, row) if row["step"] < 5 else _stop())
    with pytest.raises(KeyboardInterrupt):
        run_to_end(config, lab, tmp_path / "cut", sft, save_every=3)
    monkeypatch.setattr(Run, "log", logged)
    assert len(read_metrics(tmp_path / "cut")) == 4
    cut = run_to_end(config, lab, tmp_path / "cut", sft, save_every=3, resume=True)
    assert same(weights(whole), weights(cut))
    assert same(*(load_file(r.latest() / "trainer.safetensors") for r in (whole, cut)))
    assert without_times(whole) == without_times(cut)


def _stop() -> None:
    raise KeyboardInterrupt


def test_killed_at_any_moment_resumes_bit_identical(tmp_path) -> None:
    """kill -9 from outside, five times; a checkpoint every step, so that kills fall into writes as well."""
    options = ["--steps", "12", "--queries", "4", "--group", "4", *TINY_MODEL, "--sft-steps", "3", "--save-every", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(name: str) -> subprocess.Popen:
        resume = ["--resume"] if (tmp_path / name / "config.json").exists() else []
        command = [sys.executable, "-m", "fgrpo", "train", "--out", str(tmp_path / name), *options, *resume, "--json"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)

    assert start("whole").wait() == 0
    killed = 0
    for step, delay in ((0, 0.0), (2, 0.005), (5, 0.02), (7, 0.04), (10, 0.01)):
        process = start("cut")
        while process.poll() is None and not (tmp_path / f"cut/checkpoints/step-{step:06d}").exists():
            time.sleep(0.001)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed >= 3
    assert start("cut").wait() == 0
    whole, cut = (Run(tmp_path / x, read_config(tmp_path / x), resume=True) for x in ("whole", "cut"))
    assert same(weights(whole), weights(cut))
    assert without_times(whole) == without_times(cut)
    traces = [run.trace.read_text(encoding="utf-8").splitlines()[1:] for run in (whole, cut)]
    assert traces[0] == traces[1] and len(traces[0]) == 12 * 4


def test_training_improves_the_reward(lab, tmp_path) -> None:
    """From the shipped warm start, forty steps of fgrpo bring the sampled rewards up."""
    from fgrpo.compare import SHIPPED

    config = Config.from_flat(steps=40, lr=1e-3)
    run = Run(tmp_path / "a", config, save_every=40)
    fit(Policy.load(policy_folder(SHIPPED)), lab.train, config, run, quiet=True)
    rows = read_metrics(run.folder)
    for name in ("reward/slate", "reward/rank"):
        first, last = (sum(r[name] for r in part) / 10 for part in (rows[:10], rows[-10:]))
        assert last > first + 0.02, name


def test_a_loss_that_is_not_finite_names_step_queries_and_checkpoint(config, lab, tmp_path, monkeypatch) -> None:
    from fgrpo import trainer

    calls, real = [], trainer.policy_loss

    def poisoned(*args, **kwargs):
        loss, logs = real(*args, **kwargs)
        calls.append(1)
        return (loss * float("nan") if len(calls) == 4 else loss), logs

    monkeypatch.setattr(trainer, "policy_loss", poisoned)
    with pytest.raises(KitError) as error:
        run_to_end(config, lab, tmp_path / "a", save_every=2)
    expected = [e.id for e in batch_of(lab.train, 4, 3, 0)]
    assert "step 4" in str(error.value) and "step-000002" in str(error.value)
    assert all(i in str(error.value) for i in expected)
    for tensor in load_file(tmp_path / "a/checkpoints/step-000002/model.safetensors").values():
        assert torch.isfinite(tensor).all()


def test_every_epoch_shows_every_example_once(lab) -> None:
    examples = lab.train[:10]
    stream = [e.id for number in range(5) for e in batch_of(examples, 4, number, seed=3)]
    assert sorted(stream[:10]) == sorted(stream[10:]) == sorted(e.id for e in examples)
    assert stream[:10] != stream[10:]


def test_demonstrations_are_good_and_of_every_length(lab) -> None:
    generator, lengths = torch.Generator().manual_seed(0), set()
    for example in lab.train[:300]:
        slate, rank = demonstration(example, Config(), generator)
        assert example.relevant <= set(slate) and set(rank[: len(example.relevant)]) == example.relevant
        assert len(set(slate)) == len(slate) <= 10 and len(rank) <= 5 and set(rank) <= set(slate)
        lengths.add(len(slate))
    assert lengths == set(range(2, 11))


def test_full_disk_leaves_the_earlier_checkpoint_whole(config, lab, tmp_path) -> None:
    """A file size limit stands for the full disk: the kernel refuses the write in the middle of a file."""
    script = (
        "import resource, sys, torch\n"
        "torch.set_num_threads(1)\n"
        "from tests.test_trainer import *\n"
        "from fgrpo.data import build_lab\n"
        "config = Config.from_flat(queries=4, group=4, steps=4, hidden_size=32, layers=1, heads=2)\n"
        "save = Run.save\n"
        "def limited(self, policy, optimizer, generator, step, position):\n"
        "    if step == 4: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "    save(self, policy, optimizer, generator, step, position)\n"
        "Run.save = limited\n"
        "try: run_to_end(config, build_lab(), sys.argv[1])\n"
        "except KitError as error: print(error)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )  # fmt: skip
    assert "step-000004" in out.stdout and "cannot be written" in out.stdout and "step-000002" in out.stdout, out
    assert [p.name for p in sorted((tmp_path / "a/checkpoints").iterdir())] == ["step-000000", "step-000002"]
    resumed = run_to_end(
        Config.from_flat(queries=4, group=4, steps=4, hidden_size=32, layers=1, heads=2), lab, tmp_path / "a", resume=True
    )  # fmt: skip
    assert resumed.latest().name == "step-000004"


def test_a_run_folder_is_not_overwritten_and_resume_checks_the_options(config, lab, tmp_path) -> None:
    run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match="already holds a run"):
        run_to_end(config, lab, tmp_path / "a")
    with pytest.raises(KitError, match=r"rl.lam = 2.0, it began with 1.0"):
        Run(tmp_path / "a", replace(config, rl=replace(config.rl, lam=2.0)), resume=True)
    longer = run_to_end(replace(config, rl=replace(config.rl, steps=6)), lab, tmp_path / "a", resume=True)
    assert len(read_metrics(longer.folder)) == 6
    assert json.loads((longer.latest() / "trainer.json").read_text()) == {"step": 6, "position": 24}


@pytest.mark.parametrize(
    "file", ["model.safetensors", "trainer.safetensors", "items.json", "tokenizer.json", "config.json"]
)
def test_a_truncated_checkpoint_gets_one_clear_line(config, lab, tmp_path, file) -> None:
    run = run_to_end(config, lab, tmp_path / "a")
    path = run.latest() / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(KitError, match="damaged") as error:
        run_to_end(config, lab, tmp_path / "a", resume=True)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_vocabulary_is_refused(lab, config) -> None:
    from fgrpo.evaluate import evaluate

    with pytest.raises(KitError, match="not in the policy's vocabulary of 2 items"):
        evaluate(Policy.tiny(["a", "b"], config.model), lab.test[:2], config)


def test_a_pool_smaller_than_the_slate_is_refused(lab, config, tmp_path) -> None:
    small = [replace(lab.train[0], candidates=lab.train[0].candidates[:6], relevant=frozenset({0}))]
    with pytest.raises(KitError, match="pool of 6 candidates is smaller than slate_size 10"):
        fit(fresh(config), small, config, Run(tmp_path / "a", config), quiet=True)


def test_saved_policy_is_the_same_policy(policy, queries, tmp_path) -> None:
    from fgrpo.config import GrammarConfig
    from fgrpo.policy import Sampling
    from fgrpo.rollout import rollout

    policy.save(tmp_path / "p")
    loaded = Policy.load(tmp_path / "p")
    a, b = (rollout(p, queries, Sampling(GrammarConfig())) for p in (policy, loaded))
    assert a.outputs == b.outputs and torch.equal(a.logprobs, b.logprobs)
    assert not list((tmp_path / "p").glob("*.bin")) and (tmp_path / "p/model.safetensors").exists()
