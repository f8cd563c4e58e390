"""What a model of given sizes needs for a step, by arithmetic: memory as a sum of parts, time as FLOP over a rate.

Both are for planning. The tests hold memory to within a factor of 2 of measured steps of small models (it is four
fifths of those); the time has been compared with steps on a CPU only, not on a GPU.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch

from ..config import Config, KitError, LMConfig
from ..lm.pretrained import RECOMPUTE_FROM
from ..prefix import branches_at_once, why_unshared

GPU = {"bfloat16": 312e12, "float32": 19.5e12}, 2.0e12, 0.3
"""an A100 of 80 GB: peak FLOP/s by type, memory bandwidth (bytes/s), and the share of the peak that is reckoned with"""
CPU_BANDWIDTH, CPU_SHARE = 10e9, 0.35
"""of a CPU core: bytes/s, and the share of the rate of a plain matrix product, which is measured"""
LAYER_SECONDS = 5e-4
"""least time of one decoder layer in one decoding step on a GPU: its kernels are started one by one"""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model: layers, widths (of attention's queries and keys too), numbers of weights.

    `applied` weights multiply every token (all but embeddings and head); `inputs` counts, per layer, the numbers that
    trained layers keep of each token for their own gradient.
    """

    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    weights: int
    applied: int
    trained: int
    inputs: float
    normed: bool
    shared: bool
    adapter: bool


@dataclass(frozen=True)
class Tokens:
    """Tokens of a prompt (mean, most), of the longest completion, logits per token; whether a tokenizer counted them."""

    mean: float
    most: int
    completion: int
    columns: int
    counted: bool


def shape_of(model: Any, lm: LMConfig | None) -> Shape:
    """The sizes of a model, on whatever device; with `lm`, of one that gets its LoRA adapter.

    Raises KitError if no layer bears a name of `lora_targets`.
    """
    config = model.config.get_text_config()
    head = model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    weights = sum(p.numel() for p in model.parameters())
    applied = sum(m.weight.numel() for m in linear.values())
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    queries, keys = heads * width, (getattr(config, "num_key_value_heads", None) or heads) * width
    intermediate = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    trained, inputs = weights, float(2 * config.hidden_size + queries + intermediate)
    if lm:
        names = lm.lora_targets.split(",")
        chosen = [m for n, m in linear.items() if names == ["all-linear"] or n.rsplit(".", 1)[-1] in names]
        if not chosen:
            raise KitError(f"lora_targets {lm.lora_targets!r}: this model has no such layer.")
        trained = sum(lm.lora_rank * (m.in_features + m.out_features) for m in chosen)
        each = sum(m.in_features for m in chosen) / config.num_hidden_layers
        inputs = each if lm.dtype == "bfloat16" else min(each, inputs)  # float32 copies, one a layer that has one
    return Shape(
        config.num_hidden_layers, config.hidden_size, intermediate, queries, keys, config.vocab_size, weights, applied,
        trained, inputs, any("q_norm" in n for n, _ in model.named_modules()), why_unshared(model) is None, bool(lm),
    )  # fmt: skip


