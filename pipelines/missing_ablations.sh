#!/usr/bin/env bash
# The two ablations that the Align-VL paper lacks, on the newest store or one of your choice: feature mixing removed
# with RP and ES kept (2 x 2 x 2), and other noise in the place of Gaussian. Ten seeds each; stopped, the same command
# goes on. bash pipelines/missing_ablations.sh [--data STORE]
set -euo pipefail

STUDIES=$(dirname "$0")/studies
alignvl ablate "$STUDIES"/mixing.toml "$@"
alignvl ablate "$STUDIES"/noise.toml "$@"
