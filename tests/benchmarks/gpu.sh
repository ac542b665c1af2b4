#!/bin/sh
# Measure on a CUDA GPU what was only measured on a CPU so far: speed, and Tables 3 and 4 as the paper trains them.
#   tests/benchmarks/gpu.sh OUT SECONDS DATA…
# The grid is the paper preset's: everything trained, batch 32, 200 epochs over 10 repeats, 256 px, stride 4. It runs for
# at most SECONDS; call it again to go on where it stopped, in the middle of a cell too. ResNet-50 needs its download; the
# offline backbone stands in for it.
set -eu
out=$1 seconds=$2
shift 2
here=$(dirname "$0")
offline="--set model.backbone=efficientnet_lite0 --set model.weights=offline"
if ! test -d "$out"; then
    for batch in 32 256; do
        python "$here/bench_pseudo.py" --device cuda --batch $batch
    done
    python "$here/bench_training.py" --preset small --set train.device=cuda
    # shellcheck disable=SC2086 # one word per option
    python "$here/bench_training.py" --preset paper --set train.device=cuda $offline
fi
# shellcheck disable=SC2086
timeout -s INT "$seconds" python -m mlffn_lite study tables "$@" --preset paper --device cuda --seeds 1 $offline \
    --out "$out" || test $? -ge 124
test ! -d "$out/cells" || python -m mlffn_lite report "$out"
