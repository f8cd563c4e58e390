# ---
# jupyter:
#   fgrpo: {budget: 240}
# ---

# %% [markdown]
# # 5. Training
#
# **Is factorised credit better?**
#
# Rollouts, rewards, advantages, loss ([notebooks 1](01_one_rollout.ipynb) to [4](04_the_loss.ipynb)): that was one
# training step. Now we repeat the step with three credit methods and compare the results. First we run a small experiment
# here and learn how to read it. Then we read larger ones, whose tables are in `data/results/`: first whether they are able
# to answer the question, then what they answer.

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

from fgrpo.study.plots import name_of, save

# %% [markdown]
# ## A fair comparison
#
# Every run starts from the same warm start. Runs differ in two things:
#
# - the **method**: `grpo` (joint credit), `fgrpo` (each phase gets its own advantage) and `reward_to_go` (slate tokens get
#   the joint advantage, because they come before both rewards; rank tokens get the rank advantage, because they come after
#   the slate);
# - the **seed**, the number that determines all random draws: the training queries and the sampled tokens. The same method
#   with another seed gives another result. So every method runs with several seeds, and a method is better only if the
#   difference is larger than chance makes it. With the same seed, all methods see the same queries in the same order.
#
# The trained policies are then tested on queries of the *test split*, which no run has seen, with **greedy decoding**:
# always the most likely token, without randomness. The learning rate falls from step to step, to 0 at the end.

# %%
from fgrpo.runs.fields import config_with
from fgrpo.study.experiments import grid
from fgrpo.tasks import load_task

METHODS, SEEDS, STEPS = ("grpo", "fgrpo", "reward_to_go"), 3, 60

config = config_with(steps=STEPS)
splits, items = load_task(config)
drawn = torch.randperm(len(splits.test), generator=torch.Generator().manual_seed(SEED))[:512]
splits = splits._replace(test=[splits.test[i] for i in drawn.tolist()])
experiments = grid(config, METHODS)  # {"": {method: its config}}
Markdown(
    f"{len(METHODS)} methods x {SEEDS} seeds = {len(METHODS) * SEEDS} runs of {STEPS} steps; a step is "
    f"{config.rl.queries} queries x {config.rl.group} rollouts. Training queries come from an endless stream, so none is "
    f"used twice. {len(splits.test)} test queries."
)

# %% [markdown]
# ## Run it
#
# `compare` trains all runs and decodes the test queries. The runs do not depend on each other, so we use two processes. This
# cell takes one to two minutes on two cores. (`python -m fgrpo compare` does the same from the command line.)

# %%
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.compare import compare

folder = FIGURES / "05_training"
shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run of this cell
jobs = min(2, os.cpu_count() or 1)
results = compare(
    experiments, SEEDS, folder, lambda config: (splits, items), {}, policy_folder(SHIPPED), jobs, quiet=True
)
Markdown(f"Done: {sum(run.tokens for m in METHODS for run in results[''][m]):,} tokens sampled.")

# %% [markdown]
# ## The figure to keep: learning curves
#
# A **learning curve** shows a reward of the sampled rollouts against the training step. Lines are means over the seeds
# (and over a few steps, because single steps are noisy). The **band** spans from the lowest to the highest seed. Look at
# the bands first. Where they overlap, the lines of two methods differ no more than two runs of the same method.

# %%
from fgrpo.runs.run import read_metrics
from fgrpo.study.compare import run_folder
from fgrpo.study.plots import learning_curves

curves = {m: [read_metrics(run_folder(folder, "", m, s)) for s in range(SEEDS)] for m in METHODS}
Image(save(learning_curves(curves), FIGURES / "05_training.png"), width=950, alt="Rewards and slate length, by step")

# %% [markdown]
# ## Slate first, rank later?
#
# The paper reports an order: the slate is learned first and the ranking later, because a good ranking needs a good slate.
# We say that a phase has **settled** at the step where its reward has reached 90 % of its total gain. In runs as short as
# these, "total gain" means only the gain of these few steps. The recorded runs below are longer.

# %%
from fgrpo.study.report import settling


def settled(found):
    """A Markdown table of {method: settling steps}, and for how many methods the slate settled first."""
    rows = ["| method | slate settled at step | rank settled at step |", "|---" * 3 + "|"]
    for m, f in found.items():
        cells = (f"{f[p + '_step']:.0f} ({f[p + '_least']:.0f} to {f[p + '_most']:.0f})" for p in ("slate", "rank"))
        rows.append(f"| {name_of(m)} | {' | '.join(cells)} |")
    first = sum(f["slate_step"] < f["rank_step"] for f in found.values())
    every = sum(f["slate_most"] < f["rank_least"] for f in found.values())
    return "\n".join(rows) + (
        f"\n\nBy the median over seeds, the slate settles first for {first} of {len(found)} methods. For {every} of "
        f"{len(found)}, the slate of every seed settles before the ranking of any seed."
    )


