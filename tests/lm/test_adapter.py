"""Adapters: files that say more than the kit's own, models whose forward pass fails, models that are not causal."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from fgrpo.config import KitError, LMConfig
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.runs.policies import load_policy
from tests.families import SIZES, policy_of, save_model, tokenizer_of


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_model("smollm2", tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def saved(model, tmp_path) -> Path:
    policy_of(model).save(tmp_path / "p")
    return tmp_path / "p"


def fields(name: str, **values: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return apply


def adapter(**values: object) -> Callable[[Path], None]:
    return fields("adapter_config.json", **values)


def policy(**values: object) -> Callable[[Path], None]:
    return fields("policy.json", **values)


def transposed(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t.T.contiguous() if "lora_B" in n else t for n, t in tensors.items()}, folder / "adapter_model.safetensors"
    )


OTHER = {
    "regex": (adapter(target_modules="(([a-z._0-9])+)+!"), "target_modules is .* it is not an adapter of this kit"),
    "regex in a list": (adapter(target_modules=["q_proj", "(a+)+!"]), "target_modules is"),
    "rank": (adapter(r=10**9), "r is '1000000000', and by policy.json '4'"),
    "scale": (adapter(lora_alpha=999), "lora_alpha is '999'"),
    "rank_pattern": (adapter(rank_pattern={"(a+)+$": 10**9}), "rank_pattern is"),
    "alpha_pattern": (adapter(alpha_pattern={".*": 10**9}), "alpha_pattern is"),
    "layer_replication": (adapter(layer_replication=[[0, 2]] * 10**4), "layer_replication is"),
    "modules_to_save": (adapter(modules_to_save=["lm_head"]), "modules_to_save is"),
    "megatron": (adapter(megatron_config={"a": 1}), "megatron_config is"),
    "megatron_core": (adapter(megatron_core="os"), "megatron_core is 'os'"),
    "dora": (adapter(use_dora=True), "use_dora is"),
    "another kind": (adapter(peft_type="LOHA"), "peft_type is 'LOHA'"),
    "of tomorrow": (adapter(use_new=True), "'use_new' is no field that this kit uses"),
    "brackets": (lambda f: (f / "adapter_config.json").write_text("[" * 100_000), "nested too deeply"),
    "no adapter_config.json": (lambda f: (f / "adapter_config.json").unlink(), "damaged"),
    "policy: brackets": (lambda f: (f / "policy.json").write_text("[" * 100_000), "nested too deeply"),
    "policy: rank": (policy(lora_rank=65_000), r"lora_rank 65000, its weights have 4"),
    "policy: smaller rank": (policy(lora_rank=2), "damaged or fits another model"),
    "policy: regex": (policy(lora_targets="(([a-z._0-9])+)+!"), "must be the name of a layer"),
    "policy: a type": (policy(lora_rank="4"), "'lora_rank' must be of type int"),
    "policy: a field": (policy(use_new=1), "unknown field 'use_new'"),
    "policy: code": (policy(trust_remote_code="yes"), "'trust_remote_code' must be of type bool"),
    "policy: a list": (lambda f: (f / "policy.json").write_text("[]"), "it is not an object"),
    "policy: huge": (lambda f: (f / "policy.json").write_text(" " * 2**25), "it has 33,554,432 bytes"),
    "policy: a dtype": (policy(dtype="int8"), r"policy\.json: the checkpoint is damaged \(dtype 'int8' is not known"),
    "policy: no base at all": (policy(model=""), r"policy\.json: names no base model; give its path with --model"),
    "policy: no base": (policy(model="nowhere"), "base model cannot be loaded; if it is elsewhere, name it with --model"),
    "weights of another shape": (transposed, "has another shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHER)
def test_a_file_that_asks_for_another_adapter_is_refused(name, saved) -> None:
    apply, reason = OTHER[name]
    apply(saved)
    began = time.process_time()
    with pytest.raises(KitError, match=reason) as caught:
        load_policy(saved)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600 and time.process_time() - began < 3


def test_fields_of_another_version_of_peft_that_are_off_are_accepted(saved) -> None:
    adapter(use_new=False, new_config=None, peft_version="9.9", new_pattern={})(saved)
    assert load_policy(saved).config.lora_rank == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"lora_rank": 65_000}, "lora_rank 65000 is more than the widest layer"),
        ({"lora_targets": "q_proj,(v|k)_proj"}, r"'\(v\|k\)_proj' must be the name of a layer"),
        ({"lora_targets": ""}, "must be the name of a layer"),
        ({"lora_targets": "q_proj,"}, "must be the name of a layer"),
    ],
)
def test_options_of_an_adapter_are_bounded(model, values, reason) -> None:
    with pytest.raises(KitError, match=reason):
        PretrainedPolicy.new(LMConfig(model=str(model), **values))


def folder_of(folder: Path, config, words: str = "qwen") -> Path:
    tokenizer = tokenizer_of(words)
    torch.manual_seed(0)
    made = tf.AutoModelForCausalLM.from_config(config(len(tokenizer), tokenizer.pad_token_id))
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def llama4(size: int, pad: int):
    return tf.Llama4TextConfig(
        vocab_size=size, **SIZES, intermediate_size_mlp=64, num_local_experts=2, bos_token_id=None, pad_token_id=pad,
        eos_token_id=pad,
    )  # fmt: skip


def bert(size: int, pad: int):
    return tf.BertConfig(
        vocab_size=size,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=pad,
    )


def small(size: int, pad: int):
    return tf.LlamaConfig(vocab_size=size - 20, **SIZES, bos_token_id=None, pad_token_id=pad, eos_token_id=pad)


def test_a_forward_pass_that_fails_is_one_sentence(tmp_path) -> None:
    """Llama 4's router is a linear layer that gives a tuple: LoRA cannot wrap it."""
    folder = folder_of(tmp_path, llama4)
    reason = (
        "Llama4ForCausalLM cannot be used: its forward pass fails .* with lora_targets 'all-linear'; .*q_proj,v_proj"
    )
    with pytest.raises(KitError, match=reason) as caught:
        PretrainedPolicy.new(LMConfig(model=str(folder)))
    assert "\n" not in str(caught.value)
    assert PretrainedPolicy.new(LMConfig(model=str(folder), lora_targets="q_proj,v_proj")).parameters()


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (bert, "BertLMHeadModel is not a causal language model: a token changes the logits before it"),
        (small, r"the tokenizer has token \d+, and the model \d+ embeddings: they do not belong together"),
    ],
)
def test_a_model_that_is_not_causal_or_of_another_tokenizer_is_refused(tmp_path, config, reason) -> None:
    with pytest.raises(KitError, match=reason):
        PretrainedPolicy.new(LMConfig(model=str(folder_of(tmp_path, config))))


