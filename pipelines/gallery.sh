#!/usr/bin/env bash
# The page that `alignvl search --html` writes, for the newest run, and its picture by headless Chromium. Train first,
# e.g. by pipelines/quickstart.sh. bash pipelines/gallery.sh [FOLDER]    default: alignvl-workspace/gallery
# CHROMIUM names another browser; as root, Chromium wants CHROMIUM_FLAGS=--no-sandbox
set -euo pipefail

FOLDER=$(realpath -m "${1:-alignvl-workspace/gallery}")
mkdir -p "$FOLDER"
alignvl search "red heart" "a slice of pizza" "thunderstorm" -k 6 --html "$FOLDER"/gallery.html
"${CHROMIUM:-chromium}" ${CHROMIUM_FLAGS:-} --headless --hide-scrollbars --window-size=1160,1250 --screenshot="$FOLDER"/gallery.webp "file://$FOLDER/gallery.html"
