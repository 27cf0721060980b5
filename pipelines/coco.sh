#!/usr/bin/env bash
# FuseMix against Align-VL on COCO, on the 5K test split and on its five folds of 1K: bash pipelines/coco.sh FOLDER [FLAGS]
# FOLDER holds Karpathy's dataset_coco.json and the pictures in train2014/ and val2014/. FLAGS go to every training;
# VISION and TEXT name other encoders than the paper's, FOLDS another number of folds.
set -euo pipefail

FOLDER=${1:?usage: bash pipelines/coco.sh FOLDER [FLAGS OF TRAIN]}
shift
VISION=${VISION:-facebook/dinov2-giant}
TEXT=${TEXT:-BAAI/bge-large-en-v1.5}

STORE=$(alignvl extract "$FOLDER"/dataset_coco.json --vision "$VISION" --text "$TEXT")
FUSEMIX=$(alignvl train "$STORE" --recipe fusemix --size pairs "$@")
ALIGNVL=$(alignvl train "$STORE" --size pairs "$@")
alignvl eval "$FUSEMIX" "$ALIGNVL" --data "$STORE" --split test
alignvl eval "$FUSEMIX" "$ALIGNVL" --data "$STORE" --split test --folds "${FOLDS:-5}"
