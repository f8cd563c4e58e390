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
# here. Then we read larger experiments, whose tables are in `data/results/`. The small experiment cannot answer the
# question, and it is useful to see why.

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
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context

import torch
from IPython.display import Image, Markdown, display

from fgrpo.study.plots import name_of, save

# %% [markdown]
# ## A fair comparison
#
# Every run starts from the same warm start. Runs differ in two things:
#
# - the **method**: `grpo` (joint credit), `fgrpo` (each phase gets its own advantage) and `reward_to_go` (slate tokens get
#   the joint advantage, because they come before both rewards; rank tokens get the rank advantage, because they come after
#   the slate);
# - the **seed**, the number that determines all random draws: the order of the queries and the sampled tokens. The same
#   method with another seed gives another result. So every method runs with several seeds, and a method is better only if
#   the difference is larger than the differences between seeds. With the same seed, all methods see the same queries in the
#   same order.
#
# The trained policies are then tested on the queries of the *test split*, which no run has seen, with **greedy decoding**:
# always the most likely token, without randomness.

# %%
from fgrpo.credit import with_credit
from fgrpo.runs.fields import config_with
from fgrpo.tasks import load_task

METHODS, SEEDS, STEPS = ("grpo", "fgrpo", "reward_to_go"), 2, 80

config = config_with(steps=STEPS)
splits, items = load_task(config)
runs = {
    (m, s): replace(config, rl=with_credit(config.rl, m), seed=SEED + s) for m in METHODS for s in range(SEEDS)
}  # fmt: skip
Markdown(
    f"{len(METHODS)} methods x {SEEDS} seeds = {len(runs)} runs of {STEPS} steps; a step is {config.rl.queries} queries x "
    f"{config.rl.group} rollouts. {len(splits.train)} training queries, {len(splits.test)} test queries."
)

# %% [markdown]
# ## Run it
#
# `train_and_test` runs the kit's training loop and then decodes the test split greedily. The runs do not depend on each
# other, so we use two processes. This cell takes about a minute on two cores. (`python -m fgrpo compare` does the same and
# more, from the command line.)

# %%
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.compare import train_and_test

start = policy_folder(SHIPPED)
folder = FIGURES / "05_training"
shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run of this cell
where = {(m, s): folder / f"{m}-seed{s}" for m, s in runs}
calls = [partial(train_and_test, c, splits, start, where[key], True, False) for key, c in runs.items()]
with ProcessPoolExecutor(
    min(2, os.cpu_count() or 1), get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
) as pool:
    done = dict(zip(runs, [future.result() for future in [pool.submit(call) for call in calls]], strict=True))
tokens = sum(result.tokens for result in done.values())
Markdown(f"Done: {tokens:,} tokens sampled in {len(done)} runs.")

# %% [markdown]
# ## The figure to keep: learning curves
#
# A **learning curve** shows a reward of the sampled rollouts against the training step. Lines are means over the seeds
# (and over a few steps, because single steps are noisy). The **band** spans from the lowest to the highest seed. Look at
# the bands first. Where they overlap, the lines of two methods differ no more than two runs of the same method.

# %%
from fgrpo.runs.run import read_metrics
from fgrpo.study.plots import learning_curves

curves = {m: [read_metrics(where[m, s]) for s in range(SEEDS)] for m in METHODS}
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
# ## The test: with an interval
#
# Would we see the same difference with other test queries and other seeds? The **bootstrap** estimates this from the data:
# draw queries and seeds from ours at random, with replacement, as many as we have, and compute the difference again.
# Repeat this thousands of times. The middle 95 % of the results are the **95 % interval**. The bootstrap is *paired*: both
# methods use the same draws, so that the difficulty of a query, which is the same for both, cancels out.
#
# The **p-value** answers: if there were no difference, how often would chance alone give one at least as large as ours?
# The usual limit is 0.05. But of twenty comparisons without any difference, about one falls below this limit by chance.
# **Holm's correction** raises the p-values so that the limit holds for the whole table. In this kit a difference counts as
# *shown* only after this correction.

# %%
from fgrpo.evaluate import evaluate
from fgrpo.runs.policies import load_policy
from fgrpo.study.compare import WARM_START, Result
from fgrpo.study.report import table
from notebooks.recorded import differences, pick

policy = load_policy(start)
filled = replace(config, grammar=replace(config.grammar, full=True))
untrained = {"sft_full": filled, WARM_START: config}
ours = {name: [Result(evaluate(policy, splits.test, c))] for name, c in untrained.items()}
ours |= {m: [done[m, s] for s in range(SEEDS)] for m in METHODS}
rows = table({"": ours})
Markdown(differences([r for r in pick(rows, metric="ndcg@5") if r["seeds"]]))

# %% [markdown]
# ## What two seeds cannot show
#
# Two seeds say very little. The bootstrap can draw only three different pairs from them, so it cannot estimate well how
# much the runs of one method differ. Compare the difference between the two runs of *one* method with the difference
# between the methods, and look whether the two seeds agree on the order of the methods.

