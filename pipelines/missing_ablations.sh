#!/usr/bin/env bash
# The two ablations that the Align-VL paper lacks, on a store of your choice (default: the demo), seeds 0 to 2:
# feature mixing removed with RP and ES kept, and Gaussian against uniform noise; around them the RP x ES square,
# with and without mixing. One table over all runs at the end. bash pipelines/missing_ablations.sh [STORE]
set -euo pipefail

STORE=${1:-$(alignvl extract demo:emoji)}
RUNS=()
for SEED in 0 1 2; do
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED")")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-mix)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --noise uniform)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-mix --noise uniform)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-rp)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-es)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-rp --no-es)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-mix --no-rp)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-mix --no-es)")
  RUNS+=("$(alignvl train "$STORE" --seed "$SEED" --no-mix --no-rp --no-es)")
done
alignvl eval "${RUNS[@]}" --data "$STORE"
