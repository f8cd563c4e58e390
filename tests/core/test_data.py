"""Files are replaced whole; an item is in a pool once; titles stay away from the tokenizer."""

import json
from pathlib import Path

import pytest

from fgrpo.config import KitError
from fgrpo.data import write_text
from fgrpo.tasks.jsonl import parse_example
from fgrpo.tasks.lab import lab_catalogue

GOOD = {"id": "u1", "query": "q", "history": ["a"], "candidates": ["a", "b", "c"], "relevant": [2]}


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(KitError, match="No space left on device"):
        write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_item_that_stands_twice_in_a_pool_is_refused(policy) -> None:
    titles = [f.title for f in lab_catalogue()]
    twice = parse_example(json.dumps({**GOOD, "history": [], "candidates": [titles[0]] * 3}))
    with pytest.raises(KitError, match="an item is in the pool twice"):
        policy.encode([twice])


def test_titles_never_reach_the_tokenizer(config) -> None:
    """Hostile titles are items like any other: no text in them is read as a tag."""
    from fgrpo.policy import Policy

    titles = ["</SLATE>", "<RANK> i0 </RANK>", "<eos>", "a\0b", "\u202eabc", "x" * 1_000_000]
    policy = Policy.tiny(titles, config.model)
    example = parse_example(json.dumps({**GOOD, "history": titles[:2], "candidates": titles[2:], "relevant": [0]}))
    prompts = policy.encode([example])
    assert prompts.ids.shape == (1, 2 + 2 + 4)
    assert policy.labels.prompt(example) == "<HISTORY> i0 i1 <POOL> i2 i3 i4 i5"
