"""Around fgrpo.scale.trl: rows of its data set, options that fit, and options that are refused. Works without TRL."""

from collections import defaultdict
from collections.abc import Sequence
from copy import copy
from importlib.metadata import PackageNotFoundError, version
from inspect import signature
from typing import TYPE_CHECKING, Any, TypedDict

import torch

from ..config import GrammarConfig, KitError, RLConfig
from ..credit import JOINT, check_credit
from ..data import Example
from ..lm.index_labels import ANSWER, IndexLabels
from ..prompt import ItemLabels, Labels

if TYPE_CHECKING:
    from trl import GRPOConfig

TESTED = ">=1.9.2,!=1.15.*,<1.17"
"""the TRL versions that pip installs. The tests have passed with them; 1.15 trains only where Triton is installed.
Another one is used if it has all that is relied upon (`check_trl`, `check_advantages`)"""
NEEDED = {
    "__init__": ("model", "args", "reward_funcs", "train_dataset", "processing_class"),
    "_tokenize_prompts": ("prompts",),
    "_generate_and_score_completions": ("inputs",),
    "compute_loss": ("model", "inputs"),
}
"""methods of trl.GRPOTrainer that fgrpo.scale.trl overrides or calls, and their arguments by name"""
READ = (
    "use_vllm", "vllm_importance_sampling_correction", "vllm_importance_sampling_mode", "loss_type", "scale_rewards",
    "importance_sampling_level", "off_policy_mask_threshold", "multi_objective_aggregation", "remove_unused_columns",
    "num_generations", "num_generations_eval", "temperature", "beta", "num_iterations", "epsilon", "epsilon_high",
    "reward_weights", "max_completion_length", "chat_template_kwargs",
)  # fmt: skip
"""options of trl.GRPOConfig that are set or checked here"""


def trl_version() -> str:
    """The version of the installed TRL. Raises KitError if it is not installed."""
    try:
        return version("trl")
    except PackageNotFoundError:
        raise KitError("TRL is not installed: pip install -e '.[peers]' -c constraints.txt.") from None


def check_trl(trainer: type, config: type) -> None:
    """Raise KitError, naming it, if trl.GRPOTrainer or trl.GRPOConfig lacks something that fgrpo.scale.trl relies on.

    Subclasses that override `_generate_and_score_completions` and return advantages of shape (B, T) are what TRL's
    maintainers advise for credit of one's own (huggingface/trl issue 4525). Rewards go through TRL's reward functions.
    """
    for name, wanted in NEEDED.items():
        method = getattr(trainer, name, None)
        has = signature(method).parameters if callable(method) else {}
        if absent := [argument for argument in wanted if argument not in has]:
            raise _lacks(f"GRPOTrainer.{name}" + (f" with the argument {absent[0]!r}" if callable(method) else ""))
    options = signature(config).parameters
    for name in READ:
        if name not in options:
            raise _lacks(f"the option {name!r} of GRPOConfig")


def check_advantages(trainer: Any) -> None:
    """Raise KitError unless the loss of a trl.GRPOTrainer gives each token the gradient of its own advantage.

    No model runs: a copy of the trainer gets log-probabilities of two completions of two tokens. At importance ratios of
    1 the gradient is minus the advantages, up to one factor.
    """
    probe, device = copy(trainer), trainer.accelerator.device
    logp = torch.full((2, 2), -1.0, device=device, requires_grad=True)
    advantages = torch.tensor([[1.0, -2.0], [0.0, 3.0]], device=device)
    ids = torch.zeros(2, 2, dtype=torch.long, device=device)
    probe.__dict__ |= {
        "_metrics": defaultdict(lambda: defaultdict(list)), "current_gradient_accumulation_steps": 1, "beta": 0.0,
        "top_entropy_quantile": 1.0, "importance_sampling_level": "token", "aux_loss_enabled": False,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (logp, torch.zeros(2, 2, device=device), None),
    }  # fmt: skip
    inputs = {
        "prompt_ids": ids, "prompt_mask": ids + 1, "completion_ids": ids, "completion_mask": ids + 1,
        "advantages": advantages, "importance_sampling_ratio": torch.ones(2, 2, device=device),
        "num_items_in_batch": torch.tensor(4, device=device),
    }  # fmt: skip
    try:
        probe.compute_loss(trainer.model, inputs).backward()
        found = torch.zeros(2, 2) if logp.grad is None else -logp.grad.cpu()
    except Exception as error:  # its loss is computed in another way: whatever that runs into
        raise _lacks(f"a loss that can be asked for the weight of one token ({str(error)[:80]})") from None
    if not torch.allclose(found / found[0, 0], advantages.cpu()):
        raise _lacks("a loss with one advantage per token (shape (B, T))")


def _lacks(what: str) -> KitError:
    return KitError(f"TRL {trl_version()} lacks {what}, on which fgrpo.scale.trl relies: pip install 'trl{TESTED}'.")


class Row(TypedDict):
    """A row of the data set: the prompt, and the fields from which rewards are computed."""

    prompt: str | list[dict[str, str]]
    query: str
    relevant: list[int]
    gains: list[float]
    pool: list[str]


def trl_rows(examples: Sequence[Example], labels: Labels, grammar: GrammarConfig) -> list[Row]:
    """Rows for datasets.Dataset.from_list: the prompt, and the fields from which rewards are computed."""
    return [
        {
            "prompt": _prompt(e, labels, grammar), "query": e.id, "relevant": sorted(e.relevant),
            "gains": list(e.gains),
            "pool": list(e.candidate_keys if isinstance(labels, ItemLabels) else labels.candidates(e)),
        }
        for e in examples
    ]  # fmt: skip


