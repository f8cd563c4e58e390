"""A positive control for comparisons of credit: a task on which credit must matter, and it is known which way.

Only rank tokens learn, so that the slates change through shared weights alone, and noise of standard deviation 1 is added
to the slate's reward. Joint credit (grpo) pays the ranker for that noise and must fall; its own reward (fgrpo) does not
know the noise: it must end above joint credit, and rise, or at least not fall where the ranker is good already. Lists are
filled, so that length is not learned. If it fails, the instrument is broken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..config import Config
from ..runs.fields import with_fields
from .check import LEAST_SEEDS, Groups, by_seed
from .compare import WARM_START_FULL, Results
from .experiments import Experiments, grid
from .significance import Estimate, paired

JOINT, OWN = "grpo", "fgrpo"
OPTIONS = {"learn": "rank", "slate_noise": 1.0, "full": True, "steps": 120, "lr": 3e-4, "lr_decay": "none"}


def control_experiments(config: Config) -> Experiments:
    """The two runs of the control, with all other options as in `config`."""
    return grid(with_fields(config, **OPTIONS), [JOINT, OWN])


ENOUGH = 0.05
"""a difference of NDCG@5 that the control must be able to detect before it may be said to fail"""


@dataclass(frozen=True)
class Control:
    """What the control found: gains of NDCG@5 over the warm start with filled lists, and own minus joint credit."""

    start: float
    joint: Estimate
    own: Estimate
    apart: Estimate
    seeds: int

    @property
    def holds(self) -> bool:
        """Whether joint credit is shown to fall and own credit to end above it, without a loss of its own.

        How much own credit can gain depends on the warm start: a ranker that is good already has little to learn.
        """
        shown = self.joint.interval()[1] < 0 < self.apart.interval()[0]
        return self.seeds >= LEAST_SEEDS and shown and self.own.mean > 0

    @property
    def fails(self) -> bool:
        """Whether the opposite is shown of any of the three, or own credit is no better although that could be seen."""
        if self.seeds < LEAST_SEEDS or self.holds:
            return False
        opposite = self.joint.interval()[0] > 0 or self.own.interval()[1] < 0 or self.apart.interval()[1] < 0
        return opposite or (self.apart.interval()[0] <= 0 and self.apart.detectable() < ENOUGH)

    @property
    def sentences(self) -> list[str]:
        """The result in words."""
        lines = []
        for name, found, must in ((JOINT, self.joint, "fall"), (OWN, self.own, "rise")):
            low, high = found.interval()
            lines.append(
                f"{name}: NDCG@5 {self.start:.3f} -> {self.start + found.mean:.3f} "
                f"({found.mean:+.3f} [{low:+.3f}, {high:+.3f}]); it must {must}."
            )
        low, high = self.apart.interval()
        lines.append(f"{OWN} minus {JOINT}: {self.apart.mean:+.3f} [{low:+.3f}, {high:+.3f}]; it must be above 0.")
        if self.seeds < LEAST_SEEDS:
            return [*lines, f"Fewer than {LEAST_SEEDS} seeds decide nothing."]
        if self.holds:
            return [*lines, "The control holds: where credit must matter, this instrument sees it."]
        if self.fails:
            return [
                *lines,
                "The control FAILS: the instrument is broken, and no comparison of credit made with it counts.",
            ]
        return [*lines, "The control is undecided: not all that must be so is shown; give it more seeds."]


def control_found(
    results: Results, starts: Sequence[int], groups: Groups | None = None, metric: str = "ndcg@5"
) -> Control:
    """The control's result from its runs, `compare(control_experiments(config), ...)`."""
    ((setting, by_method),) = results.items()
    start, joint, own = (by_seed(by_method[m], metric, starts) for m in (WARM_START_FULL, JOINT, OWN))
    clusters = (groups or {}).get(setting)
    fall, rise, apart = (paired(x, starts, clusters) for x in (joint - start, own - start, own - joint))
    return Control(float(start.mean()), fall, rise, apart, len(starts))
