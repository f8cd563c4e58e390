"""LoRA adapters: made from the kit's own options, never from a file's, and a model that is tried before it is trained."""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..config import KitError, LMConfig
from ..policy import positions
from .folder import read_json
from .loading import reason_of

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

    from .pretrained import PretrainedPolicy

CONFIG_FILE = "adapter_config.json"
TRAINED, FROZEN = "default", "reference"
NAMES = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
"""a name of layers, without the signs of a regular expression: peft would match one with every layer's name"""
ABOUT = ("base_model_name_or_path", "inference_mode", "peft_version", "auto_mapping", "revision", "task_type")
"""fields of adapter_config.json that say where an adapter comes from, not what it is"""


def check_lora(lm: LMConfig) -> None:
    """Raise KitError on options of an adapter, or code that a checkpoint cannot hold, where all weights are trained."""
    if lm.lora_rank:
        return
    for name in ("lora_alpha", "lora_targets"):
        if getattr(lm, name) != getattr(LMConfig, name):
            raise KitError(
                f"{name} is for a LoRA adapter, and lora_rank 0 trains all weights without one: leave it out."
            )
    if lm.trust_remote_code:
        raise KitError("lora_rank 0 saves the whole model but not its Python code: train such a model with an adapter.")


def with_adapter(base: PreTrainedModel, config: LMConfig, seed: int = 0) -> "PeftModel":
    """The model with a new LoRA adapter. Raises KitError on layers that it does not have, or an absurd rank."""
    from peft import LoraConfig, PeftModel, get_peft_model

    names = config.lora_targets.split(",")
    if wrong := [n for n in names if n != "all-linear" and not NAMES.fullmatch(n)]:
        raise KitError(f"lora_targets {wrong[0][:80]!r} must be the name of a layer, as q_proj, or all-linear.")
    widest = max((max(m.weight.shape) for m in base.modules() if isinstance(m, torch.nn.Linear)), default=2**14)
    if config.lora_rank > widest:
        raise KitError(f"lora_rank {config.lora_rank} is more than the widest layer has ({widest}): lower it.")
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0,
        target_modules="all-linear" if names == ["all-linear"] else names,
        base_model_name_or_path=config.model, task_type="CAUSAL_LM",
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 uses a name that transformers will remove in version 6; users cannot act on it
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base, lora)
        except ValueError as error:
            raise KitError(f"lora_targets {config.lora_targets!r}: {str(error).split('. ')[0][:200]}.") from None
    assert isinstance(model, PeftModel)
    return model


def check_rank(folder: Path, tensors: Mapping[str, Tensor], config: LMConfig) -> None:
    """Raise KitError if policy.json names a larger rank than the saved adapter has: it would be allocated."""
    most = max((t.shape[0] for name, t in tensors.items() if "lora_A" in name and t.ndim), default=0)
    if config.lora_rank > most:
        raise KitError(f"{folder}: the checkpoint is damaged (lora_rank {config.lora_rank}, its weights have {most}).")


def check_saved(folder: Path, made: "PeftConfig") -> None:
    """Raise KitError unless the saved adapter_config.json describes the adapter that policy.json describes.

    The file is for other users of peft; nothing is built from it. Fields that this version of peft does not know must
    be switched off.
    """
    path = folder / CONFIG_FILE
    own = {name: _plain(value) for name, value in made.to_dict().items()}
    for name, value in read_json(path, "the checkpoint is damaged").items():
        if name in ABOUT or (
            name == "target_modules" and isinstance(value, list) and all(NAMES.fullmatch(str(n)) for n in value)
        ):
            continue  # the layers are those of the weights; versions of peft write all-linear differently
        if name in own and _plain(value) != own[name]:
            what = f"{name} is {str(value)[:60]!r}, and by policy.json {str(own[name])[:60]!r}"
            raise KitError(f"{path}: {what}; it is not an adapter of this kit.")
        if name not in own and value is not False and value not in (None, [], {}):
            raise KitError(f"{path}: {name[:60]!r} is no field that this kit uses; it is not an adapter of this kit.")


def _plain(value: object) -> object:
    """A field of a LoraConfig as JSON holds it; lists that stand for sets are sorted."""
    if isinstance(value, set | list | tuple):
        return sorted(map(str, value))
    return getattr(value, "value", value)


def set_weights(model: "PeftModel", tensors: dict[str, Tensor], name: str) -> None:
    """Give an adapter the weights of a checkpoint. Raises ValueError or RuntimeError unless they are the same layers."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    own = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    if own.keys() != tensors.keys():
        raise ValueError("it has other layers")
    if wrong := [n for n, t in tensors.items() if t.shape != own[n].shape]:
        raise ValueError(f"{wrong[0]} has another shape")
    set_peft_model_state_dict(model, tensors, adapter_name=name)


@torch.no_grad()
def check_forward(policy: "PretrainedPolicy") -> None:
    """Run a few tokens through the model. Raises KitError if that fails, or if it is not a causal language model.

    Two rows that differ in their last token must have the same logits before it.
    """
    labels, model = policy.labels, policy.model
    kind = type(model.get_base_model() if policy.config.lora_rank else model).__name__
    ids = [*labels.before, *labels.ids("Choose a slate"), *labels.after, labels.end, *labels.ids(", 12 </SLATE>")]
    rows = policy.model.get_input_embeddings().weight.shape[0]
    if max(ids) >= rows:
        raise KitError(
            f"{kind}: the tokenizer has token {max(ids)}, and the model {rows} embeddings: they do not belong together."
        )
    first = torch.tensor(ids[-12:])
    both = torch.stack((first, torch.cat((first[:-1], first[:1])))).to(policy.device)
    try:
        logits = _logits(policy.model, both)
    except Exception as error:  # whatever a model's code raises
        raise KitError(
            f"{kind} cannot be used: its forward pass fails ({reason_of(error)}){_way_out(policy, both)}."
        ) from None
    before, change = logits[:, :-1], (logits[0, :-1] - logits[1, :-1]).abs().max()
    if not before.isfinite().all():
        raise KitError(
            f"{kind}: its logits are not finite, so its weights are damaged, or dtype is too narrow for them."
        )
    rounding = 1e-4 if policy.config.dtype == "float32" else 0.02
    if both[0, -1] != both[1, -1] and change > rounding * before.abs().max():
        raise KitError(f"{kind} is not a causal language model: a token changes the logits before it.")


def _logits(model: "PeftModel | PreTrainedModel", ids: Tensor) -> Tensor:
    """Logits (B, T, V) of tokens (B, T), in one pass as for the loss; then as in sampling, the last token from a cache."""
    mask = torch.ones_like(ids)
    place = positions(mask.bool())
    logits = model(ids, attention_mask=mask, position_ids=place, use_cache=False, logits_to_keep=ids.shape[1]).logits
    cache = model(ids[:, :-1], attention_mask=mask[:, :-1], position_ids=place[:, :-1], use_cache=True).cache
    model(ids[:, -1:], attention_mask=mask, position_ids=place[:, -1:], cache=cache, use_cache=True, logits_to_keep=1)
    return logits.float()


def _way_out(policy: "PretrainedPolicy", ids: Tensor) -> str:
    """What helps where the model runs without its adapter; nothing if it has none."""
    if not policy.config.lora_rank:
        return ""
    try:
        with policy.model.disable_adapter():
            _logits(policy.model, ids)
    except Exception:
        return ""
    return f" with lora_targets {policy.config.lora_targets!r}; name layers with --lora-targets, such as q_proj,v_proj"
