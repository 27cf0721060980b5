#!/usr/bin/env bash
# Which ingredient helps whom: docs/studies/surface.md, the figures of every run (surface-runs.csv) and the heat map, made
# again from five sets, and all pairs once more on latents of several layers (surface-layers). The sets come from packages
# of the npm registry (benchmarks/image_sets.py: npm, pip install resvg-py). Hours; stopped, the same command resumes.
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

for STUDY in surface surface-layers; do
  alignvl ablate "$HERE/studies/$STUDY".toml --jobs 2
  alignvl report "$STUDY" --format markdown > "$FOLDER/$STUDY".md
  alignvl report "$STUDY" -o "$STUDY".csv --overwrite
  alignvl report "$STUDY" --plots "$STUDY"-plots --overwrite
  python "$HERE"/study_runs.py "$WORKSPACE/studies/$STUDY" "$FOLDER/$STUDY"-runs.csv
done
python "$HERE"/../benchmarks/rule_of_thumb.py surface.csv "$STORES"/{demo-emoji,openmoji,mdi,lucide,foods}.h5
