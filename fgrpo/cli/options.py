"""The options of the command line, and what they configure: `parser_of`, `config_of`, `load`.

The fields of a run come from the dataclasses of fgrpo.config.
"""

import argparse
import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from ..config import CONCERNS, Config, KitError, LMConfig
from ..runs.presets import RECIPES, run_with
from .checks import check_used

if TYPE_CHECKING:
    from ..data import Splits
    from ..tasks.reading import Notes

DATA_SETS = ("movielens-latest-small", "movielens-100k", "movielens-1m", "lastfm", "hotpotqa", "musique")

RARE = ("sft_weight_decay", "rank_reward", "format_penalty", "clip_low", "clip_high", "max_grad_norm")
"""Fields of a run that are set in Python only."""

Command = Callable[[argparse.Namespace], int | None]


class Parser(argparse.ArgumentParser):
    """Reports a wrong call as one line, without the usage text. Options are not abbreviated: --seed is not --seeds."""

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Hand the message to `main`, which prints it as any other."""
        raise KitError(f"{message} (see {self.prog} --help)")


def parser_of(commands: Mapping[str, Command]) -> Parser:
    """The parser of the command line; `commands` holds the function that runs each command, by its full name."""
    parser = Parser(
        prog="python -m fgrpo", description="F-GRPO (arXiv 2605.12995): one rollout, two phases, two credits."
    )
    top = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, under: "argparse._SubParsersAction[Parser]" = top, config: bool = False) -> Parser:
        run = commands[name]
        usage = f"python -m fgrpo {name} [options]" if config else None
        p = under.add_parser(
            name.split()[-1], help=run.__doc__, description=run.__doc__, usage=usage, formatter_class=_wide
        )
        p.set_defaults(run=run)
        if config:
            add_arguments(p, Config, *CONCERNS.values(), skip=RARE)
            p.add_argument(
                "--preset",
                choices=RECIPES,
                help="a warm start of the lab task, a policy that reads texts, or an experiment of the paper; options that "
                "are given win",
            )
        if not name.startswith("data") or name == "data stats":
            p.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
        return p

    p = command("demo")
    p.add_argument("--steps", type=_count(), default=80, metavar="N", help="RL steps per run (default 80)")
    p.add_argument("--seeds", type=_count(1000), default=3, metavar="N", help="seeds per method (default 3)")
    p.add_argument("--jobs", type=_count(1024), metavar="N", help="runs at a time (default: one per core)")
    p = command("train", config=True)
    p.add_argument("--out", type=_text, help="folder of the run (default: runs/ and the name of the preset)")
    p.add_argument(
        "--dry-run", action="store_true", help="print the plan, with memory and time estimated; load no weights"
    )
    p.add_argument("--init", type=_text, help="policy or run folder to start from, hub:USER/NAME, or base: the untuned "
                   "model (default: a warm start, shipped or made first)")  # fmt: skip
    p.add_argument("--sft", action="store_true", help="make only the warm start")
    p.add_argument(
        "--policy-only", action="store_true", help="in the end keep the finished policy, not what resuming needs"
    )
    p.add_argument("--resume", action="store_true", help="go on from the last checkpoint in --out, if there is one")
    p.add_argument("--save-every", type=_count(), default=25, help="steps between checkpoints (default 25)")
    p.add_argument(
        "--track", default="", metavar="NAME", help="send numbers and rollouts also to trackio or tensorboard"
    )
    p = command("evaluate")
    _add_checkpoint(p)
    p.add_argument("--trec", type=_text, metavar="FILE", help="write the greedy lists as a TREC run (ranked list, then the "
                   "rest of the slate), FILE.ranked (ranked lists alone) and FILE.qrels")  # fmt: skip
    p = command("compare", config=True)
    p.add_argument("--credits", help="credit methods, separated by commas (default grpo,fgrpo,reward_to_go)")
    p.add_argument("--control", action="store_true", help="instead the positive control: rank tokens alone learn, and the "
                   "slate's reward is noise; grpo must fall and fgrpo rise, or the instrument is broken")  # fmt: skip
    p.add_argument("--ladder", action="store_true", help="with --control: also both phases learning, with separate and with "
                   "shared weights, and what gradients predict of all three")  # fmt: skip
    p.add_argument("--vary", action="append", default=[], metavar="FIELD=V1,V2", help="repeat everything for each value "
                   "of a field, as in lam=0.5,1,2; given twice, for every combination")  # fmt: skip
    p.add_argument("--baselines", help="baselines beside the policies, separated by commas: random, popularity, bm25, "
                   "dense, gru4rec, unisrec, decoupled; of games also retriever; of lab-rec also attributes and taste "
                   "(default random,popularity; of lab-rec random,gru4rec,attributes,taste)")  # fmt: skip
    p.add_argument("--preference", metavar="NAMES", help="offline training beside RL from each warm start, on its own "
                   "outputs ordered by their rewards, separated by commas: dpo, s_dpo (default none)")  # fmt: skip
    p.add_argument("--no-sft-more", action="store_true", help="leave out SFT that goes on for as long as RL")
    p.add_argument("--starts", type=_count(1000), metavar="N", help="independent warm starts; seed S starts from number "
                   "S mod N (default 3, or the number of seeds)")  # fmt: skip
    p.add_argument("--against", default="", metavar="METHOD", help="method that differences are taken to (default: grpo, "
                   "or the first one)")  # fmt: skip
    p.add_argument("--limit", type=_count(), metavar="N", help="measure on the first N queries only")
    p.add_argument(
        "--split", choices=("validation", "test"), default="test", help="queries to measure on (default test)"
    )
    p.add_argument("--every", type=_count(), default=0, metavar="N", help="measure also every N steps: NDCG@5 against "
                   "sampled tokens")  # fmt: skip
    p.add_argument("--seeds", type=_count(1000), default=3, metavar="N", help="seeds per method (default 3)")
    p.add_argument("--out", type=_text, help="folder of the comparison (default: a new one under runs/)")
    p.add_argument(
        "--init",
        type=_text,
        help="policy or run folder to start from (default: a warm start, shipped or trained first)",
    )
    p.add_argument("--jobs", type=_count(1024), metavar="N", help="runs at a time (default: one per core)")
    p.add_argument("--resume", action="store_true", help="continue an interrupted comparison in --out")
    p = command("trace")
    _add_checkpoint(p)
    p.add_argument("--out", type=_text, help="JSONL file to write; another trace is overwritten")
    p.add_argument("--html", type=_text, metavar="FILE", help="HTML page to write, of the queries traced token by token: "
                   "their rewards and advantages, with candidates to move by hand; needs no server")  # fmt: skip
    p.add_argument("--sampled", type=_count(), default=24, help="number of queries traced token by token, each with the "
                   "run's number of rollouts (default 24); of the others the greedy lists alone")  # fmt: skip
    p = command("analyse")
    _add_checkpoint(p, "the shipped warm start")
    p.add_argument("--credits", default="", help="credit methods, separated by commas (default: all)")
    p.add_argument("--pools", type=_count(), metavar="N", help="queries whose pool is cut down and enumerated (default 4, "
                   "with --signs 200)")  # fmt: skip
    p.add_argument("--batches", type=_count(100_000), metavar="N", help="rollout batches of the real task (default 8)")
    p.add_argument("--groups", type=_numbers(2, 4096), help="group sizes G (default 2,4,8,16,32, with --signs 8)")
    p.add_argument("--out", type=_text, help="CSV file to write, with a figure beside it (not with --signs or --reads)")
    p.add_argument("--signs", action="store_true", help="instead how often a phase gets the opposite sign of its true "
                   "advantage, in pools of 5")  # fmt: skip
    p.add_argument("--reads", action="store_true", help="instead whether the policy reads its pool and its query, or "
                   "answers by position or popularity: pools in three orders, queries exchanged")  # fmt: skip
    p.add_argument("--map", action="store_true", help="instead the sample efficiency of each method by regime of the lab "
                   "task, or of --checkpoint; warm starts that are missing are made beside --out")  # fmt: skip
    p.add_argument("--coarse", action="store_true", help="with --map: half of the cells, with fewer groups")
    p.add_argument("--cells", default="", help="with --map: names of cells, separated by commas (default: all)")
    p.add_argument("--groups-per-cell", type=_count(1_000_000), metavar="N", help="with --map: maximum number of groups of "
                   "a cell (default 1000, with --coarse 640)")  # fmt: skip
    p.add_argument("--seed", type=_seed, metavar="INT", help="with --map: seed of queries and rollouts; with "
                   "--reads: of orders and of who gets whose query (default 0)")  # fmt: skip
    p.add_argument("--jobs", type=_count(1024), metavar="N", help="with --map: cells at a time (default: one per core)")
    p.add_argument("--resume", action="store_true", help="with --map: keep the cells that --out holds already")
    p.set_defaults(split=None)
    p = command("bench")
    for name, default, text in (("prompt", 512, "tokens of the prompt"), ("completion", 48, "tokens of each completion"),
                                ("group", 8, "rollouts per query")):  # fmt: skip
        p.add_argument(f"--{name}", type=_numbers(1, 65_536), help=f"{text}, one or more (default {default})")
    p.add_argument("--peers", default="", help="trl: TRL's GRPOTrainer as well (needs the extra `peers`)")
    p.add_argument("--scaling", action="store_true", help="time against group size (4 to 64) and pool size (20 to 200)")
    p.add_argument("--lab", action="store_true", help="SFT and RL steps of the lab task on one core, and their floor")
    p.add_argument("--full", action="store_true", help="with --lab: lists are filled")
    p.add_argument("--repeats", type=_count(), default=5, help="runs behind each median (default 5)")
    p.add_argument("--queries", type=_count(65_536), help="queries per step (default 2, with --lab 16)")
    p.add_argument("--layers", type=_count(1000), help="layers of the model (default 4)")
    p.add_argument("--hidden-size", type=_count(65_536), help="width of the model (default 256)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), help="weights (default float32)")
    p.add_argument("--device", type=_text, help="cpu or cuda (default cpu)")
    p.add_argument("--threads", type=_count(1024), help="CPU threads (default 1)")
    p.add_argument("--no-memory", action="store_true", help="leave out peak memory")
    p.add_argument("--out", type=_text, help="CSV file to write, with a figure beside it (not with --lab)")
    data = top.add_parser("data", help="fetch, count, build or check data").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    p = command("data build", data)
    p.add_argument("--out", type=_text, default="runs/lab-rec", help="folder (default runs/lab-rec)")
    p.add_argument("--one-relevant", action="store_true", help="exactly one relevant film per pool")
    p = command("data check", data)
    p.add_argument("file", help="a JSONL file")
    p = command("data stats", data)
    tasks = (
        "lab-rec, movielens (-loo), lastfm (-sdpo, -llara, -hetrec), games (-RETRIEVER), hotpotqa, musique, recbole, beir, "
        "trec, or a JSONL file"
    )
    p.add_argument("--task", default="lab-rec", help=tasks)
    p.add_argument("--data", type=_text, default=argparse.SUPPRESS, help="folder or file of a real data set")
    p.add_argument("--skip-bad", action="store_true", default=argparse.SUPPRESS, help="skip broken rows and count them")
    pools = ("pool", "negatives", "has_gt")
    add_arguments(p, Config, skip=tuple(f for f in Config.__dataclass_fields__ if f not in pools))
    add_arguments(p, LMConfig, skip=("lora_rank", "lora_alpha", "lora_targets", "dtype", "micro"))
    p = command("data fetch", data)
    p.add_argument("name", choices=DATA_SETS, metavar="NAME", help=", ".join(DATA_SETS))
    p.add_argument("--out", type=_text, help="folder to make (default ~/.cache/fgrpo/NAME)")
    p.add_argument("--yes", action="store_true", help="accept the licence without being asked")
    p = command("data fetch-model", data)
    p.add_argument("name", choices=("smollm2",), metavar="NAME", help="smollm2")
    p.add_argument("--out", type=_text, help="folder to make (default ~/.cache/fgrpo/smollm2)")
    p = command("data push-checkpoint", data)
    p.add_argument("checkpoint", type=_text, help="folder of a run, a checkpoint in it, or an adapter's folder")
    p.add_argument("name", metavar="USER/NAME", help="repository, made if there is none")
    p.add_argument("--public", action="store_true", help="anyone may read a repository that is made (default: private)")
    p.add_argument("--base", type=_text, help="name of the pretrained base model on the Hub, where the run named "
                   "a folder of this machine")  # fmt: skip
    p.add_argument("--licence", type=_text, default="apache-2.0", help="identifier for the card (default apache-2.0)")
    return parser


def _wide(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, max_help_position=28, width=118)


def add_arguments(parser: argparse.ArgumentParser, *kinds: type, skip: tuple[str, ...] = ()) -> None:
    """One option per field of each dataclass, its help taken from the docstring under the field.

    Options that are not given stay out of the namespace, so that a preset or a resumed run can fill them in.
    """
    for kind in kinds:
        group = parser.add_argument_group(kind.__name__, (kind.__doc__ or "").split("\n")[0])
        docs = _field_docs(kind)
        for f in dataclasses.fields(kind):
            if f.name in skip or dataclasses.is_dataclass(f.type):
                continue
            flag = "--" + f.name.replace("_", "-")
            text = f"{docs[f.name]} (default {f.default!r})".replace("%", "%%")
            how: dict[str, Any] = {"action": "store_true"}
            if f.default is True:
                how = {"action": argparse.BooleanOptionalAction}
            elif f.type is not bool:
                kind_of = _text if f.type is str else f.type
                how = {"type": kind_of, "metavar": getattr(f.type, "__name__", "value").upper()}
            group.add_argument(flag, default=argparse.SUPPRESS, help=text, **how)


def _add_checkpoint(p: argparse.ArgumentParser, default: str = "") -> None:
    """Which checkpoint, and on which queries; all else comes from the run's config.json."""
    p.add_argument("--checkpoint", type=_text, required=not default, help="folder of a run, a checkpoint in it, "
                   "hub:USER/NAME[@REVISION], or base: the untuned model of --model"
                   + (f" (default: {default})" if default else ""))  # fmt: skip
    p.add_argument("--task", type=_text, help="another task than the run's")
    p.add_argument("--data", type=_text, help="folder or file of its data")
    splits = ("train", "validation", "test", "all")
    p.add_argument("--split", choices=splits, default="test", help="queries to use (default test)")
    p.add_argument("--limit", type=_count(), help="maximum number of queries")
    p.add_argument("--device", type=_text, help="cpu, cuda, cuda:1 or mps")
    p.add_argument("--model", type=_text, help="path or name of the pretrained model, where it is elsewhere now")
    p.add_argument("--gguf-file", type=_text, help="GGUF file in its folder")
    p.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


