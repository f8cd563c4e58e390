"""One encoded prompt for all rollouts: loss and every gradient equal the plain way, on several architectures."""

import copy

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations import flex_attention as flex_integration

from fgrpo.config import GrammarConfig, ModelConfig, RLConfig
from fgrpo.data import Example
from fgrpo.lm import prefix
from fgrpo.lm.prefix import PrefixTree, SharedPolicy
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.tasks.lab import lab_catalogue

TITLES = [f.title for f in lab_catalogue()]
DENSE = {"vocab_size": 308, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "pad_token_id": 0, "eos_token_id": 1,
         "bos_token_id": None}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}  # fmt: skip
ATTENTION = {
    "qwen3": tf.Qwen3Config(**DENSE),
    "llama": tf.LlamaConfig(**DENSE),
    "gpt2": tf.GPT2Config(
        vocab_size=308, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=None, eos_token_id=1
    ),
    # windows shorter than the prompt, so that they bind in the prompt, in the branches and between the two
    "gemma3": tf.Gemma3TextConfig(**DENSE, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "gemma2": tf.Gemma2Config(**DENSE, sliding_window=9, layer_types=["sliding_attention", "full_attention"]),
    "mistral": tf.MistralConfig(**DENSE, sliding_window=9),
}
HYBRID = {
    "qwen3_5": tf.Qwen3_5TextConfig(**DENSE, **LINEAR),
    "qwen3_next": tf.Qwen3NextConfig(**DENSE, **LINEAR, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
                                     shared_expert_intermediate_size=16, mlp_only_layers=[0, 1]),
}  # fmt: skip


def policy_of(config: tf.PreTrainedConfig, spread: float = 0.15, dtype: torch.dtype = torch.float32) -> Policy:
    """A policy of any architecture over the lab's catalogue, with weights spread so that choices are not all alike."""
    plain = Policy.tiny(TITLES, ModelConfig(hidden_size=8, layers=1, heads=2))
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(spread * torch.randn(p.shape))
    return SharedPolicy(model.to(dtype), plain.tokenizer, plain.labels)


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in policy.model.named_parameters() if p.grad is not None}


def loss_and_gradients(policy, r, advantages, config, shared, reference=None):
    """policy_loss as training calls it, the prompt shared or not."""
    policy.model.zero_grad()
    logprobs = policy.logprobs
    policy.logprobs = lambda *args, **kept: logprobs(*args, shared=shared, **kept)
    loss, _ = policy_loss(policy, r, advantages, config, reference)
    del policy.logprobs
    loss.backward()
    return loss.detach(), gradients(policy)


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


def largest_error(shared, plain) -> float:
    """Error of each parameter's gradient, relative to its own norm or, for tiny ones, to a thousandth of the whole."""
    whole = torch.cat([g.flatten() for g in plain.values()]).norm()
    assert shared.keys() == plain.keys() and whole > 0
    return max(float((shared[n] - plain[n]).norm() / torch.maximum(plain[n].norm(), 1e-3 * whole)) for n in plain)


def sampled(policy, queries, constrained=True):
    r = rollout(policy, queries, Sampling(GrammarConfig(), constrained), 4, 0)
    signs = torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))
    return r, (1 + signs) * r.mask  # of both signs, yet so that the loss is no difference of nearly equal numbers


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("constrained", [True, False])
def test_loss_and_gradients_equal_the_unshared_ones(name, constrained, queries) -> None:
    policy = policy_of(ATTENTION[name])
    r, advantages = sampled(policy, queries, constrained)
    assert policy.share and len({len(q.history) for q in queries}) > 1
    (loss, grads), (plain_loss, plain) = (
        loss_and_gradients(policy, r, advantages, RLConfig(), shared) for shared in (True, False)
    )
    assert relative_error(loss, plain_loss) < 1e-5
    assert largest_error(grads, plain) < 1e-5


@pytest.mark.parametrize("name", ATTENTION)
def test_sampled_logprobs_equal_unshared_ones(name, queries) -> None:
    policy = policy_of(ATTENTION[name])
    r, _ = sampled(policy, queries)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - r.logprobs).abs().max() < 1e-5 and len({len(o.slate) for o in r.outputs}) > 2


