# ---
# jupyter:
#   fgrpo: {budget: 100}
# ---

# %% [markdown]
# # 9. Your own credit method in ten minutes
#
# **Is my idea about credit any good, and how would I know?**
#
# A credit method is one function: it gets the two rewards of every rollout and returns one number for every token. This
# notebook takes an idea through the same steps as the course, cheapest first: look at it on four rollouts, ask the
# oracle, train 30 steps, compare with confidence intervals. Change the function and run everything again.

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

# %% [markdown]
# ## 1. Write it
#
# The idea: `fgrpo` pays the slate for its own reward alone. `reward_to_go` pays it also for the rank reward, since a slate
# decides what the ranking can do. The first has less noise, the second no bias. Why not something in between? `SHARE` = 0 is
# `fgrpo`, `SHARE` = 1 is `reward_to_go`.
#
# What the function is given, for Q queries with G rollouts each, B = Q x G rollouts of at most T tokens:
#
# - `rewards.slate` and `rewards.rank`, (Q, G) each;
# - `rollouts`: their tokens, phases and lists; `config`: the options, such as `lam`, the weight of the rank reward.
#
# `fgrpo.advantage` subtracts the mean of each group; `fgrpo.by_phase` gives the tokens of a phase the number of that phase.

# %%
import fgrpo

SHARE = 0.5


def my_credit(rewards, rollouts, config):
    slate = fgrpo.advantage(rewards.slate + SHARE * config.lam * rewards.rank, config)  # (Q, G)
    rank = fgrpo.advantage(config.lam * rewards.rank, config)  # (Q, G)
    return fgrpo.by_phase(slate, rank, rollouts)  # (B, T)


# %% [markdown]
# ## 2. Look at it on four rollouts
#
# `fgrpo.lab()` opens the course's task with its warm start. `full=True` makes every rollout fill both lists, so that
# training cannot gain by writing longer ones (notebook 7).

# %%
lab = fgrpo.lab(seed=SEED, full=True, slate_size=10)
lab

# %%
group = lab.group(query=13, rollouts=4)
group.credit("fgrpo", my_credit, "reward_to_go").plot()

# %% [markdown]
# Read one row from top to bottom. The amber part (ranking) is the same in all three panels: they differ in the slate alone.
# In one rollout `fgrpo` praises the slate and `reward_to_go` blames it: the slate holds more relevant films than the average
# of its group, but the ranking made less of them. Which of the two is right? And what does your method say there?
#
# ## 3. Ask the oracle
#
# Where all outputs can be listed, the true gradient is known (notebook 5). Predict first: will the angle of `my_credit` be
# half of that of `fgrpo`? Will its signal-to-noise be between the two?

# %%
lab.oracle("grpo", "fgrpo", my_credit, "reward_to_go")

# %% [markdown]
# `angle` is the bias: the mean estimate of many groups against the true gradient, in degrees, known to `angle_error`.
# `signal` says how well one group knows the direction: an estimate with bias can still be the better one if its signal is
# higher. The oracle says nothing about shared weights or about a real pool; the map of notebook 5 does.
#
# ## 4. Train 30 steps
#
# If this fails, or the rewards fall, nothing below is worth its time.

# %%
run = lab.train(my_credit, steps=30)
run

# %% [markdown]
# The curves are *sampled* rewards of changing training queries: noisy, and no comparison. To compare, both methods need the
# same warm start, the same queries and several seeds, and both are measured by greedy decoding on the same held-out queries.
#
# ## 5. Compare
#
# Write down your prediction: which method will be higher, and by how much? The table is measured on the *validation*
# queries, since you will use it to change your method. The test queries are for the end (`split="test"`), once.

# %%
table = lab.compare(["grpo", "fgrpo", my_credit], seeds=5, steps=30)
table

# %%
table.plot()

# %% [markdown]
# Read the table in this order:
#
# 1. **Does RL learn here?** If a method does not beat `sft_full`, the warm start with full lists, its difference to another
#    method is withheld.
# 2. **`detectable`**: the true difference that this experiment would find with a probability of 80 %. If your idea can only
#    be worth 0.002, five seeds and 30 steps cannot show it, whatever the verdict.
# 3. **The verdict.** "Undecided" does not mean equal. "No difference larger than 0.01" does, up to 0.01.
#
# All seeds start from one warm start, so the intervals speak about this warm start alone. A claim needs several
# (`starts=3`, a few minutes each) and a plan written before the runs: `data/results/PLAN.md` is an example.

# %% [markdown]
# ## Try
#
# 1. **Blame only.** Let rank tokens learn from negative advantages alone: `rank.clamp(max=0)`. What does the oracle say
#    about its bias? (A baseline costs nothing, a clamp does.)
# 2. **Patience.** Multiply the slate's advantage by the share of the group whose slates are all different from each other.
#    Does it help where slates are nearly all the same?
# 3. **A judge you do not trust.** Open the lab with `slate_noise=1.0`, which adds noise to the slate reward in training. For
#    which methods does the difference to `grpo` grow? Notebook 6 has the explanation.
# 4. **Another objective.** Rewards are functions as well:
#
# ```python
# def first_is_relevant(items, gains, k):  # lists of pool indices (..., k), gains (..., N) -> one number per list
#     return fgrpo.rewards.hit(items, gains, 1)
#
# lab.train(my_credit, rank_reward=first_is_relevant, steps=30)
# ```
#
# When your method has earned it, put it into `fgrpo/credit.py` and its name into `CREDITS`: then `compare`, `analyse --map`
# and the app know it too.
