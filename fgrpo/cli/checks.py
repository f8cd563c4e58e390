"""What is refused before a minute of work: options that a call would ignore, files that are not ours to overwrite."""

import argparse
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..config import Config, KitError, ModelConfig, SFTConfig

NEED_DATA = ("movielens", "movielens-loo", "lastfm", "lastfm-sdpo", "lastfm-llara", "lastfm-hetrec", "games", "hotpotqa",
             "musique", "recbole", "beir", "trec")  # fmt: skip
MAY_SKIP = ("hotpotqa", "musique")
"""tasks besides JSONL files whose broken rows --skip-bad skips"""
LM_ONLY = ("gguf_file", "lora_rank", "lora_alpha", "lora_targets", "dtype", "trust_remote_code", "passage_tokens",
           "date")  # fmt: skip
TINY_ONLY = tuple(f.name for f in fields(ModelConfig))
RL_ONLY = ("credit", "steps", "epochs", "lr", "lr_decay", "learn", "beta", "ratio")
"""fields that no step of SFT uses, nor a later command on its checkpoint"""
MADE = ("lora_rank", "lora_alpha", "lora_targets", *TINY_ONLY, *(f.name for f in fields(SFTConfig)))
"""fields that a policy was made with, and that therefore --init brings along"""


def check_used(
    args: argparse.Namespace, config: Config, given: Collection[str], vary: Mapping[str, Sequence[Any]]
) -> None:
    """Raise KitError if a field that was given, by an option or with --vary, has no effect in this call."""
    from ..tasks import USED_BY, family

    given, model = {*given, *vary}, bool(config.lm.model) or "model" in vary
    tasks = {family(str(task)) for task in vary.get("task", [config.task])}
    sft, init = getattr(args, "sft", False), getattr(args, "init", None)
    no_data, no_rows = not tasks & {*NEED_DATA}, not any(t in MAY_SKIP or t not in TASKS for t in tasks)
    rules: list[tuple[bool, Iterable[str], str]] = [
        (
            args.command == "compare",
            ("seed", "credit"),
            "is an option of train: compare has --seeds N and --credits A,B",
        ),
        (not model, LM_ONLY, "is for a pretrained policy: name it with --model"),
        (
            model and not config.lm.lora_rank and "lora_rank" not in vary,
            ("lora_alpha", "lora_targets"),
            "is for a LoRA adapter, and --lora-rank 0 trains all weights without one",
        ),
        (model and "model" not in vary, TINY_ONLY, "is for the tiny policy, and --model names a pretrained one"),
        *(
            (not tasks & {*used}, (name,), f"is for {', '.join(used)}, not for {config.task}")
            for name, used in USED_BY.items()
        ),
        (no_data, ("data",), f"is for tasks {', '.join(NEED_DATA)}; {config.task} does not need it"),
        (no_rows, ("skip_bad",), f"is for JSONL files, {' and '.join(MAY_SKIP)}, not for {config.task}"),
        (sft, RL_ONLY, "is for RL, and --sft makes the warm start alone"),
        (
            config.rl.decoding == "free" and "decoding" not in vary,
            ("full",),
            "is for constrained decoding, not for free",
        ),
        (model, ("pretrain",), "is for policies with a token for each item, and --model names a pretrained one"),
        (
            config.model.features == "id" and "features" not in vary,
            ("encoder",),
            "is for policies that read texts: add --features text or both",
        ),
        (init == "base" and not sft, SFT, "is for the warm start, and --init base leaves it out"),
    ]
    for wrong, names, reason in rules:
        if wrong and (unused := [name for name in names if name in given]):
            raise KitError(f"{flag(unused[0])} {reason}.")
    if sft and init not in (None, "base"):
        raise KitError("--sft makes a warm start from the base model, not from --init: leave out one of them.")
    if init not in (None, "base"):
        _check_init(init, config, given & {*MADE}, vary)


SFT = tuple(f.name for f in fields(SFTConfig))
TASKS = ("lab-rec", *NEED_DATA)


def _check_init(init: str, config: Config, given: Collection[str], vary: Mapping[str, Sequence[Any]]) -> None:
    """Raise KitError if options contradict the policy of --init, which was made with its own."""
    from ..runs.run import config_of_checkpoint, flat

    if not given:
        return
    try:
        own = {name.split(".")[-1]: x for name, x in flat(config_of_checkpoint(init).to_dict()).items()}
    except KitError:
        own = {}
    now = {name.split(".")[-1]: x for name, x in flat(config.to_dict()).items()}
    for name in sorted(given):
        if name in vary or name not in own or own[name] != now[name]:
            was = f" (it has {own[name]!r})" if name in own else ""
            raise KitError(
                f"{flag(name)} does not change the policy of --init, which is made already{was}: leave it out."
            )


def flag(name: str) -> str:
    """The option of a field."""
    return "--" + name.replace("_", "-")


def names_of(text: str, option: str) -> list[str]:
    """Names that an option separates by commas. Raises KitError on an empty or repeated one; "" gives none."""
    names = text.split(",") if text else []
    if "" in names:
        raise KitError(f"{option} {text!r} has an empty name: write A,B.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise KitError(f"{option} names {twice[0]!r} twice.")
    return names


def check_device(device: str) -> None:
    """Raise KitError if the device cannot be used here."""
    import torch

    try:
        if torch.empty(0, device=device).is_meta:
            raise RuntimeError("it holds no numbers")
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise KitError(f"device {device!r} cannot be used here ({reason}); cpu works everywhere.") from None


def check_policy(path: str) -> Path:
    """The folder of the policy that a path names. Raises KitError if there is none."""
    from ..lm.pretrained import POLICY_FILE
    from ..runs.policies import policy_folder, refuse_adapter

    folder = policy_folder(path)
    refuse_adapter(folder)
    if not any((folder / name).is_file() for name in ("items.json", POLICY_FILE)):
        raise KitError(f"{path}: no policy here; name the folder of a run, or a checkpoint in it.")
    return folder


def check_output(path: Path, kind: str, begins: str = "") -> None:
    """Raise KitError unless a file can be written: a new one, an empty one, or one of the same kind.

    That is a "trace", "CSV" or "TREC" file, or one that `begins` like the new one.
    """
    from ..runs.lock import check_writable

    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise KitError(f"{path}: is a folder, a link or a device; name a file to write.")
    if kind == "CSV":
        figure = path.with_suffix(".png")
        if figure == path:
            raise KitError(f"{path}: the figure beside the CSV file would have this name; use the suffix .csv.")
        if figure.exists() and not path.exists():
            raise KitError(f"{figure}: exists, and the figure beside the CSV file would overwrite it.")
    check_writable(path)
    if path.exists():
        with path.open("rb") as file:
            first = file.readline(10_000_000)
        if first and not (first.startswith(begins.encode()) if begins else _is_ours(first, kind)):
            raise KitError(f"{path}: is not a {kind} file of this kit and would be overwritten; name another --out.")


def _is_ours(first: bytes, kind: str) -> bool:
    if kind == "TREC":  # a run, or qrels
        return first.split()[1:2] == [{6: b"Q0", 4: b"0"}.get(len(first.split()))]
    try:
        header = json.loads(first.removeprefix(b"# ") if kind == "CSV" else first)
    except (ValueError, RecursionError):
        return False
    return isinstance(header, dict) and ("command" if kind == "CSV" else "trace") in header
