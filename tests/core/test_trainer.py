"""Training: the same seed gives the same run, a killed run resumes to the same bits, failures name what is needed."""

import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from fgrpo.config import Config, KitError
from fgrpo.data import Stream
from fgrpo.lm.prefix import SharedPolicy
from fgrpo.policy import Policy
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy, write_policy
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.sft import sft_stage
from fgrpo.tasks.lab import lab_catalogue
from fgrpo.trainer import batch_of, fit, rl_stage

LOGGED = {
    "step", "loss", "approx_kl", "clipfrac/slate", "clipfrac/rank", "entropy/slate", "entropy/rank", "grad_norm",
    "reward/slate", "reward/rank", "reward/format", "zero_variance/slate", "zero_variance/rank",
    "advantage_std/slate", "advantage_std/rank", "slate_length", "format_errors", "tokens", "seconds",
}  # fmt: skip


def fresh(config: Config) -> Policy:
    return SharedPolicy.tiny([f.title for f in lab_catalogue()], config.model, config.seed)


def run_to_end(config, lab, folder, sft=False, save_every=2, resume=False) -> Run:
    run = Run(folder, config, resume=resume, save_every=save_every)
    fit(fresh(config), lab.train, config, run, sft_stage(config) if sft else None, quiet=True)
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


@pytest.mark.parametrize("sft", [False, True])
def test_a_run_on_the_stream_is_resumed_after_any_step(config, lab, tmp_path, sft, monkeypatch) -> None:
    """Stopped in each of its steps, with a checkpoint after every second one: the same queries, weights and metrics."""
    assert isinstance(lab.train, Stream)
    whole, logged = run_to_end(config, lab, tmp_path / "whole", sft), Run.log
    for cut in range(1, 5):
        monkeypatch.setattr(Run, "log", lambda self, row, cut=cut: logged(self, row) if row["step"] < cut else _stop())
        with pytest.raises(KeyboardInterrupt):
            run_to_end(config, lab, tmp_path / f"{cut}", sft)
        monkeypatch.setattr(Run, "log", logged)
        found = run_to_end(config, lab, tmp_path / f"{cut}", sft, resume=True)
        assert same(weights(whole), weights(found)) and without_times(whole) == without_times(found)
        assert same(*(load_file(r.latest() / "trainer.safetensors") for r in (whole, found)))


def rates(config: Config, lab, folder, resume=False) -> list[float]:
    """The learning rate of every step of RL that a run makes."""
    found, stage = [], rl_stage(config)

    def step(policy, optimizer, *rest):
        found.append(optimizer.param_groups[0]["lr"])
        return stage.step(policy, optimizer, *rest)

    fit(fresh(config), lab.train, config, Run(folder, config, resume, 2), replace(stage, step=step), quiet=True)
    return found


def test_learning_rates_fall_to_zero_or_stay(config, lab, tmp_path) -> None:
    """The first is lr, the last lr / steps; a run that is resumed goes on with its own."""
    for decay, wanted in (("linear", [0.1, 0.075, 0.05, 0.025]), ("none", [0.1] * 4)):
        own = replace(config, rl=replace(config.rl, lr=0.1, lr_decay=decay))
        assert [rl_stage(own).lr(n) for n in range(4)] == pytest.approx(wanted)
        assert rates(own, lab, tmp_path / decay) == pytest.approx(wanted)
        shutil.rmtree(tmp_path / decay / "checkpoints/step-000004")
        assert rates(own, lab, tmp_path / decay, resume=True) == pytest.approx(wanted[2:])
    one = rl_stage(replace(config, rl=replace(config.rl, steps=1, lr=0.1)))
    assert one.lr(0) == 0.1


@pytest.mark.slow
def test_training_improves_the_reward(lab, tmp_path) -> None:
    """From the shipped warm start, forty steps of fgrpo bring the sampled rewards up."""
    from fgrpo.runs.warm_start import SHIPPED

    config = config_with(steps=40, lr=1e-3)
    run = Run(tmp_path / "a", config, save_every=40)
    fit(load_policy(SHIPPED), lab.train, config, run, quiet=True)
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


def test_a_checkpoint_of_another_vocabulary_is_refused(lab, config) -> None:
    from fgrpo.evaluate import evaluate

    with pytest.raises(KitError, match="not in the policy's vocabulary of 2 items"):
        evaluate(Policy.tiny(["a", "b"], config.model), lab.test[:2], config)


def test_saved_policy_is_the_same_policy(policy, queries, tmp_path) -> None:
    from fgrpo.config import GrammarConfig
    from fgrpo.policy import Sampling
    from fgrpo.rollout import rollout

    write_policy(policy, tmp_path / "p")
    loaded = load_policy(tmp_path / "p")
    a, b = (rollout(p, queries, Sampling(GrammarConfig())) for p in (policy, loaded))
    assert a.outputs == b.outputs and torch.equal(a.logprobs, b.logprobs)
    assert not list((tmp_path / "p").glob("*.bin")) and (tmp_path / "p/model.safetensors").exists()
