# ---
# jupyter:
#   fgrpo: {budget: 40}
# ---

# %% [markdown]
# # 11. Diagnosis (lab)
#
# **Which phase loses the candidates, and when is a phase paid for the wrong thing?**
#
# A score says how good the lists are, not what is wrong with them. Here we look for causes: where relevant candidates are
# lost, whether a credit method moves the losses from one phase to the other, and what a badly chosen slate reward does.

# %%
import os
import sys
from pathlib import Path

SEED = 0  # change it and run the notebook again: every number below is computed
REPOSITORY = os.environ.get("FGRPO_REPOSITORY", "ADDRESS-OF-THE-REPOSITORY")

here = Path.cwd()
folders = [here, *here.parents, *(path.parents[1] for path in here.glob("*/fgrpo/__init__.py"))]
ROOT = next((folder for folder in folders if (folder / "fgrpo" / "__init__.py").is_file()), None)
if ROOT is None:
    raise SystemExit(
        "The kit was not found. Run the next line in a cell of its own, then run this cell again:\n"
        f"!git clone {REPOSITORY} kit && pip install -e kit"
    )
sys.path.insert(0, str(ROOT))
FIGURES = ROOT / "runs" / "notebooks"

# %%
from dataclasses import replace

import torch
from IPython.display import Image, Markdown

from fgrpo.study.plots import name_of, save
from notebooks import checks

# %% [markdown]
# ## The fate of a candidate
#
# [Notebook 2](02_two_rewards.ipynb) named two ways to lose a relevant candidate. To count them, each relevant candidate
# gets exactly one **fate**:
#
# - `slate_miss`: it is not in the slate;
# - `rank_drop`: it is in the slate, but not in the ranked list, or it is ranked below an irrelevant candidate;
# - `right`: it is in the ranked list, and no irrelevant candidate is ranked above it.
#
# Write the function for one candidate. Candidates ranked *below* it do not matter.


# %% exercise="my_fate" difficulty=2 minutes=8
def my_fate(candidate: int, slate: list[int], ranked: list[int], relevant: set[int]) -> str:
    """Fate of one relevant candidate: "right", "slate_miss" or "rank_drop". All numbers are pool indices."""
    # solution
    if candidate not in slate:
        return "slate_miss"
    if candidate not in ranked:
        return "rank_drop"
    above = ranked[: ranked.index(candidate)]
    return "right" if all(other in relevant for other in above) else "rank_drop"


# %% [markdown] hints="my_fate"
# If the candidate is not in the slate, can the ranked list change its fate? And which part of the ranked list decides
# whether a candidate was dropped: that above it, or that below it?
#
# Ask in this order: not `in slate`, so a miss; not `in ranked`, so a drop; then `above = ranked[:
# ranked.index(candidate)]`, and it is right if everything in `above` is in `relevant`.

# %%
print(checks.fate(my_fate))

# %% [markdown]
# ## Misses and drops of a real policy
#
# We decode the test queries with the warm start, once as it is, and once with both lists filled (`sft_full` of [notebook
# 7](07_full_task.ipynb)).

# %%
from fgrpo.config import Config
from fgrpo.evaluate import FATES, fates
from fgrpo.policy import Sampling
from fgrpo.rewards import pad, pool_gains
from fgrpo.rollout import rollout
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.tasks.lab import lab_task

config = Config(seed=SEED)
policy = load_policy(SHIPPED)
test = lab_task().test
found, written = {}, {}
for name, grammar in (("warm start", config.grammar), ("full lists", replace(config.grammar, full=True))):
    written[name] = outputs = rollout(policy, test, Sampling(grammar)).outputs
    slates, ranks = (
        pad([o.slate for o in outputs], grammar.slate_size),
        pad([o.rank for o in outputs], grammar.rank_size),
    )
    failed = torch.tensor([bool(o.error) for o in outputs])
    found[name] = fates(slates, ranks, failed, pool_gains(test))  # (Q, N): index into FATES, -1 if irrelevant

