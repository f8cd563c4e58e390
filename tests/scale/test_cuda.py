"""On a GPU the numerical core does what it does on the CPU. Skipped where there is none.

`python -m pytest tests/scale/test_cuda.py -rP` also prints the differences that were found.
"""

import copy
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.cli.main import main
from fgrpo.config import Config, GrammarConfig, RLConfig
from fgrpo.credit import CREDITS, with_credit
from fgrpo.evaluate import evaluate, greedy
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import load_policy
from fgrpo.runs.run import Run, read_metrics
from fgrpo.runs.sft import sft_step
from fgrpo.study.analysis import interference
from fgrpo.study.oracle import enumerate_outputs, small_pool
from fgrpo.trainer import step
from tests import families
from tests.conftest import SMALL, spread_policy
from tests.core.test_trainer import run_to_end, same, weights, without_times
from tests.lm.test_prefix import ATTENTION, largest_error, loss_and_gradients, policy_of, relative_error

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts; deterministic algorithms need it
DEVICE = "cuda"
LAB = str(Path(__file__).parents[2] / "data/checkpoints/lab-rec")

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def deterministic() -> Iterator[None]:
    """The same input gives the same bits, in backward passes too."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def smollm(tmp_path_factory) -> Path:
    """A tiny random model of SmolLM2's architecture, with a tokenizer of its class."""
    return families.save_model("smollm2", tmp_path_factory.mktemp("models") / "smollm2")


def sampled(policy: Policy, queries, constrained=True, temperature=1.0):
    """Rollouts, and advantages of both signs whose sum is no difference of nearly equal numbers."""
    r = rollout(policy, queries, Sampling(GrammarConfig(), constrained, temperature), 4, 0)
    signs = torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    return r, (1 + signs) * r.mask


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("constrained", [True, False])
def test_shared_loss_and_gradients_equal_unshared_ones(name, constrained, queries) -> None:
    policy = policy_of(ATTENTION[name]).to(DEVICE)
    r, advantages = sampled(policy, queries, constrained)
    (loss, grads), (plain_loss, plain) = (
        loss_and_gradients(policy, r, advantages, RLConfig(), shared) for shared in (True, False)
    )
    print(f"loss {relative_error(loss, plain_loss):.1e}, gradients {largest_error(grads, plain):.1e}")
    assert policy.share and r.logprobs.device.type == DEVICE
    assert relative_error(loss, plain_loss) < 1e-4 and largest_error(grads, plain) < 1e-4


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "gemma3", "mistral"])
def test_bfloat16(name, queries) -> None:
    """The shared gradients are as near to those of float32 as the plain ones."""
    policy = policy_of(ATTENTION[name], spread=0.02, dtype=torch.bfloat16).to(DEVICE)
    r, advantages = sampled(policy, queries)
    config = RLConfig(clip_low=1.0, clip_high=1e9)  # rounding must not decide which tokens are clipped
    (loss, grads), (plain_loss, plain) = (
        loss_and_gradients(policy, r, advantages, config, shared) for shared in (True, False)
    )
    exact = policy_of(ATTENTION[name], spread=0.02).to(DEVICE)
    exact.model.load_state_dict({k: v.float() for k, v in policy.model.state_dict().items()})
    _, truth = loss_and_gradients(exact, r, advantages, config, shared=False)
    whole, plain_whole, true = (torch.cat([g.float().flatten() for g in x.values()]) for x in (grads, plain, truth))
    error, plain_error = relative_error(whole, true), relative_error(plain_whole, true)
    apart = relative_error(whole, plain_whole)
    print(
        f"loss {relative_error(loss, plain_loss):.1e}, gradients {error:.1e}, plain {plain_error:.1e}, apart {apart:.1e}"
    )
    assert policy.share and relative_error(loss, plain_loss) < 1e-3
    assert error < max(1e-2, 1.5 * plain_error)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_outputs_are_well_formed_and_their_logprobs_equal_recomputed_ones(policy, queries, constrained, shared) -> None:
    policy.to(DEVICE)
    r, _ = sampled(policy, queries, constrained, temperature=0.7)
    logp, entropy = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared)
    print(f"largest difference {(logp - r.logprobs).abs().max():.1e}")
    assert (logp - r.logprobs).abs().max() < 1e-4 and (r.logprobs < -0.1).any() and (entropy >= -1e-6).all()
    assert not constrained or not any(o.error for o in r.outputs)


