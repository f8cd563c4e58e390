"""Sentence embeddings on disk: each text is encoded once, whoever asks."""

from pathlib import Path

import pytest
import torch

from fgrpo.config import KitError
from fgrpo.lm import encoders
from fgrpo.lm.encoders import embed, identity


@pytest.fixture
def asked(monkeypatch, tmp_path) -> list[list[str]]:
    """The texts that were encoded, call by call, by an encoder of 3 dimensions."""
    calls: list[list[str]] = []

    def encode(texts):
        calls.append(list(texts))
        return torch.tensor([[len(t), 0.25, 1.0] for t in texts])

    monkeypatch.setattr(encoders, "cache_file", lambda: tmp_path / "cache" / "embeddings.sqlite")
    monkeypatch.setattr(encoders, "encoder", lambda model: encode)
    return calls


def test_each_text_is_encoded_once_and_gets_its_own_row(asked) -> None:
    first = embed(["a", "bb", "a"], "name")
    assert first.dtype == torch.float32 and first[:, 0].tolist() == [1, 2, 1] and asked == [["a", "bb"]]
    assert torch.equal(embed(["bb", "ccc"], "name")[:, 0], torch.tensor([2.0, 3.0])) and asked[1:] == [["ccc"]]
    embed(["a"], "another")
    assert asked[2:] == [["a"]]


def test_an_encoder_in_a_folder_is_known_by_its_weights(tmp_path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for folder, weights in zip(folders, (b"1", b"1", b"2"), strict=True):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(weights)
    found = [identity(str(folder)) for folder in folders]
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("damage", ["no database", "another length", "a folder"])
def test_a_file_that_cannot_be_used_is_named(asked, damage, monkeypatch) -> None:
    embed(["a", "bb"], "name")
    path: Path = encoders.cache_file()
    if damage == "another length":
        monkeypatch.setattr(encoders, "encoder", lambda model: lambda texts: torch.ones(len(texts), 2))
    else:
        path.unlink()
        path.mkdir() if damage == "a folder" else path.write_bytes(b"not a database" * 100)
    with pytest.raises(KitError, match=r"embeddings\.sqlite"):
        embed(["a", "ccc"], "name")
