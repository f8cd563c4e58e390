"""Qwen3-4B with prompts of 4,096 tokens on 80 GB GPUs, by arithmetic: `python data/results/scale.py` (nothing is loaded)."""

from dataclasses import replace

from fgrpo.config import Config
from fgrpo.scale.estimate import Tokens, memory_of, rate_of, seconds_of, shape_of
from fgrpo.scale.plan import model_of
from fgrpo.scale.recipes import RECIPES

config = Config.from_flat(**RECIPES["paper-musique"] | {"micro": 1})
shape, tokens = shape_of(model_of(config, []), config.lm), Tokens(4096, 4096, 76, 32, False)
rate, bandwidth, least, said = rate_of(config)
print(f"G = {config.rl.group}, {config.rl.queries} queries a step, one held at a time; {said}")
for name, model in (("prompt shared", shape), ("prompt repeated", replace(shape, shared=False))):
    memory = {part: x / 1e9 for part, x in memory_of(model, tokens, config).items()}
    print(f"{name}: {sum(memory.values()):.0f} GB:", ", ".join(f"{part} {x:.1f}" for part, x in memory.items()))
    for processes in (1, 8):
        share = replace(config, rl=replace(config.rl, queries=config.rl.queries // processes))
        seconds = seconds_of(model, tokens, share, rate, bandwidth, least)["rl_step"]
        print(f"    {processes} GPU: {seconds:.0f} s a step; gradients exchanged: {4 * model.trained / 1e6:.0f} MB")
