"""The command `train`."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import Config, KitError
from ..runs.signals import Stop, how_to_resume, processes
from .checkpoint import report_metrics
from .checks import check_device, check_policy
from .errors import drop_unwritten, say
from .options import config_of, load

if TYPE_CHECKING:
    from ..data import Example
    from ..policy import Policy
    from ..trainer import Team


def train(args: argparse.Namespace) -> None:
    """Warm start (SFT) unless --init names one, then RL; everything goes to --out."""
    config = config_of(args)
    if args.track:
        from ..runs.track import check_tracker

        check_tracker(args.track)
    if args.dry_run:
        from ..scale.estimate import format_plan, plan

        found = plan(config, *load(args, config), args.sft or not args.init, not args.sft)
        print(json.dumps(found) if args.json else format_plan(found))
        return
    if not (args.out or args.preset):
        raise KitError("name the run's folder with --out.")
    args.out = args.out or f"runs/{args.preset}"
    _check(args, config)
    from ..trainer import Stopped

    with Stop() as stop:
        from ..scale.processes import launched

        team = launched(config.device)
        if team.size > 1 and team.main:
            _check_folders(args, config)
        try:
            policy, examples = _train(args, config, team, lambda: stop.asked)
        except Stopped as stopped:
            if team.main:
                say(f"{stopped}; to go on: {how_to_resume(args.argv)}")
            team.leave()
            return
        finally:
            if stop.asked:  # by a terminal that is gone, perhaps
                drop_unwritten()
    team.leave()
    if team.main:
        report_metrics(args, policy, examples, config, f"{args.out}, validation split")


def _check(args: argparse.Namespace, config: Config) -> None:
    """Raise KitError on whatever can be refused before data and models are loaded."""
    from ..credit import check_credit

    check_credit(config.rl)
    if processes() == 1:  # of several, each gets its own device, and all are connected before one may refuse
        check_device(config.device)
        _check_folders(args, config)
    if args.init and args.init != "base":
        start = check_policy(args.init)
        if config.lm.model and (start / "items.json").is_file():
            raise KitError(f"--model is for a pretrained policy, and --init {args.init} is a tiny one.")


def _check_folders(args: argparse.Namespace, config: Config) -> None:
    from ..runs.run import check_folder
    from ..runs.warm_start import check_warm_start

    check_folder(Path(args.out), config, args.resume, {"stage": "sft" if args.sft else "rl"})
    if not (args.init or args.sft):
        check_warm_start(Path(args.out) / "warm-start", config, args.resume)


def _train(
    args: argparse.Namespace, config: Config, team: "Team", stop: Callable[[], bool]
) -> "tuple[Policy, list[Example]]":
    from ..baselines import demonstrator
    from ..runs.fields import check_pools
    from ..runs.hub import pinned
    from ..runs.origin import digest_of, digest_of_policy
    from ..runs.policies import load_policy, policy_folder
    from ..runs.pretrain import initial_policy
    from ..runs.run import Run
    from ..runs.sft import sft_stage, teacher
    from ..runs.track import tracking
    from ..runs.warm_start import tracer, warm_start
    from ..trainer import Stopped, batch_of, fit, rl_stage

    out = Path(args.out)
    splits, items = load(args, config)
    check_pools(splits.train, config)
    stage = sft_stage(config) if args.sft else rl_stage(config)
    team.share(batch_of(splits.train, stage.queries, 0, config.seed))  # an uneven share is refused before a warm start
    origin = {
        "stage": "sft" if args.sft else "rl", **({"hub": hub} if (hub := pinned(args.init or "")) else {}),
        "init": "base" if args.sft else digest_of_policy(args.init), "train": digest_of(splits.train),
    }  # fmt: skip
    run = Run(out, config, args.resume, args.save_every, team.main, origin)
    quiet, stopped = args.json or not team.main, None
    teaches = args.sft or (team.main and not args.init)  # this process trains on demonstrations
    demonstrate = demonstrator(splits, config) if teaches else None
    fresh = args.sft or args.init == "base"
    init, folder = args.init, out / "warm-start"
    with team.first():  # the main process pre-trains, or makes the warm start, and the others take it
        try:
            if fresh:
                policy = initial_policy(config, splits, items, out, quiet, args.resume, stop, team.main)
            else:
                start = policy_folder(init) if init else warm_start(
                    config, splits, items, folder, quiet, args.resume, stop, team.main, demonstrate=demonstrate,
                )  # fmt: skip
        except Stopped as error:  # raised below, where no other process waits for this one
            stopped = error
    if team.sum(stopped is not None):
        raise stopped or Stopped(f"{out}: stopped in the warm start")
    if args.sft:
        stage = sft_stage(config, teacher(policy, config, demonstrate))
    elif not fresh:
        policy = load_policy(start, lm=config.lm)
    traced = tracer(run, splits.validation)
    with tracking(args.track, run, stage):
        policy = fit(policy, splits.train, config, run, stage, quiet, after_save=traced, team=team, stop=stop)
    if args.policy_only and team.main:
        run.strip()
    return policy, splits.validation
