#!/usr/bin/env bash
# The studies whose results stand in docs/studies/, on the demo, each as the command prints it. Stopped, the same command
# goes on. bash pipelines/published_studies.sh [FOLDER]     default: docs/studies
set -euo pipefail

HERE=$(dirname "$0")
FOLDER=${1:-docs/studies}
STORE=last-layers.h5  # when they were published a latent was the last layer
[ -e "$STORE" ] || alignvl extract demo:emoji -o "$STORE" --image-layers last --text-layers last
for NAME in mixing noise corruption smoothing small-data baselines; do
    FILE=published-$NAME.toml  # small-data and baselines have the batch of their number of pairs
    case $NAME in
        small-data | baselines) cp "$HERE"/studies/"$NAME".toml "$FILE" ;;
        *) sed 's/^lr = 3e-3$/&\nbatch-size = 512/' "$HERE"/studies/"$NAME".toml >"$FILE" ;;
    esac
    alignvl ablate "$FILE" --data "$STORE" --jobs 2
    alignvl report "$NAME" --format markdown > "$FOLDER"/"$NAME".md
done