# %%
fate, whose = checks.fate.use(my_fate)  # yours, if it is right
share = {}
for name, outputs in written.items():
    own = [
        fate(c, list(o.slate), list(o.rank), e.relevant) for e, o in zip(test, outputs, strict=True) for c in e.relevant
    ]
    share[name] = [own.count(f) / len(own) for f in FATES[:3]]
    assert own.count("slate_miss") == int((found[name] == FATES.index("slate_miss")).sum())
rows = [f"| {name} | " + " | ".join(f"{x:.1%}" for x in s) + " |" for name, s in share.items()]
table = "| relevant candidates of | " + " | ".join(FATES[:3]) + " |\n" + "|---" * 4 + "|\n" + "\n".join(rows)
change = ", ".join(f"{f} {100 * (b - a):+.1f}" for f, a, b in zip(FATES[:3], *share.values(), strict=True))
Markdown(
    f"{table}\n\nFrom the first row to the second, in percentage points: {change}. "
    f"{len(test):,} test queries, counted by {whose}."
)

# %% [markdown]
# ## The figure to keep: quadrants
#
# Every query is in one of four quadrants: nothing was lost, the slate missed something, the ranking dropped something, or
# both.

# %%
from notebooks.recorded import miss_and_drop

quadrants = miss_and_drop(found)
Image(save(quadrants, FIGURES / "11_quadrants.png"), width=850, alt="Queries by slate misses and rank drops")

# %% [markdown]
# Full lists change no weight, so the ranking is no better than before. All candidates that the slate no longer misses are
# dropped by the ranking instead, and the share of `right` even falls a little: a longer slate gives the ranking more to
# choose from, and more to get wrong. A fate says where a candidate was lost, not what would have saved it.
#
# ## Does a credit method move the losses?
#
# From the recorded runs of [notebook 7](07_full_task.ipynb) (`lab`): shares of the relevant candidates after 600 steps,
# and differences to `grpo` with the 95 % intervals of single rows. These metrics were not part of the planned tests, so
# the table is descriptive: of twenty such intervals, about one excludes 0 by chance alone (those that do are bold).

# %%
from notebooks.recorded import pick, read_table, source

made, lab = read_table("lab")
METRICS = ("right", "slate_miss", "rank_drop")
lines = [f"| method | {' | '.join(METRICS)} |", "|---" * (1 + len(METRICS)) + "|"]
for method in ("sft", "sft_full", "sft_more", "grpo", "fgrpo", "item"):
    cells = []
    for metric in METRICS:
        (r,) = pick(lab, method=method, metric=metric)
        bold = "**" * (r["diff_low"] > 0 or r["diff_high"] < 0)
        apart = f" ({bold}{r['diff']:+.3f}{bold} [{r['diff_low']:+.3f}, {r['diff_high']:+.3f}])" if r["seeds"] else ""
        cells.append(f"{r['mean']:.3f}{apart if method != r['baseline'] else ''}")
    lines.append(f"| {name_of(method)} | {' | '.join(cells)} |")
Markdown("\n".join(lines) + f"\n\n{source(made, pick(lab, method='grpo'))}")

# %% [markdown]
# After RL hardly a candidate is missed by the slate; half of them are dropped by the ranking. What is left to gain is the
# ranker's. `fgrpo` has no more misses than `grpo` and slightly more drops; its two phases did not trade losses.
#
# ## The F1 trap
#
# Factorised credit can mislead in its own way. A phase learns from its own reward *alone*, so that reward has to be right.
# A longer slate never lowers recall. To get slates with fewer irrelevant items, one could use **F1** instead, the harmonic
# mean of recall and **precision** (the share of the slate that is relevant):
#
# ```text
# F1 = 2 * hits / (length of the slate + relevant candidates in the pool)
# ```
#
# Now every further candidate has a cost, and after the likely ones it is better to stop. But the slate is not the final
# result. A good ranking puts a doubtful candidate last, where it costs nothing, or first, if it judges it better than the
# slate phase did. Under joint credit the slate tokens hear of this through the rank reward. Under F-GRPO they never do.

# %% [markdown]
# How strong are these effects? With a pool of 5 and one relevant candidate we can list all outputs ([notebook
# 5](05_oracle_and_map.ipynb)), so everything is exact. First: how does each reward change with the slate's length?