@pytest.mark.parametrize("seed", [0, None])
def test_rollouts_are_those_of_the_cpu(policy, queries, seed) -> None:
    """Up to a number that falls within rounding of a boundary between two choices, which is rare."""
    grammar, group = Sampling(GrammarConfig()), 64 if seed is not None else 1
    here = rollout(policy, queries, grammar, group, seed)
    there = rollout(spread_policy().to(DEVICE), queries, grammar, group, seed)
    equal = [a == b for a, b in zip(here.outputs, there.outputs, strict=True)]
    print(f"{sum(equal)} of {len(equal)} rollouts are the same")
    assert sum(equal) >= 0.99 * len(equal)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_pretrained_model_with_an_adapter(smollm, dtype) -> None:
    queries = families.examples()
    policy = families.policy_of(smollm, dtype=dtype).to(DEVICE)
    r, advantages = sampled(policy, queries, temperature=4.0)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    apart = (logp - r.logprobs).square().sum().div((r.logprobs != 0).sum()).sqrt()
    config = RLConfig(clip_low=1.0, clip_high=1e9)
    (_, grads), (_, plain) = (loss_and_gradients(policy, r, advantages, config, s) for s in (True, False))
    whole, plain_whole = (torch.cat([g.float().flatten() for g in x.values()]) for x in (grads, plain))
    print(f"log-probabilities {apart:.1e} (RMS), gradients {relative_error(whole, plain_whole):.1e}")
    assert policy.share and not any(o.error for o in r.outputs)
    assert apart < (1e-4 if dtype == "float32" else 0.5)  # the limit that fgrpo.rollout sets for bfloat16
    assert relative_error(whole, plain_whole) < (1e-3 if dtype == "float32" else 0.2)


def test_a_model_whose_weights_are_all_trained(smollm, tmp_path) -> None:
    """A step with a reference, saved and read: the reference is on the device too, weights are read in place."""
    config = config_with(group=4, lr=1e-3, beta=0.1, lora_rank=0, model=str(smollm), passage_tokens=12, temperature=4.0)
    policy, queries = PretrainedPolicy.new(config.lm).to(DEVICE), families.examples()
    r, _ = sampled(policy, queries, temperature=4.0)
    before = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)[0].detach()
    policy.save(tmp_path / "before")
    reference = policy.reference(tmp_path / "before")
    logs = step(policy, torch.optim.AdamW(policy.parameters(), lr=1e-3), queries, config, 0, reference)
    after = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)[0].detach()
    print(f"moved by {(after - before).abs().max():.1e}")
    assert reference.device == policy.device and logs["kl_reference"] == pytest.approx(0.0, abs=1e-4)
    assert (after - before).abs().max() > 1e-3
    policy.save(tmp_path / "after")
    again = load_policy(tmp_path / "after", DEVICE).logprobs(r.prompts, r.completions, r.mask, r.sampling)[0]
    assert torch.equal(again, after)
    policy.reload(tmp_path / "before")
    assert torch.equal(policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)[0], before)


@pytest.mark.parametrize("name", [*CREDITS, "epochs", "micro"])
def test_a_step_is_that_of_the_cpu_and_moves_the_weights(queries, name) -> None:
    config = config_with(queries=6, group=4, lr=1e-3, beta=0.1, **SMALL)
    config = replace(config, rl=with_credit(config.rl, name)) if name in CREDITS else config
    config = replace(config, rl=replace(config.rl, epochs=2)) if name == "epochs" else config
    config = replace(config, lm=replace(config.lm, micro=2)) if name == "micro" else config
    logs, moved = [], []
    for device in ("cpu", DEVICE):
        policy = spread_policy().to(device)
        before, reference = [p.detach().clone() for p in policy.parameters()], copy.copy(policy)
        reference.model = copy.deepcopy(policy.model)
        logs.append(step(policy, torch.optim.AdamW(policy.parameters(), lr=1e-3), queries, config, 0, reference))
        moved.append([float((p.detach() - old).norm()) for p, old in zip(policy.parameters(), before, strict=True)])
    print({k: f"{abs(logs[0][k] - logs[1][k]):.1e}" for k in ("loss", "grad_norm", "entropy/slate")})
    assert all(m > 0 for m in moved[1]) and moved[0] == pytest.approx(moved[1], rel=0.02)
    assert logs[0] == pytest.approx(logs[1], rel=1e-3, abs=1e-4)


def test_a_step_of_sft_is_that_of_the_cpu(lab, config) -> None:
    logs = []
    for device in ("cpu", DEVICE):
        policy = spread_policy().to(device)
        optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
        logs.append([sft_step(policy, optimizer, lab.train[:8], config, n)["loss"] for n in range(5)])
    print(f"losses {[f'{abs(a - b):.1e}' for a, b in zip(*logs, strict=True)]} apart")
    assert logs[0] == pytest.approx(logs[1], rel=1e-3) and logs[1][-1] < logs[1][0]


@pytest.mark.parametrize("sft", [False, True])
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_a_resumed_run_is_bit_identical(config, lab, tmp_path, sft, beta, monkeypatch, deterministic) -> None:
    """With torch's deterministic algorithms. Stopped in step 4 of 6, after a checkpoint at 3."""
    rl = replace(config.rl, steps=6, beta=beta, epochs=2)
    config = replace(config, device=DEVICE, rl=rl, sft=replace(config.sft, sft_steps=6))
    whole = run_to_end(config, lab, tmp_path / "whole", sft, save_every=3)
    _stop_before(monkeypatch, 5)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(config, lab, tmp_path / "cut", sft, save_every=3)
    monkeypatch.undo()
    assert len(read_metrics(tmp_path / "cut")) == 4
    cut = run_to_end(config, lab, tmp_path / "cut", sft, save_every=3, resume=True)
    assert same(weights(whole), weights(cut)) and without_times(whole) == without_times(cut)


