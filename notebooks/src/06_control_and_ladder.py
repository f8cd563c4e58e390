# ---
# jupyter:
#   fgrpo: {budget: 75}
# ---

# %% [markdown]
# # 6. The control and the ladder
#
# **If credit matters, can an experiment see it?**
#
# A thermometer that always shows 20 degrees cannot compare two rooms. Before we read any comparison of credit methods, we
# put the thermometer into hot water: a task on which credit *must* matter. Then we walk back from that task to the full
# one in three steps, and predict at each what will be left of the effect.

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
import shutil

import torch
from IPython.display import Image, Markdown

from fgrpo.study.plots import save
from notebooks.recorded import as_table, pick, read_table, source

# %% [markdown]
# ## A positive control
#
# A **positive control** is an experiment whose result is known beforehand. Ours changes the task in two ways: only the
# rank tokens learn, and a random number (standard deviation 1) is added to the slate's reward of every rollout.
#
# - `grpo` pays the rank tokens for slate reward + rank reward, so for noise. They **must** end below those of `fgrpo`.
# - `fgrpo` pays them for the rank reward alone and does not know the noise. They **must** learn, or at least not get
#   worse.
#
# Both lists are always filled, so that nobody gains by writing longer ones. The next cell runs a small version: three
# **seeds** (the number that determines all random draws: queries and sampled tokens) of each method, on two cores in about
# a minute. Each trained policy answers 512 queries of the *test split*, which no run has seen, with **greedy decoding**:
# always the most likely token.

# %%
from fgrpo.runs.fields import config_with, with_fields
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.compare import compare
from fgrpo.study.control import control_experiments, control_found
from fgrpo.tasks import load_task

SEEDS, STEPS = 3, 60
config = config_with()
splits, items = load_task(config)
drawn = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(SEED))[:512].tolist()
splits = splits._replace(test=[splits.test[i] for i in drawn])
runs = {"": {m: with_fields(own, steps=STEPS) for m, own in control_experiments(config)[""].items()}}
folder = FIGURES / "06_control"
shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run of this cell
results = compare(
    runs, SEEDS, folder, lambda config: (splits, items), {}, policy_folder(SHIPPED), jobs=min(2, os.cpu_count() or 1),
    quiet=True, sft_more=False,
)  # fmt: skip

# %%
found = control_found(results, [0] * SEEDS)
parts = {
    "grpo": (found.joint, "below fgrpo"),
    "fgrpo": (found.own, "above 0"),
    "fgrpo minus grpo": (found.apart, "above 0"),
}
rows = []
for name, (change, must) in parts.items():
    low, high = change.interval()
    rows.append([name, f"{found.start:.3f}", f"{change.mean:+.3f}", f"{low:+.3f} to {high:+.3f}", must])
table = as_table(["", "NDCG@5 before", "change", "95 % interval", "must be"], rows)
Markdown(f"{table}\n\nComputed here: {STEPS} steps, {SEEDS} seeds, one warm start, {len(splits.test)} test queries.")

# %% [markdown]
# The **95 % interval** of a change: repeat the experiment many times, and 95 of 100 such intervals hold the true change.
# The last row is *paired*: both methods have the same seeds and queries, so that what is common to both cancels out.
#
# The recorded control has twice the steps, four times the queries and three warm starts instead of one. Its intervals
# speak about warm starts in general, ours about this one.

# %%
made, control = read_table("control")
rows = []
for r in control:
    rows.append([r["method"], f"{r['start']:.3f}", f"{r['gain']:+.3f}", f"{r['low']:+.3f} to {r['high']:+.3f}"])
table = as_table(["", "NDCG@5 before", "change", "95 % interval"], rows)
holds = "holds" if all(r["holds"] == "True" for r in control) else "fails: no comparison below can be trusted"
Markdown(f"{table}\n\n{made['config']['rl']['steps']} steps; {source(made, control)} **The control {holds}.**")

# %% [markdown]
# The thermometer works: where credit must matter, training shows it. That `fgrpo` *gains* is not shown over three warm
# starts (its interval contains 0): some of them rank well already. That it ends above `grpo` is.
#
# ## From the control to the full task: a ladder of three
#
# In the full task slate tokens learn too, in the same weights. Does the effect survive that? One change at a time:
#
# 1. **ranker alone**: the control;
# 2. **separate weights**: both phases learn, each with a model of its own. Slates change, but no step of one phase moves
#    the weights of the other;
# 3. **shared weights**: both phases learn in one model, as in the full task. The noise of the slate reward is now in the
#    gradient of all weights.
#
# For each rung we have a **prediction** from the warm starts alone: take a batch of rollouts, make a step of length 1
# along its gradient, and ask how much E[rank reward] grows, relative to the best step of that length. Here are the first
# two.

# %%
made, ladder = read_table("control-ladder")
FIRST, SECOND, THIRD = dict.fromkeys(r["rung"] for r in ladder)


