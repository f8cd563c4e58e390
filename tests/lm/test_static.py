"""Decoding with static shapes: the same tokens as the plain way, and the plain way where it cannot be used.

On a CPU a step is computed as it is, not captured; on a GPU the same tests replay graphs.
"""

import copy

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model

from fgrpo.config import GrammarConfig
from fgrpo.lm import static
from fgrpo.lm.prefix import PrefixTree, SharedPolicy
from fgrpo.lm.rows import BranchTree, RowTree
from fgrpo.policy import Sampling
from fgrpo.rollout import rollout
from tests.conftest import spread_policy
from tests.lm.test_prefix import ATTENTION, policy_of

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def used(monkeypatch) -> None:
    monkeypatch.setattr(static, "DEVICES", {DEVICE})
    monkeypatch.setattr(static, "_known", type(static._known)())


def rollouts(policy, queries, monkeypatch, on=True, group=4, **options):
    if not on:
        monkeypatch.setattr(static, "DEVICES", set())
    sampling = Sampling(GrammarConfig(full=options.pop("full", False)), options.pop("constrained", True))
    return rollout(policy.to(DEVICE), queries, sampling, group, 0, **options)


def same(found, plain, tolerance=1e-4) -> None:
    assert torch.equal(found.completions, plain.completions)
    assert (found.logprobs - plain.logprobs).abs().max() < tolerance


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@pytest.mark.parametrize("constrained", [True, False])
def test_the_same_tokens_are_drawn(name, constrained, queries, monkeypatch, capsys) -> None:
    policy = policy_of(ATTENTION[name])
    for number in range(2):  # the first is compared with the plain way, the second replays what the first prepared
        found = rollouts(policy, queries, monkeypatch, constrained=constrained, step=number)
        (branches,) = static._known[policy.model].branches.values()
        steps = dict(branches.steps)
    assert 1 in steps and steps == branches.steps and static._known[policy.model].same and not capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(PrefixTree, "extend", None)  # the plain way's step
        same(rollouts(policy, queries, patch, constrained=constrained, step=1), found)
    same(found, rollouts(policy, queries, monkeypatch, False, constrained=constrained, step=1))


@pytest.mark.parametrize("kind", [RowTree, BranchTree])
@pytest.mark.parametrize("options", [{}, {"full": True}, {"rankings": 2}], ids=["free", "full", "nested"])
def test_of_the_tiny_policy_too(kind, options, queries, monkeypatch) -> None:
    policy = spread_policy()
    policy.grow = lambda ids, mask, tokens: kind(policy.model, ids, mask, tokens)
    rollouts(policy, queries, monkeypatch, **options)
    assert static._known[policy.model].same
    found = rollouts(policy, queries, monkeypatch, step=1, **options)
    same(found, rollouts(policy, queries, monkeypatch, False, step=1, **options))


def test_the_first_rollouts_are_those_of_later_ones_to_the_bit(queries, monkeypatch) -> None:
    """A run that is resumed begins with a comparison where one that was not is in the middle."""
    policy = policy_of(ATTENTION["qwen3"])
    first = rollouts(policy, queries, monkeypatch)
    assert torch.equal(first.logprobs, rollouts(policy, queries, monkeypatch).logprobs)
    assert not torch.equal(first.logprobs, rollouts(policy, queries, monkeypatch, False).logprobs)


def test_updated_weights_and_other_shapes(queries, monkeypatch) -> None:
    """Memory is kept by shape, a few at most; weights changed in place are those of the next rollouts."""
    policy = policy_of(ATTENTION["qwen3"])
    for part in (queries, queries[:1], queries[:2], queries[:3], queries[:4], queries):
        rollouts(policy, part, monkeypatch)
        with torch.no_grad():
            for p in policy.model.parameters():
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p))
    assert len(static._known[policy.model].branches) == static.KEPT
    found = rollouts(policy, queries, monkeypatch)
    same(found, rollouts(policy, queries, monkeypatch, False))


def test_an_adapter_and_without_it(queries, monkeypatch) -> None:
    lora = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    plain = policy_of(ATTENTION["llama"])
    policy = SharedPolicy(get_peft_model(plain.model, lora), plain.tokenizer, plain.labels)
    with_it = rollouts(policy, queries, monkeypatch)
    with policy.model.disable_adapter():
        without = rollouts(policy, queries, monkeypatch)
    assert len(static._known[policy.model].branches) == 2 and not torch.equal(with_it.completions, without.completions)
    same(rollouts(policy, queries, monkeypatch, False), with_it)
    with policy.model.disable_adapter():
        same(rollouts(policy, queries, monkeypatch, False), without)


def test_a_model_that_computes_something_else_takes_the_plain_way(queries, monkeypatch, capsys) -> None:
    config = tf.Gemma2Config(**{**ATTENTION["gemma2"].to_diff_dict(), "layer_types": ["full_attention"] * 2,
                                "attn_logit_softcapping": 0.5, "final_logit_softcapping": None})  # fmt: skip
    policy, other = policy_of(config), policy_of(config)
    found = rollouts(policy, queries, monkeypatch)
    again = rollouts(policy, queries, monkeypatch, step=1)
    assert static._known[policy.model].same is False
    assert capsys.readouterr().err.count("is decoded without CUDA graphs (logits differ by") == 1
    same(found, rollouts(other, queries, monkeypatch, False))
    same(again, rollouts(other, queries, monkeypatch, False, step=1))


def test_a_step_that_fails_takes_the_plain_way(queries, monkeypatch, capsys) -> None:
    def fails(*args: object) -> None:
        raise RuntimeError("capture failed\nand more")

    policy = policy_of(ATTENTION["llama"])
    with monkeypatch.context() as patch:
        patch.setattr(static.Branches, "captured", fails)
        found = rollouts(policy, queries, patch)
    assert "without CUDA graphs (RuntimeError: capture failed)" in capsys.readouterr().err
    same(found, rollouts(policy, queries, monkeypatch, False))


@pytest.mark.parametrize("name", ["mistral", "gemma3"])
def test_windows_of_attention_are_left_to_the_plain_way(name, queries, monkeypatch) -> None:
    rollouts(policy := policy_of(ATTENTION[name]), queries, monkeypatch)
    assert policy.model not in static._known


def test_bfloat16(queries, monkeypatch) -> None:
    """Rounding may change a draw, so the log-probabilities of the tokens drawn are compared: `rollout` does that."""
    policy = policy_of(ATTENTION["qwen3"], spread=0.02, dtype=torch.bfloat16)
    for number in range(2):
        found = rollouts(policy, queries, monkeypatch, step=number)
    assert static._known[policy.model].same and policy.share
    whole, _ = policy.logprobs(found.prompts, found.completions, found.mask, found.sampling, shared=False)
    assert (whole - found.logprobs).abs().max() < 0.1


def test_nothing_of_it_is_used_on_a_cpu_or_with_gradients(queries, monkeypatch) -> None:
    monkeypatch.undo()
    assert {"cuda"} == static.DEVICES
    policy = policy_of(copy.deepcopy(ATTENTION["qwen3"]))
    rollout(policy, queries, Sampling(GrammarConfig()), 2, 0)
    assert policy.model not in static._known
