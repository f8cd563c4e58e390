"""The handouts: a page each, one for every lab; the numbers of their examples and solutions are what the kit computes."""

import math
import re
from pathlib import Path

import pytest
import torch

from notebooks import build, checks

FOLDER = build.HERE / "handouts"
LABS = {
    "two_rewards": ("my_recall", "my_ndcg"), "advantages": ("my_advantage", "my_credit"),
    "the_loss": ("my_surrogate", "my_loss"), "diagnosis": ("my_fate", "my_reward_to_go"),
    "real_data": ("my_chance", "my_overlap"),
}  # fmt: skip


def text(name: str) -> str:
    """A handout, its lines joined."""
    return " ".join((FOLDER / f"{name}.md").read_text(encoding="utf-8").split())


def test_every_lab_has_a_handout_and_every_handout_a_lab() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(LABS)
    assert sorted(sum(LABS.values(), ())) == sorted(checks.CHECKS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.md")), ids=lambda path: path.stem)
def test_a_handout_is_a_page_with_its_parts(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) <= 130
    for part in (r"\*\*Goal\.\*\*", "Worked example", "Exercise", "Check yourself", "## Question to take home"):
        assert re.search(part, "\n".join(lines)), part


def test_numbers_of_two_rewards() -> None:
    found, relevant = text("two_rewards"), {1, 4, 6}
    assert f"= {checks.recall.right([4, 0, 1, 7], relevant):.3f}" in found
    assert f"1.131 / 2.131 = {checks.ndcg.right([0, 4, 1], relevant, 3):.3f}" in found
    a, b, c = (f"{checks.ndcg.right(ranked, relevant, 3):.3f}" for ranked in ([6, 2, 4], [6, 4], [2]))
    assert f"Recall is {checks.recall.right([6, 2, 4], relevant):.3f}" in found and f"is {a}, {b} and {c}" in found


def test_numbers_of_advantages() -> None:
    found = text("advantages")
    slate, rank = (
        torch.tensor([[1.0, 1.0, 0.5, 0.5]]),
        torch.tensor([[1.0, 1 / math.log2(4) / (1 + 1 / math.log2(3)), 0, 0]]),
    )
    rank[0, 2] = 1 / (1 + 1 / math.log2(3))
    joint, own, ranks = (checks.advantage.right(x)[0].tolist() for x in (slate + rank, slate, rank))
    for g in (0, 1):
        assert f"**{joint[g]:+.2f}** | **{own[g]:+.2f}** | **{ranks[g]:+.2f}**" in found
    for g in (2, 3):
        assert f"Rollout {g + 1}: joint {joint[g]:+.2f}, own {own[g]:+.2f} and {ranks[g]:+.2f}" in found
    rank[0, 2] = 0.4
    assert f"the mean is {rank.mean():.2f}, and own credit gives {checks.advantage.right(rank)[0, 2]:+.2f}" in found


def test_numbers_of_the_loss() -> None:
    ratio = torch.tensor([1.1, 0.5, 2.0, 0.5], requires_grad=True)
    made = checks.surrogate.right(ratio, torch.tensor([1.0, 1.0, -1.0, -1.0]), 0.2, 0.3)
    (slope,) = torch.autograd.grad(made.sum(), ratio)
    assert f"Surrogates: {', '.join(f'{x:.2g}' for x in made.tolist())}." in text("the_loss")
    assert f"Gradients: {', '.join(f'{x:+g}' if x else '0' for x in slope.tolist())}." in text("the_loss")
    per_token, mask = torch.tensor([[1.0, 0.5, -1.0], [2.0, 1.0, 0.0]]), torch.tensor([[True] * 3, [True, True, False]])
    assert f"= {checks.normalised.right(per_token, mask, 5):.2f}." in text("the_loss")


def test_numbers_of_diagnosis() -> None:
    found = text("diagnosis")
    fates = [checks.fate.right(c, [7, 4, 2, 9], [4, 2, 7], {2, 4, 8, 9}).replace("_", " ") for c in (2, 4, 8, 9)]
    assert ", ".join(f"{c} {f}" for c, f in zip((2, 4, 8, 9), fates, strict=True)) in found
    slate, rank = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.2, 0.6]])
    first, second = torch.tensor([[True, False]] * 2), torch.tensor([[False, True]] * 2)
    for name, method in (("Joint", "grpo"), ("Factorised", "fgrpo"), ("Reward to go", "reward_to_go")):
        given = checks._kit(method)(slate, rank, 2.0, first, second).T.flatten().tolist()
        assert f"{name}: {', '.join(f'{x:+.1f}' for x in given)}." in found


def test_numbers_of_real_data() -> None:
    found = text("real_data")
    assert f"the overlap is 2 / 5 = {checks.overlap.right([1, 2, 3], [2, 3, 4, 5])}" in found
    assert f"chance is {checks.chance.right(4, 20, 2)}" in found
    numbers, candidates = checks.overlap.right([1, 2], [3, 1]), checks.overlap.right(["ant", "bee"], ["bee", "dog"])
    assert f"numbers {numbers:.3f}" in found and f"candidates {candidates:.3f}" in found
