#!/usr/bin/env bash
# Is a modest model less overconfident? Recipes alignvl, fusemix and clip, and alignvl without Embedding Smoothing, which
# is what tells ES from the rest: one table, as trained and after the temperature fitted on validation, in Markdown.
# bash pipelines/modesty.sh [STORE] [FOLDER]     default: the demo; FOLDER (alignvl-workspace/modesty) gets modesty.json,
#                                                the same table as modesty.md, and a fusemix run's reliability diagram
# SEEDS="0 1 2 3 4 5 6 7 8 9" bash pipelines/modesty.sh    for more than three seeds
set -euo pipefail

STORE=${1:-$(alignvl extract demo:emoji)}
FOLDER=${2:-alignvl-workspace/modesty}
HERE=$(dirname "$0")
mkdir -p "$FOLDER"
RUNS=()
for SEED in ${SEEDS:-0 1 2}; do
  RUNS+=("$(alignvl train "$STORE" --recipe alignvl --init random --size pairs --keep-epoch best --seed "$SEED")")
  RUNS+=("$(alignvl train "$STORE" --recipe alignvl --no-es --init random --size pairs --keep-epoch best --seed "$SEED")")
  RUNS+=("$(alignvl train "$STORE" --recipe fusemix --init random --size pairs --keep-epoch best --seed "$SEED")")
  RUNS+=("$(alignvl train "$STORE" --recipe clip --init random --size pairs --keep-epoch best --seed "$SEED")")
done
alignvl eval "${RUNS[@]}" --data "$STORE" --calibration --json > "$FOLDER"/modesty.json
cp "${RUNS[2]}"/eval/*-reliability.png "$FOLDER"/reliability.png
python "$HERE"/modesty_table.py alignvl-no-es < "$FOLDER"/modesty.json | tee "$FOLDER"/modesty.md
