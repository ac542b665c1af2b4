#!/bin/sh
# Measure on a CUDA GPU what was only measured on a CPU so far: speed, and the paper's own schedule on data folders.
#   tests/benchmarks/gpu.sh OUT SECONDS DATA…
# Trains each folder for at most SECONDS, everything trained, batch 32, 200 epochs over 10 repeats, 256 px, stride 4;
# call it again to go on where it stopped. ResNet-50 needs its download; the offline backbone stands in for it.
set -eu
out=$1 seconds=$2
shift 2
here=$(dirname "$0")
offline="--set model.backbone=efficientnet_lite0 --set model.weights=offline"
for batch in 32 256; do
    python "$here/bench_pseudo.py" --device cuda --batch $batch
done
python "$here/bench_training.py" --preset small --set train.device=cuda
# shellcheck disable=SC2086 # one word per option
python "$here/bench_training.py" --preset paper --set train.device=cuda $offline
for data in "$@"; do
    run=$out/$(basename "$data")
    # shellcheck disable=SC2086
    test -f "$run/metrics.json" || timeout -s INT "$seconds" \
        python -m mlffn_lite train "$data" --preset paper --device cuda $offline --out "$run" --resume || test $? -ge 124
done