# %%
ends = {m: [float(r.metrics["ndcg@5"].mean()) for r in ours[m]] for m in METHODS}
within = max(max(x) - min(x) for x in ends.values())
means = [sum(x) / SEEDS for x in ends.values()]
orders = [sorted(METHODS, key=lambda m, s=s: -ends[m][s]) for s in range(SEEDS)]
lines = [f"- seed {SEED + s}: " + ", ".join(f"{m} {ends[m][s]:.3f}" for m in order) for s, order in enumerate(orders)]
agree = "agree" if all(order == orders[0] for order in orders) else "disagree"
Markdown(
    "NDCG@5 on the test queries, best first:\n\n"
    + "\n".join(lines)
    + f"\n\nThe seeds {agree} on the order. Runs of one method differ by up to {within:.3f}, the means of the methods by "
    f"up to {max(means) - min(means):.3f}. Whatever the table above says about the methods, two seeds are not enough: they "
    "show what training looks like, not which credit method is better."
)

# %% [markdown]
# ## How much of the gain is due to list length?
#
# The next table shows the gain of training over the warm start. Part of it may have a simple reason. The warm start was
# trained on lists of every length, so it often stops early. A longer list finds more relevant candidates, whoever writes
# it. So we take the warm start **without any RL**, and let the grammar forbid it to stop before both lists are full. The
# kit calls this `sft_full` (SFT, *supervised fine-tuning*, is how the warm start was trained). No weight has changed. A
# gain that `sft_full` has too needs no RL, only longer lists; a gain beyond `sft_full` comes from RL.


# %%
def by_length(rows):
    """Which share of each method's gain over the warm start `sft_full` also has. rows: NDCG@5 of one setting."""
    mean = {r["method"]: r["mean"] for r in rows}
    begin, full = mean[WARM_START], mean["sft_full"]
    lines = ["| method | NDCG@5 | gain over the warm start | share due to length alone |", "|---" * 4 + "|"]
    lines.append(f"| warm start | {begin:.3f} | | |\n| sft_full | {full:.3f} | {full - begin:+.3f} | all |")
    for r in rows:
        if r["seeds"]:
            gain = r["mean"] - begin
            share = f"{(full - begin) / gain:.0%}" if gain > 0 else "no gain"
            lines.append(f"| {name_of(r['method'])} | {r['mean']:.3f} | {gain:+.3f} | {share} |")
    return "\n".join(lines)


Markdown(by_length(pick(rows, metric="ndcg@5")))

# %% [markdown]
# ## Many seeds: the recorded results
#
# `data/results/` holds tables of larger experiments; the first line of each says how it was made. `read_table` reads one.
# `credits.csv` compares all methods of the kit, including those of the [next notebook](06_diagnosis.ipynb), in four
# settings: two slate rewards, and several relevant candidates or exactly one (`one_relevant`).

# %%
from notebooks.recorded import read_table

made, credits = read_table("credits")
ndcg = pick(credits, metric="ndcg@5")
settings = list(dict.fromkeys(r["setting"] for r in ndcg))
rl, trained = made["config"]["rl"], [r for r in ndcg if r["seeds"] and r["method"] != r["baseline"]]
found = [r for r in trained if r["p_holm"] < 0.05]
lines = [f"- {r['setting']}, {name_of(r['method'])}: {r['diff']:+.3f}, {r['verdict']}" for r in found]
Markdown(
    f"{trained[0]['seeds']} seeds, {rl['steps']} steps, learning rate {rl['lr']:g}, {made['hardware']}, {made['date']}.\n\n"
    f"**NDCG@5: of {len(trained)} differences to {ndcg[0]['baseline']}, {len(found)} are shown** after Holm's correction"
    + (":\n\n" + "\n".join(lines) if found else ".")
)

# %%
Markdown(differences([r for r in pick(ndcg, setting=settings[0]) if r["seeds"]]))

# %% [markdown]
# ## Where the methods do differ
#
# NDCG@5 scores the finished list. The same table has metrics for the parts: the recall and the length of the slate, and the
# share of relevant candidates that each phase lost. For each metric, how many differences to joint credit are shown?

# %%
lines = ["| metric | shown | of | fgrpo: in which settings |", "|---" * 4 + "|"]
for metric in ("ndcg@1", "ndcg@5", "recall@5", "slate_recall", "slate_length", "slate_miss", "rank_drop"):
    apart = [r for r in pick(credits, metric=metric) if r["seeds"] and r["method"] != r["baseline"]]
    own = [f"{r['setting']}: {r['verdict']}" for r in pick(apart, method="fgrpo") if r["p_holm"] < 0.05]
    lines.append(f"| {metric} | {sum(r['p_holm'] < 0.05 for r in apart)} | {len(apart)} | {'; '.join(own) or 'none'} |")