def rwkv(size: int, pad: int):
    return tf.RwkvConfig(vocab_size=size, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32)


def test_a_model_without_a_cache_is_refused_before_a_rollout(tmp_path) -> None:
    with pytest.raises(KitError, match=r"RwkvForCausalLM cannot be used: its forward pass fails \(.*'cache'\)\."):
        PretrainedPolicy.new(LMConfig(model=str(folder_of(tmp_path, rwkv))))


def test_weights_that_are_not_numbers_are_refused(model, tmp_path) -> None:
    made = tf.AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False)
    with torch.no_grad():
        made.model.norm.weight[3] = float("nan")
    made.save_pretrained(tmp_path)
    tokenizer_of("smollm").save_pretrained(tmp_path)
    with pytest.raises(KitError, match="LlamaForCausalLM: its logits are not finite"):
        PretrainedPolicy.new(LMConfig(model=str(tmp_path)))


def test_an_out_of_memory_error_is_said(model, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(tf.LlamaForCausalLM, "forward", full)
    with pytest.raises(KitError, match="there is not enough memory for it"):
        PretrainedPolicy.new(LMConfig(model=str(model)))


def test_the_frozen_adapter_is_made_without_its_configuration_file(saved) -> None:
    """A KL reference: nothing is built from adapter_config.json, which a resumed run may have from elsewhere."""
    loaded = load_policy(saved)
    adapter(target_modules="(([a-z._0-9])+)+!", r=10**9)(saved)
    reference = loaded.reference(saved)
    assert reference.frozen == "reference"  # type: ignore[attr-defined]
    assert replace(loaded.config, date="") == loaded.config  # type: ignore[attr-defined]
