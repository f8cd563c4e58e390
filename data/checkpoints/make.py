"""Makes data/checkpoints/lab-rec{,-grpo,-fgrpo}/trace.jsonl, which the app opens on: `python data/checkpoints/make.py`.

Each trace holds the greedy lists of the lab's 512 test queries, and of the first 24 also 8 sampled rollouts, token by
token: four slates with two rankings each, so that every credit method can be computed on them. All else is as the run's
own config.json says. Takes under a minute on one core.
"""

from dataclasses import replace
from pathlib import Path

from fgrpo.credit import with_credit
from fgrpo.runs.policies import load_policy
from fgrpo.runs.run import read_config
from fgrpo.runs.trace import trace_of, trace_policy, write_trace
from fgrpo.tasks import load_task

HERE = Path(__file__).parent
RUNS = ("lab-rec", "lab-rec-grpo", "lab-rec-fgrpo")
SAMPLED, GROUP = 24, 8


def main() -> None:
    """Write the three traces."""
    for name in RUNS:
        config = read_config(HERE / name)
        config = replace(config, rl=replace(with_credit(config.rl, "nested"), group=GROUP))
        groups = trace_policy(load_policy(HERE / name), load_task(config)[0].test, config, SAMPLED, seed=config.seed)
        trace = trace_of(name, config, groups)
        command = "python data/checkpoints/make.py"
        write_trace(HERE / name / "trace.jsonl", replace(trace, made={**trace.made, "command": command}))
        print(f"{name}: {len(groups)} queries, {SAMPLED} of them with {GROUP} rollouts")


if __name__ == "__main__":
    main()
