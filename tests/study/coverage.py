"""What the intervals of fgrpo.study.significance cover, by simulation. In full, some minutes:

    python tests/study/coverage.py [TRIALS]         # writes data/results/coverage.csv

Differences of a method and a baseline, with normal effects whose true mean is 0: of warm starts, seeds, queries (or
clusters of queries), and a rest of SD 0.14. tests/study/test_significance.py runs the same with fewer trials.
"""

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fgrpo.runs.run import provenance  # noqa: E402
from fgrpo.study.compare import seed_starts  # noqa: E402
from fgrpo.study.report import to_csv  # noqa: E402
from fgrpo.study.significance import Estimate, paired  # noqa: E402
from fgrpo.tasks.atomic import write_text  # noqa: E402

REST, QUERIES = 0.14, 512


@dataclass(frozen=True)
class Cell:
    """A design and the SDs of a difference's effects. `sizes` of clusters: "one", "8 each" or "uneven" (1 to 40)."""

    seeds: int
    starts: int = 1
    methods: int = 1
    seed_sd: float = 0.0
    start_sd: float = 0.0
    query_sd: float = 0.05
    clusters: str = "one"

    def groups(self) -> list[str] | None:
        """The cluster of each query."""
        if self.clusters == "one":
            return None
        cycle = [8] if self.clusters == "8 each" else [1, 2, 3, 5, 8, 13, 40]
        sizes = cycle * (QUERIES // sum(cycle) + 1)
        return [str(k) for k, size in enumerate(sizes) for _ in range(size)][:QUERIES]

    @property
    def sd(self) -> float:
        """SD of the mean difference."""
        starts = seed_starts(self.seeds, self.starts)
        groups = self.groups() or [str(q) for q in range(QUERIES)]
        by_start = self.start_sd**2 * sum((n / self.seeds) ** 2 for n in Counter(starts).values())
        by_query = self.query_sd**2 * sum((n / QUERIES) ** 2 for n in Counter(groups).values())
        return math.sqrt(by_start + self.seed_sd**2 / self.seeds + by_query + REST**2 / QUERIES / self.seeds)


def trials_of(cell: Cell, count: int, seed: int = 0) -> Iterator[list[Estimate]]:
    """Estimates of each method minus the baseline they share, `count` times."""
    generator = torch.Generator().manual_seed(seed)
    starts, groups = [s % cell.starts for s in range(cell.seeds)], cell.groups()
    cluster = torch.tensor([int(g) for g in groups] if groups else range(QUERIES))

    def normal(sd: float, *size: int) -> Tensor:  # of one method; the difference of two has sqrt(2) times the SD
        return sd / 2**0.5 * torch.randn(cell.methods + 1, *size, generator=generator, dtype=torch.float64)

    for _ in range(count):
        x = normal(REST, cell.seeds, QUERIES) + normal(cell.query_sd, 1, int(cluster.max()) + 1)[..., cluster]
        x += normal(cell.seed_sd, cell.seeds, 1) + normal(cell.start_sd, cell.starts, 1)[:, starts]
        yield [paired(own - x[0], starts, groups) for own in x[1:]]


def measured(cell: Cell, count: int, seed: int = 0) -> dict[str, float]:
    """Shares of trials whose first interval covers 0, also as one of four, and in which a family of methods has an error.

    A family has an error if any simultaneous interval excludes 0, which is also when Holm's smallest p is below 0.05.
    `width`: mean width of the interval, over that with all SDs known. `detectable`: mean over trials.
    """
    sd, total = cell.sd, dict.fromkeys(("coverage", "one_of_four", "width", "detectable", "family_error"), 0.0)
    for found in trials_of(cell, count, seed):
        first = found[0]
        low, high = first.interval()
        far_low, far_high = first.simultaneous(4)
        total["coverage"] += low <= 0 <= high
        total["one_of_four"] += far_low <= 0 <= far_high
        total["width"] += (high - low) / (2 * 1.96 * sd)
        total["detectable"] += first.detectable(len(found))
        total["family_error"] += not all(low <= 0 <= high for low, high in (x.simultaneous(len(found)) for x in found))
    return {name: x / count for name, x in total.items()}


def expected_coverage(cell: Cell, count: int, alpha: float = 0.05, seed: int = 0) -> float:
    """Coverage from few trials: an interval's half-width is independent of the mean, so each trial's share is known.

    Holds for balanced designs without clusters.
    """
    sd, halves = cell.sd, [x.interval(alpha)[1] - x.mean for (x,) in trials_of(cell, count, seed)]
    return sum(math.erf(half / sd / 2**0.5) for half in halves) / count


def cells() -> list[Cell]:
    """All designs of the full form."""
    sds = (0.0, 0.01, 0.03)
    one = [Cell(s, seed_sd=sd, query_sd=q) for s in (3, 5, 10) for sd in sds for q in (0.0, 0.05, 0.1)]
    nested = [
        Cell(s, w, seed_sd=sd, start_sd=start)
        for s, w in ((3, 3), (5, 5), (10, 10), (9, 3), (10, 3), (10, 5)) for sd in sds for start in sds
        if w < s or not start
    ]  # fmt: skip
    clustered = [replace(c, clusters=k) for c in one if c.query_sd == 0.05 for k in ("8 each", "uneven")]
    families = [Cell(s, methods=m, seed_sd=sd) for s in (3, 5, 10) for sd in sds for m in (3, 4, 5)]
    return [*one, *nested, *clustered, *families]


def main(argv: Sequence[str]) -> None:
    """Simulate every design, and write what its intervals cover."""
    count, rows = int(argv[0]) if argv else 4000, []
    for cell in cells():
        found = measured(cell, count)
        rows.append({**asdict(cell), "trials": count, **found})
        print(*(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in rows[-1].items()), flush=True)
    write_text(ROOT / "data/results/coverage.csv", to_csv(rows, {**provenance(), "rest_sd": REST, "queries": QUERIES}))


if __name__ == "__main__":
    main(sys.argv[1:])
