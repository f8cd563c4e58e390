"""Sampled log-probabilities are compared with recomputed ones, whatever the model: shared, by themselves, or refused."""

from dataclasses import replace

import pytest
import torch
import transformers as tf

from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.data import Example
from fgrpo.loss import policy_loss
from fgrpo.policy import Policy, Sampling
from fgrpo.rollout import rollout
from fgrpo.runs.sft import sft_step
from fgrpo.trainer import step

from ..lm.test_prefix import ATTENTION, DENSE, policy_of

PLAIN = {"vocab_size": 308, "bos_token_id": None, "eos_token_id": 1}
GPT = {**PLAIN, "n_embd": 32, "n_layer": 2, "n_head": 4}
WITHOUT_WIDTH = {name: value for name, value in DENSE.items() if name != "head_dim"}


def gpt_neo(window: int) -> tf.GPTNeoConfig:
    return tf.GPTNeoConfig(
        **PLAIN, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=window, max_position_embeddings=512,
    )  # fmt: skip


UNSHARED = {  # every kind of model whose branches would be wrong, or fail
    "local masks": gpt_neo(window=9),
    "ALiBi": tf.BloomConfig(**PLAIN, hidden_size=32, n_layer=2, n_head=4),
    "ALiBi by slot": tf.MptConfig(**PLAIN, d_model=32, n_heads=4, n_layers=2, max_seq_len=256),
    "ALiBi as an option": tf.FalconConfig(
        **PLAIN, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
    ),
    "chunks": tf.Llama4TextConfig(**DENSE, intermediate_size_mlp=64, num_local_experts=2, attention_chunk_size=9),
    "own positions": tf.BartConfig(
        **PLAIN, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=64, is_decoder=True,
        max_position_embeddings=256, pad_token_id=0,
    ),
    "convolution": tf.Lfm2Config(**DENSE, layer_types=["conv", "full_attention"]),
    "recurrent": tf.Mamba2Config(
        **PLAIN, hidden_size=32, num_hidden_layers=2, state_size=8, num_heads=8, head_dim=8, n_groups=2
    ),
}  # fmt: skip
SHARED = {
    "gptj": tf.GPTJConfig(**GPT, rotary_dim=8, n_positions=256),
    "opt": tf.OPTConfig(
        **PLAIN, hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=4, word_embed_proj_dim=32,
        max_position_embeddings=256, pad_token_id=0,
    ),
    "sinks": tf.GptOssConfig(
        **DENSE, num_local_experts=2, num_experts_per_tok=1, sliding_window=9,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "wide local masks": gpt_neo(window=400),
}  # fmt: skip
REFUSED = {  # with a cache, these compute another distribution than without one
    "rope that switches at a length": tf.Phi3Config(
        **WITHOUT_WIDTH, original_max_position_embeddings=32,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                         "long_factor": [3.0] * 4, "original_max_position_embeddings": 32},
    ),
    "rope that grows with the length": tf.LlamaConfig(
        **{**DENSE, "max_position_embeddings": 32},
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    ),
    "no cache": tf.XLNetConfig(**PLAIN, d_model=32, n_layer=2, n_head=4, d_inner=64),
}  # fmt: skip
SAMPLING = Sampling(GrammarConfig())


def largest_gap(policy, r, **kept) -> float:
    logp, _ = policy.logprobs(r.prompts, r.completions, r.mask, r.sampling, **kept)
    return float((logp.detach() - r.logprobs).abs().max())


@pytest.mark.parametrize("name", UNSHARED)
def test_models_that_cannot_share_fall_back_and_say_so_once(name, queries, capsys) -> None:
    policy = policy_of(UNSHARED[name])
    for number in range(2):
        r = rollout(policy, queries, SAMPLING, 4, 0, number)
    assert not policy.share and capsys.readouterr().err.count("each rollout encodes its own prompt") == 1
    assert largest_gap(policy, r) < 1e-5 and len({len(o.slate) for o in r.outputs}) > 1
    loss, logs = policy_loss(policy, r, torch.ones_like(r.logprobs), RLConfig(beta=0.1), policy)
    assert logs["approx_kl"] < 1e-9 and logs["kl_reference"] < 1e-9  # the reference takes the same path
    loss.backward()


@pytest.mark.parametrize("name", SHARED)
def test_models_that_can_share_do(name, queries, capsys) -> None:
    policy = policy_of(SHARED[name])
    r = rollout(policy, queries, SAMPLING, 4, 0)
    assert policy.share and not capsys.readouterr().err
    assert largest_gap(policy, r) < 1e-5 and largest_gap(policy, r, shared=False) < 1e-5


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_differ_even_by_themselves_are_refused(name, queries, capsys) -> None:
    policy = policy_of(REFUSED[name])
    with pytest.raises(KitError, match="cannot be sampled from as a policy"):
        rollout(policy, queries, SAMPLING, 4, 0)
    assert not capsys.readouterr().err  # one sentence, not two


def plain_policy_of(config: tf.PreTrainedConfig) -> Policy:
    """The core's own policy, as anyone may build it around a model."""
    shared = policy_of(config)
    return Policy(shared.model, shared.tokenizer, shared.labels)


@pytest.mark.parametrize("config", [ATTENTION["llama"], *UNSHARED.values()], ids=["llama", *UNSHARED])
def test_a_plain_policy_shares_nothing_and_is_right_whatever_its_model(config, queries, capsys) -> None:
    policy = plain_policy_of(config)
    r = rollout(policy, queries, SAMPLING, 4, 0, keep_prompts=True)
    assert not policy.share and r.tree is None and not capsys.readouterr().err
    assert largest_gap(policy, r) < 1e-5 and policy.checked[4] > 0


