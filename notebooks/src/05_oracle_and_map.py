# ---
# jupyter:
#   fgrpo: {budget: 40}
# ---

# %% [markdown]
# # 5. The oracle and the map (lab)
#
# **What should each credit method do, before anything is trained?**
#
# An experiment that was not predicted can always be explained afterwards. So before we train, we ask the gradients: which
# method points in the right direction, and which one knows its direction from few rollouts? First exactly, where every
# output can be listed (the *oracle*). Then on the real task (the *map*). At the end you write down your own prediction,
# and [notebook 7](07_full_task.ipynb) compares it with what was measured.

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
from notebooks.recorded import as_table, pick, promises, read_table, source, write_prediction

# %% [markdown]
# ## The oracle: listing every output
#
# With a pool of 4 candidates, slates of at most 2 and rankings of at most 2 there are so few outputs that we can **list
# all of them**, with their exact probabilities and rewards. The expected reward is then a sum, E[R] = sum of probability x
# reward, and so is its gradient, the **true gradient**. A training step sees only one group of rollouts and computes an
# **estimate** of it, which can be wrong in two ways:
#
# - **bias**: the mean of the estimate over all possible groups does not have the direction of the true gradient. We
#   measure the angle between the two. More rollouts do not reduce it.
# - **variance**: single estimates differ from their mean. More rollouts reduce it, at a cost. The **signal-to-noise**
#   ratio is the length of the mean estimate along the true gradient, divided by the standard deviation of the estimate.

# %% [markdown]
# Six methods take part. Three you know: `grpo` gives all tokens the advantage of slate reward + lambda x rank reward,
# `fgrpo` gives each phase the advantage of its own reward, and `reward_to_go` you will write in a moment. Three are new:
#
# - `gdpo` divides each reward by its standard deviation in the group before it adds them, so that no reward drowns the
#   other;
# - `nested` draws several rankings of the *same* slate, and compares a ranking only with those;
# - `item` pays every item for its own contribution to the rewards. To do so it has to know which items are relevant; all
#   other methods see two numbers for each rollout.

# %%
from fgrpo.config import Config, GrammarConfig
from fgrpo.credit import with_credit
from fgrpo.runs.policies import load_policy
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.analysis import mean_of, oracle_table
from fgrpo.study.oracle import enumerate_outputs, small_pool
from fgrpo.tasks.lab import lab_task

tiny = replace(Config(seed=SEED), grammar=GrammarConfig(slate_size=2, rank_size=2))
test = lab_task().test
drawn = torch.randperm(len(test), generator=torch.Generator().manual_seed(SEED))[:6].tolist()
pools = [small_pool(test[i], 4) for i in drawn if len(test[i].relevant) > 1]
oracles = [enumerate_outputs(load_policy(SHIPPED), pool, tiny) for pool in pools]
methods = {m: with_credit(tiny.rl, m) for m in ("grpo", "gdpo", "fgrpo", "reward_to_go", "nested", "item")}

# %%
rows = []
for own in zip(*[oracle_table([o], methods, [3, 4], exact=True) for o in oracles], strict=True):  # nested: 2 x 2
    mean = mean_of([{n: r[n] for n in ("angle_slate", "angle_rank", "angle", "signal_1k")} for r in own])
    angles = [f"{mean[n]:.1f}°" for n in ("angle_slate", "angle_rank", "angle")]
    rows.append([name_of(own[0]["method"]), str(own[0]["group"]), *angles, f"{mean['signal_1k']:.2f}"])
heads = ["method", "rollouts", "angle: slate tokens", "rank tokens", "all", "signal-to-noise per 1,000 tokens"]
table = as_table(heads, rows)
Markdown(f"{len(oracles[0].probability)} outputs; means over {len(oracles)} queries; all groups listed.\n\n{table}")

# %% [markdown]
# Angles of up to half a degree are rounding, where a gradient is tiny. So `grpo`, `reward_to_go` and `nested` are
# **unbiased** for the joint objective. `fgrpo` is not: its slate tokens never learn what the ranking could have made of
# their slate. In exchange it has less noise than `grpo`. `item` has most signal and most bias.
#
# ## Without bias: reward to go
#
# The slate tokens come *before* the rank reward: they decide which rank reward is still possible. The rank tokens come
# after the slate and cannot change its reward; for them it is only noise. So we give every token all rewards that come
# **after** it, its *reward to go*.
#
# ```text
# slate tokens of rollout (q, g):        advantage of slate[q, g] + lam * rank[q, g]
# rank tokens of rollout (q, g):   lam * advantage of rank[q, g]
# ```


