"""Every experiment behind data/results/ and data/checkpoints/: `python data/results/make.py NAME ...` (--help lists them).

Run it from the repository's root, with OMP_NUM_THREADS=1. Runs go to runs/NAME and continue where they were interrupted;
tables and figures are copied to data/results/. Folders of real data are environment variables: MOVIELENS
(ml-latest-small), LASTFM (hetrec2011-lastfm-2k), SDPO (LastFM of S-DPO), GAMES (LLMRank), MUSIQUE, HOTPOTQA, and SMOLLM2
(`python -m fgrpo data fetch-model smollm2` makes it).
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from fgrpo.baselines import baselines_by_name, demonstrator, zero_shot  # noqa: E402
from fgrpo.config import KitError  # noqa: E402
from fgrpo.credit import with_credit  # noqa: E402
from fgrpo.evaluate import greedy  # noqa: E402
from fgrpo.lm.pretrained import PretrainedPolicy  # noqa: E402
from fgrpo.policy import Sampling  # noqa: E402
from fgrpo.runs.fields import config_with, with_fields  # noqa: E402
from fgrpo.runs.policies import load_policy  # noqa: E402
from fgrpo.runs.presets import LADDER, LM_PRESET, PRESETS, RECIPES  # noqa: E402
from fgrpo.runs.run import provenance, read_config  # noqa: E402
from fgrpo.runs.sft import demonstrations as demonstrate  # noqa: E402
from fgrpo.runs.sft import generator_of  # noqa: E402
from fgrpo.runs.trace import trace_of, trace_policy, write_trace  # noqa: E402
from fgrpo.runs.warm_start import warm_start  # noqa: E402
from fgrpo.study import analysis, plots  # noqa: E402
from fgrpo.study.compare import compare, groups_of, loaded_once, seed_starts  # noqa: E402
from fgrpo.study.control import control_experiments, control_found  # noqa: E402
from fgrpo.study.experiments import grid  # noqa: E402
from fgrpo.study.instrument import instrument  # noqa: E402
from fgrpo.study.ladder import BEGIN, format_ladder, ladder_experiments, measure_ladder  # noqa: E402
from fgrpo.study.map import CELLS  # noqa: E402
from fgrpo.study.preference import preferences_by_name  # noqa: E402
from fgrpo.study.reads import reads_rows, verdict  # noqa: E402
from fgrpo.study.report import AREA, PRIMARY, made_of, table, to_csv, write_report  # noqa: E402
from fgrpo.tasks import family, load_task, resolved  # noqa: E402
from fgrpo.tasks.atomic import write_text  # noqa: E402

RESULTS, CHECKPOINTS, TRANSFER = (Path("data") / name for name in ("results", "checkpoints", "transfer"))
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
LAB = config_with(**PRESETS["lab-rec"])
TRAINED = config_with(**PRESETS["lab-rec"] | RECIPES["lab-trained"])
STARTS = 3
RATES = {"grpo": 4e-4, "fgrpo": 8e-4, "item": 4e-4, "reward_to_go": 4e-4}  # best of `recipe` and `recipe-fgrpo`
ALL = ("grpo", "grpo scale=std", "rloo", "gdpo", "fgrpo", "reward_to_go", "anchor", "control", "nested", "nested rankings=4",
       "item", "shapley")  # fmt: skip
FOUR, TWO = ("grpo", "fgrpo", "item", "reward_to_go"), ("grpo", "fgrpo")
CONFIRMED = {"pool50": ("pool50", 1.0), "one lam=4": ("one", 4.0), "warm lam=4": ("warm", 4.0), "one": ("one", 1.0),
             "cold lam=4": ("cold", 4.0), "slate noise": ("slate-noise", 1.0)}  # fmt: skip
"""regimes in which the map's prediction is tested: a cell of it, and lambda"""
OPTIONS = (("epochs", 2), ("scale", "std"), ("lam", 2.0), ("rankings", 2), ("temperature", 0.7), ("temperature", 1.4))
REAL = ("lastfm-sdpo", "movielens-loo", "games-mixed")
READING = ("grpo", "fgrpo", "reward_to_go", "item")
BESIDE = ["random", "popularity", "gru4rec", "decoupled", "attributes", "taste"]


