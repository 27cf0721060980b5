#!/usr/bin/env bash
# Every picture of the README that is made from a run, the one at its top and three terminals, and that of docs/report.md.
# A run, a search and two studies on the demo are made for them in WORK (default alignvl-workspace/readme-images); stopped,
# the same command goes on.
# bash pipelines/readme_images.sh [FOLDER]     default: docs/images
# Needs headless Chromium and the fonts Inter and JetBrains Mono (Debian: chromium fonts-inter fonts-jetbrains-mono);
# CHROMIUM names another browser; as root, Chromium wants CHROMIUM_FLAGS=--no-sandbox
set -euo pipefail

HERE=$(realpath "$(dirname "$0")")
FOLDER=$(realpath "${1:-docs/images}")
WORK=${WORK:-alignvl-workspace/readme-images}
mkdir -p "$WORK"
cd "$WORK"
unset ALIGNVL_WORKSPACE
STORE=$(alignvl extract demo:emoji)
LAST=last-layers.h5  # what the published studies are of
[ -e "$LAST" ] || alignvl extract demo:emoji -o "$LAST" --image-layers last --text-layers last
if [ ! -e alignvl-workspace/indexes ]; then
  RUN=$(alignvl train "$STORE")
  alignvl index "$RUN"
fi
for NAME in mixing noise; do  # with the batch that they were published with
  sed 's/^lr = 3e-3$/&\nbatch-size = 512/' "$HERE"/studies/"$NAME".toml >"published-$NAME.toml"
  alignvl ablate "published-$NAME.toml" --data "$LAST" --jobs 2
done

python "$HERE"/terminal.py "$FOLDER"/eval.svg alignvl eval
python "$HERE"/terminal.py "$FOLDER"/search.svg alignvl search "thunderstorm" -k 5
python "$HERE"/terminal.py --columns 116 --lines 15 "$FOLDER"/verdicts.svg alignvl report noise

RUNS=(alignvl-workspace/runs/0001-*)
alignvl search "thunderstorm" -k 5 --json |
  python "$HERE"/picture.py "${RUNS[0]}" alignvl-workspace/studies/mixing "$FOLDER"/picture.webp

alignvl report mixing -o mixing.html --overwrite
"${CHROMIUM:-chromium}" ${CHROMIUM_FLAGS:-} --headless --hide-scrollbars --window-size=960,1230 --screenshot="$FOLDER"/study.webp "file://$PWD/mixing.html"
