"""What a run would do, and an estimate of its memory and time, without loading weights: `train --dry-run`.

Sizes are those of the real configuration, its tokenizer and its data; weights are counted on the meta device.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

from ..config import Config, KitError
from ..data import Example, Splits
from ..lm.index_labels import QUERY_TOKENS, task
from ..lm.loading import loading, optional
from ..lm.pretrained import load_labels
from ..policy import Policy
from ..runs.run import read_config
from ..runs.warm_start import MADE_BY, SHIPPED
from ..trainer import check_pools
from .estimate import Tokens, memory_of, rate_of, seconds_of, shape_of

COUNTED = 200
"""examples whose prompts are counted, evenly over the training split"""
SHAPES: dict[str, dict[str, Any]] = {
    "Qwen/Qwen3-4B-Instruct-2507": {
        "hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": True,
    },
}  # fmt: skip
"""Configurations of recipes, for a plan where no hub answers; its tokens are then guessed at four characters each"""


def model_of(config: Config, items: Sequence[str]) -> Any:
    """The run's model without weights. Raises KitError if its configuration cannot be loaded."""
    with torch.device("meta"):
        if not config.lm.model:
            return Policy.tiny(items, config.model).model
        lm = config.lm
        source = {"gguf_file": lm.gguf_file} if lm.gguf_file and optional("gguf") else {}
        try:
            with loading(lm.model):
                found = AutoConfig.from_pretrained(lm.model, trust_remote_code=lm.trust_remote_code, **source)
        except KitError:
            if lm.model not in SHAPES:
                raise
            found = Qwen3Config(**SHAPES[lm.model])
        return AutoModelForCausalLM.from_config(found, trust_remote_code=lm.trust_remote_code)


def tokens_of(config: Config, splits: Splits, items: Sequence[str]) -> Tokens:
    """What prompts and completions take, over some of the training examples."""
    some = splits.train[:: max(1, len(splits.train) // COUNTED)]
    try:
        labels = load_labels(config.lm) if config.lm.model else Policy.tiny(items, config.model).labels
    except KitError:
        if config.lm.model not in SHAPES:
            raise
        lengths = [_guess(e, config) for e in some]
        lists = config.grammar.slate_size + config.grammar.rank_size
        return Tokens(statistics.mean(lengths), max(lengths), 4 * lists + 16, 32, False)
    lengths = [len(labels.prompt_ids(e, config.grammar)) for e in some]
    choices = labels.choices([max(some, key=lambda e: len(e.candidates))])
    columns = getattr(choices, "columns", None)
    wide = len(columns) if columns is not None else len(items)
    return Tokens(statistics.mean(lengths), max(lengths), choices.longest(config.grammar), wide, True)


def _guess(example: Example, config: Config) -> int:
    most = config.lm.passage_tokens
    shown = [(example.query, max(most, QUERY_TOKENS)), *((t, most) for t in (*example.history, *example.candidates))]
    return len(task(config.grammar)) // 4 + 20 + sum(min(len(text) // 4 + 1, budget) + 4 for text, budget in shown)


def plan(config: Config, splits: Splits, items: Sequence[str], warm: bool = True, rl: bool = True) -> dict[str, Any]:
    """What a run does and needs: data, tokens, weights, steps, memory (bytes), hours, and the configuration.

    `warm`: it begins with a warm start, unless the shipped one fits; `rl`: it goes on after it. Raises KitError if
    data, tokenizer or configuration are missing, and on prompts longer than the model's context.
    """
    check_pools(splits.train, config)
    shape = shape_of(model_of(config, items), config.lm if config.lm.model else None)
    tokens = tokens_of(config, splits, items)
    if warm and rl and SHIPPED.is_dir():
        shipped = read_config(SHIPPED)
        warm = any(getattr(shipped, part) != getattr(config, part) for part in MADE_BY)
    rate, bandwidth, least, said = rate_of(config)
    spent = seconds_of(shape, tokens, config, rate, bandwidth, least)
    phases = [memory_of(shape, tokens, config, sft) for sft, there in ((True, warm), (False, rl)) if there]
    memory = max(phases or [memory_of(shape, tokens, config)], key=lambda parts: sum(parts.values()))
    sft, steps = config.sft.sft_steps * warm, config.rl.steps * rl
    hours = {
        "sft": sft * spent["sft_step"] / 3600, "rl": steps * spent["rl_step"] / 3600,
        "validation": len(splits.validation) * spent["answer"] / 3600,
    }  # fmt: skip
    shown, drawn = sft * config.sft.sft_batch, steps * config.rl.queries
    return {
        "task": config.task,
        "examples": {name: len(part) for name, part in splits._asdict().items()},
        "tokens": {"prompt_mean": round(tokens.mean, 1), "prompt_most": tokens.most,
                   "completion_most": tokens.completion, "counted": tokens.counted},
        "model": {"name": config.lm.model or "tiny policy", "weights": shape.weights, "trained": shape.trained,
                  "layers": shape.layers, "prompt_shared": shape.shared},
        "sft": {"steps": sft, "demonstrations": shown, "epochs": round(shown / len(splits.train), 3)},
        "rl": {"steps": steps, "queries": drawn, "rollouts": drawn * config.rl.group,
               "epochs": round(drawn / len(splits.train), 3)},
        "memory": {**memory, "total": sum(memory.values())},
        "hours": {**hours, "total": sum(hours.values())},
        "assumes": said,
        "config": config.to_dict(),
    }  # fmt: skip


def format_plan(found: dict[str, Any]) -> str:
    """A plan for a terminal."""
    e, t, m, sft, rl, memory, hours = (
        found[name] for name in ("examples", "tokens", "model", "sft", "rl", "memory", "hours")
    )
    lm, r, g = (found["config"][name] for name in ("lm", "rl", "grammar"))
    by = "counted" if t["counted"] else "guessed at four characters each: no tokenizer here"
    what = f"a LoRA adapter of rank {lm['lora_rank']} on {lm['lora_targets']}" if lm["model"] else "all"
    parts = ", ".join(f"{name} {x / 1e9:.2f}" for name, x in memory.items() if name != "total")
    spent = ", ".join(f"{name} {x:.2f}" for name, x in hours.items() if name != "total")
    return "\n".join([
        f"task      {found['task']}: {e['train']:,} training, {e['validation']:,} validation, {e['test']:,} test queries",
        f"tokens    prompts {t['prompt_mean']:,.0f} on average, {t['prompt_most']:,} at most; "
        f"completions {t['completion_most']} at most ({by})",
        f"model     {m['name']}: {m['weights']:,} weights in {m['layers']} layers; trained: {m['trained']:,} ({what})",
        f"sft       {sft['steps']} steps, {sft['demonstrations']:,} demonstrations ({sft['epochs']:g} epochs)",
        f"rl        {rl['steps']} steps of {r['queries']} queries x {r['group']} rollouts ({rl['epochs']:g} epochs), "
        f"credit {r['credit']}, {r['slate_reward']} as slate reward, lambda {r['lam']:g}, n {g['slate_size']}, "
        f"k {g['rank_size']}, lr {r['lr']:g}",
        f"memory    {memory['total'] / 1e9:.2f} GB: {parts}",
        f"hours     {hours['total']:.2f}: {spent} ({found['assumes']})",
        "an estimate: nothing was loaded or trained (--dry-run)",
    ])  # fmt: skip
