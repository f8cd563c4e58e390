"""What a run begins with besides its options, so that it is not resumed with something else.

    {"stage": "rl", "init": SHA-256 of the initial policy's weights, "train": SHA-256 of the training examples, ...}

config.json keeps it as `made.origin`. A file may be moved, renamed or rewritten: its content counts.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..config import KitError
from ..data import Example, Stream
from .policies import policy_folder

Origin = Mapping[str, object]

OTHER = {
    "stage": "as {now}, it began as {was}",
    "hub": "from {now}, it began from {was}: give the --init that it began with",
    "init": "from another initial policy: give the --init that it began with",
    "train": "on other examples: the task's data has changed since it began",
    "test": "with other queries to measure on: give the --split, --limit and data that it began with",
    "start": "from warm start {now}, it began from {was}: give the --starts that it began with",
    "every": "with --every {now}, it began with {was}",
}
"""what is wrong with each part, to follow `cannot resume`"""


def check_origin(folder: Path, was: object, now: Origin) -> None:
    """Raise KitError if a run that began with `was` would be resumed with `now`. Parts that one lacks are not compared."""
    before = was if isinstance(was, dict) else {}
    for name, value in now.items():
        if name in before and before[name] != value:
            reason = OTHER[name].format(now=value, was=str(before[name])[:80])
            raise KitError(f"{folder}: cannot resume {reason}, or name another --out.")


def digest_of_policy(path: str | Path | None) -> str:
    """SHA-256 of the weights of a policy or of a run's latest checkpoint; `path` itself for `base`, and "" for none."""
    if path in (None, "", "base"):
        return str(path or "")
    digest = hashlib.sha256()
    for file in sorted(policy_folder(str(path)).glob("*.safetensors")):
        if file.name != "trainer.safetensors":
            with file.open("rb") as opened:
                digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def digest_of(examples: Iterable[Example]) -> str:
    """SHA-256 of examples, field by field; of a stream of its options and first examples."""
    digest = hashlib.sha256()
    if isinstance(examples, Stream):
        digest.update(repr(examples).encode())
        examples = examples[:64]
    for example in examples:
        values = [sorted(x) if isinstance(x, frozenset) else x for x in vars(example).values()]
        digest.update(repr(values).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