def rung(name, measured):
    """Rows of a table: what is predicted for one rung, and what training measured."""
    rows = []
    for r in pick(ladder, rung=name):
        up = f"{r['raises']:.0%}" if r["raises"] != "" else ""
        seen = f"{r['gain']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]" if measured else "?"
        predicted = f"{r['predicted']:+.2f} [{r['predicted_low']:+.2f}, {r['predicted_high']:+.2f}]"
        rows.append([name, r["method"], up, predicted, seen])
    return rows


HEADS = ["rung", "method", "steps that raise E[rank reward]", "predicted gain of a step", "measured change of NDCG@5"]
Markdown(f"{as_table(HEADS, [*rung(FIRST, True), *rung(SECOND, True)])}\n\n{source(made, ladder)}")

# %% [markdown]
# With separate weights the same is predicted as for the ranker alone, nearly: its gradient is the same. Measured is about
# half, and with both models moving the runs vary more, so that the interval reaches 0.
#
# ## The leak table
#
# In shared weights something new happens: a step of the *slate* tokens moves the ranker too. How much of the predicted
# gain comes from that **leak**? It is the part of a step that slate tokens contribute to the ranking of unchanged slates.
# Look at its mean, and at how much it varies from batch to batch (SD), next to what the rank tokens themselves bring.

# %%
rows = [
    [r["method"], f"{r['predicted_ranker']:+.3f}", f"{r['leak']:+.3f}", f"{r['leak_sd']:.3f}"]
    for r in pick(ladder, rung=THIRD)[:2]
]
heads = [
    "shared weights",
    "gain of a step, for the slates as they are",
    "of this, the leak of slate tokens",
    "its SD over batches",
]
before = ", ".join(f"{r['method']} {r['predicted_ranker']:+.3f}" for r in pick(ladder, rung=SECOND)[:2])
Markdown(f"{as_table(heads, rows)}\n\nThe same gain of a step with separate weights: {before}.")

# %% [markdown]
# ## Your prediction
#
# Before you run on: how large is `fgrpo` minus `grpo` on the third rung, in NDCG@5 after 120 steps? (First rung: about
# 0.05, second: about 0.02.) And would three seeds see it? Write a number.

# %%
GUESS = None  # NDCG@5, fgrpo minus grpo, shared weights: for example 0.03

# %% [markdown]
# ## The figure to keep: the ladder, predicted and measured
#
# Left, what gradients of the warm starts predicted; right, what training measured. Filled: the policy's own lists. Open:
# its rankings of slates that are the same for all. Intervals (95 %) are over batches on the left, and over seeds, warm
# starts and queries on the right.

# %%
from fgrpo.study.plots import ladder as draw_ladder

Image(save(draw_ladder(ladder), FIGURES / "06_ladder.png"), width=850, alt="Own minus joint credit on three rungs")

# %%
last = {r["rung"]: r for r in pick(ladder, method="fgrpo minus grpo")}
third, yours = last[THIRD], "" if GUESS is None else f" Your guess: {GUESS:+.3f}."
rows = [[name, f"{r['gain']:+.3f}", f"{r['p_holm']:.3f}", f"{r['detectable']:.3f}"] for name, r in last.items()]
tests = as_table(["rung", "fgrpo minus grpo", "p (Holm, 3 rungs)", "detectable"], rows)
Markdown(
    f"{as_table(HEADS, rung(THIRD, True))}\n\n"
    f"Third rung: {third['gain']:+.3f} [{third['low']:+.3f}, {third['high']:+.3f}].{yours}\n\n{tests}"
)

# %% [markdown]
# The **p-value**: if there were no difference, how often would chance alone give one at least as large? **Holm's
# correction** raises the three so that the usual limit of 0.05 holds for all of them together. The last column is the
# **detectable** difference: one of this size is found with a probability of 80 %. It is the smallest line on the ruler.
#
# ## Why the effect drowns
#
# It is not the leak: what slate tokens teach the ranker is small beside its spread from batch to batch, and the same under
# both methods. It is the **common step**. The noise of the slate reward makes the slate's gradient long and random. With
# separate weights this spoils the slate's step alone. In shared weights a step has one length, most of it is spent on
# noise, and what the rank tokens want is crowded out: under `fgrpo` the gain of a step falls to a third. `fgrpo` keeps the
# slate's reward out of the *credit* of the rank tokens, but no credit method can keep the slate's gradient out of the
# *weights*.

# %% [markdown]
# ## Answer
#
# - **Would this experiment show an effect if there was one?** On the first rung yes, and it did: the difference is three
#   times as large as what could just be seen.
# - On the second rung the difference had to be 0.05 to be found, on the third 0.08. What was seen there (0.02 and 0.01)
#   agrees in order with the prediction, and with no effect at all. *Undecided* is the honest word for both.
# - So whoever compares credit methods in shared weights needs many seeds, several warm starts, and a task on which the map
#   ([notebook 5](05_oracle_and_map.ipynb)) promises something.
#
# **Next:** [the full task](07_full_task.ipynb), with ten seeds.
