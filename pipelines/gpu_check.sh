#!/usr/bin/env bash
# For whoever has a GPU: the tests that run on every device present, and the training benchmarks; one table at the end.
# Run it in a clone with the extra `dev`: bash pipelines/gpu_check.sh
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
"$PYTHON" -c 'import sys, torch; torch.cuda.is_available() or sys.exit("torch sees no CUDA device here: nothing to check")' || exit 2
SAID=$(mktemp)
trap 'rm -f "$SAID"' EXIT
TABLE=()
FAILED=0

check() { # NAME COMMAND...: run it, and keep its last line
    local name=$1 state=ok last
    shift
    if ! "$@" 2>&1 | tee "$SAID" >&2; then
        state=FAIL FAILED=1
    fi
    last=$(tail -n 1 "$SAID")
    TABLE+=("$name: $state: $last")
}

check tests "$PYTHON" -m pytest -q tests/training/test_training_devices.py tests/align/test_align_losses.py
check ratio "$PYTHON" benchmarks/training.py --only ratio --rows 8192 --steps 10
check pairs "$PYTHON" benchmarks/training.py --only pairs
check budget "$PYTHON" benchmarks/training.py --only budget

"$PYTHON" -c 'import torch; print(torch.cuda.get_device_name(), "torch", torch.__version__)'
printf '%s\n' "${TABLE[@]}"
exit $FAILED
