#!/usr/bin/env bash
# Every recipe and closed form on the demo, three seeds of the trained ones, in one table of the test split.
# SEEDS="0 1 2 3" bash pipelines/recipes.sh: other seeds.
set -euo pipefail

export ALIGNVL_WORKSPACE=${ALIGNVL_WORKSPACE:-alignvl-workspace}
STORE=$(alignvl extract)
RUNS=()
for SEED in ${SEEDS:-0 1 2}; do
    RUNS+=("$(alignvl train "$STORE" --recipe alignvl --size pairs --seed "$SEED")")
    RUNS+=("$(alignvl train "$STORE" --recipe fusemix --size pairs --seed "$SEED")")
    RUNS+=("$(alignvl train "$STORE" --recipe clip --size pairs --seed "$SEED")")
    RUNS+=("$(alignvl train "$STORE" --recipe sail --size pairs --seed "$SEED")")
    RUNS+=("$(alignvl train "$STORE" --recipe best --seed "$SEED")")
done
RUNS+=("$(alignvl train "$STORE" --method procrustes)")
RUNS+=("$(alignvl train "$STORE" --method cca)")
RUNS+=("$(alignvl train "$STORE" --method ridge)")
alignvl eval "${RUNS[@]}"
