"""Pretrained models whose weights are all trained (lora_rank 0): saved whole, read without their base model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from fgrpo.cli.main import main
from fgrpo.config import KitError, LMConfig, RLConfig
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy
from fgrpo.rollout import Rollouts, rollout
from fgrpo.runs.fields import config_with
from fgrpo.runs.hub import stage
from fgrpo.runs.policies import is_whole_model, load_policy, new_policy, save_policy
from fgrpo.runs.run import Run, config_of_checkpoint, read_config, read_metrics
from fgrpo.runs.seal import seal
from fgrpo.runs.sft import sft_stage
from fgrpo.tasks.jsonl import write_jsonl
from fgrpo.trainer import fit
from tests.families import examples, policy_of, save_model
from tests.lm.test_lm import SAMPLING, sampled
from tests.lm.test_lm import TINY as LORA

TINY = {name: value for name, value in LORA.items() if name != "lora_alpha"} | {"lora_rank": 0, "sft_lr": 1e-3}
KINDS = ("smollm2", "llama", "qwen3")  # the first one's embeddings are tied, the others' are not


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in KINDS:
        save_model(name, folder / name)
    return folder


@pytest.fixture
def model(models, tmp_path) -> Path:
    """A copy that a test may delete."""
    return Path(shutil.copytree(models / "smollm2", tmp_path / "model"))


def whole(folder: Path, moved: bool = True, **options) -> PretrainedPolicy:
    """A policy of all weights, moved away from their base's."""
    policy = PretrainedPolicy.new(LMConfig(model=str(folder), lora_rank=0, passage_tokens=12, **options))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in policy.parameters() if moved else ():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    return policy


def logprobs(policy: Policy, r: Rollouts) -> torch.Tensor:
    with torch.no_grad():
        return policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)[0]


@pytest.mark.parametrize("name", KINDS)
def test_a_saved_model_is_the_same_without_its_base(models, name, tmp_path) -> None:
    base = Path(shutil.copytree(models / name, tmp_path / "base"))
    policy = whole(base)
    r = sampled(policy)
    save_policy(policy, tmp_path / "p")
    shutil.rmtree(base)
    again = load_policy(tmp_path / "p")
    assert torch.equal(logprobs(again, r), logprobs(policy, r)) and sampled(again).outputs == r.outputs
    assert again.labels.prompt_ids(examples()[2]) == policy.labels.prompt_ids(examples()[2])
    own, other = (p.model.state_dict() for p in (policy, again))
    assert own.keys() == other.keys() and all(torch.equal(own[n], other[n]) for n in own)
    head, embedded = (m.weight for m in (again.model.get_output_embeddings(), again.model.get_input_embeddings()))
    saved = load_file(tmp_path / "p" / "model.safetensors")
    assert (head is embedded) == (name == "smollm2") == ("lm_head.weight" not in saved)
    assert again.config.model == str(base) and again.config.lora_rank == 0  # type: ignore[attr-defined]
    assert is_whole_model(tmp_path / "p")


def test_a_model_in_shards_is_read(model, tmp_path, monkeypatch) -> None:
    policy, real = whole(model), tf.PreTrainedModel.save_pretrained
    monkeypatch.setattr(tf.PreTrainedModel, "save_pretrained", lambda self, to: real(self, to, max_shard_size="30KB"))
    save_policy(policy, tmp_path / "p")
    shards = sorted((tmp_path / "p").glob("model-*.safetensors"))
    r = sampled(policy)
    assert len(shards) > 2 and torch.equal(logprobs(load_policy(tmp_path / "p"), r), logprobs(policy, r))
    shards[1].unlink()
    seal(tmp_path / "p")
    with pytest.raises(KitError, match=r"checkpoint is damaged or incomplete .*1 files are missing"):
        load_policy(tmp_path / "p")


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("micro", [0, 1])
def test_gradients_reach_every_weight(models, name, micro) -> None:
    policy = whole(models / name)
    r = rollout(policy, examples(), SAMPLING, 4, 0, micro=micro, keep_prompts=True)
    advantages = (1 + torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))) * r.mask
    policy_loss(policy, r, advantages, RLConfig())[0].backward()
    named = dict(policy.model.named_parameters())
    assert len(policy.parameters()) == len(named) and all(p.requires_grad for p in named.values())
    assert not [n for n, p in named.items() if p.grad is None or not p.grad.abs().max() > 0]


def run_to_end(model: Path, folder: Path, sft: bool = False, resume: bool = False, **more) -> tuple[Run, Policy]:
    config = config_with(**{**TINY, "model": str(model), **more})
    run = Run(folder, config, resume=resume, save_every=2)
    stage = sft_stage(config) if sft else None
    return run, fit(new_policy([], config, config.seed), examples(6), config, run, stage, quiet=True)


@pytest.mark.parametrize(("sft", "beta", "dtype"), [(True, 0.0, "float32"), (False, 0.1, "float32"),
                                                    (False, 0.0, "bfloat16")])  # fmt: skip
