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
# step. Now we repeat it, under three credit methods, and ask the question that the method was invented for. First
# with a small experiment of our own, here and now; then with larger ones whose tables lie in `data/results/`. The
# small one will not be able to answer, and it is worth seeing why.

# %%
import os
import sys
from pathlib import Path

SEED = 0  # change it and run again: every number below is computed
REPOSITORY = os.environ.get("FGRPO_REPOSITORY", "ADDRESS-OF-THE-REPOSITORY")

here = Path.cwd()
places = [here, *here.parents, *(path.parents[1] for path in here.glob("*/fgrpo/__init__.py"))]
ROOT = next((place for place in places if (place / "fgrpo" / "__init__.py").is_file()), None)
if ROOT is None:
    raise SystemExit(
        "The kit is not on this machine. Run this line in a cell of its own, then this cell again:\n"
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
# Every run starts from the same warm start and sees the same queries in the same order. Only two things differ:
#
# - the **method**: `grpo` (joint credit), `fgrpo` (each phase its own) and `reward_to_go` (slate tokens the joint
#   advantage, since they come before both rewards; rank tokens their own, since they come after the slate's);
# - the **seed**, the number that all random draws follow from. Training is a game of chance: the same method with
#   another seed ends elsewhere. So every method runs with several seeds, and a method is only better if it is better
#   *beyond that*.
#
# Trained policies are then asked about the queries of the *test split*, which no run has seen, by **greedy decoding**:
# always the likeliest token, no chance left.

# %%
from fgrpo.study.compare import slug, with_method
from fgrpo.cli.options import PRESETS
from fgrpo.config import Config
from fgrpo.runs.policies import load_policy
from fgrpo.tasks import load_task

METHODS, SEEDS, STEPS = ("grpo", "fgrpo", "reward_to_go"), 2, 80

config = Config.from_flat(**{**PRESETS["lab-rec"], "steps": STEPS})
splits, items = load_task(config)
runs = {(m, s): replace(with_method(config, m), seed=SEED + s) for m in METHODS for s in range(SEEDS)}
Markdown(
    f"{len(METHODS)} methods x {SEEDS} seeds = {len(runs)} runs of {STEPS} steps; a step is {config.rl.queries} queries x "
    f"{config.rl.group} rollouts. {len(splits.train)} training queries, {len(splits.test)} test queries."
)

# %% [markdown]
# ## Run it
#
# `train_and_test` is the kit's training loop, then greedy decoding of the test split. The runs do not depend on each other,
# so they go to two processes. This cell takes about a minute on two cores. (`python -m fgrpo compare` does the same and
# more, from the command line.)

# %%
from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.compare import train_and_test

start = policy_folder(SHIPPED)
folder = ROOT / "runs" / "notebooks" / "05_training"
shutil.rmtree(folder, ignore_errors=True)  # of an earlier visit
where = {(m, s): folder / f"{slug(m)}-seed{s}" for m, s in runs}
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
# A **learning curve** shows a reward of the sampled rollouts against the training step. Lines are means over the
# seeds (and over a few steps, since single ones jump); the **band** reaches from the lowest seed to the highest. Look
# at the bands first. Where they overlap, a difference between the lines is a difference between runs, not between
# methods.

# %%
from fgrpo.runs.run import read_metrics
from fgrpo.study.plots import learning_curves

curves = {m: [read_metrics(where[m, s]) for s in range(SEEDS)] for m in METHODS}
Image(save(learning_curves(curves), FIGURES / "05_training.png"), width=950, alt="Rewards and slate length, by step")

# %% [markdown]
# ## Slate first, rank later?
#
# The paper reports an order: the slate is learned first and the ranking settles later, for the ranker has to wait for
# good slates. We call a phase **settled** at the step by which its reward has made 90 % of its whole gain. With
# curves this short "whole gain" only means what these few steps brought; the recorded runs further down are longer.

# %%
from fgrpo.study.report import settling


def settled(found):
    """A Markdown table from {method: settling steps}, and in how many methods the slate was first."""
    rows = ["| method | slate settled at step | rank settled at step |", "|---" * 3 + "|"]
    for m, f in found.items():
        cells = (f"{f[p + '_step']:.0f} ({f[p + '_least']:.0f} to {f[p + '_most']:.0f})" for p in ("slate", "rank"))
        rows.append(f"| {name_of(m)} | {' | '.join(cells)} |")
    first = sum(f["slate_step"] < f["rank_step"] for f in found.values())
    apart = sum(f["slate_most"] < f["rank_least"] for f in found.values())
    return "\n".join(rows) + (
        f"\n\nThe slate is first in {first} of {len(found)} methods by the median; in {apart} of {len(found)} for "
        "every seed (even its slowest slate before the fastest ranking)."
    )


Markdown(settled({m: settling(rows) for m, rows in curves.items()}))

# %% [markdown]
# ## The test: with an interval
#
# Would the difference still be there with other test queries and other seeds? The **bootstrap** asks the data
# themselves: draw as many queries and seeds from those we have, with replacement, compute the difference again,
# thousands of times. The middle 95 % of the results are the **95 % interval**. It is *paired*: the same draws for
# both methods, so that a hard query is hard for both and cancels out.
#
# The **p-value** answers: if there were no difference, how often would one as large as this come up by luck? Below
# 0.05 is the usual mark. But look at twenty differences and one will pass it by luck alone. **Holm's correction**
# raises every p-value to what it takes to be safe for the whole table. In this kit a difference is *shown* only after
# it.

# %%
from fgrpo.study.compare import WARM_START, Result
from fgrpo.evaluate import evaluate
from notebooks.recorded import differences, pick
from fgrpo.policy import Policy
from fgrpo.study.report import table

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
# Two seeds are two throws of a coin. The bootstrap can draw only three different pairs from them, so it hardly knows
# how far apart runs of one method can end. Compare the distance between the two runs of *one* method with the
# distance between the methods, and see whether both seeds at least agree on the order.

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
    + f"\n\nThe seeds {agree} on the order. Runs of one "
    f"method lie up to {within:.3f} apart, the means of the methods {max(means) - min(means):.3f}. "
    "Whatever the table above says of methods, two seeds cannot carry it: they show *that* training works and what it "
    "looks like, not which credit is better."
)

