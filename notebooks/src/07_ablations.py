# ---
# jupyter:
#   fgrpo: {budget: 30}
# ---

# %% [markdown]
# # 7. Ablations
#
# **What do lambda, slate size, G and the pool change?**
#
# A method comes with numbers that somebody had to choose. An **ablation** varies one of them and leaves everything
# else as it is. Four sweeps, joint credit beside factorised credit in each; they were run beforehand and lie in
# `data/results/`.

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
from IPython.display import Image, Markdown

from notebooks.recorded import differences, pick, recorded, small_multiples, value_of
from fgrpo.study.plots import name_of, save

# %% [markdown]
# ## The four sweeps
#
# - `lam` (lambda): the weight of the rank reward. The paper finds 1 best.
# - `slate_size`: the most candidates in the slate. The paper finds 10 best: 5 cost coverage, 15 precision.
# - `group` (G): rollouts per query. To be fair the number of rollouts in a step stays the same, so more rollouts per
#   query mean fewer queries.
# - `pool`: how many candidates there are to choose from, exactly one of them relevant. Each size is a task of its
#   own; the warm start is the same, and it has only ever seen pools of 20.
#
# The ranked list of the slate sweep holds at most 3, since a slate of 3 has no more to rank; there we read NDCG@3.

# %%
FILES = {"lam": "lambda", "slate_size": "slate", "group": "group", "pool": "pool"}
METRIC = {field: "ndcg@3" if field == "slate_size" else "ndcg@5" for field in FILES}

tables, lines = {}, ["| field | values | seeds | steps | command |", "|---" * 5 + "|"]
for field, name in FILES.items():
    made, tables[field] = recorded(name)
    values = ", ".join(f"{value_of(s):g}" for s in dict.fromkeys(r["setting"] for r in tables[field]))
    seeds, steps = max(r["seeds"] for r in tables[field]), made["config"]["rl"]["steps"]
    lines.append(f"| `{field}` | {values} | {seeds} | {steps} | `{made['command']}` |")
Markdown("\n".join(lines))

# %% [markdown]
# ## The figure to keep
#
# A column per field. On top the finished list, in the middle what the slate holds, with 95 % intervals; grey the
# untrained warm start with full lists ([notebook 5](05_training.ipynb)), the height at which length alone would be.
# Below, factorised minus joint credit at Holm's level: an interval that leaves out 0 is a difference shown.

# %%
figure = small_multiples(tables, METRIC)
Image(save(figure, FIGURES / "07_ablations.png"), width=1000, alt="Four ablations: lists, slates, and the difference")

# %% [markdown]
# ## Does a method win anywhere?
#
# Every value of every sweep is a comparison with joint credit. The p-values are corrected within each sweep. The
# seeds are few: what [two seeds cannot show](05_training.ipynb) holds here too.

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
# ## Does the number matter at all?
#
# That is another question, and these tables test it less well: they compare methods at one value, not values with
# each other. What they allow is a rough look: do the 95 % intervals of the best and the worst value overlap? If they
# do not, the value matters. If they do, nothing is said. Beside it the same for the untrained warm start with full
# lists: what moves there was moved by the task, not by training.


# %%
def best_and_worst(rows, method, metric):
    """The values with the highest and the lowest mean, and whether their intervals overlap."""
    own = sorted(pick(rows, method=method, metric=metric), key=lambda r: r["mean"])
    low, high = own[0], own[-1]
    apart = "all alike" if low["mean"] == high["mean"] else "apart" if high["low"] > low["high"] else "overlap"
    return f"{value_of(high['setting']):g} ({high['mean']:.3f}) | {value_of(low['setting']):g} ({low['mean']:.3f}) | {apart}"


lines = ["| field | method | best value | worst value | intervals |", "|---" * 5 + "|"]
for field, rows in tables.items():
    for method in [*dict.fromkeys(r["method"] for r in rows if r["seeds"]), "sft_full"]:
        lines.append(f"| `{field}` | {name_of(method)} | {best_and_worst(rows, method, METRIC[field])} |")
Markdown("\n".join(lines))

# %% [markdown]
# The same for what the slate holds. Where this table says "apart" and the one above "overlap", the number
# changed the slate without changing the list.

# %%
lines = ["| field | method | best value | worst value | intervals |", "|---" * 5 + "|"]
for field, rows in tables.items():
    methods = dict.fromkeys(r["method"] for r in rows if r["seeds"])
    lines += [f"| `{field}` | {name_of(m)} | {best_and_worst(rows, m, 'slate_recall')} |" for m in methods]
Markdown("Recall of the slate:\n\n" + "\n".join(lines))

# %% [markdown]
# ## Do it yourself
#
# A sweep is one call. This one is far too small to say anything: two values of `lam`, one seed, a handful of steps, a
# few test queries. `vary` takes the field and its values as the command line does; fields that move along stand
# behind a value, as in `group=4:queries=32,8:queries=16`.

# %%
import shutil

from fgrpo.runs.policies import policy_folder
from fgrpo.runs.warm_start import SHIPPED
from fgrpo.study.compare import compare
from fgrpo.config import Config
from fgrpo.tasks import load_task
from fgrpo.study.report import table


def load(config):
    """The task, with the first 64 test queries only."""
    splits, items = load_task(config)
    return splits._replace(test=splits.test[:64]), items


folder = FIGURES / "07_ablations"
shutil.rmtree(folder, ignore_errors=True)  # of an earlier visit
config = Config.from_flat(steps=4)
vary, start = ["lam=0.5,2"], policy_folder(SHIPPED)
results = compare(config, ["grpo", "fgrpo"], 1, folder, load, vary, baselines=(), start=start, jobs=1, quiet=True)
Markdown(differences(pick(table(results), metric="ndcg@5")))

# %% [markdown]
# From the command line, in full, with its figure (minutes to hours, by the number of runs):
#
# ```text
# python -m fgrpo compare --credits grpo,fgrpo --seeds 3 --vary lam=0.25,0.5,1,2,4 --out runs/lambda
# ```
#
# ## What you can do now, and what is open
#
# - You can tell which phase a token belongs to, what it is paid for, and what the loss does with it.
# - You have seen what credit methods differ in: bias, variance, where they lose candidates. And you have tables that
#   say whether that reached the finished lists.
# - Open: larger pools, a better reward for the slate than recall or F1. A method of your own is one function in
#   `fgrpo/credit.py`; [notebook 6](06_diagnosis.ipynb) shows how to put it before the oracle first.
#
# **Next:** [a real language model](08_real_model.ipynb) in place of the tiny policy.