def methods(config, *names):
    """Methods by name; nested samples as many tokens as the others, from more queries."""
    nested = with_credit(config.rl, "nested")
    special = {
        "grpo scale=std": replace(config.rl, credit="grpo", scale="std"),
        "nested": replace(nested, queries=24),
        "nested rankings=4": replace(nested, rankings=4, queries=30),
    }
    return {name: replace(config, rl=special.get(name) or with_credit(config.rl, name)) for name in names}


def sweep(config, names, **vary):
    """The methods `names` under every combination of values."""
    return {setting: methods(base["grpo"], *names) for setting, base in grid(config, ["grpo"], vary).items()}


def experiment(name, experiments, seeds, folder=None, copies=None, against="", split="test", limit=None, starts=STARTS,
               baselines=(), primary=PRIMARY, margin=0.01, **options):  # fmt: skip
    """Run a comparison, in runs/NAME unless a folder is given; copy its table, its check, its figure and `copies`."""

    def load(config):
        splits, items = load_task(config)
        return splits._replace(test=getattr(splits, split)[:limit]), items

    read, folder = loaded_once(load), folder or Path("runs") / name
    beside = baselines if isinstance(baselines, dict) else baselines_by_name(list(baselines))
    results = compare(experiments, seeds, folder, read, beside, resume=True, starts=starts, **options)
    groups = groups_of(experiments, read)
    write_report(results, experiments, folder, against, seed_starts(seeds, starts), groups, primary, margin)
    copies = {"comparison.csv": f"{name}.csv", "manipulation.csv": f"{name}-check.csv", "comparison.png": f"{name}.png",
              **(copies or {})}  # fmt: skip
    for source, target in copies.items():
        shutil.copy(folder / source, RESULTS / target)
    return results, groups


def demonstrations():
    """What a warm start is made of: each kind of demonstration, after so many steps, measured on the validation split."""
    splits, items = load_task(LAB)
    rows = []
    for kind, steps in product(("relevant", "filled", "ranked"), (250, 500, 1000)):
        config = with_fields(LAB, demonstrations=kind, sft_steps=steps)
        folder = Path("runs/demonstrations") / f"{kind}-{steps}"
        find = demonstrator(splits, config)
        start = warm_start(config, splits, items, folder, True, True, demonstrate=find)
        row = {"demonstrations": kind, "steps": steps, "seed": config.seed} | instrument(
            load_policy(start), splits, config
        )
        generators = [generator_of(0, e.id) for e in splits.validation]
        lists = (find or demonstrate)(splits.validation, config, generators)
        rows.append(row | {"items": sum(len(part) for both in lists for part in both) / len(lists)})
        print(rows[-1], flush=True)
    write_text(RESULTS / "demonstrations.csv", to_csv(rows, {**provenance(), "config": LAB.to_dict()}))


def ladder():
    """The three warm starts, each with three seeds, measured on the validation split."""
    rows = []
    for name, seed in product(LADDER, range(STARTS)):
        config = config_with(**PRESETS["lab-rec"] | LADDER[name])
        splits, items = load_task(config)
        start = warm_start(config, splits, items, Path("runs/ladder") / f"{name}-seed{seed}", True, True, seed=seed)
        rows.append({"warm_start": name, "steps": config.sft.sft_steps, "seed": seed}
                    | instrument(load_policy(start), splits, config))  # fmt: skip
        print(rows[-1], flush=True)
    write_text(RESULTS / "ladder.csv", to_csv(rows, {**provenance(), "config": LAB.to_dict()}))


def lab():
    """The main comparison, from the warm start, each method at the learning rate chosen for it."""
    experiments = {"": {m: with_fields(c, lr=RATES[m]) for m, c in methods(LAB, *FOUR[:3]).items()}}
    copies = {"learning.png": "lab-learning.png", "errors.png": "lab-errors.png", "settling.csv": "lab-settling.csv",
              "efficiency.csv": "lab-curve.csv", "efficiency.png": "lab-curve.png"}  # fmt: skip
    experiment("lab", experiments, 6, starts=6, every=200, baselines=BESIDE, copies=copies)


