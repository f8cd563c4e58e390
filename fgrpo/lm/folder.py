"""The folder of a pretrained model, checked before anything of it is built: what it holds, and sizes that fit its files."""

import json
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ..config import KitError

JSON_BYTES, TOKENIZER_BYTES, HEADER_BYTES = 2**24, 2**28, 100_000_000
"""maximum size of a configuration, of a tokenizer and of the header of a safetensors file"""
COUNTED, COUNT = re.compile(r"(layers?|experts?|blocks?|depth|labels|heads?|codebooks?)$"), 1000
"""numbers of a configuration that become as many Python objects; more than COUNT only if the files hold as many tensors"""
KERNEL = re.compile(r'"(\w*implementation\w*)": "([^"]*/[^"]*)"')
SLACK = 2**27
"""values that a model may have in addition to eight per byte of its files: masks and tables that are not saved"""
SMALL = ("config.json", "*_config.json", "*_map.json", "*.index.json", "added_tokens.json", "*.jinja")
LARGE = ("tokenizer.json", "vocab*", "merges.txt", "*.model")
NOT_THE_FILE = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`",
    b"<!doctype": "is a web page saved under this name: download the file again",
    b"<html": "is a web page saved under this name: download the file again",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"PK\x03\x04": "is a zip archive: unpack it",
}
MERGE = (
    "merge it into its base model first (AutoPeftModelForCausalLM.from_pretrained(FOLDER).merge_and_unload()"
    ".save_pretrained(NEW), with the tokenizer beside it) and name the new folder"
)


def check_folder(name: str, gguf_file: str = "", checkpoint: bool = False) -> None:
    """Raise KitError, with the way out, unless a local folder can be a pretrained model. The name of a hub passes.

    `checkpoint`: the folder is a checkpoint of this kit that holds a whole model.
    """
    folder = Path(name)
    try:
        is_file = folder.is_file()
    except OSError as error:  # a folder above it may not be read, or the name is too long
        raise KitError(f"model {name[:80]!r} cannot be loaded: {error.strerror}.") from None
    if is_file:
        way = f"name its folder, and --gguf-file {folder.name}" if folder.suffix == ".gguf" else "name its folder"
        raise KitError(f"model {name!r} is a file: {way}.")
    if not folder.is_dir():
        return
    try:
        names = {p.name for p in folder.iterdir()}
    except PermissionError:
        raise KitError(f"model {name!r}: the folder may not be read (permission denied).") from None
    other = "" if checkpoint else _other_folder(folder, names)
    if reason := other or _missing(folder, names, gguf_file):
        raise KitError(f"model {name!r} cannot be loaded: {reason}.")
    limits = {**dict.fromkeys(SMALL, JSON_BYTES), **dict.fromkeys(LARGE, TOKENIZER_BYTES)}
    for pattern, most in {**limits, gguf_file or "*.safetensors": None}.items():
        for path in sorted(folder.glob(pattern)):
            check_file(path, most)
    if gguf_file:
        _check_gguf(folder / gguf_file)
    else:
        _check_shards(folder)
        check_config(folder)


def _other_folder(folder: Path, names: set[str]) -> str:
    """Why a folder is something else than a pretrained model, or ""."""
    if names & {"policy.json", "items.json"}:
        return "it is a checkpoint of this kit: give it with --checkpoint, or to train with --init"
    if "metrics.jsonl" in names or (folder / "checkpoints").is_dir():
        return "it is the folder of a run: give it with --checkpoint, or to train with --init"
    if any(n.startswith(("adapter_config.", "adapter_model.")) for n in names):
        return f"it holds an adapter (PEFT), which would not be trained further: {MERGE}"
    return ""


def _missing(folder: Path, names: set[str], gguf_file: str) -> str:
    """What a folder lacks of a pretrained model, or ""."""
    ggufs = sorted(n for n in names if n.endswith(".gguf"))
    if gguf_file:
        here = f"it has {', '.join(ggufs)}" if ggufs else "it has none"
        return "" if (folder / gguf_file).is_file() else f"it has no GGUF file {gguf_file!r} ({here})"
    saved = [p.name for p in weight_files(folder)]
    if ggufs and not saved:
        return f"its weights are in GGUF: name the file with --gguf-file {' or '.join(ggufs[:5])}"
    if "config.json" not in names:
        inside = sorted(p.parent for p in folder.glob("*/config.json"))[:3]
        inside = inside or sorted(p.parent for p in folder.glob("snapshots/*/config.json"))[:3]
        return "it has no config.json" + (f"; did you mean {' or '.join(map(str, inside))}?" if inside else "")
    pickled = sorted(n for n in names if n.endswith((".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")))
    if not saved and pickled:
        return (
            f"its weights are in {pickled[0]}, which this kit does not read: convert them to safetensors "
            "(AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW))"
        )
    return "" if saved else "it has no weights (*.safetensors)"


def check_file(path: Path, most: int | None = None) -> None:
    """Raise KitError on a file that may not be read, is something else under this name, too large or truncated."""
    if not path.is_file():
        return
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except PermissionError:
        raise KitError(f"{path}: may not be read (permission denied).") from None
    for begin, what in NOT_THE_FILE.items():
        if head.lower().lstrip().startswith(begin.lower()):
            raise KitError(f"{path}: {what}.")
    if not size:
        raise KitError(f"{path}: is damaged (it is empty).")
    if most and size > most:
        raise KitError(f"{path}: has {size:,} bytes, more than a file of this kind may have.")
    if path.suffix == ".gguf" and not head.startswith(b"GGUF"):
        raise KitError(f"{path}: is not a GGUF file.")
    if path.suffix == ".safetensors":
        tensors_of(path)


def tensors_of(path: Path) -> dict[str, Any]:
    """The header of a safetensors file: type, shape and offsets by name. Raises KitError if it does not fit the file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size, HEADER_BYTES):
            raise KitError(f"{path}: is damaged or truncated (its header does not fit its {size:,} bytes).")
        header = file.read(length)
    try:
        found = {name: entry for name, entry in json.loads(header).items() if name != "__metadata__"}
        end = 8 + length + max((entry["data_offsets"][1] for entry in found.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise KitError(f"{path}: is damaged (its header cannot be read).") from None
    if end != size:
        raise KitError(f"{path}: is truncated or damaged: it has {size:,} bytes, and its header asks for {end:,}.")
    return found


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a small JSON file. Raises KitError, with `what` is wrong, on one that is damaged or too large."""
    try:
        if path.stat().st_size > JSON_BYTES:
            raise ValueError(f"it has {path.stat().st_size:,} bytes")
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it is not an object")
    except PermissionError:
        raise KitError(f"{path}: may not be read (permission denied).") from None
    except RecursionError:
        raise KitError(f"{path}: {what} (it is nested too deeply).") from None
    except (OSError, ValueError) as error:
        raise KitError(f"{path}: {what} ({str(error)[:150]}).") from None
    return values


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model's weights; an optimizer's state (`trainer.safetensors`) is not one of them."""
    return sorted(p for p in folder.glob("*.safetensors") if not p.name.startswith("trainer."))


def _check_shards(folder: Path) -> None:
    """Raise KitError if a file that the index of the weights names is missing."""
    path = folder / "model.safetensors.index.json"
    shards = read_json(path, "is damaged").get("weight_map") if path.is_file() else {}
    if not isinstance(shards, dict):
        raise KitError(f"{path}: is damaged (it has no weight_map).")
    if absent := sorted({str(n) for n in shards.values()} - {p.name for p in folder.iterdir()}):
        raise KitError(
            f"{path}: names {absent[0][:80]!r}, which is not in the folder ({len(absent)} files are missing)."
        )


def check_config(folder: Path) -> None:
    """Raise KitError if config.json asks for more layers, experts or the like than the weights can be of."""
    tensors = sum(map(len, map(tensors_of, weight_files(folder))))
    check_counts(read_json(folder / "config.json", "is damaged"), str(folder), tensors)


def check_counts(config: dict[str, Any], where: str, tensors: int = 0) -> None:
    """Raise KitError if a configuration asks for more than COUNT layers or the like, and more than there are tensors.

    Or for an implementation of its layers that is not part of transformers, but compiled code from the hub.
    """
    if code := KERNEL.search(json.dumps(config)):
        raise KitError(f"{where}: config.json: {code[1][:60]} {code[2][:60]!r} is code of the hub, which is not run.")
    for name, value in _numbers(config):
        if COUNTED.search(name) and value > max(COUNT, tensors):
            raise KitError(f"{where}: config.json: {name} {value} is more than its weight files can hold.")


def _numbers(values: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a configuration, with the name of its field."""
    if isinstance(values, dict):
        for key, value in values.items():
            yield from _numbers(value, key)
    elif isinstance(values, list):
        for value in values:
            yield from _numbers(value, name)
    elif isinstance(values, int | float):
        yield name, values


def _check_gguf(path: Path) -> None:
    """Raise KitError if the metadata of a GGUF file asks for an absurd number of layers (they precede the tokenizer)."""
    with path.open("rb") as file:
        found = re.search(rb"\.block_count[\x04\x05]\0\0\0(....)", file.read(2**20), re.DOTALL)
    if found and (count := int.from_bytes(found[1], "little")) > COUNT:
        raise KitError(f"{path}: block_count {count} is more than its weights can hold.")


def check_size(name: str, config: PreTrainedConfig) -> None:
    """Raise KitError if the model of a configuration has far more values than its local weight files, or other shapes.

    The model is built without memory for its weights; `config` is one whose counts were checked.
    """
    files = [*weight_files(Path(name)), *Path(name).glob("*.gguf")] if Path(name).is_dir() else []
    if not files:
        return
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    values = sum(t.numel() for t in chain(model.parameters(), model.buffers()))
    size = sum(p.stat().st_size for p in files)
    if values > 8 * size + SLACK:
        raise KitError(f"{name}: config.json asks for {values:,} weights, and its files have {size:,} bytes.")
    saved = {n: e.get("shape") for p in files if p.suffix == ".safetensors" for n, e in tensors_of(p).items()}
    packed = getattr(config, "quantization_config", None)
    for tensor, made in ({} if packed else model.state_dict()).items():
        if tensor in saved and saved[tensor] != list(made.shape):
            raise KitError(f"{name}: {tensor} is {saved[tensor]}, and by config.json {list(made.shape)}.")