Markdown("\n".join(lines))

# %% [markdown]
# If the lower rows have more differences than the row of NDCG@5, the credit method has changed *where* a policy loses
# relevant candidates, but not how good its finished list is: one phase lost what the other one gained.

# %% [markdown]
# ## List length in the recorded results
#
# The same question for every setting of the recorded table: which share of the gain of `grpo` and `fgrpo` over the warm
# start does `sft_full` have without any RL?

# %%
lines = ["| setting | grpo | fgrpo | `sft_full` compared with grpo |", "|---" * 4 + "|"]
for setting in settings:
    here = {r["method"]: r for r in pick(ndcg, setting=setting)}
    length = here["sft_full"]["mean"] - here[WARM_START]["mean"]
    shares = (f"{length / (here[m]['mean'] - here[WARM_START]['mean']):.0%}" for m in ("grpo", "fgrpo"))
    lines.append(f"| {setting} | {' | '.join(shares)} | {here['sft_full']['verdict']} |")
Markdown("\n".join(lines) + "\n\nA share above 100 % means that the warm start with full lists is better.")

# %% [markdown]
# ## Longer runs: score against sampled tokens
#
# Sampling rollouts is the main cost of training. `tokens-curve.csv` holds NDCG@5 on the test queries against the number of
# sampled tokens. `tokens-reached.csv` holds the number of tokens that the mean curve of each method needs to reach the
# final level of `grpo` (the grey line). "Reached in" is the share of bootstrap draws in which that level is reached.

# %%
from fgrpo.study.plots import efficiency

(made, points), (_, reached) = read_table("tokens-curve"), read_table("tokens-reached")
rows = [f"| method | tokens to reach {reached[0]['target']:.3f} | 95 % interval | reached in |", "|---" * 4 + "|"]
for r in reached:
    low, high = ("never" if x == float("inf") else f"{x / 1e6:.2f} M" for x in (r["low"], r["high"]))
    needed = "never" if r["tokens"] == float("inf") else f"{r['tokens'] / 1e6:.2f} M"
    rows.append(f"| {name_of(r['method'])} | {needed} | {low} to {high} | {r['reached']:.0%} |")
display(Image(save(efficiency(points, reached), FIGURES / "05_tokens.png"), width=700, alt="NDCG@5 by sampled tokens"))
Markdown(f"{reached[0]['seeds']} seeds, {made['config']['rl']['steps']} steps.\n\n" + "\n".join(rows))

# %% [markdown]
# The same test at the end of runs of that length (`long.csv`), and the same question about list length:

# %%
long = pick(read_table("long")[1], metric="ndcg@5")
longer = [r for r in long if r["seeds"]]
(full,) = pick(long, method="sft_full")
Markdown(f"{differences(longer)}\n\n{by_length(long)}\n\n`sft_full` compared with grpo: {full['verdict']}.")

# %% [markdown]
# And the order of the phases in these longer runs:

# %%
again = len(splits.train) // config.rl.queries
Markdown(
    settled({r["method"]: r for r in read_table("settling")[1]}) + f" (From step {again} on, the training queries are "
    "used a second time. A phase that settles there may have memorised them, which is not what the paper means.)"
)

# %% [markdown]
# ## Compared with methods without RL
#
# `baselines.csv` compares the policies with methods without RL: rankers of the whole pool (random, popularity, BM25 on
# words, `dense` on sentence embeddings, GRU4Rec and UniSRec on sequences), which fill both lists; and `decoupled`, a
# selector and a ranker that are trained separately. Differences are still taken to `grpo`.

# %%
_, others = read_table("baselines")
Markdown(differences([r for r in pick(others, metric="ndcg@5") if r["method"] in ("grpo", "fgrpo") or not r["seeds"]]))

# %% [markdown]
# ## Answer
#
# "No difference shown" does not mean "equal". The interval at Holm's level says how large a difference may still be, so it
# is part of the answer.

# %%
lines = []
for r in pick([*ndcg, *longer], method="fgrpo"):
    what = f"{r['setting'] or 'the longer runs'}: {r['diff']:+.3f}, {r['verdict']}"
    lines.append(f"- {what}; every difference from {r['holm_low']:+.3f} to {r['holm_high']:+.3f} agrees with the data")
best = [name_of(r["method"]) for r in longer if r["p_holm"] < 0.05 and r["diff"] > 0]
Markdown(
    "NDCG@5 of fgrpo, minus that of grpo:\n\n"
    + "\n".join(lines)
    + "\n\nShown to be better than grpo in the longer runs: "
    f"{', '.join(best) or 'none'}."
)

# %% [markdown]
# All of this holds for this tiny policy and this task. The paper's policies are pretrained and twenty thousand times
# larger.
#
# **Next:** [diagnosis](06_diagnosis.ipynb). What do the credit methods do differently, even where the final lists are
# equally good?
