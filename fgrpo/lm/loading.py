"""Optional packages and pretrained models: a clear error if one is missing or cannot be loaded."""

import re
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ..config import KitError

SECONDS = 8
"""time for the model hub to answer; without an answer its cache is used, and no other request is made"""
NO_CODE = "it comes with Python code of its own, which runs only with --trust-remote-code (read it first)"


def optional(name: str) -> ModuleType:
    """An imported module of the extra `baselines`. Raises KitError if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise missing(name) from None


def missing(name: str) -> KitError:
    """The error for a package that is not installed."""
    return KitError(f"package {name!r} is not installed: pip install 'fgrpo[baselines]'.")


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Any exception raised inside becomes a KitError that names the model. A hub that does not answer is asked once."""
    silent = ""
    try:
        with _hub_or_cache(model) as silent:
            yield
    except (KitError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a broken model raises whatever its broken part raises, a panic of Rust code too
        what = "" if Path(model).exists() else ", it must be a folder or hub name"
        reason = silent if silent and "cache" in str(error) else reason_of(error)
        raise KitError(f"model {model!r} cannot be loaded{what}: {reason.rstrip('.')}.") from None


def reason_of(error: BaseException) -> str:
    """One line that says what an exception of a model's reader means."""
    text = str(error).strip()
    kinds = {
        NO_CODE: "trust_remote_code" in text,
        f"{getattr(error, 'filename', '')} may not be read (permission denied)": isinstance(error, PermissionError),
        "a file of it is nested too deeply": isinstance(error, RecursionError),
        f"a file of it is truncated or damaged ({text[:100]})": isinstance(error, struct.error),
        f"{text[:100]} is not known, or missing in a file of it": type(error) is KeyError,
        "there is not enough memory for it": isinstance(error, MemoryError) or "can't allocate memory" in text,
    }
    known = next((reason for reason, applies in kinds.items() if applies), "")
    if found := re.match(r"Unrecognized configuration class .*?([A-Za-z0-9_]+Config)\b", text):
        known = f"{found[1]} is not the configuration of a causal language model"
    first, *rest = text.split("\n")
    first += f" {rest[0].strip()}" if first.endswith(":") and rest else ""
    return known or first[:200] or type(error).__name__


@contextmanager
def _hub_or_cache(model: str) -> Iterator[str]:
    """Inside, the hub's client uses only its cache if the hub does not answer; gives the reason, or "".

    The client by itself tries each of a model's files again and again, for most of a minute.
    """
    if Path(model).exists():
        yield ""
        return
    try:
        validate_repo_id(model)
    except HFValidationError:
        raise KitError(f"model {model!r} cannot be loaded: there is no such folder.") from None
    offline = huggingface_hub.is_offline_mode()
    silent = "there is no such folder, HF_HUB_OFFLINE is set, and the hub's cache has no such model"
    silent = silent if offline else _silence(model, int(time.monotonic() / 60))
    huggingface_hub.constants.HF_HUB_OFFLINE = bool(silent)
    try:
        yield silent
    finally:
        huggingface_hub.constants.HF_HUB_OFFLINE = offline


@lru_cache(maxsize=16)
def _silence(model: str, minute: int) -> str:
    """Why the hub does not answer, or "" if it does; asked once a minute."""
    failed: list[Exception | None] = []

    def ask() -> None:
        try:
            huggingface_hub.HfApi().model_info(model, timeout=SECONDS)
            failed.append(None)
        except Exception as error:
            failed.append(None if isinstance(error, HfHubHTTPError) else error)  # an error page is an answer

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name has no time limit of its own
    asking.start()
    asking.join(SECONDS)
    error = failed[0] if failed else TimeoutError(f"no answer within {SECONDS} seconds")
    why = f"there is no such folder, the model hub cannot be reached ({error}), and its cache has no such model"
    return why if error else ""