Markdown(settled({m: settling(rows) for m, rows in curves.items()}))

# %% [markdown]
# ## Did they learn more than longer lists?
#
# The rewards went up, but part of the gain may have a simple reason. The warm start learned from lists of two to four films
# and stops early. A longer list finds more relevant candidates, whoever writes it. So we take the warm start **without any
# RL**, and let the grammar forbid it to stop before both lists are full ([notebook 1](01_one_rollout.ipynb)). The kit calls
# this row `sft_full` (SFT, *supervised fine-tuning*, is how the warm start was trained). A gain that `sft_full` has too
# needs no RL, only longer lists; a gain beyond `sft_full` was learned by RL.

# %%
from fgrpo.study.check import manipulation, not_learned
from fgrpo.study.report import table
from notebooks.recorded import by_length, differences, learned, pick

rows = table(results, withheld=not_learned(manipulation(results), "grpo"))
length = [sum(run[at]["slate_length"] for m in METHODS for run in curves[m]) / (SEEDS * len(METHODS)) for at in (0, -1)]
Markdown(
    f"Sampled slates had {length[0]:.1f} films at the first step and {length[1]:.1f} at the last.\n\n"
    + by_length(pick(rows, metric="ndcg@5"))
)

# %% [markdown]
# ## The manipulation check: does RL learn here?
#
# In an experiment, a **manipulation check** asks whether the treatment did anything at all. Two methods that both learned
# nothing also show no difference. So the kit first compares every trained method
#
# - with `sft_full`, the warm start with full lists: does RL teach anything beyond length?
# - with `sft_more`: from the same warm start, SFT goes on, on the same queries, for as much computation as RL used, and is
#   measured with full lists. SFT is shown the relevant films; RL only gets rewards for its own lists. Where such labels are
#   plentiful, SFT may well be the better tool. But it sees the same queries several times, which can also do harm
#   (`sft_once`: each query once).

# %%
found = {r["method"]: r["mean"] for r in pick(rows, metric="ndcg@5") if r["method"].startswith("sft_")}
Markdown(
    "\n".join(f"- {check.sentence}" for check in manipulation(results))
    + f"\n\nNDCG@5: {', '.join(f'{m} {x:.3f}' for m, x in found.items())}."
)

# %% [markdown]
# ## The difference between methods, and what is known about it
#
# With other seeds and other test queries, every difference would be another one. By how much is estimated from the seeds
# and queries that we have.
#
# - The **95 % interval** of a difference: repeat the experiment many times, and 95 of 100 such intervals hold the true
#   difference. It is *paired*: both methods have the same queries and seeds, so that what is common to both cancels out.
# - The **p-value**: if there were no difference, how often would chance alone give one at least as large as ours? The usual
#   limit is 0.05. But of twenty comparisons without any difference, about one falls below this limit by chance. **Holm's
#   correction** raises the p-values so that the limit holds for the whole table.
# - **Simultaneous intervals** do the same for intervals: they are wider, so that with a probability of 95 % *all* of a table
#   are right at once. The brackets in the next table are of this kind.
# - The **detectable** difference: a true difference of this size is found with a probability of 80 %. It says how good the
#   experiment is, like the smallest line on a ruler. If smaller differences matter, more seeds are needed.

# %% [markdown]
# The last column of the next table, the **verdict**, is one of these:
#
# - `higher` or `lower`: the p-value is below 0.05 after Holm's correction;
# - `no difference larger than 0.01`: the simultaneous interval is inside -0.01 to 0.01. This margin is fixed before the
#   runs; a smaller difference is taken as none;
# - `undecided`: neither of the two. The data agree with a difference and with none;
# - `withheld`: neither of the two methods is shown to beat `sft_full`, so a comparison of them says nothing about credit.
#
# With fewer than three seeds there is no verdict. All intervals here speak about *this* warm start; a claim about credit
# methods in general needs several warm starts, as in the recorded tables.

# %%
Markdown(differences([r for r in pick(rows, metric="ndcg@5") if r["seeds"]]))

# %% [markdown]
# How large are the differences between two runs of *one* method, and do the seeds agree on the order of the methods?

