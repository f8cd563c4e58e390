"""The commands on a checkpoint: `evaluate` and `trace`."""

import argparse
import json
from pathlib import Path
from typing import Any

from ..config import Config, KitError
from .options import config_of, load


def evaluate(args: argparse.Namespace) -> None:
    """Metrics of a checkpoint on the test (or validation) split, by greedy decoding."""
    config = config_of(args)
    splits, _ = load(args, config)
    policy, examples = _policy_of(args, config), _examples(args, splits)
    report_metrics(args, policy, examples, config, "all splits" if args.split == "all" else f"{args.split} split")


def trace(args: argparse.Namespace) -> None:
    """Write what a checkpoint does on a task as JSONL: greedy lists, sampled groups, every token (fgrpo.trace)."""
    from ..runs.trace import trace_of, trace_policy, write_trace
    from ..trainer import check_pools

    config, out = config_of(args), Path(args.out)
    splits, _ = load(args, config)
    examples = _examples(args, splits)[: args.limit]
    check_pools(examples, config)
    policy = _policy_of(args, config)
    groups = trace_policy(policy, examples, config, args.sampled, seed=config.seed)
    name = out.parent.name if out.name == "trace.jsonl" else ""  # a run's own is named after the run
    write_trace(out, trace_of(name or out.stem, config, groups))
    found = {"queries": len(groups), "sampled": min(args.sampled, len(groups)), "bytes": out.stat().st_size}
    print(json.dumps(found) if args.json else f"{out}: {found['queries']} queries, {found['sampled']} of them "
          f"token by token with {config.rl.group} rollouts each, {found['bytes']:,} bytes")  # fmt: skip


def _examples(args: argparse.Namespace, splits: Any) -> list:
    return [e for part in splits for e in part] if args.split == "all" else getattr(splits, args.split)


def _policy_of(args: argparse.Namespace, config: Config) -> Any:
    """The policy of --checkpoint, or with `base` the pretrained model as it comes."""
    from ..lm.pretrained import PretrainedPolicy
    from ..runs.policies import load_policy

    if args.checkpoint != "base":
        return load_policy(args.checkpoint, config.device, config.lm)
    if not config.lm.model:
        raise KitError("--checkpoint base is a pretrained model as it comes: name it with --model.")
    return PretrainedPolicy.new(config.lm, device=config.device)


def report_metrics(args: argparse.Namespace, policy: Any, examples: list, config: Config, what: str) -> None:
    from ..evaluate import evaluate as measure
    from ..trainer import check_pools

    check_pools(examples, config)
    metrics = {name: x.mean().item() for name, x in measure(policy, examples, config).items()}
    if args.json:
        print(json.dumps({"task": config.task, "queries": len(examples), "metrics": metrics}))
        return
    print(f"{what}: {len(examples)} queries, greedy decoding")
    for name, value in metrics.items():
        print(f"  {name:<14} {value:.4f}")
