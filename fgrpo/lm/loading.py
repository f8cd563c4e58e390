"""Optional packages and pretrained models: a clear error if one is missing or cannot be loaded."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from ..config import KitError


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
    """Any exception raised inside becomes a KitError that names the model."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # a broken model raises whatever its broken part raises
        reason = next(iter(str(error).strip().split("\n")), "")[:200] or type(error).__name__
        raise KitError(f"model {model!r} cannot be loaded, it must be a folder or hub name: {reason}") from None