@functools.cache
def _field_docs(kind: type) -> dict[str, str]:
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    docs = {}
    for a, b in itertools.pairwise(getattr(tree, "body", [])):
        if isinstance(a, ast.AnnAssign) and isinstance(a.target, ast.Name) and isinstance(b, ast.Expr):
            docs[a.target.id] = ast.literal_eval(b.value)
    return docs


def _text(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("a value is needed, this one is empty")
    return text


def _seed(text: str) -> int:
    return _numbers(0, 2**32 - 1)(text)[0]


def _count(most: int = 1_000_000_000) -> Callable[[str], int]:
    def read(text: str) -> int:
        numbers = _numbers(1, most)(text)
        if len(numbers) > 1:
            raise argparse.ArgumentTypeError(f"{text!r} must be one whole number above 0")
        return numbers[0]

    return read


def _numbers(least: int, most: int) -> Callable[[str], list[int]]:
    def read(text: str) -> list[int]:
        try:
            numbers = [int(x) for x in text.split(",")]
        except ValueError:
            numbers = []
        if not numbers or min(numbers) < least:
            raise argparse.ArgumentTypeError(
                f"{text[:80]!r} must be whole numbers above {least - 1}, separated by commas"
            )
        if len({*numbers}) < len(numbers):
            raise argparse.ArgumentTypeError(f"{text[:80]!r} has a number twice")
        if max(numbers) > most:
            raise argparse.ArgumentTypeError(f"{text[:80]!r} must be at most {most:,}")
        return numbers

    return read


def config_of(args: argparse.Namespace, vary: Mapping[str, Sequence[Any]] | None = None) -> Config:
    """The run that the options describe, over the preset of its task. `lastfm` gets the name of its folder's layout.

    `vary`: values of fields that a sweep tries. Raises KitError on an option that has no effect in this call
    (fgrpo.cli.checks).
    """
    from ..tasks import resolved

    names = [f for f in Config.__dataclass_fields__ if f not in CONCERNS]
    names += [f for kind in CONCERNS.values() for f in kind.__dataclass_fields__]
    given = {name: getattr(args, name) for name in names if hasattr(args, name)}
    config = run_with(given, getattr(args, "preset", None) or "")
    check_used(args, config, given, vary or {})
    return resolved(_brought(config, getattr(args, "init", None)))


def _brought(config: Config, init: str | None) -> Config:
    """The run as its config.json shall say it: if the policy of --init holds a whole model, all weights are trained."""
    from ..runs.policies import is_whole_model, policy_folder

    if not config.lm.lora_rank or init in (None, "base") or not is_whole_model(policy_folder(str(init))):
        return config
    usual = LMConfig()  # an adapter's options would have no effect
    lm = dataclasses.replace(config.lm, lora_rank=0, lora_alpha=usual.lora_alpha, lora_targets=usual.lora_targets)
    return dataclasses.replace(config, lm=lm)


def load(args: argparse.Namespace, config: Config, notes: "Notes | None" = None) -> "tuple[Splits, list[str]]":
    """The task's splits and catalogue; what its files lost is reported on stderr, and counted in `notes` where given.

    With --skip-bad, broken lines are skipped, counted and the first ones shown.
    """
    from ..tasks import load_task
    from ..tasks.reading import Faults, Notes

    bad = Faults() if config.skip_bad else None
    notes = Notes() if notes is None else notes
    splits, items = load_task(config, bad, notes)
    skipped = [f"skipped {bad.total} broken lines of {config.task}"] if bad else []
    for line in (*(bad or [])[:5], *notes.sentences(), *skipped):
        print(line, file=sys.stderr)
    if args.command == "compare":
        splits = splits._replace(test=getattr(splits, args.split)[: args.limit])
    return splits, items