@pytest.mark.parametrize("name", ["qwen3", "llama", "gpt2", "gemma3", "mistral"])
def test_bfloat16(name, queries) -> None:
    """Loss within 0.1 %, gradients within 1 % or what rounding does to the plain way, whole and of each parameter."""
    policy = policy_of(ATTENTION[name], spread=0.02, dtype=torch.bfloat16)
    r, advantages = sampled(policy, queries)
    config = RLConfig(clip_low=1.0, clip_high=1e9)  # rounding must not decide which tokens are clipped
    (loss, grads), (plain_loss, plain) = (
        loss_and_gradients(policy, r, advantages, config, shared) for shared in (True, False)
    )
    exact = policy_of(ATTENTION[name], spread=0.02)
    exact.model.load_state_dict({k: v.float() for k, v in policy.model.state_dict().items()})
    _, truth = loss_and_gradients(exact, r, advantages, config, shared=False)
    assert relative_error(loss, plain_loss) < 1e-3
    whole, plain_whole, true = (torch.cat([g.float().flatten() for g in x.values()]) for x in (grads, plain, truth))
    assert relative_error(whole, plain_whole) < max(1e-2, relative_error(plain_whole, true))
    for n in truth:
        rounding = float((plain[n].float() - truth[n]).norm())
        assert float((grads[n].float() - plain[n].float()).norm()) < 1e-2 * float(truth[n].norm()) + 2 * rounding, n


def test_lora_kl_and_inner_epochs(queries) -> None:
    """Adapters get the same gradients; with the adapter trained away from the reference, KL and clipping are active."""
    policy, reference = policy_of(ATTENTION["qwen3"]), policy_of(ATTENTION["qwen3"])
    lora = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    policy = SharedPolicy(get_peft_model(policy.model, lora), policy.tokenizer, policy.labels)
    r, advantages = sampled(policy, queries)
    config = RLConfig(beta=0.05)
    optimizer = torch.optim.SGD([p for p in policy.model.parameters() if p.requires_grad], lr=3.0)
    for _ in range(3):  # the second and third pass are off-policy
        (loss, grads), (plain_loss, plain) = (
            loss_and_gradients(policy, r, advantages, config, shared, reference) for shared in (True, False)
        )
        assert relative_error(loss, plain_loss) < 1e-5 and largest_error(grads, plain) < 1e-5
        assert all("lora" in name for name in grads)
        optimizer.step()
    assert policy_loss(policy, r, advantages, config, reference)[1]["clipfrac/slate"] > 0


