"""What a run would need, without loading weights: `train --dry-run`. Memory is a sum of parts, time is FLOP over a rate.

Sizes are those of the real configuration, tokenizer and data. A test holds memory to within a factor of 2 of measured
steps of small models on the CPU; hours on a GPU have not been checked.
"""

import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, Qwen3Config

from ..config import Config, KitError
from ..data import Splits
from ..lm.adapter import check_lora
from ..lm.loading import loading
from ..lm.prefix import PrefixTree, sliding_windows
from ..lm.pretrained import RECOMPUTE_FROM, load_config, load_labels
from ..policy import Policy
from ..runs.fields import check_pools
from ..runs.warm_start import fits_shipped

KNOWN = {"Qwen/Qwen3-4B-Instruct-2507": Qwen3Config(  # the presets' model, which is planned without the model hub
    hidden_size=2560, intermediate_size=9728, num_hidden_layers=36, num_key_value_heads=8, tie_word_embeddings=True
)}  # fmt: skip
RATES = {"bfloat16": (94e12, 2e12, 5e-4), "float32": (5.9e12, 2e12, 5e-4), "cpu": (25e9, 10e9, 0.0)}
"""FLOP/s (30 % of an A100's peak; a third of a matrix product on a CPU core of ours), bytes/s, least seconds of a layer
in a decoding step, since a GPU's kernels are started one by one"""
Plan = dict[str, dict[str, object]]  # numbers and words by part and name; the last part is the configuration


class Shape(NamedTuple):
    """Sizes of a model. Widths of attention's queries and keys are over all heads."""

    layers: int
    hidden: int
    queries: int
    keys: int
    vocabulary: int
    weights: int
    applied: int  # weights that multiply every token: all but embeddings and head
    trained: int
    size: int  # bytes a weight
    kept: float  # bytes that one layer keeps of one token for its gradient
    shared: bool  # the prompt is encoded once for all rollouts
    pretrained: bool  # whose layers of a long prompt are recomputed
    adapter: bool  # LoRA weights are all that is trained


class Tokens(NamedTuple):
    """Tokens of a prompt (mean, maximum), of the longest completion; logits per token; whether a tokenizer counted."""

    mean: float
    longest: int
    completion: int
    columns: int
    counted: bool = True


def shape_of(config: Config, items: Sequence[str]) -> Shape:
    """The sizes of the run's model. Raises KitError if its configuration cannot be loaded, or if no layer gets LoRA.

    Kept per layer and token: a float32 input of all norms, attention's queries and output, three vectors of the gated
    feed-forward layer, the input of each trained layer (in float32 for LoRA).
    """
    lm, code = config.lm, config.lm.trust_remote_code
    check_lora(lm)
    with torch.device("meta"), loading(lm.model):
        if lm.model:
            found = KNOWN.get(lm.model) or load_config(lm)
            model = AutoModelForCausalLM.from_config(found, trust_remote_code=code)
        else:
            model = Policy.tiny(items, config.model).model
    sizes, head = model.config.get_text_config(), model.get_output_embeddings()
    linear = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}
    layers, hidden, heads = sizes.num_hidden_layers, sizes.hidden_size, sizes.num_attention_heads
    width = getattr(sizes, "head_dim", None) or hidden // heads
    queries, keys = heads * width, (getattr(sizes, "num_key_value_heads", None) or heads) * width
    intermediate = getattr(sizes, "intermediate_size", None) or 4 * hidden
    trained = weights = sum(p.numel() for p in model.parameters())
    applied, inputs = sum(m.weight.numel() for m in linear.values()), 2 * hidden + queries + intermediate
    size = 2 if lm.model and lm.dtype == "bfloat16" else 4
    copied = size * inputs  # the inputs of all layers, those that read one vector share it
    if adapter := bool(lm.model and lm.lora_rank):
        names = lm.lora_targets.split(",")
        adapted = [m for n, m in linear.items() if names == ["all-linear"] or n.rsplit(".", 1)[-1] in names]
        if not adapted:
            raise KitError(f"lora_targets {lm.lora_targets!r}: this model has no such layer.")
        trained = sum(lm.lora_rank * (m.in_features + m.out_features) for m in adapted)
        copies = sum(m.in_features for m in adapted) / layers  # in float32, layers that read one vector share it
        copied = 4 * (copies if size == 2 else min(copies, inputs))
    norms = 2 * hidden + (queries + keys if any("q_norm" in n for n, _ in model.named_modules()) else 0)
    kept, shared = 4 * norms + size * (2 * queries + 3 * intermediate) + copied, likely_shared(model)
    widths = (layers, hidden, queries, keys, sizes.vocab_size)
    return Shape(*widths, weights, applied, trained, size, kept, shared, bool(lm.model), adapter)