# %%
from fgrpo.config import GrammarConfig
from fgrpo.prompt import PHASE_SLATE
from fgrpo.rewards import f1, output_lists
from fgrpo.study.oracle import enumerate_outputs, small_pool

small = replace(config, grammar=GrammarConfig(slate_size=3, rank_size=1))
drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))[:8].tolist()
examples = [small_pool(test[i], size=5, relevant=1) for i in drawn]
oracles = [enumerate_outputs(policy, e, small) for e in examples]
pays, lengths = [], []
for oracle, e in zip(oracles, examples, strict=True):
    slates, _ = output_lists(oracle.rollouts)  # (1, B, n)
    recall, rank = oracle.rewards.slate[0].double(), oracle.rewards.rank[0].double()
    pays.append({"recall": recall, "F1": f1(slates, pool_gains([e]).unsqueeze(1))[0].double(), "rank": rank})
    lengths.append((slates[0] >= 0).sum(1))
rows = ["| slate length | probability | recall | F1 | rank reward |", "|---" * 5 + "|"]
for n in (1, 2, 3):
    some = [o.probability * (x == n) for o, x in zip(oracles, lengths, strict=True)]
    mean = [sum(float(p @ pay[k] / p.sum()) for p, pay in zip(some, pays, strict=True)) / 8 for k in pays[0]]
    rows.append(f"| {n} | {sum(float(p.sum()) for p in some) / 8:.3f} | " + " | ".join(f"{x:.3f}" for x in mean) + " |")
Markdown(f"{len(oracles[0].probability)} outputs for each of {len(examples)} queries.\n\n" + "\n".join(rows))

# %% [markdown]
# A *perfect* ranking would have reward 1 whenever the slate holds the candidate: its rank reward would be the recall
# column. The last column is what the rankings of this policy earn: *less*, the longer the slate.
#
# Second: a small step of the slate tokens along the expected update of a method changes the expected slate length. By how
# much? To first order that is the inner product of the update with the gradient of E[length]. It is given in percent of
# the change under recall with `fgrpo`; a minus sign means shorter slates.

# %%
ADDED = {"fgrpo": None, "grpo": "rank", "grpo, perfect ranking": "recall"}  # what is added to the slate reward
pull = {(reward, method): 0.0 for reward in ("recall", "F1") for method in ADDED}
for reward, method in pull:
    for oracle, pay, n in zip(oracles, pays, lengths, strict=True):
        paid = pay[reward] + (pay[ADDED[method]] if ADDED[method] else 0)
        step, longer = (oracle.gradient(x) * (oracle.phase == PHASE_SLATE) for x in (paid, n.double()))
        pull[reward, method] += float(oracle.dot(step, longer))
base = pull["recall", "fgrpo"]
rows = [f"| slate reward | {' | '.join(ADDED)} |", "|---" * 4 + "|"]
rows += [f"| {r} | " + " | ".join(f"{pull[r, m] / base:+.0%}" for m in ADDED) + " |" for r in ("recall", "F1")]
left, this, best = (pull["F1", m] / base for m in ADDED)
Markdown(
    "\n".join(rows) + f"\n\nWith F1, the push on the slate's length is {left:+.0%} of that with recall. Joint credit "
    f"adds {this - left:+.0%} with the rankings of *this* policy, and would add {best - left:+.0%} with perfect ones."
)

# %% [markdown]
# Read the second row. Under F1, `fgrpo` pushes towards *shorter* slates, however good the ranking is: that is the trap.
# Would joint credit have saved us? Only with a ranking that makes use of longer slates. Those of this policy get worse
# with every candidate more, so joint credit makes the slates shorter still.
#
# ## Answer
#
# - Count fates before you change anything: slate misses ask for a better slate phase or longer slates, rank drops for a
#   better ranker. After RL on this task nearly all that is lost is lost by the ranking.
# - A phase with its own reward does what *that* reward says. Factorised credit needs a slate reward that is right on its
#   own; joint credit softens a wrong one, as far as the ranking makes use of what the slate gives it.
# - `shapley` credit avoids this trap where labels of single items are known: it pays each item its mean contribution over
#   all orders in which the slate could have been built.
#
# **Next:** [your own credit method](09_your_method.ipynb), if you have not written it yet.