# %% [markdown]
# ## First: how much of the gain is only length?
#
# Training gained something over the warm start; the next table says how much. Before that is put down to clever
# credit, a sober question. The warm start stops its lists early: it was trained on lists of every length. Longer
# lists find more relevant candidates, whoever writes them. So we take the **untrained** warm start and let the
# grammar forbid it to stop before both lists are full. The kit calls this `sft_full` (SFT, *supervised fine-tuning*,
# is how the warm start was trained). Not one weight has changed. What RL brings beyond `sft_full` is what it taught;
# what lies below is list length alone.


# %%
def by_length(rows):
    """How much of each method's gain over the warm start `sft_full` has too. rows: NDCG@5 of one setting."""
    mean = {r["method"]: r["mean"] for r in rows}
    begin, full = mean[WARM_START], mean["sft_full"]
    lines = ["| method | NDCG@5 | gain over the warm start | of it by length alone |", "|---" * 4 + "|"]
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
# `data/results/` holds tables of larger experiments; the first line of each says how it was made. `recorded` reads one.
# `credits.csv` compares all methods of the kit, also those you will meet in the [next notebook](06_diagnosis.ipynb):
# with two slate rewards, and with several relevant candidates or exactly one (`one_relevant`).

# %%
from notebooks.recorded import recorded, shown

made, credits = recorded("credits")
ndcg = pick(credits, metric="ndcg@5")
settings = list(dict.fromkeys(r["setting"] for r in ndcg))
rl, trained = made["config"]["rl"], [r for r in ndcg if r["seeds"] and r["method"] != r["baseline"]]
found = [r for r in trained if r["p_holm"] < 0.05]
lines = [f"- {r['setting']}, {name_of(r['method'])}: {r['diff']:+.3f}, {shown(r)}" for r in found]
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
# The finished list is the sum of everything. The same table has numbers that look inside: what the slate holds, how
# long it is, which relevant candidates were lost and in which phase. How many differences to joint credit are shown
# for each?

# %%
lines = ["| metric | shown | of | fgrpo: in which settings |", "|---" * 4 + "|"]
for metric in ("ndcg@1", "ndcg@5", "recall@5", "slate_recall", "slate_length", "slate_miss", "rank_drop"):
    apart = [r for r in pick(credits, metric=metric) if r["seeds"] and r["method"] != r["baseline"]]
    own = [
        f"{r['setting']}: {shown(r).removeprefix('shown: ')}" for r in pick(apart, method="fgrpo") if r["p_holm"] < 0.05
    ]
    lines.append(f"| {metric} | {sum(r['p_holm'] < 0.05 for r in apart)} | {len(apart)} | {'; '.join(own) or 'none'} |")
Markdown("\n".join(lines))

# %% [markdown]
# Where the lower rows count more differences than the row of NDCG@5, credit has moved *where* a policy loses relevant
# candidates, not how good its finished list is: what one phase gained the other lost again.

