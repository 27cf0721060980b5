#!/usr/bin/env bash
# FuseMix against Align-VL on Flickr30K, and the paper's two missing ablations: bash pipelines/flickr30k.sh FOLDER [FLAGS]
# FOLDER holds Karpathy's dataset_flickr30k.json and the pictures in flickr30k-images/. FLAGS go to every training
# (--size released, --seed 1 ...); VISION and TEXT name other encoders than the paper's.
set -euo pipefail

FOLDER=${1:?usage: bash pipelines/flickr30k.sh FOLDER [FLAGS OF TRAIN]}
shift
VISION=${VISION:-facebook/dinov2-giant}
TEXT=${TEXT:-BAAI/bge-large-en-v1.5}

STORE=$(alignvl extract "$FOLDER"/dataset_flickr30k.json --image-root "$FOLDER"/flickr30k-images --vision "$VISION" --text "$TEXT")
FUSEMIX=$(alignvl train "$STORE" --recipe fusemix --size pairs "$@")
ALIGNVL=$(alignvl train "$STORE" --size pairs "$@")
NO_MIX=$(alignvl train "$STORE" --no-mix --size pairs "$@")
UNIFORM=$(alignvl train "$STORE" --noise uniform --size pairs "$@")
alignvl eval "$FUSEMIX" "$ALIGNVL" "$NO_MIX" "$UNIFORM" --data "$STORE" --split test