# %%
ends = {m: [float(r.metrics["ndcg@5"].mean()) for r in results[""][m]] for m in METHODS}
within = max(max(x) - min(x) for x in ends.values())
means = [sum(x) / SEEDS for x in ends.values()]
orders = [sorted(METHODS, key=lambda m, s=s: -ends[m][s]) for s in range(SEEDS)]
lines = [f"- seed {s}: " + ", ".join(f"{m} {ends[m][s]:.3f}" for m in order) for s, order in enumerate(orders)]
agree = "agree" if all(order == orders[0] for order in orders) else "disagree"
Markdown(
    "NDCG@5 on the test queries, best first:\n\n"
    + "\n".join(lines)
    + f"\n\nThe seeds {agree} on the order. Runs of one method differ by up to {within:.3f}, the means of the methods by "
    f"up to {max(means) - min(means):.3f}."
)

# %% [markdown]
# ## The recorded experiments: first the instrument
#
# A thermometer that always shows 20 degrees cannot compare two rooms. Before we read a comparison, we check the instrument.
# What would be compared, the margin, and what we expected were written down before the runs, in
# [PLAN.md](../data/results/PLAN.md).
#
# **1. Were its settings chosen fairly?** The warm start must leave something to learn, and its samples must differ, because
# a group with equal rewards teaches nothing. The learning rate was chosen for each method, from a grid on the *validation
# split*, never on the test queries. [Notebook 7](07_ablations.ipynb) shows both choices.

# %%
from notebooks.recorded import rates_of, read_table

(made, lab), (_, kinds) = (read_table(name) for name in ("lab", "demonstrations"))
recipe = [row for name in ("recipe", "recipe-fgrpo") for row in read_table(name)[1]]
rl, sft = made["config"]["rl"], made["config"]["sft"]
(begin,) = pick(kinds, demonstrations=sft["demonstrations"], steps=sft["sft_steps"])
rates = rates_of(made)
best = {m: max(pick(recipe, metric="ndcg@5", method=m), key=lambda r: r["mean"])["setting"] for m in rates}
Markdown(
    f"- Warm start: {sft['sft_steps']:,} steps of {sft['sft_batch']} demonstrations ({sft['demonstrations']}). NDCG@5 on "
    f"the validation split {begin['free']:.3f} with slates of {begin['length']:.1f} films, {begin['filled']:.3f} with full "
    f"lists.\n"
    f"- Its samples: the first choice has an entropy of {begin['entropy']:.1f} nats (3.0 would be pure chance); all slate "
    f"rewards are equal in {begin['zero_variance_slate']:.0%} of the groups, all rank rewards in "
    f"{begin['zero_variance_rank']:.0%}.\n"
    f"- RL: {rl['steps']} steps of {rl['queries']} x {rl['group']} rollouts. Learning rate of the first step: "
    f"{', '.join(f'{m} {lr:g} (best on the validation split: {best[m][3:]})' for m, lr in rates.items())}.\n"
    f"- {made['hardware']}, {made['date']}."
)

# %% [markdown]
# **2. Does RL learn?** The curves show NDCG@5 on the test queries; the grey line is `sft_full`. Below is the manipulation
# check of these runs, differences with 95 % intervals. The policy decides how long its lists are, as in the paper. `item` is
# one more method; it gives every item credit for its own contribution ([notebook 6](06_diagnosis.ipynb)).

# %%
from fgrpo.study.plots import efficiency

(full,) = pick(lab, method="sft_full", metric="ndcg@5")
figure = efficiency(read_table("lab-curve")[1], [{"target": full["mean"]}])
Image(save(figure, FIGURES / "05_learns.png"), width=700, alt="NDCG at 5 on test queries, by sampled tokens")

# %%
_, checks = read_table("lab-check")
counts = {
    name: [sum(r["beats"] == "True" for r in own), len(own)]
    for name in ("sft_full", "sft_more") if (own := pick(checks, reference=name))
}  # fmt: skip
text = "; ".join(f"{name} is beaten by {n} of {of} methods" for name, (n, of) in counts.items())
Markdown(learned(checks) + f"\n\n**{text}.**")

# %% [markdown]
# **3. Does it see a difference where there must be one?** This is called a **positive control**. Only the rank tokens learn,
# and the slate reward is made useless by random noise. Joint credit then pays the rank tokens for noise and must get worse.
# Factorised credit does not show them the slate reward, and must get better. If this fails, the instrument is broken.

# %%
made, control = read_table("control")
lines = ["| credit | NDCG@5 before | gain | 95 % interval | must |", "|---" * 5 + "|"]
for r in control:
    must = "fall" if r["method"] == "grpo" else "rise"
    lines.append(
        f"| {r['method']} | {r['start']:.3f} | {r['gain']:+.3f} | {r['low']:+.3f} to {r['high']:+.3f} | {must} |"
    )
holds = all(r["holds"] == "True" for r in control)
Markdown(
    "\n".join(lines) + f"\n\n{made['config']['rl']['steps']} steps, {control[0]['seeds']} seeds. **The control "
    f"{'holds' if holds else 'fails: the comparison below cannot be trusted'}.**"
)

