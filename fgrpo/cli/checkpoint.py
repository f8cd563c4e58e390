"""The commands on a checkpoint, `evaluate` and `trace`: everything but a few options comes from the run's config.json."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, KitError, LMConfig
from .checks import NEED_DATA, check_device, check_output, check_policy, flag
from .options import load

if TYPE_CHECKING:
    from ..data import Example, Splits
    from ..policy import Policy
    from ..prompt import Output


def evaluate(args: argparse.Namespace) -> None:
    """Measure a checkpoint by greedy decoding, with the grammar and decoding that it was trained with."""
    from ..tasks.atomic import write_text
    from ..tasks.retrieval import TREC_SUFFIXES, check_trec, trec_files

    for suffix in TREC_SUFFIXES if args.trec else ():
        check_output(Path(args.trec + suffix), "TREC")
    config, splits = of_checkpoint(args)
    examples = chosen(args, splits)
    if args.trec:
        check_trec(examples)
    policy = policy_of(args, config)
    what = "all splits" if args.split == "all" else f"{args.split} split"
    outputs = report_metrics(args, policy, examples, config, what)
    if args.trec:
        tag = Path(args.model if args.checkpoint == "base" else args.checkpoint).resolve().name
        for suffix, text in trec_files(outputs, examples, tag).items():
            write_text(args.trec + suffix, text)


def trace(args: argparse.Namespace) -> None:
    """Write what a checkpoint does on a task: greedy lists, sampled groups, every token, as JSONL or as a page."""
    from ..interactive.page import check_ours, export_html
    from ..runs.fields import check_pools
    from ..runs.lock import check_writable, lock
    from ..runs.trace import trace_of, trace_policy, write_trace

    out, page = (Path(name) if name else None for name in (args.out, args.html))
    if not (out or page):
        raise KitError("name a file to write: --out FILE (JSONL), --html FILE (a page to look at), or both.")
    if out and page and out.resolve() == page.resolve():
        raise KitError(f"--out and --html both name {out}: give the page another name.")
    held = None
    if out:
        check_output(out, "trace")
        # a run's folder has one writer at a time: this one for as long as `held` exists
        held = lock(out.parent) if (out.parent / "metrics.jsonl").is_file() else None
    if page:
        check_ours(page)
        check_writable(page)
    config, splits = of_checkpoint(args)
    examples = chosen(args, splits)
    if not out:
        examples = examples[: args.sampled]  # a page shows no others
    check_pools(examples, config)
    policy = policy_of(args, config)
    groups = trace_policy(policy, examples, config, args.sampled, seed=config.seed)
    name = out.parent.name if out and out.name == "trace.jsonl" else ""  # a run's own trace is named after the run
    traced = trace_of(name or (out or page or Path()).stem, config, groups)
    found: dict[str, object] = {"queries": len(groups), "sampled": min(args.sampled, len(groups))}
    said = []
    if out:
        write_trace(out, traced)
        found["bytes"] = out.stat().st_size
        said.append(
            f"{out}: {found['queries']} queries, {found['sampled']} of them token by token with {config.rl.group} "
            f"rollouts each, {found['bytes']:,} bytes"
        )
    if page:
        written = export_html(traced, page, most=args.sampled)
        found["page"] = {"groups": written.groups, "left_out": written.left_out, "bytes": page.stat().st_size}
        said += [
            f"{page}: {written.groups} queries, {page.stat().st_size:,} bytes",
            *map("  {}".format, written.left_out),
        ]
    del held
    print(json.dumps(found) if args.json else "\n".join(said))


def of_checkpoint(args: argparse.Namespace) -> "tuple[Config, Splits]":
    """The configuration of the checkpoint's run, with what the options change, and the task's splits.

    `base`, the untuned model, has no run: it gets the default configuration.
    """
    from ..lm.pretrained import POLICY_FILE
    from ..runs.policies import is_whole_model
    from ..runs.run import config_of_checkpoint
    from ..tasks import USED_BY, family, resolved

    config = Config() if args.checkpoint == "base" else config_of_checkpoint(args.checkpoint)
    if args.checkpoint == "base" and not args.model:
        raise KitError("--checkpoint base is the untuned base model: name it with --model.")
    folder = check_policy(args.checkpoint) if args.checkpoint != "base" else None
    tiny = folder is not None and not (folder / POLICY_FILE).is_file()
    if folder and (tiny or is_whole_model(folder)):
        own = "is a tiny one" if tiny else "holds all of its weights"
        for name in ("model", "gguf_file", "trust_remote_code"):
            if getattr(args, name):
                kind = "a pretrained policy" if tiny else "a policy with an adapter"
                raise KitError(f"{flag(name)} is for {kind}, and {args.checkpoint} {own}.")
    if args.task is not None and family(args.task) != family(config.task):  # else another retriever's pools, as large
        config = replace(config, data="", skip_bad=False, **{name: getattr(Config, name) for name in USED_BY})
    given = {name: value for name in ("task", "data", "device") if (value := getattr(args, name)) is not None}
    lm = replace(config.lm, trust_remote_code=args.trust_remote_code)
    if args.model:
        lm = replace(lm, model=args.model, gguf_file=args.gguf_file or lm.gguf_file)
    elif args.gguf_file:
        lm = replace(lm, gguf_file=args.gguf_file)
    config = resolved(replace(config, **given, lm=lm))
    if args.data and family(config.task) not in NEED_DATA:
        raise KitError(f"--data is for tasks {', '.join(NEED_DATA)}; {config.task} does not need it.")
    check_device(config.device)
    return config, load(args, config)[0]


def chosen(args: argparse.Namespace, splits: "Splits") -> "list[Example]":
    """The examples of --split, at most --limit of them."""
    examples = [e for part in splits for e in part] if args.split == "all" else list(getattr(splits, args.split))
    return examples[: args.limit]


def policy_of(args: argparse.Namespace, config: Config) -> "Policy":
    """The policy of --checkpoint, or with `base` the untuned model."""
    from ..lm.pretrained import PretrainedPolicy
    from ..runs.policies import load_policy

    if args.checkpoint == "base":
        return PretrainedPolicy.new(config.lm, device=config.device)
    # a moved base model is given with --model; else the adapter names its own
    own = LMConfig(trust_remote_code=args.trust_remote_code, micro=config.lm.micro)
    lm = config.lm if args.model or args.gguf_file else own
    return load_policy(args.checkpoint, config.device, lm)


def report_metrics(
    args: argparse.Namespace, policy: "Policy", examples: "Sequence[Example]", config: Config, what: str
) -> "list[Output]":
    """Measure a policy and print the metrics. Returns its greedy outputs."""
    from ..evaluate import greedy, measure_outputs
    from ..policy import Sampling
    from ..runs.fields import check_pools

    check_pools(examples, config)
    outputs = greedy(policy, examples, Sampling(config.grammar, config.rl.decoding == "constrained"))
    measured = measure_outputs(outputs, examples, config.grammar)
    metrics = {name: x.mean().item() for name, x in measured.items()}
    if args.json:
        print(json.dumps({"task": config.task, "queries": len(examples), "metrics": metrics}))
        return outputs
    print(f"{what}: {len(examples)} queries, greedy decoding")
    for name, value in metrics.items():
        print(f"  {name:<14} {value:.4f}")
    return outputs