def _stop_before(monkeypatch, step: int) -> None:
    logged = Run.log

    def log(self, row) -> None:
        if row["step"] >= step:
            raise KeyboardInterrupt
        logged(self, row)

    monkeypatch.setattr(Run, "log", log)


def test_without_deterministic_algorithms_runs_agree_to_rounding(config, lab, tmp_path) -> None:
    config = replace(config, device=DEVICE)
    a, b = (run_to_end(config, lab, tmp_path / name, sft=True) for name in "ab")
    apart = max(relative_error(x, y) for x, y in zip(weights(a).values(), weights(b).values(), strict=True))
    print(f"weights after {config.sft.sft_steps} steps of SFT: {apart:.1e} apart, the same bits: {apart == 0}")
    assert apart < 1e-3


def test_a_run_of_the_gpu_is_evaluated_and_resumed_on_the_cpu(config, lab, tmp_path) -> None:
    config = replace(config, rl=replace(config.rl, lr_decay="none"))
    run = run_to_end(replace(config, device=DEVICE, rl=replace(config.rl, steps=2)), lab, tmp_path / "a")
    there, here = (load_policy(run.folder, device) for device in (DEVICE, "cpu"))
    assert same(there.model.cpu().state_dict(), here.model.state_dict())
    resumed = run_to_end(config, lab, tmp_path / "a", resume=True)
    assert [row["step"] for row in read_metrics(resumed.folder)] == [1, 2, 3, 4]


def test_evaluation_is_that_of_the_cpu(lab, config) -> None:
    found = [evaluate(load_policy(LAB, device), lab.test[:64], config) for device in ("cpu", DEVICE)]
    apart = {name: float((found[0][name].nan_to_num() - x.nan_to_num()).abs().mean()) for name, x in found[1].items()}
    print({name: x for name, x in apart.items() if x})
    assert max(apart[name] for name in apart if name != "slate_length") < 0.02


def test_rankings_of_given_slates_are_those_of_the_cpu(policy, queries) -> None:
    slates, sampling = [(5, 1, 3, 8)] * len(queries), Sampling(GrammarConfig())
    here = greedy(policy, queries, sampling, slates)
    there = greedy(policy.to(DEVICE), queries, sampling, slates)
    assert here == there and all(o.slate == (5, 1, 3, 8) for o in there)


def test_exact_gradients_are_those_of_the_cpu(lab) -> None:
    example, config = small_pool(lab.test[0], 4), Config(grammar=GrammarConfig(slate_size=2, rank_size=2))
    here, there = (enumerate_outputs(spread_policy().to(device), example, config) for device in ("cpu", DEVICE))
    for phase in ("slate", "rank"):
        a, b = (o.gradient(getattr(o.rewards, phase)[0]).cpu() for o in (here, there))
        assert torch.allclose(a, b, atol=1e-6)
    assert relative_error(there.gram.cpu(), here.gram) < 1e-4
    groups = here.sample(4, config.rl, torch.Generator().manual_seed(0))
    for name in CREDITS:
        rl = with_credit(replace(config.rl, group=4), name)
        estimates = [o.estimates(groups[:, :4], rl) for o in (here, there)]
        assert torch.allclose(*estimates, atol=1e-6), name
    found = [interference(spread_policy().to(device), lab.test[:4], config, 0) for device in ("cpu", DEVICE)]
    assert found[0] == pytest.approx(found[1], abs=1e-3)


COMMANDS = {
    "train": "train --out run --steps 2 --sft-steps 2 --queries 4 --group 4",
    "evaluate": f"evaluate --checkpoint {LAB} --limit 8",
    "trace": f"trace --checkpoint {LAB} --out trace.jsonl --limit 6 --sampled 2",
    "bench": "bench --prompt 80 --completion 20 --group 4 --repeats 1 --layers 1 --hidden-size 32 --no-memory",
    "compare": f"compare --out both --credits grpo,fgrpo --seeds 1 --steps 1 --limit 8 --init {LAB} --jobs 1",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_runs(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    status = main([*COMMANDS[name].split(), "--device", DEVICE])
    out, err = capsys.readouterr()
    print(out[-400:], err[-2000:])
    assert status == 0 and "fgrpo:" not in err


def test_out_of_memory_is_one_sentence(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(5e-3)
    try:
        status = main(["train", "--out", "run", "--init", LAB, "--queries", "512", "--group", "64", "--device", DEVICE])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    err = capsys.readouterr().err
    print(err)
    assert status == 2 and err.count("fgrpo: out of memory") == 1 and "lower --queries" in err
    assert "Traceback" not in err and (tmp_path / "run/checkpoints/step-000000").is_dir()