# %% [markdown]
# ## Length alone, once more
#
# The same sober question to every setting of the recorded table: which share of the gain of `grpo` and `fgrpo` over
# the warm start does `sft_full` have without any RL?

# %%
lines = ["| setting | grpo | fgrpo | is `sft_full` still below grpo? |", "|---" * 4 + "|"]
for setting in settings:
    here = {r["method"]: r for r in pick(ndcg, setting=setting)}
    length = here["sft_full"]["mean"] - here[WARM_START]["mean"]
    shares = (f"{length / (here[m]['mean'] - here[WARM_START]['mean']):.0%}" for m in ("grpo", "fgrpo"))
    lines.append(f"| {setting} | {' | '.join(shares)} | {shown(here['sft_full'])} |")
Markdown("\n".join(lines) + "\n\nA share above 100 %: the untrained policy with full lists is ahead.")

# %% [markdown]
# ## Longer runs, and what a token buys
#
# Drawing rollouts is what training spends. `tokens-curve.csv` holds NDCG@5 on the test queries against sampled tokens;
# `tokens-reached.csv` how many tokens each method's mean curve needs to reach the level that `grpo` ends at (the grey line).
# "Reached by": in which share of the bootstrap's draws that level is reached at all.

# %%
from fgrpo.study.plots import efficiency

(made, points), (_, reached) = recorded("tokens-curve"), recorded("tokens-reached")
rows = [f"| method | tokens to reach {reached[0]['target']:.3f} | 95 % interval | reached by |", "|---" * 4 + "|"]
for r in reached:
    low, high = ("never" if x == float("inf") else f"{x / 1e6:.2f} M" for x in (r["low"], r["high"]))
    needed = "never" if r["tokens"] == float("inf") else f"{r['tokens'] / 1e6:.2f} M"
    rows.append(f"| {name_of(r['method'])} | {needed} | {low} to {high} | {r['reached']:.0%} |")
display(Image(save(efficiency(points, reached), FIGURES / "05_tokens.png"), width=700, alt="NDCG@5 by sampled tokens"))
Markdown(f"{reached[0]['seeds']} seeds, {made['config']['rl']['steps']} steps.\n\n" + "\n".join(rows))

# %% [markdown]
# At the end of runs of that length (`long.csv`), the same test, and the same sober question about length:

# %%
long = pick(recorded("long")[1], metric="ndcg@5")
longer = [r for r in long if r["seeds"]]
(full,) = pick(long, method="sft_full")
Markdown(f"{differences(longer)}\n\n{by_length(long)}\n\n`sft_full` below grpo: {shown(full)}.")

# %% [markdown]
# And the order of the phases, in these longer runs:

# %%
again = len(splits.train) // config.rl.queries
Markdown(
    settled({r["method"]: r for r in recorded("settling")[1]}) + f" (From step {again} on the training queries come "
    "round again. A phase that settles about there may have learned them by heart, which is not what the paper means.)"
)

# %% [markdown]
# ## Beside other ways
#
# `baselines.csv` puts the policies beside methods without RL: rankers of the whole pool (random, popularity, BM25 by
# words, `dense` by sentence embeddings, GRU4Rec and UniSRec by sequences), which fill both lists, and `decoupled`, a
# selector and a ranker trained apart. The reference is still `grpo`.

# %%
_, beside = recorded("baselines")
Markdown(differences([r for r in pick(beside, metric="ndcg@5") if r["method"] in ("grpo", "fgrpo") or not r["seeds"]]))

# %% [markdown]
# ## So, is it better?
#
# "Not shown" does not mean "equal". The interval at Holm's level says how large a difference could still hide there,
# so it belongs to the answer.

# %%
lines = []
for r in pick([*ndcg, *longer], method="fgrpo"):
    what = f"{r['setting'] or 'the longer runs'}: {r['diff']:+.3f}, {shown(r)}"
    lines.append(f"- {what}; anything from {r['holm_low']:+.3f} to {r['holm_high']:+.3f} fits the data")
best = [name_of(r["method"]) for r in longer if r["p_holm"] < 0.05 and r["diff"] > 0]
Markdown(
    "NDCG@5 of fgrpo against grpo:\n\n" + "\n".join(lines) + "\n\nShown to be better than grpo in the longer runs: "
    f"{', '.join(best) or 'none'}."
)

# %% [markdown]
# All of it holds for this tiny policy and this task. The paper's policies are pretrained and twenty thousand times
# larger.
#
# **Next:** [diagnosis](06_diagnosis.ipynb). What do the credits do differently, even where the lists come out alike?
