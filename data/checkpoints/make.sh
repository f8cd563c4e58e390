#!/usr/bin/env bash
# Everything under data/checkpoints/, one command each. From the repository's root:
#
#     PYTHON=.venv/bin/python bash data/checkpoints/make.sh [NAME ...]       (without names: all but the warm start; 4 minutes)
#
# A folder that holds a run is not written over: remove it first. `warm-start` was made once and stays as it is, since all
# results start from it.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
out=data/checkpoints
export OMP_NUM_THREADS=1

warm-start() {
    "$python" -m fgrpo train --sft --task lab-rec --policy-only --out $out/lab-rec
}
rl() {  # METHOD: from the warm start, seed 0
    "$python" -m fgrpo train --task lab-rec --credit "$1" --steps 300 --seed 0 --init $out/lab-rec --policy-only \
        --out "$out/lab-rec-$1"
}
lab-rec-grpo() { rl grpo; }
lab-rec-fgrpo() { rl fgrpo; }
traces() {  # the same queries for all; slates with two rankings each, so that every credit method can be asked for
    local name
    for name in lab-rec lab-rec-grpo lab-rec-fgrpo; do
        "$python" -m fgrpo trace --checkpoint $out/$name --task lab-rec --split test --sampled 24 --group 8 --rankings 2 \
            --credit nested --out $out/$name/trace.jsonl
    done
}

[ $# -gt 0 ] || set -- lab-rec-grpo lab-rec-fgrpo traces
for name in "$@"; do "$name"; done