@pytest.mark.parametrize("name", HYBRID)
def test_hybrids_with_recurrent_state_fall_back_and_say_so_once(name, queries, capsys) -> None:
    policy = policy_of(HYBRID[name])
    r, advantages = sampled(policy, queries)
    loss, _ = policy_loss(policy, r, advantages, RLConfig())
    loss.backward()
    assert capsys.readouterr().err.count("each rollout encodes its own prompt") == 1 and not policy.share
    # each row by itself, without any padding, gives the same log-probabilities
    for b in (0, 4, 9):
        one = policy.encode([queries[b // r.group]])
        n = int(r.mask[b].sum())
        logp, _ = policy.logprobs(one, r.completions[b : b + 1, :n], r.mask[b : b + 1, :n], r.sampling)
        assert (logp[0] - r.logprobs[b, :n]).abs().max() < 1e-5


def test_gradient_checkpointing_changes_nothing(queries, capsys) -> None:
    """Transformers applies it in training mode only; a policy is in evaluation mode and needs the cache."""
    policy = policy_of(ATTENTION["qwen3"])
    policy.model.gradient_checkpointing_enable()
    r, advantages = sampled(policy, queries)
    (_, grads), (_, plain) = (loss_and_gradients(policy, r, advantages, RLConfig(), shared) for shared in (True, False))
    assert policy.share and largest_error(grads, plain) < 1e-5 and not capsys.readouterr().err


def test_each_prompt_is_encoded_once_and_forced_tokens_take_no_step(queries, monkeypatch) -> None:
    policy, fed = policy_of(ATTENTION["qwen3"]), []
    sampled(policy, queries)  # the first rollouts are compared, which takes a call more
    policy.checked = {5: 1000}
    forward = policy.model.forward
    monkeypatch.setattr(policy.model, "forward", lambda ids, **k: fed.append(tuple(ids.shape)) or forward(ids, **k))
    sampling = Sampling(GrammarConfig(slate_size=6, rank_size=3, full=True))
    r = rollout(policy, queries, sampling, 5, 0)
    prompt, *steps = fed
    assert prompt == (len(queries), r.prompts.ids.shape[1] + 1)  # the opening tag is encoded with the prompt
    assert len(steps) == 6 + 3 - 1  # for 14 tokens a row: the last slate item goes with both tags, the last rank never
    assert all(q == len(queries) for q, _ in steps)
    fed.clear()
    policy.logprobs(r.prompts, r.completions, r.mask, sampling)
    # what follows the last choice, the last item of the ranking with its closing tag and the end, is not read
    assert fed == [(len(queries), r.prompts.ids.shape[1]), (len(queries), 5 * (r.completions.shape[1] - 3))]


def test_finished_rows_leave_the_batch(queries, monkeypatch) -> None:
    policy, kept, extended = policy_of(ATTENTION["llama"]), [], []
    keep, extend = PrefixTree.keep, PrefixTree.extend
    monkeypatch.setattr(PrefixTree, "keep", lambda self, rows: kept.append(len(rows)) or keep(self, rows))
    monkeypatch.setattr(PrefixTree, "extend", lambda self, ids, *a: extended.append(ids.shape) or extend(self, ids, *a))
    r = rollout(policy, queries, Sampling(GrammarConfig()), 1, 3)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - r.logprobs).abs().max() < 1e-5
    assert kept and kept[-1] < len(queries)
    assert extended[-2][0] < len(queries)


def test_the_tree_takes_branches_in_any_order(queries: list[Example]) -> None:
    policy = policy_of(ATTENTION["gemma3"])
    prompts = policy.encode(queries[:2])
    tokens, group = torch.tensor([10, 20, 11, 21, 30, 31, 32, 40]), 6
    row, depth = torch.tensor([0, 1, 0, 1, 6 + 5, 6 + 5, 6 + 5, 6 + 2]), torch.tensor([0, 0, 1, 1, 0, 1, 2, 0])
    together = PrefixTree(policy.model, prompts.ids, prompts.mask).fork(group, 3).extend(tokens, row, depth, depth >= 0)
    tree = PrefixTree(policy.model, prompts.ids, prompts.mask).fork(group, 3)
    steps = [torch.tensor([i, i + 4]) for i in range(4)]  # one token of each query
    apart = torch.stack([tree.extend(tokens[i], row[i], depth[i], depth[i] >= 0) for i in steps], dim=1)
    assert torch.allclose(together, apart.flatten(0, 1), atol=1e-5)


@pytest.mark.parametrize("constrained", [True, False])
@pytest.mark.parametrize("name", ["qwen3", "gpt2", "gemma3"])
def test_kept_prompts_give_the_same_loss_and_gradients_once(name, constrained, queries, monkeypatch) -> None:
    """Prompts are encoded once for sampling and loss together; after an update they are encoded anew."""
    policy = policy_of(ATTENTION[name])
    sampling = Sampling(GrammarConfig(), constrained)
    r = rollout(policy, queries, sampling, 4, 0, keep_prompts=True)
    advantages = 1 + torch.randn(r.logprobs.shape, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=0.5)
    encoded = []
    init = PrefixTree.__init__
    monkeypatch.setattr(PrefixTree, "__init__", lambda self, *args: encoded.append(1) or init(self, *args))
    assert r.tree is not None and r.tree.logits.requires_grad
    for expected in (0, 1, 2):
        loss, grads = loss_and_gradients(policy, r, advantages, RLConfig(), shared=True)
        assert len(encoded) == expected
        plain_loss, plain = loss_and_gradients(policy, r, advantages, RLConfig(), shared=False)
        assert relative_error(loss, plain_loss) < 1e-5 and largest_error(grads, plain) < 1e-5
        optimizer.step()


def test_a_kept_prompt_is_not_used_after_the_weights_changed(queries) -> None:
    policy = policy_of(ATTENTION["qwen3"])
    r = rollout(policy, queries, Sampling(GrammarConfig()), 4, 0, keep_prompts=True)
    with torch.no_grad():
        for p in policy.model.parameters():
            p.mul_(1.1)
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, tree=r.tree, begun=r.begun)
    plain, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, shared=False)
    assert (logp - plain).abs().max() < 1e-5 < (logp - r.logprobs).abs().max()


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["llama", "qwen3", "mistral", "gemma3"])
def test_block_masks_of_flex_attention_give_the_same_logprobs(name, queries, monkeypatch) -> None:
    policy = policy_of(ATTENTION[name])
    r, _ = sampled(policy, queries)
    called = []

    def uncompiled(query, key, value, block_mask=None, **options):  # compiling takes a minute; the CPU has no backward
        called.append(block_mask)
        return flex_attention(query, key, value, block_mask=block_mask, **options)

    monkeypatch.setattr(
        flex_integration, "compile_friendly_flex_attention", lambda *a, training, **k: uncompiled(*a, **k)
    )
    with torch.inference_mode():
        dense, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)
        assert not called
        monkeypatch.setattr(prefix, "BLOCK_MASKS", {"cpu"})
        blocks, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling)
    assert called and all(isinstance(mask, BlockMask) for mask in called)
    assert policy.model.config._attn_implementation == "sdpa"  # as before
    torch.testing.assert_close(blocks, dense, atol=1e-5, rtol=1e-4)
    assert relative_error(blocks, r.logprobs) < 1e-4
