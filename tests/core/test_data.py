"""Examples: labels are checked, graded gains count; files are replaced whole; an item is in a pool once."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fgrpo.config import Config, GrammarConfig, KitError, RLConfig
from fgrpo.data import Example
from fgrpo.evaluate import measure_outputs
from fgrpo.policy import Sampling
from fgrpo.prompt import Output
from fgrpo.rewards import pool_gains, score
from fgrpo.rollout import Rollouts
from fgrpo.tasks.atomic import write_text
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


def example(relevant, gains=(), pool: str = "abcd") -> Example:
    return Example("q", "?", (), tuple(pool), relevant, gains=gains)


@pytest.mark.parametrize(
    "relevant", [{0: 3}, {0: 3, 1: 1}, [0, 0, 1], [0, 0, 0, 1], {4}, {-1}, [True], {"a"}, "01", 1, None, [[1]], [0.0]]
)
def test_labels_that_are_not_indices_are_refused(relevant) -> None:
    with pytest.raises(
        KitError, match=r"example 'q': 'relevant' must be distinct indices below 4; grades are 'gains'\."
    ):
        example(relevant)


@pytest.mark.parametrize("relevant", [frozenset({3, 1}), {3, 1}, [3, 1], (1, 3)])
def test_indices_in_any_form_are_a_set(relevant) -> None:
    found = example(relevant)
    assert found.relevant == {1, 3} and isinstance(found.relevant, frozenset) and hash(found) == hash(example((1, 3)))
    assert example(()).relevant == set()  # as for a query that is typed and never scored


@pytest.mark.parametrize(
    "gains",
    [(0, 3), (0, 3, 0, -1), (0, 3, 0, 1), (1, 3, 0, 0), (0, 0, 0, 0), (0, True, 0, 0), (0, math.nan, 0, 0),
     (0, 1, math.nan, 0), (0, math.inf, 0, 0), (0, 1e-40, 0, 0), (0, 1e39, 0, 0), ("0", 1, 0, 0), {1: 3},
     {0: 0, 1: 2, 2: 0, 3: 0},
     torch.tensor([0, 3, 0, 0])],
)  # fmt: skip
def test_gains_that_do_not_fit_are_refused(gains) -> None:
    with pytest.raises(
        KitError, match=r"example 'q': 'gains' must be 4 numbers, 0 where irrelevant, else 1e-6 to 1e6\."
    ):
        example({1}, gains)


def test_a_copy_with_another_pool_is_checked() -> None:
    with pytest.raises(KitError, match="'relevant' must be distinct indices below 2"):
        replace(example({3}), candidates=("a", "b"))


def test_gains_fill_the_table_beside_plain_labels() -> None:
    examples = [example({1, 3}, [0, 0.5, 0, 3]), example({0, 2}, pool="abc")]
    assert pool_gains(examples).tolist() == [[0, 0.5, 0, 3], [1, 0, 1, 0]]


def dcg(gains: list[float]) -> float:
    return sum(g / math.log2(place + 2) for place, g in enumerate(gains))


def test_rewards_and_metrics_use_gains() -> None:
    """NDCG by hand from the gains; recall, hits and fates take every gain above 0 as relevant."""
    graded, plain = example({0, 1, 3}, (1, 4, 0, 0.5)), example({0, 1, 3})
    output = Output((0, 1, 2), (0, 1))
    rollouts = Rollouts(None, None, None, None, None, [output] * 2, 2, Sampling(GrammarConfig(3, 2)))  # type: ignore[arg-type]
    found, flat = score(rollouts, [graded], RLConfig()), score(rollouts, [plain], RLConfig())
    assert found.rank[0, 0].item() == pytest.approx(dcg([1, 4]) / dcg([4, 1])) and flat.rank[0, 0].item() == 1
    assert found.slate.tolist() == flat.slate.tolist() == [[pytest.approx(2 / 3)] * 2]
    assert found.places.sum(-1).tolist() == [[pytest.approx(found.rank[0, 0].item())] * 2]
    metrics = {e: measure_outputs([output], [e], GrammarConfig(3, 2)) for e in (graded, plain)}
    assert metrics[graded]["ndcg@3"].item() == pytest.approx(dcg([1, 4]) / dcg([4, 1, 0.5]))
    assert metrics[plain]["ndcg@3"].item() == pytest.approx(dcg([1, 1]) / dcg([1, 1, 1]))
    for name in ("recall@3", "hit@1", "slate_recall", "right", "slate_miss", "rank_drop"):
        assert metrics[graded][name].item() == metrics[plain][name].item(), name


def test_a_demonstration_ranks_by_gain() -> None:
    from fgrpo.runs.sft import demonstration

    config = Config(grammar=GrammarConfig(3, 3))
    for n in range(10):
        slate, rank = demonstration(example({0, 1, 3}, (1, 4, 0, 0.5)), config, torch.Generator().manual_seed(n))
        assert rank == [1, 0, 3] and set(slate) == {0, 1, 3}
    shorter = Config(grammar=GrammarConfig(2, 2))
    assert set(demonstration(example({0, 1, 3}, (1, 4, 0, 0.5)), shorter, torch.Generator())[0]) == {0, 1}


def test_a_pool_that_is_cut_down_keeps_its_gains() -> None:
    from fgrpo.study.oracle import small_pool

    small = small_pool(example({1, 3}, (0, 2, 0, 5)), 3)
    assert small.candidates == ("a", "b", "d") and small.gains == (0, 2, 5)