def likely_shared(model: torch.nn.Module) -> bool:
    """Whether rollouts will share their encoded prompt, by the kinds of its layers; a run compares (fgrpo.rollout)."""
    return {kind for kind, _ in sliding_windows(model.config)} <= {"full_attention", "sliding_attention"}


def tokens_of(config: Config, splits: Splits, items: Sequence[str]) -> Tokens:
    """Lengths over about 200 training examples; guessed where the presets' tokenizer is missing."""
    some, grammar, lm = splits.train[:: max(1, len(splits.train) // 200)], config.grammar, config.lm
    try:
        labels = load_labels(lm) if lm.model else Policy.tiny(items, config.model).labels
    except KitError:
        if lm.model not in KNOWN:
            raise
        texts = [(e.query, *e.history, *e.candidates) for e in some]  # four characters a token, a lead of 4 tokens
        guesses = [120 + sum(min(len(text) // 4 + 1, lm.passage_tokens) + 4 for text in row) for row in texts]
        lists = grammar.slate_size + grammar.rank_size
        return Tokens(statistics.fmean(guesses), max(guesses), 4 * lists + 16, 32, counted=False)
    lengths = [len(labels.prompt_ids(e, grammar)) for e in some]
    choices = labels.choices([max(some, key=lambda e: len(e.candidates))])
    columns = len(items) if choices.columns is None else len(choices.columns)
    return Tokens(statistics.fmean(lengths), max(lengths), choices.longest(grammar), columns)


def memory_of(shape: Shape, tokens: Tokens, config: Config, sft: bool = False) -> dict[str, float]:
    """Bytes at the peak of one RL step (or SFT step, where G is 1), by part.

    With b bytes a weight, m queries held at a time (`--micro`), prompts of P and completions of C tokens at most:
    - weights: b each, of the model under an adapter, or of the second copy that a KL penalty keeps where all weights are
      trained. Trained: 16 each in float32 as LoRA's (weight, gradient, two moments of AdamW), 8 in bfloat16;
    - cache: keys and values of m (P + G C) tokens;
    - attention: in the loss, keys and values once more for each chunk of branches, and again at the queries' width;
    - activations: `kept` a layer, of m G C tokens, and of m P (m G P if not shared) unless the prompt's layers are
      recomputed (pretrained models, more than RECOMPUTE_FROM tokens), which keeps the layers' inputs and one layer;
    - logits: three float32 copies of m G C rows, as wide as the grammar's choices, or the vocabulary in free decoding.
    """
    b, n = shape.size, shape.layers
    g, batch = (1, config.sft.sft_batch) if sft else (config.rl.group, config.rl.queries)
    m, p, c = min(config.lm.micro or batch, batch), tokens.longest, tokens.completion
    prompts, answers, chunk = m * p * (1 if shape.shared else g), m * g * c, min(g, PrefixTree.at_once(p, c))
    attended = -(-g // chunk) * (p + chunk * c) * m if shape.shared else prompts + answers
    recomputed = shape.pretrained and shape.shared and prompts > RECOMPUTE_FROM
    encoded = prompts * (n * shape.hidden * b + shape.kept) if recomputed else prompts * n * shape.kept
    wide = tokens.columns if config.rl.decoding == "constrained" else shape.vocabulary
    return {
        "weights": float(b * shape.weights * (shape.adapter or (config.rl.beta > 0 and not sft))),
        "trained": 4.0 * (4 if shape.adapter else b) * shape.trained,
        "cache": 2.0 * b * n * shape.keys * m * (p + g * c),
        "attention": 2.0 * b * n * (shape.keys + shape.queries) * attended,
        "activations": n * shape.kept * answers + encoded, "logits": 12.0 * answers * wide,
    }  # fmt: skip


def seconds_of(shape: Shape, tokens: Tokens, config: Config, sft: bool = False) -> float:
    """Seconds of one RL step (or SFT step).

    A token costs 2 FLOP per applied weight, and 4 x width x layers in attention for each token that it sees. A backward
    pass costs one forward pass through frozen weights, two where all are trained, one more for recomputed prompts. A
    decoding step, one token of m G rollouts, is not faster than reading all weights, or than the layers' minimum.
    """
    flops, bandwidth, layer = RATES["cpu" if config.device == "cpu" else "bfloat16" if shape.size == 2 else "float32"]
    p, c = tokens.mean, tokens.completion
    g, batch = (1, config.sft.sft_batch) if sft else (config.rl.group, config.rl.queries)
    m, passes, prompts = min(config.lm.micro or batch, batch), 2 if shape.adapter else 3, 1 if shape.shared else g
    chunk = min(g, PrefixTree.at_once(int(p), c)) if shape.shared else 1
    recomputed = shape.pretrained and shape.shared and m * p > RECOMPUTE_FROM

    def forward(n: float, seen: float) -> float:
        return n * (2 * shape.applied + 4 * shape.layers * shape.queries * seen) / flops

    encoded = batch * prompts * forward(p, p / 2)
    loss = encoded * (passes + recomputed) + batch * passes * forward(g * c, p + chunk * c)
    token = max(forward(m * g, p + c), shape.size * shape.weights / bandwidth, layer * shape.layers)
    return loss if sft else config.rl.epochs * loss + encoded + -(-batch // m) * c * token


def plan(config: Config, splits: Splits, items: Sequence[str], warm: bool = True, rl: bool = True) -> Plan:
    """Data, tokens, weights, steps, memory (GB) and hours of a run, for JSON and `format_plan`.

    `warm`: it begins with a warm start, unless the shipped one fits; `rl`: RL follows. Raises KitError if data,
    tokenizer or configuration are missing, and on prompts longer than the model's context.
    """
    check_pools(splits.train, config)
    shape, tokens = shape_of(config, items), tokens_of(config, splits, items)
    steps = {"sft": config.sft.sft_steps * (warm and not (rl and fits_shipped(config))), "rl": config.rl.steps * rl}
    needs = [memory_of(shape, tokens, config, name == "sft") for name, n in steps.items() if n]
    memory = max(needs, key=lambda parts: sum(parts.values()))
    hours = {name: n * seconds_of(shape, tokens, config, name == "sft") / 3600 for name, n in steps.items()}
    return {
        "task": {"name": config.task, **{name: len(part) for name, part in splits._asdict().items()}},
        "tokens": {"prompt": tokens.mean, "longest": tokens.longest, "completion": tokens.completion,
                   "how": "counted" if tokens.counted else "guessed at four characters each"},
        "model": {"name": config.lm.model or "tiny policy", "weights": shape.weights, "trained": shape.trained},
        "steps": {**steps, "rollouts": steps["rl"] * config.rl.queries * config.rl.group},
        "memory_gb": {part: x / 1e9 for part, x in {**memory, "total": sum(memory.values())}.items()},
        "hours": {**hours, "total": sum(hours.values()), "on": "CPU" if config.device == "cpu" else "A100, not checked"},
        "config": config.to_dict(),
    }  # fmt: skip


def format_plan(found: Plan) -> str:
    """A plan for a terminal, a line for each part."""
    form: dict[type, str] = {float: "{:,.2f}", int: "{:,}", str: "{}"}
    parts = {name: [f"{k} {form[type(x)].format(x)}" for k, x in found[name].items()] for name in list(found)[:-1]}
    lines = [f"{name:<10} {', '.join(part)}" for name, part in parts.items()]
    return "\n".join([*lines, "An estimate by arithmetic: nothing was loaded or trained."])
