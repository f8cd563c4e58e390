"""What fgrpo.scale.trl needs around the trainer: rows of its data set, options that fit, and which are refused.

TRL itself is not imported here.
"""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..config import GrammarConfig, KitError, RLConfig
from ..credit import JOINT, check_credit
from ..data import Example
from ..lm.index_labels import ANSWER, IndexLabels
from ..prompt import ItemLabels

TESTED = ("1.16.0", "1.17")
"""TRL from the first version on, and before the second: one advantage per token is no promise of its GRPOTrainer"""
Labels = ItemLabels | IndexLabels


def check_version(found: str | None = None) -> None:
    """Raise KitError unless the installed TRL, or the version `found`, is one that this was tested with."""
    try:
        found = found or version("trl")
    except PackageNotFoundError:
        raise KitError("fgrpo.scale.trl needs TRL: pip install -e '.[peers]' -c constraints.txt.") from None
    least, above, have = ([int(n) for n in re.findall(r"\d+", text)[:3]] for text in (*TESTED, found))
    if not least <= have < above:
        raise KitError(
            f"fgrpo.scale.trl is tested with TRL from {TESTED[0]} on and before {TESTED[1]}, and {found} is installed: "
            f"pip install 'trl>={TESTED[0]},<{TESTED[1]}'."
        )


def trl_rows(examples: Sequence[Example], labels: Labels, grammar: GrammarConfig) -> list[dict[str, Any]]:
    """Rows for datasets.Dataset.from_list: the prompt, and what the rewards are computed from."""
    return [
        {
            "prompt": _prompt(e, labels, grammar), "query": e.id, "relevant": sorted(e.relevant),
            "pool": list(e.candidate_keys if isinstance(labels, ItemLabels) else labels.candidates(e)),
        }
        for e in examples
    ]  # fmt: skip


def example_of_row(row: dict[str, Any]) -> Example:
    """What a row says of its example: all that rewards and credit are computed from."""
    return Example(row["query"], "", (), tuple(row["pool"]), frozenset(row["relevant"]))


def _prompt(example: Example, labels: Labels, grammar: GrammarConfig) -> Any:
    if isinstance(labels, ItemLabels):
        return labels.prompt(example)
    labels.prompt_ids(example, grammar)  # refuses what the context has no room for
    text = labels.message(example, grammar)
    return [{"role": "user", "content": text}] if labels.tokenizer.chat_template else text + ANSWER


def grpo_options(
    rl: RLConfig, grammar: GrammarConfig, labels: Labels, examples: Sequence[Example], **more: Any
) -> dict[str, Any]:
    """Options for trl.GRPOConfig that say what `rl` and `grammar` say; `more` is added (output_dir, batch sizes, vLLM)."""
    longest = labels.choices(examples).longest(grammar)
    return {
        **_same(rl), "loss_type": "dr_grpo", "scale_rewards": "none", "vllm_importance_sampling_mode": "token_truncate",
        "max_completion_length": longest, "lr_scheduler_type": "constant",
        "chat_template_kwargs": {"enable_thinking": False}, **more,
    }  # fmt: skip


def _same(rl: RLConfig) -> dict[str, Any]:
    """What RLConfig and GRPOConfig both say."""
    return {
        "num_generations": rl.group, "temperature": rl.temperature, "beta": rl.beta, "num_iterations": rl.epochs,
        "epsilon": rl.clip_low, "epsilon_high": rl.clip_high, "importance_sampling_level": rl.ratio,
        "learning_rate": rl.lr, "max_grad_norm": rl.max_grad_norm, "reward_weights": [1.0, rl.lam, 1.0],
    }  # fmt: skip


def check_options(args: Any, rl: RLConfig) -> None:
    """Raise KitError, with the reason, on what would undo the credit or be ignored. `args` is a trl.GRPOConfig."""
    check_credit(rl)
    phases = rl.credit not in JOINT
    vllm_sequence = (
        args.use_vllm and args.vllm_importance_sampling_correction and "sequence" in args.vllm_importance_sampling_mode
    )
    refused = {
        "credit 'nested' branches after a slate, which TRL's generation cannot do: use the kit's own trainer.":
            rl.credit == "nested",
        "TRL samples from the whole vocabulary, unconstrained: give RLConfig decoding 'free'.": rl.decoding != "free",
        f"TRL has importance ratios by token or sequence, not by {rl.ratio}.": rl.ratio not in ("token", "sequence"),
        "reward noise is the kit's own trainer's: set slate_noise and rank_noise to 0.":
            bool(rl.slate_noise or rl.rank_noise),
        f"importance_sampling_level 'sequence' averages the phases of {rl.credit!r} into one: choose 'token'.":
            phases and args.importance_sampling_level == "sequence",
        f"vllm_importance_sampling_mode {args.vllm_importance_sampling_mode!r} weighs a whole completion, so that the "
        "tokens of one phase weigh those of the other: choose 'token_truncate'.": phases and vllm_sequence,
        f"loss_type {args.loss_type!r} divides by a completion's own length, so that a longer slate takes weight from "
        "the ranking: choose 'dr_grpo'.": args.loss_type in ("grpo", "sapo"),
        f"loss_type {args.loss_type!r} weighs whole completions, which averages the phases: choose 'dr_grpo'.":
            args.loss_type in ("luspo", "vespo"),
        "off_policy_mask_threshold drops whole completions by the sign of one advantage, and here each token has its own.":
            args.off_policy_mask_threshold is not None,
        f"scale_rewards {args.scale_rewards!r} would be ignored, since the advantages are the kit's: give 'none', and "
        "RLConfig scale 'std' if that is meant.": args.scale_rewards != "none",
        "multi_objective_aggregation would be ignored, since the advantages are the kit's: credit 'gdpo' does that.":
            args.multi_objective_aggregation != "sum_then_normalize",
        "remove_unused_columns would take away what rewards are computed from: leave it False.":
            bool(args.remove_unused_columns),
    }  # fmt: skip
    for reason, applies in refused.items():
        if applies:
            raise KitError(reason)
    for name, wanted in _same(rl).items():
        if getattr(args, name) != wanted:
            raise KitError(
                f"GRPOConfig has {name} {getattr(args, name)!r}, and RLConfig says {wanted!r}: build the one from the "
                f"other with grpo_options."
            )