def example_of_row(row: Row) -> Example:
    """The example of a row, as far as rewards and credit need it."""
    return Example(
        row["query"], "", (), tuple(row["pool"]), frozenset(row["relevant"]), gains=tuple(row.get("gains") or ())
    )


def _prompt(example: Example, labels: Labels, grammar: GrammarConfig) -> str | list[dict[str, str]]:
    if not isinstance(labels, IndexLabels):
        return labels.prompt(example)
    labels.prompt_ids(example, grammar)  # raises KitError if the context has no room for it
    text = labels.message(example, grammar)
    return [{"role": "user", "content": text}] if labels.tokenizer.chat_template else text + ANSWER


def is_message(prompt: object) -> bool:
    """Whether the prompt of a row is one message of the user, as `trl_rows` writes it for a model with a chat template."""
    return isinstance(prompt, list) and len(prompt) == 1 and prompt[0]["role"] == "user"


def grpo_options(
    rl: RLConfig, grammar: GrammarConfig, labels: Labels, examples: Sequence[Example], **more: object
) -> dict[str, object]:
    """The options of trl.GRPOConfig that follow from `rl` and `grammar`; `more` is added (output_dir, batch sizes, vLLM)."""
    longest = labels.choices(examples).longest(grammar)
    return {
        **_same(rl), "loss_type": "dr_grpo", "scale_rewards": "none", "vllm_importance_sampling_mode": "token_truncate",
        "max_completion_length": longest, "lr_scheduler_type": "constant",
        "chat_template_kwargs": {"enable_thinking": False}, **more,
    }  # fmt: skip


def _same(rl: RLConfig) -> dict[str, object]:
    """The options that RLConfig and GRPOConfig share, under their names in GRPOConfig."""
    return {
        "num_generations": rl.group, "temperature": rl.temperature, "beta": rl.beta, "num_iterations": rl.epochs,
        "epsilon": rl.clip_low, "epsilon_high": rl.clip_high, "importance_sampling_level": rl.ratio,
        "learning_rate": rl.lr, "max_grad_norm": rl.max_grad_norm, "reward_weights": [1.0, rl.lam, 1.0],
    }  # fmt: skip


def check_trained(model: torch.nn.Module) -> None:
    """Raise KitError if training would change nothing: no weight has a gradient in a pass over two tokens.

    This is so if all weights are frozen, an adapter is loaded without is_trainable, switched off, merged or not active.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    if any(not p.numel() for p in model.parameters()):
        return  # the weights are distributed over processes (DeepSpeed), and a pass outside of its engine is not possible
    reached = []

    def note(weight: torch.Tensor) -> None:
        reached.append(True)
        weight.grad = None  # at once, so that the gradients of a large model are never in memory together

    if trained:
        hooks = [p.register_post_accumulate_grad_hook(note) for p in trained]
        with torch.enable_grad():
            ids = torch.zeros(1, 2, dtype=torch.long, device=trained[0].device)
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().logsumexp(-1).sum()
            if out.requires_grad:
                out.backward()
        for hook in hooks:
            hook.remove()
    if reached:
        return
    raise KitError(
        "training would change no weight of this model: all are frozen, or its adapter is switched off, merged or not "
        "the active one. Load an adapter with PeftModel.from_pretrained(..., is_trainable=True), or pass a peft_config."
    )


def check_options(args: "GRPOConfig", rl: RLConfig) -> None:
    """Raise KitError, with the reason, on options that would undo the credit or be ignored."""
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
        "reward noise is added by the kit's own trainer only: set slate_noise and rank_noise to 0.":
            bool(rl.slate_noise or rl.rank_noise),
        f"importance_sampling_level 'sequence' averages the phases of {rl.credit!r} into one: choose 'token'.":
            phases and args.importance_sampling_level == "sequence",
        f"vllm_importance_sampling_mode {args.vllm_importance_sampling_mode!r} weights a whole completion, so that the "
        "tokens of one phase change the weight of the other: choose 'token_truncate'.": phases and vllm_sequence,
        f"loss_type {args.loss_type!r} divides by a completion's own length, so that a longer slate lowers the weight "
        "of the ranking: choose 'dr_grpo'.": args.loss_type in ("grpo", "sapo"),
        f"loss_type {args.loss_type!r} weights whole completions, which averages the phases: choose 'dr_grpo'.":
            args.loss_type in ("luspo", "vespo"),
        "off_policy_mask_threshold drops whole completions by the sign of one advantage, and here each token has its "
        "own: leave it None.": args.off_policy_mask_threshold is not None,
        f"scale_rewards {args.scale_rewards!r} would be ignored, since the advantages are the kit's: give 'none', and "
        "RLConfig scale 'std' to divide by the group's standard deviation.": args.scale_rewards != "none",
        "multi_objective_aggregation would be ignored, since the advantages are the kit's: credit 'gdpo' does that.":
            args.multi_objective_aggregation != "sum_then_normalize",
        "remove_unused_columns would remove the columns from which rewards are computed: leave it False.":
            bool(args.remove_unused_columns),
    }  # fmt: skip
    for reason, applies in refused.items():
        if applies:
            raise KitError(reason)
    for name, wanted in _same(rl).items():
        if getattr(args, name) != wanted:
            raise KitError(
                f"GRPOConfig has {name} {getattr(args, name)!r}, but RLConfig has {wanted!r}: make the GRPOConfig from "
                "grpo_options."
            )
