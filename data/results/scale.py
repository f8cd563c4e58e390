"""Qwen3-4B with prompts of 4,096 tokens on GPUs of 80 GB, by arithmetic: `python data/results/scale.py` loads nothing."""

from dataclasses import replace

from fgrpo.runs.fields import config_with
from fgrpo.runs.presets import RECIPES
from fgrpo.scale.estimate import Tokens, memory_of, seconds_of, shape_of

config = config_with(**RECIPES["paper-musique"] | {"micro": 1})
shape, tokens = shape_of(config, []), Tokens(mean=4096, longest=4096, completion=76, columns=32)
print(
    f"G = {config.rl.group}, {config.rl.queries} queries a step, one held at a time, at 30 % of an A100's peak (not run)"
)
for name, model in (("prompt shared", shape), ("prompt repeated", shape._replace(shared=False))):
    memory = {part: x / 1e9 for part, x in memory_of(model, tokens, config).items()}
    print(f"{name}: {sum(memory.values()):.0f} GB:", ", ".join(f"{part} {x:.1f}" for part, x in memory.items()))
    for processes in (1, 8):
        share = replace(config, rl=replace(config.rl, queries=config.rl.queries // processes))
        seconds = seconds_of(model, tokens, share)
        print(f"    {processes} GPU: {seconds:.0f} s a step; gradients exchanged: {4 * model.trained / 1e6:.0f} MB")
