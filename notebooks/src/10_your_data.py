# ---
# jupyter:
#   fgrpo: {budget: 60}
# ---

# %% [markdown]
# # 10. Your own data and model
#
# **What has to be checked before a comparison on new data means anything?**
#
# A task needs queries, pools of candidates and labels. This notebook brings a small one as a list of dictionaries (a pandas
# data frame or a JSONL file work the same way), and asks four questions before it trains: are the data well-formed, what
# does one group look like, what does chance reach, and does the policy read its pool at all?

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
# ## The data
#
# An invented library: 72 books, each with a subject and a form. A reader has a favourite subject and a favourite form, and
# borrows books with either. The pool holds three of those and seven others. Replace the next cell by your own data: any list
# of dictionaries with these fields, or a pandas data frame with these columns.
#
# | field | content |
# |---|---|
# | `id` | name of the query, a string or a number |
# | `query` | the question, as text |
# | `history` | texts of what is known about the user, may be empty |
# | `candidates` | the pool: a list of texts |
# | `relevant` | positions in `candidates`, counted from 0 |
# | `group` | optional: user or session, if several rows belong together |

# %%
import random

import fgrpo

rng = random.Random(SEED)
SUBJECTS = ("rivers", "bridges", "bees", "clocks", "volcanoes", "lighthouses", "trams", "kites", "glass")
FORMS = (
    "history of",
    "atlas of",
    "poems about",
    "letters on",
    "handbook of",
    "murder among",
    "songs of",
    "a life with",
)
BOOKS = [(f"{form} {subject}", subject, form) for subject in SUBJECTS for form in FORMS]


# %%
def reader(number):
    subject, form = rng.choice(SUBJECTS), rng.choice(FORMS)
    liked = [b for b in BOOKS if subject in b or form in b]
    others = [b for b in BOOKS if b not in liked]
    shelf = rng.sample(liked, 8)
    books = shelf[5:] + rng.sample(others, 7)
    rng.shuffle(books)
    return {
        "id": number, "query": "Which of these books will this reader borrow?", "history": [b[0] for b in shelf[:5]],
        "candidates": [b[0] for b in books], "relevant": [i for i, b in enumerate(books) if b in liked],
    }  # fmt: skip


rows = [reader(number) for number in range(4000)]
rows[0]

# %% [markdown]
# ## Open and check
#
# `fgrpo.lab` reads the rows, checks every field and splits them 8:1:1 by position, so rows of one user must not be spread
# over the file. A broken row stops it with a sentence that names the row and the field; doubtful things, such as pools in
# which the first candidate is always relevant, are listed under *notes on the data*. Options are arguments.
#
# To use a language model as the policy, name its folder or hub name in `MODEL`, for example
# `HuggingFaceTB/SmolLM2-135M-Instruct`. Everything below stays the same, but takes minutes instead of seconds on a CPU, and
# the model will need many more steps than are set here.

# %%
MODEL = ""  # a folder or hub name; empty: a tiny policy with one token per book

sizes = {"sft_steps": 20, "sft_batch": 4, "queries": 2} if MODEL else {"sft_steps": 400, "sft_batch": 32, "queries": 16}
lab = fgrpo.lab(rows, model=MODEL, seed=SEED, slate_size=5, rank_size=3, full=True, **sizes)
lab

# %% [markdown]
# What a wrong row would say:

# %%
try:
    fgrpo.lab([*rows[:20], {**rows[20], "relevant": ["atlas of bees"]}])
except fgrpo.KitError as error:
    print(error)

# %% [markdown]
# ## Look at one group
#
# The policy to start from does not exist yet: it is trained when it is first needed (SFT on the relevant books of the
# training rows) and kept, so that this cell takes half a minute only once. Then eight rollouts for one reader:

# %%
group = lab.group(query=1)
group

# %% [markdown]
# Look before you count. Are the starred books those you would have chosen? Do the eight rollouts differ? If all rollouts of
# nearly all groups are the same, there is nothing to compare and RL learns nothing.
#
# ## What does chance reach?
#
# A score means little without that of a coin, and of an answer that ignores the reader.

# %%
lab.baselines("random", "popularity")

# %%
lab.evaluate()

# %% [markdown]
# ## Does the policy read?
#
# The same pools in three orders, and the queries exchanged between readers: a policy that reads follows the *books* to their
# new positions and gets worse with somebody else's history. One that counts positions or repeats popular books does neither,
# and a comparison of credit methods on it would compare nothing (notebook 8).

# %%
reads = lab.reads(limit=400)
reads.caption

# %% [markdown]
# ## Train and compare
#
# Only now. Write your prediction down first: does RL beat the warm start with full lists (`sft_full`)? Is there a difference
# between the methods that five seeds can see?

# %%
table = lab.compare(["grpo", "fgrpo"], seeds=1 if MODEL else 5, steps=2 if MODEL else 30)
table

# %%
table.plot()

# %% [markdown]
# The same lab has `lab.train`, `lab.oracle` and methods of your own (notebook 9). For longer runs use the command line,
# which takes a JSONL file as `--task` (`fgrpo.lab` wrote one to `runs/data/`):
#
# ```text
# python -m fgrpo data check mine.jsonl
# python -m fgrpo compare --task mine.jsonl --credits grpo,fgrpo --slate-size 5 --rank-size 3 --seeds 10 --starts 5
# ```