# %% exercise="my_reward_to_go" difficulty=2 minutes=8
def my_reward_to_go(
    slate: torch.Tensor, rank: torch.Tensor, lam: float, in_slate: torch.Tensor, in_rank: torch.Tensor
) -> torch.Tensor:
    """One advantage per token. slate, rank (Q, G); in_slate, in_rank (B, T) bool, row q * G + g -> (B, T)."""
    # solution
    joint, own = slate + lam * rank, lam * rank
    a_joint, a_own = ((x - x.mean(dim=1, keepdim=True)).reshape(-1, 1) for x in (joint, own))
    return a_joint * in_slate + a_own * in_rank


# %% [markdown] hints="my_reward_to_go"
# Which of the two rewards can a slate token still change? And which can a rank token still change, when the slate has been
# written?
#
# Two numbers per rollout: `slate + lam * rank` for its slate tokens and `lam * rank` for its rank tokens. Subtract from
# each its own group mean (`mean(dim=1, keepdim=True)`), make it a column with `reshape(-1, 1)`, multiply it by its mask,
# and add the two.

# %%
print(checks.reward_to_go(my_reward_to_go))

# %% [markdown]
# ## Bias depends on lambda
#
# The larger lambda, the weight of the rank reward, the larger the part of the objective that the slate tokens of `fgrpo`
# do not get. Below lambda is 4; change `LAM` and run the cell again. A credit method is one function with a name: when
# yours is right, the table shows it as `yours`. (Look at the last angle too: if one phase has the right
# direction but the wrong length, each phase alone looks right, and the two together do not.)

# %%
from fgrpo.prompt import PHASE_RANK, PHASE_SLATE
from fgrpo.runs.own import name_of

LAM = 4.0
tried = ["grpo", "fgrpo", "reward_to_go"]
if checks.reward_to_go.solved(my_reward_to_go):

    def yours(rewards, rollouts, rl):
        phases = (rollouts.phase == phase for phase in (PHASE_SLATE, PHASE_RANK))
        return my_reward_to_go(rewards.slate, rewards.rank, rl.lam, *phases)

    tried.append(name_of("credit", yours))
rows = []
weighted = {m: with_credit(replace(tiny.rl, lam=LAM), m) for m in tried}
for row in oracle_table(oracles, weighted, [2], exact=True):
    angles = [f"{row[name]:.1f}°" for name in ("angle_slate", "angle_rank", "angle")]
    rows.append([row["method"], *angles, "biased" if row["angle"] > 0.5 else "unbiased"])
Markdown(as_table(["method", "angle: slate tokens", "rank tokens", "all", ""], rows))

# %% [markdown]
# ## How often is a sign wrong?
#
# Bias is an average over all groups. A training step has one. How often does a slate or a ranking get the *opposite* sign
# of its true advantage ([notebook 3](03_advantages.ipynb))? In pools of 5 all outputs can be listed, so that it can be
# counted.

# %%
made, signs = read_table("signs")
rows = []
for method in methods:
    found = [pick(signs, method=method, phase=phase)[0] for phase in ("slate", "rank")]
    words = (f"{r['wrong']:.0%} [{r['wrong_low']:.0%}, {r['wrong_high']:.0%}]; {r['silent']:.0%} get 0" for r in found)
    rows.append([method, *words])
table = as_table(["method", "slates, wrong sign", "rankings, wrong sign"], rows)
Markdown(f"{table}\n\n{signs[0]['queries']} queries, groups of {signs[0]['group']}; {source(made)}")

# %% [markdown]
# No method is always right: eight rollouts are a small sample. Joint credit is wrong about a ranking more often than its
# own reward is, because it pays the ranking for the slate's luck. Own credit is wrong about rankings as well, because
# these are compared across different slates; `nested` compares them within one slate and often has no difference to
# compare. `item` is wrong about a *whole* ranking most often: it pays ranks one by one.
#
# ## From four candidates to twenty: the map
#
# On the real task nothing can be listed, but much can be sampled. For a policy and a regime, hundreds of groups are drawn,
# and every method estimates the gradient from the same groups. With m its mean estimate, v its variance and t the true
# direction, its **sample efficiency** is (m t)² / v, divided by that of `grpo`. 2 means: half the rollouts carry as much
# signal. Bias counts against a method too, since it makes m t smaller.