def memory_of(shape: Shape, tokens: Tokens, config: Config, sft: bool = False) -> dict[str, float]:
    """Bytes at the peak of an RL step, by part; b bytes a weight, m = `micro` queries held together, P and C the most.

    Of a step of the warm start with `sft`: G is 1 there.

    - weights: b each; trained: 16 each (float32 weight, gradient, two moments of AdamW), of the tiny policy 12 more;
    - cache: keys and values of m (P + G C) tokens, 2 b keys a layer;
    - attention: in the loss, keys and values again per group of branches, and once more at the width of the queries;
    - activations: of m G C tokens, and of m P where the prompt's layers are kept, `per_token` a layer; where they are
      run again (a pretrained model, more than RECOMPUTE_FROM tokens) the layers' inputs and one layer. Unshared: of
      m G (P + C) tokens;
    - logits: three float32 copies of m G C rows, as wide as the grammar's tokens, or the vocabulary if decoding is free.
    """
    b, g, batch = _bytes(config), config.rl.group, config.rl.queries
    if sft:
        g, batch = 1, config.sft.sft_batch
    m = min(config.lm.micro or batch, batch)
    p, c = tokens.most, tokens.completion
    chunk = min(g, branches_at_once(p, c))
    again = shape.adapter and shape.shared and m * p > RECOMPUTE_FROM
    each, answers = per_token(shape, b), m * g * c
    kept = each * shape.layers * (answers + (0 if again else m * p) if shape.shared else m * g * (p + c))
    if again:
        kept += m * p * (shape.layers * shape.hidden * b + each)
    branches = -(-g // chunk) * (p + chunk * c) * m if shape.shared else m * g * (p + c)
    wide = tokens.columns if config.rl.decoding == "constrained" else shape.vocabulary
    return {
        "weights": b * (shape.weights if shape.adapter else 0),
        "trained": 16.0 * shape.trained,
        "cache": 2.0 * b * shape.layers * shape.keys * m * (p + g * c),
        "attention": 2.0 * b * shape.layers * (shape.keys + shape.queries) * branches,
        "activations": float(kept),
        "logits": 12.0 * answers * wide,
    }


def per_token(shape: Shape, b: int) -> float:
    """Bytes that a decoder layer keeps of one token for its gradient.

    Both norms keep a float32 input (and those of queries and keys, where there are such), attention its queries and
    its output, the gated feed-forward layer three vectors, and trained layers their input in float32.
    """
    norms = 2 * shape.hidden + (shape.queries + shape.keys if shape.normed else 0)
    return 4 * norms + b * (2 * shape.queries + 3 * shape.intermediate) + 4 * shape.inputs


def seconds_of(shape: Shape, tokens: Tokens, config: Config, rate: float, bandwidth: float, least: float) -> dict:
    """Seconds of one SFT step and one RL step, and of one greedy answer, at `rate` FLOP/s.

    A token costs 2 FLOP a weight that is applied to it, and attention 4 x width x layers for each token that it sees.
    A backward pass costs as much as a forward pass through frozen weights, twice as much where all are trained; a
    prompt's layers that are run again cost one more. Decoding writes one token a step for all rollouts together, and
    no step is faster than reading all weights once, or than `least` seconds a layer.
    """
    b, g, c, p = _bytes(config), config.rl.group, tokens.completion, tokens.mean
    attention = 4 * shape.layers * shape.queries

    def forward(n: float, seen: float) -> float:
        return n * (2 * shape.applied + attention * seen)

    def learning(rollouts: int, m: int) -> float:
        times, prompts = (2 if shape.adapter else 3), (1 if shape.shared else rollouts)
        again = shape.adapter and shape.shared and m * p > RECOMPUTE_FROM
        chunk = min(rollouts, branches_at_once(int(p), c)) if shape.shared else 1
        return prompts * (times + again) * forward(p, p / 2) + times * forward(rollouts * c, p + chunk * c)

    def decoding(m: int, rollouts: int) -> float:
        one = forward(m * rollouts, p + c) / rate
        return m * forward(p, p / 2) * (1 if shape.shared else rollouts) / rate + c * max(
            one, b * shape.weights / bandwidth, least * shape.layers
        )

    q = config.rl.queries
    m = min(config.lm.micro or q, q)
    batch = min(config.lm.micro or config.sft.sft_batch, config.sft.sft_batch)
    return {
        "sft_step": config.sft.sft_batch * learning(1, batch) / rate,
        "rl_step": -(-q // m) * decoding(m, g) + config.rl.epochs * q * learning(g, m) / rate,
        "answer": decoding(8, 1) / 8,
    }


def _bytes(config: Config) -> int:
    return 2 if config.lm.model and config.lm.dtype == "bfloat16" else 4


def rate_of(config: Config) -> tuple[float, float, float, str]:
    """FLOP/s to reckon with, bytes/s, least seconds a layer in decoding, and the sentence that says so."""
    dtype = config.lm.dtype if config.lm.model else "float32"
    if config.device != "cpu":
        peaks, bandwidth, share = GPU
        said = f"{share:.0%} of an A100's {peaks[dtype] / 1e12:g} TFLOP/s in {dtype}; not checked on a GPU"
        return share * peaks[dtype], bandwidth, LAYER_SECONDS, said
    a = torch.ones(512, 512, dtype=getattr(torch, dtype))
    spent = []
    for _ in range(8):
        began = time.perf_counter()
        a @ a
        spent.append(time.perf_counter() - began)
    peak = 2 * 512**3 / min(spent)
    said = f"{CPU_SHARE:.0%} of the {peak / 1e9:.0f} GFLOP/s that a matrix product reaches here now in {dtype}"
    return CPU_SHARE * peak, CPU_BANDWIDTH, 0.0, said
