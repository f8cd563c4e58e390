"""Make, save and load the policy of a run, tiny or pretrained."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from ..config import Config, KitError, LMConfig
from ..data import Splits
from ..lm.folder import MERGE, check_config, check_file
from ..lm.pretrained import POLICY_FILE, PretrainedPolicy, saved_options
from ..lm.rows import RowPolicy
from ..lm.text import TEXT_FILE, TextPolicy
from ..policy import Policy
from ..prompt import ItemLabels
from ..tasks.next_item import counts
from ..tasks.reading import texts_of
from .seal import check_seal, seal


@runtime_checkable
class OwnFiles(Protocol):
    """A policy that writes and reads its checkpoints itself: PretrainedPolicy, fgrpo.study.apart.PhasePolicy."""

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint."""

    def reload(self, folder: str | Path) -> Policy:
        """The policy of another checkpoint of its run."""

    def reference(self, folder: str | Path) -> Policy:
        """The same, as a policy that stays as it is, for a KL penalty."""


def new_policy(items: Sequence[str], config: Config, seed: int = 0, splits: Splits | None = None) -> Policy:
    """The initial policy of a run: a pretrained model if the configuration names one, else a tiny one.

    One that reads texts takes them from the `splits` of its task, and counts the items of the training split.
    """
    if config.lm.model:
        return PretrainedPolicy.new(config.lm, seed)
    if config.model.features == "id":
        return RowPolicy.tiny(items, config.model, seed)
    assert splits is not None
    return TextPolicy.new(texts_of(splits), counts(splits.train), config.model, seed)


def policy_folder(path: str | Path) -> Path:
    """The folder that holds a policy: the path itself, or the latest checkpoint of a run's folder."""
    path = Path(path)
    if (path / "items.json").is_file() or (path / POLICY_FILE).is_file():
        return path
    return next(reversed(checkpoints(path)), path)


def refuse_adapter(path: Path) -> None:
    """Raise KitError, with the way out, on an adapter that was not made here: its base and its prompts are not known."""
    if any(path.glob("adapter_config.*")) and not (path / POLICY_FILE).is_file():
        raise KitError(f"{path}: is an adapter of another program (PEFT): {MERGE}.")


def is_whole_model(path: Path) -> bool:
    """Whether a policy's folder holds a whole pretrained model, not an adapter of one."""
    return (path / POLICY_FILE).is_file() and not saved_options(path).lora_rank


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. Folders of other names are not among them."""
    return sorted((p for p in folder.glob("checkpoints/step-*") if step_of(p) >= 0 and p.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint, -1 if it is no checkpoint's name."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def load_policy(path: str | Path, device: str = "cpu", lm: LMConfig | None = None) -> Policy:
    """The policy of a checkpoint, or of the latest checkpoint in a run's folder.

    The base model of an adapter is that of `lm` if it names one, else that of its policy.json; a whole model needs none.
    Raises KitError if the
    checkpoint is missing, incomplete or damaged, or differs from its SHA256SUMS.
    """
    folder = policy_folder(path)
    for file in sorted(folder.glob("*")):
        check_file(file)  # one that may not be read is not damaged
    check_seal(folder)
    if (folder / POLICY_FILE).is_file():
        return PretrainedPolicy.load(folder, device, lm)
    if (folder / TEXT_FILE).is_file():
        check_config(folder)
        return TextPolicy.load(folder, device)
    if (folder / "config.json").is_file():
        check_config(folder)  # before so many layers are built
    return _load_tiny(folder, device)


def _load_tiny(folder: Path, device: str, kind: type[Policy] = RowPolicy) -> Policy:
    if not (folder / "items.json").is_file():
        raise KitError(f"{folder}: no policy here (items.json is missing); name a folder that `train` wrote.")
    try:
        items = json.loads((folder / "items.json").read_text(encoding="utf-8"))
        model = AutoModelForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        labels = ItemLabels(items)
    except Exception as error:  # a damaged file raises whatever its reader raises
        reason = str(error).strip().split("\n")[0][:200]
        raise KitError(f"{folder}: the checkpoint is damaged or incomplete ({reason}).") from None
    if len(tokenizer) != model.config.vocab_size or len(tokenizer) != len(labels.vocabulary):
        raise KitError(f"{folder}: model, tokenizer and items.json have different vocabularies.")
    return kind(model, tokenizer, labels).to(device)


def reloaded(policy: Policy, folder: Path) -> Policy:
    """The policy of another checkpoint of the same run. Raises KitError if it is damaged."""
    if isinstance(policy, OwnFiles):
        return policy.reload(folder)
    return _load_tiny(folder, str(policy.device), type(policy))


def reference_of(policy: Policy, folder: Path) -> Policy:
    """The policy of a checkpoint of the same run, which stays as it is, for a KL penalty."""
    if isinstance(policy, OwnFiles):
        return policy.reference(folder)
    return _load_tiny(folder, str(policy.device), type(policy))


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write a policy with its SHA256SUMS."""
    write_policy(policy, folder)
    seal(folder)


def write_policy(policy: Policy, folder: str | Path) -> None:
    """Write a policy. Of a tiny one weights (safetensors), model configuration, tokenizer and item keys."""
    if isinstance(policy, OwnFiles):
        policy.save(folder)
    elif isinstance(policy.labels, ItemLabels):
        policy.model.save_pretrained(folder)
        policy.tokenizer.save_pretrained(folder)
        (Path(folder) / "items.json").write_text(json.dumps(policy.labels.items, ensure_ascii=False), encoding="utf-8")


# as `fgrpo.Policy.load(folder)`; the core itself knows no folders
Policy.load = staticmethod(load_policy)  # type: ignore[attr-defined]
