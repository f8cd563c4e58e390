"""Make, save and load the policy of a run, tiny or pretrained."""

from collections.abc import Sequence
from pathlib import Path

from ..config import Config, LMConfig
from ..lm.folder import check_config, check_file
from ..lm.pretrained import POLICY_FILE, PretrainedPolicy
from ..policy import Policy
from .seal import check_seal, seal


def new_policy(items: Sequence[str], config: Config, seed: int = 0) -> Policy:
    """The initial policy of a run: a pretrained model if the configuration names one, else a tiny one."""
    return PretrainedPolicy.new(config.lm, seed) if config.lm.model else Policy.tiny(items, config.model, seed)


def policy_folder(path: str | Path) -> Path:
    """The folder that holds a policy: the path itself, or the latest checkpoint of a run's folder."""
    path = Path(path)
    if (path / "items.json").is_file() or (path / POLICY_FILE).is_file():
        return path
    return next(reversed(checkpoints(path)), path)


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first. Folders of other names are not among them."""
    return sorted((p for p in folder.glob("checkpoints/step-*") if step_of(p) >= 0 and p.is_dir()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint, -1 if it is no checkpoint's name."""
    digits = checkpoint.name.removeprefix("step-")
    return int(digits) if digits.isdecimal() else -1


def load_policy(path: str | Path, device: str = "cpu", lm: LMConfig | None = None) -> Policy:
    """The policy of a checkpoint, or of the latest checkpoint in a run's folder.

    The base model of an adapter is that of `lm` if it names one, else that of its policy.json. Raises KitError if the
    checkpoint is missing, incomplete or damaged, or differs from its SHA256SUMS.
    """
    folder = policy_folder(path)
    for file in sorted(folder.glob("*")):
        check_file(file)  # one that may not be read is not damaged
    check_seal(folder)
    if (folder / POLICY_FILE).is_file():
        return PretrainedPolicy.load(folder, device, lm)
    if (folder / "config.json").is_file():
        check_config(folder)  # before so many layers are built
    return Policy.load(folder, device)


def save_policy(policy: Policy, folder: str | Path) -> None:
    """Write a policy with its SHA256SUMS."""
    policy.save(folder)
    seal(folder)
