#!/usr/bin/env bash
# Trains the shipped bundle on one GPU, stage after stage. Run it again to go on: every stage resumes
# from its last checkpoint, and stops by itself after the minutes its file allows.
#
#   DATA=../shared/data bash benchmarks/train/gpu.sh prepare      # CPU, once: tokenise, shard, ask
#   bash benchmarks/train/gpu.sh autoencode                       # until it prints 6000 steps
#   bash benchmarks/train/gpu.sh restore                          # minutes
#   bash benchmarks/train/gpu.sh channel                          # minutes
#   bash benchmarks/train/gpu.sh hear                             # minutes
#   bash benchmarks/train/gpu.sh focus                            # minutes
#   bash benchmarks/train/gpu.sh read
#   bash benchmarks/train/gpu.sh autoregress                      # the optional second writer
#   bash benchmarks/train/gpu.sh evaluate
#
# Needs torch >= 2.11, transformers >= 5.17, peft, accelerate, safetensors; not bitsandbytes, no
# network. Each stage leaves its bundle in runs/gpu-STAGE/bundle.
set -euo pipefail
cd "$(dirname "$0")/../.."
DATA=${DATA:-../shared/data}
PYTHON=${PYTHON:-python3}
export PYTHONPATH=src TOKENIZERS_PARALLELISM=false
zcontext() { "$PYTHON" -m zcontext.cli "$@"; }
stage() { # CONFIG, stage whose bundle it starts from, name of its own, settings
    local config=$1 start=$2 name=$3
    shift 3
    zcontext train "benchmarks/train/$config.toml" --set "run.start=runs/gpu-$start/bundle" \
        --set "run.out=runs/gpu-$name" --set "run.bundle=runs/gpu-$name/bundle" "$@"
}
channel() { # the same two
    stage channel "$1" "$2" --set base.dtype=bf16 --set data.batch_tokens=8192 --set data.max_window=1024
}

case "${1:?give a step: prepare, autoencode, restore, channel, hear, focus, read, autoregress or evaluate}" in
prepare)
    # Phrases are taken from what stands first: as much of Wikipedia as of the mixture with books.
    zcontext prepare "$DATA"/corpus/wikipedia-passages.jsonl.gz --out runs/wikipedia --no-surprisal
    zcontext prepare "$DATA"/corpus/wikipedia-passages.jsonl.gz "$DATA"/corpus/books.jsonl.gz \
        --out runs/shards --no-surprisal
    zcontext questions "$DATA"/corpus/wikipedia-passages.jsonl.gz --out runs/cloze.jsonl.gz
    zcontext instructions "$DATA"/corpus/wikipedia-passages.jsonl.gz --summaries 0.1 \
        --out runs/instructions.jsonl.gz
    ;;
autoencode | read)
    zcontext train "benchmarks/train/gpu-$1.toml"
    ;;
restore)
    stage restore autoencode restore \
        --set run.steps=2000 --set data.batch_tokens=24576 --set data.max_window=512
    ;;
channel)
    channel restore channel
    ;;
hear)
    # DECOMPRESS once more, by what the channel leaves to it; then the channel for that.
    stage restore channel heard --set restore.heard=true \
        --set run.steps=2000 --set data.batch_tokens=16384 --set data.max_window=512 \
        --set data.min_tokens_per_code=1.75 --set data.max_ratio=20
    channel heard hear
    ;;
focus)
    stage focus hear focus --set run.steps=3000 --set focus.batch_questions=64
    ;;
autoregress)
    zcontext train benchmarks/train/autoregress.toml
    ;;
evaluate)
    zcontext eval reconstruct "$DATA"/corpus/wikitext2-dev.jsonl.gz --bundle runs/gpu-read/bundle
    zcontext eval qa "$DATA"/qa/xquad-dev.jsonl.gz --bundle runs/gpu-read/bundle --limit 200
    ;;
*)
    echo "unknown step $1: give prepare, autoencode, restore, channel, hear, focus, read, autoregress or evaluate" >&2
    exit 2
    ;;
esac
