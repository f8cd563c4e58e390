# ---
# jupyter:
#   fgrpo: {budget: 35}
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
from IPython.display import Image, Markdown

from fgrpo.study.plots import save
from notebooks.recorded import as_table, pick, read_table, source

# %% [markdown]
# ## A positive control
#
# A **positive control** is an experiment whose result is known beforehand. Ours changes the task in two ways: only the
# rank tokens learn, and a random number (standard deviation 1) is added to the slate's reward of every rollout.
#
# - `grpo` pays the rank tokens for slate reward + rank reward, so for noise. It **must fall**, or at least end below
#   `fgrpo`.
# - `fgrpo` pays them for the rank reward alone and does not know the noise. It **must not fall**.
#
# Both lists are always filled, so that nobody gains by writing longer ones. Each method is trained with three **seeds**
# (the number that determines all random draws: queries and sampled tokens), each from a warm start of its own. Every
# trained policy answers 2,048 queries of the *test split*, which no run has seen, with **greedy decoding**: always the
# most likely token.

# %%
made, control = read_table("control")
rows = []
for r in control:
    rows.append([r["method"], f"{r['start']:.3f}", f"{r['gain']:+.3f}", f"{r['low']:+.3f} to {r['high']:+.3f}"])
table = as_table(["", "NDCG@5 before", "change", "95 % interval"], rows)
holds = "holds" if all(r["holds"] == "True" for r in control) else "fails: no comparison below can be trusted"
Markdown(f"{table}\n\n{made['config']['rl']['steps']} steps; {source(made, control)} **The control {holds}.**")

# %% [markdown]
# The **95 % interval** of a change: repeat the experiment many times, and 95 of 100 such intervals hold the true change.
# The last row is *paired*: both methods have the same seeds, warm starts and queries, so that what is common to both
# cancels out.
#
# The thermometer works: where credit must matter, training shows it. That `fgrpo` *gains* is not shown (its interval
# contains 0): some of the warm starts rank well already. That it ends above `grpo` is. (`python -m fgrpo compare
# --control` runs it again, in about four minutes.)
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
# ## Predict the first two
#
# We can predict all three from a warm start alone, without training. Draw a batch of rollouts, make a step of length 1
# along its gradient, and ask by how much the expected rank reward grows, relative to the best step of that length. The
# next cell does this for 24 batches, in about 20 seconds, and puts beside it what training measured.

# %%
from fgrpo.runs.fields import config_with
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.ladder import METHODS, RUNGS, ladder_experiments, predict
from fgrpo.tasks import load_task

FIRST, SECOND, THIRD = RUNGS
config = config_with()
own = ladder_experiments(config)[THIRD]["grpo"]
predicted = predict(policy_folder(SHIPPED), load_task(config)[0].train, own, batches=24, seed=SEED)
made, ladder = read_table("control-ladder")


def rung(name):
    """Rows of a table: what is predicted for one rung here, and what training measured (recorded)."""
    rows = []
    for method in METHODS:
        (r,) = pick(ladder, rung=name, method=method)
        gain, low, high = predicted[name][method].gain("lists")
        up = f"{predicted[name][method].raises('lists')[0]:.0%}"
        seen = f"{r['gain']:+.3f} [{r['low']:+.3f}, {r['high']:+.3f}]"
        rows.append([name, method, up, f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]", seen])
    return rows


# %%
HEADS = ["rung", "method", "steps that raise the rank reward", "predicted gain of a step", "measured: change of NDCG@5"]
apart = {r["rung"]: r for r in pick(ladder, method="fgrpo minus grpo")}
found = "; ".join(
    f"{n} {apart[n]['gain']:+.3f} [{apart[n]['low']:+.3f}, {apart[n]['high']:+.3f}]" for n in (FIRST, SECOND)
)
Markdown(
    f"{as_table(HEADS, rung(FIRST) + rung(SECOND))}\n\nMeasured, fgrpo minus grpo: {found}.\n\n"
    f"Predicted here: one warm start, 24 batches. Measured: {source(made, ladder)}"
)

# %% [markdown]
# Under `fgrpo` every step points the right way, under `grpo` about two of three do, not much better than a coin. (So a
# step of `grpo` still raises the reward a little on average, and yet it falls over 120 steps: what noise does to the
# weights adds up, and a prediction of one step does not see it.) With separate weights nearly the same is predicted as for
# the ranker alone, because its gradient is the same. Measured is less than half of it; with both models moving the runs
# vary more, and the interval reaches 0.
#
# ## The leak table
#
# In shared weights something new happens: a step of the *slate* tokens moves the ranker too. How much of the predicted
# gain comes from that **leak**? It is what slate tokens add to the ranking of unchanged slates. Look at its mean, at how
# much it varies from batch to batch (SD), and at the gain that is left of a step.

# %%
rows = []
for method in METHODS:
    shared, before = (predicted[name][method] for name in (THIRD, SECOND))
    gains = [f"{x.gain('ranker')[0]:+.3f}" for x in (before, shared)]
    rows.append([method, *gains, f"{float(shared.leak.mean()):+.3f}", f"{float(shared.leak.std()):.3f}"])
heads = [
    "gain of a step, for the slates as they are",
    "separate weights",
    "shared weights",
    "of this, the leak",
    "SD of the leak",
]
Markdown(as_table(heads, rows))

# %% [markdown]
# ## Your prediction
#
# Before you run on: how large is `fgrpo` minus `grpo` on the third rung, in NDCG@5 after 120 steps? And would three seeds
# see it? Write a number.

# %%
GUESS = None  # NDCG@5, fgrpo minus grpo, shared weights: for example 0.03

# %% [markdown]
# ## The figure to keep: the ladder, predicted and measured
#
# Left, what gradients of all three warm starts predicted (48 batches each); right, what training measured. Filled: the
# policy's own lists. Open: its rankings of slates that are the same for all. Intervals (95 %) are over batches on the
# left, and over seeds, warm starts and queries on the right.

# %%
from fgrpo.study.plots import ladder as draw_ladder

Image(save(draw_ladder(ladder), FIGURES / "06_ladder.png"), width=850, alt="Own minus joint credit on three rungs")

# %%
third, yours = apart[THIRD], "" if GUESS is None else f" Your guess: {GUESS:+.3f}."
rows = [[name, f"{r['gain']:+.3f}", f"{r['p_holm']:.3f}", f"{r['detectable']:.3f}"] for name, r in apart.items()]
tests = as_table(["measured, fgrpo minus grpo", "NDCG@5", "p (Holm, 3 rungs)", "detectable"], rows)
Markdown(
    f"{as_table(HEADS, rung(THIRD))}\n\n"
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
# noise, and what the rank tokens want is crowded out: under `fgrpo` the gain of a step falls to about a third. `fgrpo`
# keeps the slate's reward out of the *credit* of the rank tokens, but no credit method can keep the slate's gradient out
# of the *weights*.

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