@pytest.mark.parametrize("name", REFUSED)
def test_a_plain_policy_is_compared_too(name, queries) -> None:
    """Its feed keeps keys and values from token to token, which changes what these models compute."""
    with pytest.raises(KitError, match="cannot be sampled from as a policy"):
        rollout(plain_policy_of(REFUSED[name]), queries, SAMPLING, 4, 0)


def test_greedy_decoding_stops_no_run(queries) -> None:
    """Nothing is learned from it: a model whose cache changes the distribution a little may still be measured."""
    policy = policy_of(REFUSED["rope that grows with the length"])
    assert len(rollout(policy, queries, SAMPLING).outputs) == len(queries)


def test_a_longer_prompt_is_compared_again(queries: list[Example], capsys) -> None:
    policy = policy_of(gpt_neo(window=200))
    rollout(policy, queries, SAMPLING, 4, 0)
    assert policy.share
    long = [replace(q, history=q.candidates * 10) for q in queries]
    r = rollout(policy, long, SAMPLING, 4, 0)
    assert not policy.share and largest_gap(policy, r) < 1e-5
    assert "each rollout encodes its own prompt" in capsys.readouterr().err


def test_a_larger_group_is_compared_again(queries: list[Example]) -> None:
    """One branch is a plain sequence, whose slots are its positions."""
    policy = policy_of(UNSHARED["local masks"])
    same = [queries[0]] * 2  # prompts of one length, without padding
    rollout(policy, same, SAMPLING)
    r = rollout(policy, same, SAMPLING, 8, 0)
    assert not policy.share and largest_gap(policy, r) < 1e-5


def test_rounding_is_no_difference(queries, capsys) -> None:
    policy = policy_of(tf.LlamaConfig(**DENSE), dtype=torch.bfloat16)
    r = rollout(policy, queries, SAMPLING, 8, 0)
    assert policy.share and largest_gap(policy, r, shared=False) > 1e-3 and not capsys.readouterr().err


@pytest.mark.parametrize("do", [step, sft_step])
def test_both_stages_train_such_a_model(do, queries, config: Config) -> None:
    policy = policy_of(UNSHARED["ALiBi"])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    logs = do(policy, optimizer, queries[:4], config)
    assert not policy.share and logs["loss"] == logs["loss"] and logs.get("approx_kl", 0.0) < 1e-9


@pytest.mark.parametrize("window", [9, 30, 50])
def test_a_wrong_mask_is_more_than_rounding_in_bfloat16(window, queries, capsys) -> None:
    """These gaps, 0.1 to 0.3, are those of rounding in a deep model; what rounding makes of this model is measured."""
    policy = policy_of(gpt_neo(window), dtype=torch.bfloat16)
    r = rollout(policy, queries, SAMPLING, 4, 0)
    _, logs = policy_loss(policy, r, torch.ones_like(r.logprobs), RLConfig())
    assert not policy.share and logs["approx_kl"] < 1e-4 and capsys.readouterr().err


@pytest.mark.parametrize("name", ["llama", "gemma3", "gpt2"])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_rounding_at_low_temperature_is_no_difference(name, temperature, queries, capsys) -> None:
    policy = policy_of(ATTENTION[name], dtype=torch.bfloat16)
    rollout(policy, queries, replace(SAMPLING, temperature=temperature), 4, 0)
    assert policy.share and not capsys.readouterr().err


def test_a_longer_answer_is_compared_again(queries: list[Example]) -> None:
    """A policy learns to write more, and crosses the length from which its positions are scaled otherwise."""
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
    policy = policy_of(tf.LlamaConfig(**{**DENSE, "max_position_embeddings": 41}, rope_parameters=rope))
    same = queries[3:]
    short, long = (Sampling(GrammarConfig(n, 1, full=True)) for n in (1, 10))
    assert policy.encode(same).ids.shape[1] == 30
    rollout(policy, same, short, 4, 0)
    with pytest.raises(KitError, match="cannot be sampled from"):
        rollout(policy, same, long, 4, 0)


def test_a_long_prompt_alone_does_not_stand_for_a_group(queries: list[Example]) -> None:
    """Evaluation decodes one rollout of each prompt, and test prompts may be longer than those trained on so far."""
    policy = policy_of(gpt_neo(window=200))
    same, long = [queries[0]] * 2, [replace(queries[0], history=queries[0].candidates * 10)] * 2
    rollout(policy, same, SAMPLING, 4, 0)
    rollout(policy, long, SAMPLING)
    assert policy.share
    r = rollout(policy, long, SAMPLING, 4, 0, 1)
    assert not policy.share and largest_gap(policy, r) < 1e-5


def test_position_tables_that_end_are_one_sentence(queries: list[Example]) -> None:
    policy = policy_of(tf.GPT2Config(**GPT, n_positions=60))
    rollout(policy, queries, SAMPLING, 4, 0)
    with pytest.raises(KitError, match="cannot be sampled from as a policy"):
        rollout(policy, [replace(q, history=q.candidates * 3) for q in queries], SAMPLING, 4, 0)


def test_sft_compares_longer_prompts_too(queries: list[Example], config: Config) -> None:
    """Nothing is sampled there, but its loss shares prompts as well."""
    policy = policy_of(gpt_neo(window=40))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-3)
    short = [replace(q, history=(), candidates=q.candidates[:8], relevant=frozenset({0})) for q in queries[:3]]
    sft_step(policy, optimizer, short, config)
    assert policy.share
    sft_step(policy, optimizer, queries[:3], config, 1)
    assert not policy.share