def control(name="control", config=LAB, seeds=3, starts=STARTS):
    """Rank tokens alone learn, the slate's reward is noise."""
    (splits, items), experiments = load_task(config), control_experiments(config)
    results = compare(experiments, seeds, Path("runs") / name, lambda _: (splits, items), {}, resume=True, starts=starts,
                      sft_more=False)  # fmt: skip
    found = control_found(results, seed_starts(seeds, starts))
    rows = []
    for method, gain in (("grpo", found.joint), ("fgrpo", found.own), ("fgrpo minus grpo", found.apart)):
        low, high = gain.interval()
        rows.append({"method": method, "start": found.start, "gain": gain.mean, "low": low, "high": high,
                     "holds": found.holds, "seeds": seeds, "starts": starts})  # fmt: skip
    print(*found.sentences, sep="\n")
    write_text(RESULTS / f"{name}.csv", to_csv(rows, {**provenance(), "config": experiments[""]["grpo"].to_dict()}))


def confirm(name="confirm", regimes=tuple(CONFIRMED), starts=STARTS):
    """The map's prediction, tested: runs of 200 steps at one constant rate, measured every 40 steps."""
    experiments = {
        regime: methods(with_fields(CELLS[cell].config(), lam=lam, steps=200, lr=2e-4, lr_decay="none"), *TWO)
        for regime, (cell, lam) in CONFIRMED.items() if regime in regimes
    }  # fmt: skip
    copies = {"reached.csv": f"{name}-reached.csv", "efficiency.csv": f"{name}-curve.csv",
              "efficiency.png": f"{name}-curve.png"}  # fmt: skip
    results, groups = experiment(
        name, experiments, 10, starts=starts, every=40, sft_more=False, primary=AREA, margin=0.005, copies=copies
    )
    rows = [r for r in table(results, "grpo", seed_starts(10, starts), groups) if r["metric"] == PRIMARY]
    write_text(RESULTS / f"{name}-end.csv", to_csv(rows, made_of(experiments)))  # the secondary family


def control_ladder():
    """Why the control's effect drowns: the ranker alone, separate weights, shared weights."""
    (splits, items), experiments = load_task(LAB), ladder_experiments(LAB)
    folder, seeds = Path("runs/control-ladder"), 3
    results = compare(experiments, seeds, folder, lambda config: (splits, items), {}, resume=True, starts=STARTS,
                      sft_more=False, begin=BEGIN)  # fmt: skip
    print(format_ladder(measure_ladder(results, experiments, folder, splits, seed_starts(seeds, STARTS))))
    for suffix in (".csv", ".png"):
        shutil.copy((folder / "ladder").with_suffix(suffix), (RESULTS / "control-ladder").with_suffix(suffix))


def outcome():
    """Prediction and outcome: efficiency on the map against tokens saved in training."""
    predicted = {(r["cell"], float(r["lam"]), r["method"]): r for r in read_csv("map") if r["part"] == "whole"}
    rows = []
    for r in read_csv("confirm-reached"):
        if r["method"] == "grpo":
            continue
        seen = predicted[(*CONFIRMED[r["setting"]], r["method"])]
        rows.append({"regime": r["setting"], "method": r["method"]}
                    | {name: float(seen[name]) for name in ("efficiency", "efficiency_low", "efficiency_high")}
                    | {name: float(r[name]) for name in ("saved", "saved_low", "saved_high")})  # fmt: skip
    order = float(spearmanr([r["efficiency"] for r in rows], [r["saved"] for r in rows]).statistic)
    print(f"rank correlation over {len(rows)} regimes: {order:.2f}")
    write_text(RESULTS / "confirm-outcome.csv", to_csv(rows, {**provenance(), "rank_correlation": order}))
    plots.save(plots.outcome(rows), RESULTS / "confirm-outcome.png")


