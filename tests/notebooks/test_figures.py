"""The figure of credit: a bar is marked as wrong where it opposes the true advantage, whichever methods stand beside it."""

from matplotlib.text import Annotation

from notebooks.figures import credit_bars

NAMES = ("good, good", "good, bad", "bad, good", "bad, bad")
GRPO = ([0.77, 0.08, -0.12, -0.73], [0.77, 0.08, -0.12, -0.73])
FGRPO = ([0.25, 0.25, -0.25, -0.25], [0.5, -0.2, 0.2, -0.5])
TRUE = ([0.4, 0.4, -0.4, -0.4], [0.3, -0.3, 0.3, -0.3])


def marks(credit, true=TRUE) -> set[tuple[int, int, float, str]]:
    """Side, rollout, advantage and words of every mark in the figure."""
    return {
        (side, round(text.xy[0]), text.xy[1], text.get_text().replace("\n", " "))
        for side, axes in enumerate(credit_bars(NAMES, credit, true).axes)
        for text in axes.texts if isinstance(text, Annotation)
    }  # fmt: skip


def test_marks_do_not_depend_on_the_order_of_the_methods() -> None:
    expected = {(1, 1, 0.08, "wrong praise"), (1, 2, -0.12, "wrong blame")}
    assert marks({"grpo": GRPO, "fgrpo": FGRPO}) == marks({"fgrpo": FGRPO, "grpo": GRPO}) == expected


def test_every_method_is_judged_by_the_truth() -> None:
    own = (FGRPO[0], [0.5, -0.2, -0.1, -0.5])
    assert marks({"grpo": GRPO, "fgrpo": own}) >= {(1, 2, -0.1, "wrong blame"), (1, 2, -0.12, "wrong blame")}
    assert (0, 0, 0.25, "wrong praise") in marks({"fgrpo": FGRPO}, ([-0.1, 0.4, -0.4, -0.4], TRUE[1]))


def test_nothing_is_marked_without_a_truth_or_where_one_of_both_is_0() -> None:
    assert not marks({"grpo": GRPO, "fgrpo": FGRPO}, None)
    assert not marks({"grpo": GRPO}, ([0.0] * 4, [0.0, -1e-9, 1e-9, 0.0]))
    assert not marks({"none": ([0.0] * 4, [1e-9] * 4)})