def test_a_resumed_run_is_bit_identical(model, tmp_path, sft, beta, dtype, monkeypatch) -> None:
    options = {"beta": beta, "epochs": 2, "dtype": dtype}
    run, policy = run_to_end(model, tmp_path / "whole", sft, **options)
    logged = Run.log

    def stop(self, row):
        if row["step"] == 4:
            raise KeyboardInterrupt
        logged(self, row)

    monkeypatch.setattr(Run, "log", stop)
    with pytest.raises(KeyboardInterrupt):
        run_to_end(model, tmp_path / "cut", sft, **options)
    monkeypatch.setattr(Run, "log", logged)
    cut, _ = run_to_end(model, tmp_path / "cut", sft, True, **options)
    for file in ("model.safetensors", "trainer.safetensors"):
        a, b = (load_file(r.latest() / file) for r in (run, cut))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file
        assert {str(t.dtype).removeprefix("torch.") for t in a.values()} <= {dtype, "float32"}
    rows = [[{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(r.folder)] for r in (run, cut)]
    assert rows[0] == rows[1] and (not beta or rows[0][-1]["kl_reference"] > 0)
    first, last = (load_file(run.folder / f"checkpoints/step-00000{n}/model.safetensors") for n in (0, 4))
    assert dtype == "bfloat16" or not [n for n in first if torch.equal(first[n], last[n])]  # every tensor moved
    head, embedded = (m.weight for m in (policy.model.get_output_embeddings(), policy.model.get_input_embeddings()))
    assert head is embedded
    assert {"config.json", "tokenizer.json", "policy.json"} <= {p.name for p in run.latest().iterdir()}


def test_the_reference_is_the_policy_as_it_began(model, tmp_path) -> None:
    policy = whole(model)
    r = sampled(policy)
    before = logprobs(policy, r)
    policy.save(tmp_path / "p")
    shutil.rmtree(model)
    reference = policy.reference(tmp_path / "p")
    with torch.no_grad():
        for p in policy.parameters():
            p.add_(0.3)
    kept, _ = reference.logprobs(r.prompts, r.completions, r.mask, SAMPLING)
    assert torch.equal(kept, before) and not kept.requires_grad and not reference.parameters()
    assert (logprobs(policy, r) - before).abs().max() > 1e-3


def test_another_checkpoint_of_a_run_is_loaded_in_place(model, models, tmp_path) -> None:
    """The optimizer's parameters stay those of the model; a checkpoint of another model is refused."""
    policy, other = whole(model), whole(model, moved=False)
    policy.save(tmp_path / "p")
    r, parameters = sampled(policy), other.parameters()
    assert other.reload(tmp_path / "p") is other
    assert torch.equal(logprobs(other, r), logprobs(policy, r))
    assert [id(p) for p in parameters] == [id(p) for p in other.parameters()]
    whole(models / "qwen3").save(tmp_path / "q")
    with pytest.raises(KitError, match="q: the checkpoint is damaged"):
        other.reload(tmp_path / "q")


def changed(file: str, **values: object):
    def apply(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    blob = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(blob[: len(blob) // 2])


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


DAMAGED = {
    "a pickle": (pickled, "its weights are in pytorch_model.bin, which this kit does not read"),
    "truncated": (cut, "is truncated or damaged"),
    "a weight missing": (lacking, "its files lack 1 weights of LlamaForCausalLM, such as model.norm.weight"),
    "no configuration": (lambda f: (f / "config.json").unlink(), "it has no config.json"),
    "layers": (changed("config.json", num_hidden_layers=10**6), "num_hidden_layers 1000000 is more than"),
    "widths": (changed("config.json", intermediate_size=10**9), "config.json asks for .* weights"),
    "code": (changed("config.json", model_type="x", auto_map={"AutoConfig": "a.B", "AutoModelForCausalLM": "a.C"}),
             "it comes with Python code of its own"),
    "quantized": (changed("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
                  "is quantized, so its weights cannot be trained"),
    "an adapter's options": (changed("policy.json", lora_alpha=8), "lora_alpha is for a LoRA adapter"),
    "another rank": (changed("policy.json", lora_rank=4), r"adapter_model\.safetensors: the checkpoint is damaged"),
    "tokenizer": (lambda f: [p.unlink() for p in f.glob("tokenizer*")], "damaged or incomplete"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_checkpoint_is_one_sentence(name, model, tmp_path) -> None:
    apply, reason = DAMAGED[name]
    whole(model).save(tmp_path / "p")
    apply(tmp_path / "p")
    with pytest.raises(KitError, match=reason) as caught:
        load_policy(tmp_path / "p")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_options_that_do_not_go_together_are_refused(model) -> None:
    for options in ({"lora_alpha": 8}, {"lora_targets": "q_proj"}):
        with pytest.raises(KitError, match="is for a LoRA adapter, and lora_rank 0 trains all weights"):
            PretrainedPolicy.new(LMConfig(model=str(model), lora_rank=0, **options))
    with pytest.raises(KitError, match="not its Python code"):
        PretrainedPolicy.new(LMConfig(model=str(model), lora_rank=0, trust_remote_code=True))
    with pytest.raises(KitError, match="lora_rank -1 must be at least 0"):
        LMConfig(lora_rank=-1)
    changed("config.json", quantization_config={"quant_method": "gptq", "bits": 4})(model)
    with pytest.raises(KitError, match="quantized, so its weights cannot be trained"):
        PretrainedPolicy.new(LMConfig(model=str(model), lora_rank=0))


def test_a_checkpoint_is_no_base_model(model, tmp_path) -> None:
    whole(model).save(tmp_path / "p")
    with pytest.raises(KitError, match="is a checkpoint of this kit"):
        PretrainedPolicy.new(LMConfig(model=str(tmp_path / "p")))


def test_invalid_defaults_of_generation_do_not_stop_a_run(model, tmp_path) -> None:
    """Some published models come with sampling options that transformers refuses to write."""
    changed("generation_config.json", temperature=0.5, top_p=0.9, do_sample=False)(model)
    policy = whole(model)
    policy.save(tmp_path / "p")
    again = load_policy(tmp_path / "p")
    assert again.model.generation_config.eos_token_id == policy.model.generation_config.eos_token_id


def test_an_adapter_of_a_base_is_not_taken_for_a_whole_model(model, tmp_path) -> None:
    policy = policy_of(model)
    save_policy(policy, tmp_path / "p")
    assert not is_whole_model(tmp_path / "p") and not (tmp_path / "p/model.safetensors").exists()
    again = load_policy(tmp_path / "p")
    r = sampled(policy)
    assert torch.equal(logprobs(again, r), logprobs(policy, r))
    assert replace(again.config, date="") == policy.config  # type: ignore[attr-defined]


def test_every_command_reads_a_whole_model_without_its_base(model, tmp_path, monkeypatch, capsys) -> None:
    """The base model is deleted after the warm start."""
    monkeypatch.chdir(tmp_path)
    write_jsonl("task.jsonl", [replace(e, id=f"{e.id}-{n}") for n in range(5) for e in examples(4)])
    small = {n: x for n, x in TINY.items() if n not in ("steps", "lr", "lora_rank")}
    common = ["--task", "task.jsonl", *(f"--{n.replace('_', '-')}={x}" for n, x in small.items())]
    given = ["--model", str(model), "--passage-tokens", "12"]
    common = [option for option in common if not option.startswith("--passage")]

    def call(*argv: str) -> dict:
        assert main([*argv, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    call("train", "--sft", "--lora-rank", "0", "--out", "sft", *common, *given)
    checkpoint = _run("sft").latest()
    assert is_whole_model(checkpoint)
    # all weights are trained on, though --lora-rank is not said again
    rl = ["train", "--init", "sft", "--out", "rl", "--steps", "2", "--beta", "0.1", *common, *given]
    report = call(*rl)
    assert read_config("rl").lm.lora_rank == 0 and call(*rl, "--resume")["metrics"] == report["metrics"]
    rows = call("compare", "--init", "sft", "--credits", "grpo", "--seeds", "1", "--steps", "1", "--out", "c",
                "--baselines", "random", *common, *given)["rows"]  # fmt: skip
    assert {"sft", "sft_more", "grpo"} <= {r["method"] for r in rows}
    assert read_config("c/grpo-seed0").lm.lora_rank == 0
    shutil.rmtree(model)
    assert call("evaluate", "--checkpoint", "rl", "--split", "validation")["metrics"] == report["metrics"]
    assert call("trace", "--checkpoint", "rl", "--sampled", "1", "--out", "t.jsonl")["queries"] == 2
    assert call("analyse", "--reads", "--checkpoint", str(checkpoint), "--split", "all")["queries"] == 20
    for option, value in (("--model", "elsewhere"), ("--gguf-file", "x.gguf")):
        assert main(["evaluate", "--checkpoint", "rl", option, value]) == 2
        assert f"{option} is for a policy with an adapter, and rl holds all of its weights" in capsys.readouterr().err
    with pytest.raises(KitError, match="no run here"):  # the model's config.json is not a run's
        config_of_checkpoint(shutil.copytree(checkpoint, "alone"))


def _run(folder: str) -> Run:
    return Run(folder, read_config(folder), resume=True, writes=False)


def test_a_whole_model_is_staged_for_the_hub(model, tmp_path) -> None:
    run, policy = run_to_end(model, tmp_path / "run")
    files = stage(run.folder, tmp_path / "out", "user/whole")
    assert {f"checkpoints/step-000004/{n}" for n in ("model.safetensors", "config.json", "tokenizer.json")} <= {*files}
    assert not [n for n in files if "trainer" in n]
    for path in (p for p in (tmp_path / "out").rglob("*") if p.is_file()):
        assert str(tmp_path).encode() not in path.read_bytes(), path
    card = (tmp_path / "out/README.md").read_text()
    assert "all weights of model, trained further" in card and "LoRA" not in card and "--model FOLDER" not in card
    shutil.rmtree(model)
    r = sampled(policy)
    assert torch.equal(logprobs(load_policy(tmp_path / "out"), r), logprobs(policy, r))