def read_csv(name):
    """The rows of a table in data/results."""
    lines = (RESULTS / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    return list(csv.DictReader(lines[1:]))


def figures():
    """Every figure whose table is in data/results, drawn again: all but `lab-learning`, which needs the runs."""

    def value(text, empty):
        if text in ("", "True", "False"):
            return {"": empty, "True": True, "False": False}[text]
        try:
            return int(text) if text.lstrip("-").isdigit() else float(text)
        except ValueError:
            return text

    def rows_of(name, empty=None):
        renamed = {"holm_low": "simultaneous_low", "holm_high": "simultaneous_high"}  # in the oldest tables
        return [
            {renamed.get(k, k): v if k == "setting" else value(v, empty) for k, v in row.items()}
            for row in read_csv(name)
        ]

    found = {path.stem: path for path in sorted(RESULTS.glob("*.png"))}
    pretrained = [name for name in found if name.startswith("smollm2")]
    for name in (
        "recipe",
        "batch",
        "horizon",
        "lab",
        "lab-filled",
        "preference",
        "trained",
        "lambda",
        "confirm",
        "confirm-starts",
        "games-large",
        "games-length",
        *REAL,
        *pretrained,
    ):
        if name in found:
            metric = AREA if name.startswith("confirm") else PRIMARY
            plots.save(plots.comparison(rows_of(name), metric), found[name])
    for name in ("lab", *REAL):
        if f"{name}-errors" in found:
            plots.save(plots.error_types(rows_of(name)), found[f"{name}-errors"])
    curve = rows_of("lab-curve")
    level = [r["mean"] for r in curve if r["method"] == "grpo"][-1]
    plots.save(plots.efficiency(curve, [{"target": level}]), found["lab-curve"])
    plots.save(plots.efficiency(rows_of("confirm-curve"), rows_of("confirm-reached")), found["confirm-curve"])
    plots.save(plots.outcome(rows_of("confirm-outcome")), found["confirm-outcome"])
    plots.save(plots.ladder(rows_of("control-ladder")), found["control-ladder"])
    plots.save(plots.oracle(rows_of("oracle")), found["oracle"])
    plots.save(plots.bench(rows_of("bench", "")), found["bench"])
    plots.save(plots.scaling(rows_of("scaling", "")), found["scaling"])


def analysis_of(name, *options):
    """What `python -m fgrpo analyse` measures: its table, and its figure where there is one."""
    made = Path("runs") / name / f"{name}.csv"  # the map keeps its warm starts beside it
    made.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-m", "fgrpo", "analyse", *options, "--out", str(made)], check=True)
    for path in (made, made.with_suffix(".png")):
        if path.exists():
            shutil.copy(path, RESULTS)


def read_test(task):
    """Whether the policies of a real task's table read their pools and queries (those of seed 0, test split)."""
    folder = Path("runs") / task
    config = read_config(folder / "warm-start")
    (splits, _), sampling = load_task(config), Sampling(replace(config.grammar, full=True))

    def answering(name):
        policy = load_policy(folder / name)
        return lambda examples, **options: greedy(policy, examples, sampling, **options)

    select, rank = (answering(f"baselines/{name}") for name in ("selector", "ranker-gold"))
    rows, verdicts = [], {}
    names = ("warm-start", "sft_once-start0", "sft_more-start0", *(f"{method}-seed0" for method in READING))
    answers = {name: answering(name) for name in names}
    answers["decoupled"] = lambda examples: rank(examples, slates=[output.slate for output in select(examples)])
    for name, answer in answers.items():
        found = reads_rows(answer, splits.test, splits.train)
        verdicts[name] = verdict(found)
        rows += [{"policy": name} | row for row in found]
    write_text(RESULTS / f"reads-{task}.csv", to_csv(rows, {**provenance(), "verdicts": verdicts}))


def map_real(task):
    """The map's cell of a real task, at the warm start of seed 0."""
    analysis_of(f"map-{task}", "--map", "--checkpoint", f"runs/{task}/warm-start", "--groups-per-cell", "960")


def folder_of(variable):
    """The folder that an environment variable names."""
    if not os.environ.get(variable):
        raise KitError(f"set the environment variable {variable} to a folder, as data/results/make.py --help explains.")
    return os.environ[variable]


def smollm2(task, data, limit=None, passage_tokens=200, **changes):
    """SmolLM2-135M-Instruct with a LoRA adapter on a real task, beside the untuned model under the grammar."""
    lm = {"model": folder_of("SMOLLM2"), "gguf_file": GGUF, "dtype": "bfloat16", "passage_tokens": passage_tokens}
    flat = {**LM_PRESET, **lm, "lora_rank": 2, "lora_alpha": 16, "lora_targets": "q_proj,v_proj", "micro": 2,
            "sft_steps": 40, "sft_batch": 4, "sft_lr": 1e-3, "steps": 10, "queries": 2, "lr": 3e-4, **changes}  # fmt: skip
    config = resolved(config_with(task=task, data=folder_of(data), **flat))
    baselines = baselines_by_name(["random", "popularity", "bm25", "dense"]) | {"zero_shot": partial(zero_shot, **lm)}
    experiment(f"smollm2-{task}", {"": methods(config, "grpo", "fgrpo", "item")}, 3, limit=limit, starts=1, sft_more=False,
               baselines=baselines, jobs=1)  # fmt: skip


def text_config(task, data, **changes):
    """A configuration of a policy that reads texts."""
    return config_with(task=task, data=folder_of(data), **{**PRESETS[family(task)], **RECIPES["reads"], **changes})


def reads(task, data, *beside, **changes):
    """A policy that reads texts on a real task with thousands of test queries; 5 seeds from 5 warm starts."""
    config = resolved(text_config(task, data, **{"steps": 150, **changes}))
    baselines = ["random", "popularity", "bm25", "dense", *beside, "gru4rec", "unisrec", "decoupled"]
    experiment(config.task, {"": methods(config, *READING)}, 5, starts=5, baselines=baselines,
               copies={"errors.png": f"{config.task}-errors.png"})  # fmt: skip


def games_large():
    """Larger pools, longer slates, slates of a length of their own, from the warm start of `games-mixed` (pools of 20)."""
    config = text_config("games-mixed", "GAMES", steps=100, lr=3e-4)
    settings = {"pool=50": {"pool": 50}, "pool=100 slate_size=20": {"pool": 100, "slate_size": 20},
                "pool=100 slate_size=20 slate_reward=f1": {"pool": 100, "slate_size": 20, "slate_reward": "f1"},
                "task=games-union pool=200 slate_size=20": {"task": "games-union", "pool": 200, "slate_size": 20},
                }  # fmt: skip
    experiments = {name: methods(with_fields(config, **changes), *TWO) for name, changes in settings.items()}
    experiment("games-large", experiments, 3, starts=1, start=Path("runs/games-mixed/warm-start"), sft_more=False,
               limit=1000, baselines=["random", "popularity", "bm25", "dense", "retriever"])  # fmt: skip


def games_length():
    """Slates of a length of their own, from warm starts whose demonstrations hold the relevant item alone."""
    config = text_config("games-mixed", "GAMES", demonstrations="relevant", steps=200, lr=3e-4)
    experiments = {
        f"slate_reward={name}": methods(with_fields(config, slate_reward=name), *TWO) for name in ("recall", "f1")
    }
    experiment("games-length", experiments, 3, sft_more=False, limit=1000, baselines=["popularity"])


def warm_starts(name, runs):
    """Warm starts, measured on the validation split: for each the columns that say which it is, and its configuration."""
    rows = []
    for columns, config in runs:
        splits, items = load_task(config)
        folder, find = Path("runs") / name / "-".join(map(str, columns.values())), demonstrator(splits, config)
        start = warm_start(config, splits, items, folder, True, True, demonstrate=find)
        rows.append({**columns, "seed": config.seed} | instrument(load_policy(start), splits, config))
        print(rows[-1], flush=True)
        write_text(RESULTS / f"{name}.csv", to_csv(rows, {**provenance(), "config": config.to_dict()}))


def features():
    """What a warm start knows: each kind of features, with and without pre-training."""
    kinds = [{"features": kind, "pretrain": n} for kind, n in product(("id", "text", "both"), (0, 1500))]
    warm_starts("features", [(columns, text_config("lastfm-sdpo", "SDPO", **columns)) for columns in kinds])


def games_pretrain():
    """What longer pre-training gives on Games."""
    lengths = [{"pretrain": n} for n in (1500, 6000)]
    warm_starts("games-pretrain", [(columns, text_config("games-mixed", "GAMES", **columns)) for columns in lengths])


def text_checkpoint(task, data, **changes):
    """A shipped policy that reads free text: weights alone, none of the data's texts."""
    name, start = f"text-{task.partition('-')[0]}", Path("runs") / f"text-{task}"
    options = [f"--{key.replace('_', '-')}={value}" for key, value in changes.items()]  # for RL
    call = [sys.executable, "-m", "fgrpo", "train", "--preset", "reads", "--features", "text", "--task", task, "--data",
            folder_of(data)]  # fmt: skip
    subprocess.run([*call, "--sft", "--resume", "--out", str(start)], check=True)
    rl = [*options, "--init", str(start), "--policy-only", "--out", str(CHECKPOINTS / name)]
    subprocess.run([*call, *rl], check=True)
    for file in ("trace.jsonl", "metrics.jsonl"):  # a trace holds texts of the data, and what is shipped stays small
        (CHECKPOINTS / name / file).unlink()


def transfer():
    """Answers of the untuned model and of four of its adapters to data/transfer, for notebook 08."""
    subprocess.run([sys.executable, TRANSFER / "make.py"], check=True)
    lm = {"model": folder_of("SMOLLM2"), "gguf_file": GGUF, "dtype": "bfloat16", "passage_tokens": 24, "micro": 4}
    for name in ("base", "musique-sft", "musique-fgrpo", "movielens-sft", "movielens-fgrpo"):
        for task in ("questions", "films"):
            config = config_with(**LM_PRESET | lm, task=str(TRANSFER / f"{task}.jsonl"))
            folder = CHECKPOINTS / f"smollm2-{name}"
            policy = PretrainedPolicy.new(config.lm) if name == "base" else load_policy(folder, lm=config.lm)
            examples = [e for part in load_task(config)[0] for e in part]
            groups = trace_policy(policy, examples, config, 1, seed=config.seed)
            write_trace(TRANSFER / f"{name}-{task}.jsonl", trace_of(f"{name}-{task}", config, groups))


def oracle(name, configs, batches, groups):
    """Bias and variance of methods against the exact gradient, at the shipped warm start."""
    config, policy = read_config(CHECKPOINTS / "lab-rec"), load_policy(CHECKPOINTS / "lab-rec")
    options = {method: c.rl for method, c in configs.items()}
    found = analysis.analyse(policy, load_task(config)[0], options, config, 4, batches, groups)
    analysis.write_analysis(RESULTS / f"{name}.csv", *found, str(CHECKPOINTS / "lab-rec"), config)


def train(name, *options):
    """A shipped policy. A folder that holds a run is not overwritten: remove it first."""
    subprocess.run([sys.executable, "-m", "fgrpo", "train", "--task", "lab-rec", "--policy-only", *options, "--out",
                    str(CHECKPOINTS / name)], check=True)  # fmt: skip


def traces():
    """The same queries for the three shipped policies, two rankings of each slate, so that every method fits them."""
    for name in ("lab-rec", "lab-rec-grpo", "lab-rec-fgrpo"):
        folder = CHECKPOINTS / name
        config = read_config(folder)
        config = replace(config, rl=with_credit(replace(config.rl, group=8), "nested"))
        test = load_task(config)[0].test[:100]  # with eight rollouts each, three traces have 1.7 MB
        groups = trace_policy(load_policy(folder), test, config, len(test), seed=config.seed)
        write_trace(folder / "trace.jsonl", trace_of(name, config, groups))


AFTER = ("--steps", "300", "--seed", "0", "--init", str(CHECKPOINTS / "lab-rec"), "--credit")
EXPERIMENTS = {
    "demonstrations": demonstrations,
    "ladder": ladder,
    "recipe": lambda: experiment("recipe", sweep(LAB, FOUR, lr=[1e-4, 2e-4, 4e-4, 8e-4]), 2, split="validation",
                                 starts=2, sft_more=False),
    "recipe-fgrpo": lambda: experiment(  # its best rate was at the edge of `recipe`
        "recipe-fgrpo", sweep(LAB, ("fgrpo",), lr=[1.6e-3]), 2, split="validation", starts=2, sft_more=False),
    "batch": lambda: experiment(  # the same number of rollouts a step, split otherwise
        "batch", {f"{q} x {128 // q}": methods(with_fields(LAB, queries=q, group=128 // q), *TWO) for q in (8, 32)}, 2,
        split="validation", starts=2, sft_more=False),
    "horizon": lambda: experiment("horizon", sweep(LAB, TWO, steps=[300, 1200]), 2, split="validation", starts=2,
                                  sft_more=False),
    "options": lambda: experiment(  # one option of the recipe changed at a time
        "options", {f"{name}={value}": methods(with_fields(LAB, lr=4e-4, **{name: value}), *TWO)
                    for name, value in OPTIONS}, 2, split="validation", starts=2, sft_more=False),
    "lab": lab,
    "lab-filled": lambda: experiment(
        "lab-filled", {"": methods(with_fields(LAB, full=True), *FOUR[:3])}, 3, sft_more=False),
    "lab-temperature": lambda: experiment(  # what `options` chose
        "lab-temperature", {"": methods(with_fields(LAB, lr=4e-4, temperature=0.7), *FOUR[:3])}, 6, starts=6),
    "preference": lambda: experiment(  # offline preferences beside RL, from the same starts and queries
        "preference", {"": methods(with_fields(LAB, full=True), *TWO)}, 3,
        preferences=preferences_by_name(["dpo", "s_dpo"])),
    "trained": lambda: experiment("trained", {"": methods(TRAINED, *TWO)}, 3),
    "lambda": lambda: experiment("lambda", sweep(with_fields(LAB, steps=150), TWO, lam=[0.25, 1.0, 4.0]), 3,
                                 sft_more=False),
    "control": control,
    "control-cold": lambda: control("control-cold", with_fields(LAB, **LADDER["lab-cold"]), 6, 6),
    "map": lambda: analysis_of("map", "--map", "--resume"),
    "signs": lambda: analysis_of("signs", "--signs", "--pools", "500", "--split", "validation"),
    "confirm": confirm,
    "confirm-starts": lambda: confirm("confirm-starts", ("one", "warm lam=4"), 10),
    "outcome": outcome,
    "figures": figures,
    "control-ladder": control_ladder,
    "oracle": lambda: oracle("oracle", methods(LAB, *ALL), 16, (2, 4, 8, 16)),
    # real data and models
    # learning rates are the better of two or three on 1,000 to 2,000 validation queries, one seed
    "lastfm-sdpo": lambda: reads("lastfm-sdpo", "SDPO"),
    "movielens-loo": lambda: reads("movielens-loo", "MOVIELENS", pretrain=200),
    "games-mixed": lambda: reads("games-mixed", "GAMES", "retriever", lr=3e-4),
    **{f"reads-{task}": partial(read_test, task) for task in REAL},
    **{f"map-{task}": partial(map_real, task) for task in REAL},
    "games-large": games_large,
    "games-length": games_length,
    "features": features,
    "games-pretrain": games_pretrain,
    "text-lastfm": lambda: text_checkpoint("lastfm-sdpo", "SDPO"),
    "text-games": lambda: text_checkpoint("games-mixed", "GAMES", lr=3e-4),
    "smollm2-movielens": lambda: smollm2("movielens", "MOVIELENS"),
    "smollm2-lastfm": lambda: smollm2(  # the shortest prompts and the most data: a longer warm start, of all layers
        "lastfm", "LASTFM", limit=60, lora_targets="all-linear", sft_steps=200, sft_lr=5e-4),
    "smollm2-musique": lambda: smollm2("musique", "MUSIQUE", limit=40, passage_tokens=24),
    "smollm2-hotpotqa": lambda: smollm2("hotpotqa", "HOTPOTQA", limit=40, passage_tokens=24),
    "transfer": transfer,
    # data/checkpoints
    "lab-rec": lambda: train("lab-rec", "--sft"),
    "lab-rec-grpo": lambda: train("lab-rec-grpo", *AFTER, "grpo"),
    "lab-rec-fgrpo": lambda: train("lab-rec-fgrpo", *AFTER, "fgrpo"),
    "traces": traces,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME", choices=EXPERIMENTS, help=", ".join(EXPERIMENTS))
    for name in parser.parse_args().names:
        try:
            EXPERIMENTS[name]()
        except KitError as error:
            sys.exit(f"make.py: {name}: {error}")