# %% [markdown]
# ## The figure to keep: what gradients promise
#
# Filled markers: the 95 % interval excludes 1. The regimes in bold were trained later ([notebook 7](07_full_task.ipynb)).

# %%
made, map_rows = read_table("map")
figure = promises(map_rows)
Image(save(figure, FIGURES / "05_map.png"), width=850, alt="Sample efficiency of fgrpo and reward_to_go by regime")

# %%
whole = pick(map_rows, part="whole", method="fgrpo")
clear = [r for r in whole if r["efficiency_low"] > 1]
bias = {lam: [r["angle"] for r in clear if r["lam"] == lam] for lam in (0.25, 1.0, 4.0)}
noisy = [
    pick(map_rows, part="whole", cell=f"{phase}-noise", method="gdpo")[0]["efficiency"] for phase in ("slate", "rank")
]
items = [r["efficiency"] for r in pick(map_rows, part="whole", method="item") if r["efficiency_low"] > 0]
Markdown(
    f"- fgrpo is predicted to pay in {len(clear)} of {len(whole)} regimes, by a factor of "
    f"{min(r['efficiency'] for r in clear):.1f} to {max(r['efficiency'] for r in clear):.1f}.\n"
    f"- Its bias there: {'; '.join(f'up to {max(x):.0f}° at lambda {lam:g}' for lam, x in bias.items())}.\n"
    f"- gdpo, with noise on the slate or the rank reward: {noisy[0]:.1f} and {noisy[1]:.1f}; elsewhere about 1.\n"
    f"- item, which reads labels of single items: {min(items):.1f} to {max(items):.1f}.\n\n"
    f"{min(r['groups'] for r in whole)} to {max(r['groups'] for r in whole)} groups of 8 rollouts, policies of one seed; "
    f"{source(made)}"
)  # fmt: skip

# %% [markdown]
# **Where fgrpo should pay:** where many candidates compete (pools of 50 and 100), with the usual and the strong warm
# start, and with one relevant film. At a small lambda `reward_to_go` gains nearly as much: the gain is the ranker's, which
# no longer pays for the slate's luck. At a large lambda it is the slate's.
#
# **Where not:** with slates of 5 (or hardly), and with noise on the slate reward (open markers). There `fgrpo` keeps the
# noise from the rank tokens, but the slate tokens keep it, and in shared weights their noise moves everything ([notebook
# 6](06_control_and_ladder.ipynb)).
#
# The map speaks about the *first* steps: it measures gradients of policies that have not moved yet. And a factor of 2 in
# rollouts is not a factor of 2 in reward: where training converges, a faster method and a slower one end at the same
# level.
#
# ## Your prediction
#
# The six bold regimes were trained for 200 steps with `grpo` and with `fgrpo`, ten seeds each. Is `fgrpo` **higher**,
# **lower** or the **same** (a difference in NDCG@5 below 0.01 that no one would notice)? Write one of the three words for
# each regime.

# %%
PREDICTION = {  # "higher", "same" or "lower" instead of None
    "one": None,  # one relevant film (the paper's setting), lambda 1
    "one lam=4": None,  # the same, lambda 4
    "warm lam=4": None,  # usual warm start, lambda 4
    "cold lam=4": None,  # weak warm start, lambda 4
    "pool50": None,  # pool of 50, lambda 1
    "slate noise": None,  # noise on the slate reward, lambda 1
}

# %%
Markdown(write_prediction(PREDICTION, FIGURES / "prediction.json"))

# %% [markdown]
# ## Answer
#
# - **Joint credit** (`grpo`) is right on average, but noisy: in a single group it praises and blames each phase for what
#   the other one did.
# - **Factorised credit** (`fgrpo`) avoids much of this noise and pays with a bias, which grows with lambda. The map
#   promises about half again to two and a half times the signal per rollout in most regimes, and names those where it does
#   not.
# - **Reward to go** is unbiased and removes only the noise that causality allows to remove.
#
# These are promises. **Next:** [the control and the ladder](06_control_and_ladder.ipynb): could an experiment see an
# effect of credit, if there was one?
