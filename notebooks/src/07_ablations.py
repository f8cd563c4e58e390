# ---
# jupyter:
#   fgrpo: {budget: 30}
# ---

# %% [markdown]
# # 7. Ablations
#
# **What do lambda, slate size, G and the pool change?**
#
# Every method has settings that somebody had to choose. An **ablation** varies one of them and keeps all others fixed. Here
# are four sweeps, each with joint and with factorised credit. They were run beforehand; their tables are in
# `data/results/`.

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

from fgrpo.study.plots import name_of, save
from notebooks.recorded import differences, pick, read_table, small_multiples, value_of

# %% [markdown]
# ## The four sweeps
#
# - `lam` (lambda): the weight of the rank reward. The paper finds 1 best.
# - `slate_size`: the maximum number of candidates in the slate. The paper finds 10 best: 5 lowers coverage, 15 precision.
# - `group` (G): rollouts per query. For a fair comparison the number of rollouts per step is the same, so more rollouts per
#   query mean fewer queries.
# - `pool`: the number of candidates in the pool, exactly one of them relevant. Each size is a task of its own. The warm
#   start is the same for all, and it was trained on pools of 20 only.
#
# In the sweep of `slate_size` the ranked list holds at most 3 candidates, because a slate of 3 has no more. There we use
# NDCG@3.

# %%
FILES = {"lam": "lambda", "slate_size": "slate", "group": "group", "pool": "pool"}
METRIC = {field: "ndcg@3" if field == "slate_size" else "ndcg@5" for field in FILES}

tables, lines = {}, ["| field | values | seeds | steps | date | command |", "|---" * 6 + "|"]
for field, name in FILES.items():
    made, tables[field] = read_table(name)
    values = ", ".join(f"{value_of(s):g}" for s in dict.fromkeys(r["setting"] for r in tables[field]))
    seeds, steps = max(r["seeds"] for r in tables[field]), made["config"]["rl"]["steps"]
    command = f"`python data/results/make.py {name}`"
    lines.append(f"| `{field}` | {values} | {seeds} | {steps} | {made['date']} | {command} |")
Markdown("\n".join(lines))

# %% [markdown]
# ## The figure to keep
#
# One column per field. Top: NDCG of the finished list. Middle: recall of the slate. Both have 95 % intervals; grey is the
# warm start with full lists and without RL ([notebook 5](05_training.ipynb)), that is, the effect of list length alone.
# Bottom: factorised minus joint credit with the interval at Holm's level; a difference is shown if it does not include 0.

# %%
figure = small_multiples(tables, METRIC)
Image(save(figure, FIGURES / "07_ablations.png"), width=1000, alt="Four ablations: lists, slates, and the difference")

# %% [markdown]
# ## Is a method better at any value?
#
# Every value of every sweep is a comparison with joint credit. The p-values are corrected within each sweep. There are few
# seeds: the section on [two seeds](05_training.ipynb) applies here too.

# %%
lines = []
for field, rows in tables.items():
    apart = [r for r in pick(rows, metric=METRIC[field]) if r["seeds"] and r["method"] != r["baseline"]]
    for method in dict.fromkeys(r["method"] for r in apart):
        own = pick(apart, method=method)
        found = [f"{value_of(r['setting']):g} ({r['diff']:+.3f})" for r in own if r["p_holm"] < 0.05]
        lines.append(f"| `{field}` | {name_of(method)} | {len(found)} of {len(own)} | {', '.join(found) or 'none'} |")
Markdown("| field | method | differences to grpo shown | at |\n" + "|---" * 4 + "|\n" + "\n".join(lines))

# %% [markdown]
# ## Does the value matter?
#
# This is another question, and these tables are less suited to it: they compare methods at one value, not values with each
# other. We can only check whether the 95 % intervals of the best and the worst value overlap. If they do not, the value
# matters. If they do, we do not know. The same is shown for the warm start with full lists (`sft_full`): where it changes,
# the task has changed, not the training.


# %%
def best_and_worst(rows, method, metric):
    """The values with the highest and the lowest mean, and whether their intervals overlap."""
    own = sorted(pick(rows, method=method, metric=metric), key=lambda r: r["mean"])
    low, high = own[0], own[-1]
    apart = "equal" if low["mean"] == high["mean"] else "apart" if high["low"] > low["high"] else "overlap"
    return f"{value_of(high['setting']):g} ({high['mean']:.3f}) | {value_of(low['setting']):g} ({low['mean']:.3f}) | {apart}"


lines = ["| field | method | best value | worst value | intervals |", "|---" * 5 + "|"]
for field, rows in tables.items():
    for method in [*dict.fromkeys(r["method"] for r in rows if r["seeds"]), "sft_full"]:
        lines.append(f"| `{field}` | {name_of(method)} | {best_and_worst(rows, method, METRIC[field])} |")
Markdown("\n".join(lines))

# %% [markdown]
# The same for the recall of the slate. Where this table says "apart" and the table above says "overlap", the value changed
# the slate, but we see no change of the finished list.

# %%
lines = ["| field | method | best value | worst value | intervals |", "|---" * 5 + "|"]
for field, rows in tables.items():
    methods = dict.fromkeys(r["method"] for r in rows if r["seeds"])
    lines += [f"| `{field}` | {name_of(m)} | {best_and_worst(rows, m, 'slate_recall')} |" for m in methods]
Markdown("Recall of the slate:\n\n" + "\n".join(lines))

# %% [markdown]
# ## Do it yourself
#
# A sweep is one call of `compare`, with a configuration for every setting and method. Several fields may change together,
# as the group and the queries did above. This sweep is far too small to show anything: two values of `lam`, one seed, a few
# steps and a few test queries.

# %%
import shutil
from dataclasses import replace

from fgrpo.credit import with_credit
from fgrpo.runs.fields import config_with
from fgrpo.study.compare import compare
from fgrpo.study.report import table
from fgrpo.tasks import load_task


def load(config):
    """The task, with the first 64 test queries only."""
    splits, items = load_task(config)
    return splits._replace(test=splits.test[:64]), items


folder = FIGURES / "07_ablations"
shutil.rmtree(folder, ignore_errors=True)  # left by an earlier run of this cell
config = config_with(steps=4)
experiments = {
    f"lam={lam:g}": {m: replace(config, rl=with_credit(replace(config.rl, lam=lam), m)) for m in ("grpo", "fgrpo")}
    for lam in (0.5, 2.0)
}
results = compare(experiments, 1, folder, load, baselines={}, jobs=1, quiet=True)
Markdown(differences(pick(table(results), metric="ndcg@5")))

# %% [markdown]
# The same from the command line, with a figure (minutes to hours, depending on the number of runs):
#
# ```text
# python -m fgrpo compare --credits grpo,fgrpo --seeds 3 --vary lam=0.25,0.5,1,2,4 --out runs/lambda
# ```
#
# ## What you have learned, and what is open
#
# - You know which phase a token belongs to, which reward it gets, and what the loss does with it.
# - You have seen how credit methods differ: in bias, in variance, and in where they lose candidates. The tables say whether
#   this changes the finished lists.
# - Open questions are larger pools, and a better slate reward than recall or F1. A method of your own is one function in
#   `fgrpo/credit.py`; [notebook 6](06_diagnosis.ipynb) shows how to test it with the oracle first.
#
# **Next:** [a real language model](08_real_model.ipynb) instead of the tiny policy.