# %% [markdown]
# ## Then the comparison
#
# NDCG@5 on the test queries. The p-values and the simultaneous intervals are corrected for all methods of the table.

# %%
trained = [r for r in pick(lab, metric="ndcg@5") if r["seeds"]]
Markdown(f"{trained[0]['seeds']} seeds from {trained[0]['starts']} warm starts.\n\n{differences(trained)}")

# %%
from fgrpo.study.plots import comparison

shown = [r for r in lab if r["seeds"] or r["method"] in ("sft_full", "sft_more")]
Image(save(comparison(shown), FIGURES / "05_comparison.png"), width=850, alt="NDCG at 5, and differences to grpo")

# %% [markdown]
# Two more questions about these runs: how much of the gain is due to list length alone, and which phase settled first?

# %%
order = settled({r["method"]: r for r in read_table("lab-settling")[1]})
Markdown(f"{by_length(pick(lab, metric='ndcg@5'))}\n\n{order}")

# %% [markdown]
# ## From a trained start
#
# Does RL still help after a longer SFT? `trained.csv` repeats the comparison from warm starts with more SFT steps.

# %%
made, late = read_table("trained")
_, late_checks = read_table("trained-check")
rl = made["config"]["rl"]
late_trained = [r for r in pick(late, metric="ndcg@5") if r["seeds"]]
Markdown(
    f"{made['config']['sft']['sft_steps']:,} SFT steps, then {rl['steps']} RL steps of {rl['queries']} x {rl['group']}, "
    f"learning rate {rl['lr']:g}; {late_trained[0]['seeds']} seeds from {late_trained[0]['starts']} warm starts.\n\n"
    + learned(late_checks) + "\n\n" + differences(late_trained)
)  # fmt: skip

# %% [markdown]
# ## Compared with methods without RL
#
# Rankers of the whole pool, which fill both lists: `random`, `popularity` and GRU4Rec, a network that reads the history as a
# sequence. `decoupled` is a selector and a ranker that are trained separately, with SFT. The last two are **ceilings**: they
# know what no policy is told. `attributes` counts the genres, tones and decades that a film shares with the history; `taste`
# knows the taste by which the viewers were made.

# %%
BESIDE = ("random", "popularity", "gru4rec", "decoupled", "sft", "sft_full", "sft_more")
own = {r["method"]: r for r in pick(lab, metric="ndcg@5")}
recall = {r["method"]: r for r in pick(lab, metric="slate_recall")}
order = [*BESIDE, *(m for m in own if own[m]["seeds"]), "attributes", "taste"]
lines = ["| method | NDCG@5 | 95 % interval | slate recall |", "|---" * 4 + "|"]
for m in (m for m in order if m in own):
    lines.append(
        f"| {m} | {own[m]['mean']:.3f} | {own[m]['low']:.3f} to {own[m]['high']:.3f} | {recall[m]['mean']:.3f} |"
    )
Markdown("\n".join(lines))

# %% [markdown]
# ## Answer
#
# The answer has three parts: the verdict, which differences still agree with the data, and which would have been seen.
# Compare it with the predictions in [PLAN.md](../data/results/PLAN.md): which of them were wrong?

# %%
from notebooks.recorded import bracket

every = [(name, r) for name, found in (("warm", trained), ("trained", late_trained)) for r in found]
lines = ["| start | fgrpo - grpo | agrees with the data | detectable | verdict |", "|---" * 5 + "|"]
for name, r in every:
    if r["method"] == "fgrpo":
        low, high = bracket(r)
        cells = f"{r['diff']:+.3f} | {low:+.3f} to {high:+.3f} | {r['detectable']:.3f} | {r['verdict']}"
        lines.append(f"| {name} | {cells} |")
others = [f"{r['method']} is {r['verdict']} ({name} start)" for name, r in every
          if r["verdict"] in ("higher", "lower") and r["method"] != "fgrpo"]  # fmt: skip
Markdown("\n".join(lines) + f"\n\nOf the other methods, shown to differ from grpo: {'; '.join(others) or 'none'}.")

# %% [markdown]
# ## Limits
#
# - An undecided difference is not "no difference", and "no difference larger than 0.01" is not "equal".
# - All of this holds for this tiny policy, this task with invented viewers, these numbers of steps and this learning rate.
#   The paper's policies are pretrained and twenty thousand times larger.
# - RL is compared with SFT where every training query has labels. Where only rewards are known, there is no `sft_more`.
# - The verdicts are about NDCG@5. Other metrics in the tables are descriptive.
#
# **Next:** [diagnosis](06_diagnosis.ipynb). What do the credit methods do differently, even where the final lists are
# equally good?
