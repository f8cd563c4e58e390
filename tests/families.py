"""Tiny random models of real families, with tokenizers of their real classes trained on a few lines: made offline."""

import json
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from fgrpo.config import LMConfig
from fgrpo.data import Example
from fgrpo.lm.pretrained import PretrainedPolicy
from fgrpo.policy import Policy

CORPUS = ["<SLATE> 7, 12, 3 </SLATE> <RANK> 12, 3 </RANK>", "Query: which of these films would this viewer like?",
          "History, oldest first: - Silver Orbit - Ashen Vault", "Candidates: [1] Bold Mesa [12] Quiet Attic 10 11 13",
          "Choose a slate: at most 10 candidates that may fit. Then rank them, best first."] * 20  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048}  # fmt: skip
LINEAR = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4,
          "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4}  # fmt: skip
WINDOW = {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]}
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
          "<think>\n\n</think>\n\n{% endif %}{% endif %}")  # fmt: skip
TURNS = ("{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
         "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}"
         "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}")  # fmt: skip
FAMILIES = {
    "qwen3": (tf.Qwen3Config, {}, "qwen"),
    "qwen3_5": (tf.Qwen3_5TextConfig, LINEAR, "qwen"),
    "llama": (tf.LlamaConfig, {}, "llama"),
    "smollm2": (tf.LlamaConfig, {"tie_word_embeddings": True}, "smollm"),
    "gemma3": (tf.Gemma3TextConfig, WINDOW, "gemma"),
    "gemma2": (tf.Gemma2Config, WINDOW, "gemma"),
}
BYTES = [f"<0x{n:02X}>" for n in range(256)]


def trained(pretok, specials: list[str], alphabet: list[str] = [], size: int = 420, **kind):  # noqa: B006
    """(vocabulary, merges) of a BPE trained on CORPUS."""
    words = Tokenizer(models.BPE(**kind))
    words.pre_tokenizer = pretok
    words.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    made = json.loads(words.to_str())["model"]
    return made["vocab"], [tuple(m) for m in made["merges"]]


def tokenizer_of(kind: str):
    """qwen (byte-level, chat, <think> as a token that is not special), llama and gemma (byte fallback), smollm, whole
    (numbers of up to three digits in one token, with their space)."""
    letters = pre_tokenizers.ByteLevel.alphabet()
    if kind == "qwen":
        from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

        split = [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
        vocabulary, merges = trained(pre_tokenizers.Sequence(split), ["<|endoftext|>"], letters)
        tokenizer = tf.Qwen2Tokenizer(vocabulary, merges, eos_token="<|im_end|>", pad_token="<|endoftext|>")
        tokenizer.add_tokens([tf.AddedToken("<|im_start|>", special=True), "<think>", "</think>"])
        tokenizer.chat_template = CHATML
    elif kind == "llama":  # no chat template
        vocabulary, merges = trained(
            pre_tokenizers.Metaspace("▁", "always", False), ["<unk>", "<s>", "</s>", *BYTES], size=600
        )
        tokenizer = tf.LlamaTokenizerFast(vocabulary, merges, add_bos_token=True)
    elif kind == "gemma":
        split = pre_tokenizers.Split(" ", "merged_with_previous")
        specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *BYTES]
        words = [line.replace(" ", "▁") for line in CORPUS]
        CORPUS[:], kept = words, list(CORPUS)
        vocabulary, merges = trained(split, specials, ["▁"], size=600)
        CORPUS[:] = kept
        tokenizer = tf.GemmaTokenizer(vocabulary, merges)
        tokenizer.add_tokens([tf.AddedToken(t, special=True) for t in ("<start_of_turn>", "<end_of_turn>")])
        tokenizer.chat_template = TURNS
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        pretok = pre_tokenizers.Sequence([digits, level]) if kind == "smollm" else level
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        vocabulary, merges = trained(pretok, specials, letters)
        words = Tokenizer(models.BPE(vocabulary, merges))
        words.pre_tokenizer, words.decoder = pretok, decoders.ByteLevel()
        words.add_special_tokens(specials)
        tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<|im_end|>", bos_token="<|im_start|>")
        tokenizer.chat_template = CHATML
    return tokenizer


def save_model(name: str, folder: Path, **sizes: int) -> Path:
    """A tiny random model of a family and its tokenizer, as a folder; `sizes` replace those of its configuration."""
    kind, more, words = FAMILIES[name]
    tokenizer = tokenizer_of(words)
    torch.manual_seed(0)
    config = kind(vocab_size=len(tokenizer), **{**SIZES, **sizes}, **more, bos_token_id=None,
                  eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.15 * torch.randn(p.shape))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def policy_of(folder: Path, trained_adapter: bool = True, **options) -> Policy:
    """A pretrained policy on a folder; its adapter random, as if it had been trained."""
    policy = PretrainedPolicy.new(
        LMConfig(model=str(folder), **{"lora_rank": 4, "lora_alpha": 8, "passage_tokens": 12, **options})
    )
    if trained_adapter:
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for p in policy.model.parameters():
                if p.requires_grad:
                    p.add_(0.2 * torch.randn(p.shape, generator=generator))
    return policy


def examples(count: int = 3, pool: int = 13) -> list[Example]:
    """Examples with prompts and pools of different lengths."""
    return [
        Example(f"q{n}", "Which of these films?", ("Silver Orbit", "Ashen Vault")[: n % 3],
                tuple(f"Film {'very ' * (n + i % 3)}{i}" for i in range(pool - n % 2)), frozenset({n, 5}))
        for n in range(count)
    ]  # fmt: skip
