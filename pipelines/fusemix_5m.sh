#!/usr/bin/env bash
# FuseMix's setting of five million pairs, COCO, VG, SBU and CC3M together: bash pipelines/fusemix_5m.sh FOLDER [FLAGS]
# FOLDER holds coco/ and flickr30k/ as coco.sh and flickr30k.sh want them, and vg.jsonl, sbu.jsonl and cc3m.jsonl:
# manifests (`image`, `caption`) whose rows say "split": "train", so that none is kept back. The epoch is selected on
# COCO's validation split. FLAGS go to both trainings; without any they have the released size.
set -euo pipefail

FOLDER=${1:?usage: bash pipelines/fusemix_5m.sh FOLDER [FLAGS OF TRAIN]}
shift
[ $# -gt 0 ] || set -- --size released
VISION=${VISION:-facebook/dinov2-giant}
TEXT=${TEXT:-BAAI/bge-large-en-v1.5}

COCO=$(alignvl extract "$FOLDER"/coco/dataset_coco.json --vision "$VISION" --text "$TEXT")
VG=$(alignvl extract "$FOLDER"/vg.jsonl --vision "$VISION" --text "$TEXT")
SBU=$(alignvl extract "$FOLDER"/sbu.jsonl --vision "$VISION" --text "$TEXT")
CC3M=$(alignvl extract "$FOLDER"/cc3m.jsonl --vision "$VISION" --text "$TEXT")
FLICKR=$(alignvl extract "$FOLDER"/flickr30k/dataset_flickr30k.json --image-root "$FOLDER"/flickr30k/flickr30k-images --vision "$VISION" --text "$TEXT")
FUSEMIX=$(alignvl train "$COCO" "$VG" "$SBU" "$CC3M" --val "$COCO" --recipe fusemix --size pairs "$@")
ALIGNVL=$(alignvl train "$COCO" "$VG" "$SBU" "$CC3M" --val "$COCO" --size pairs "$@")
alignvl eval "$FUSEMIX" "$ALIGNVL" --data "$COCO" --split test
alignvl eval "$FUSEMIX" "$ALIGNVL" --data "$FLICKR" --split test
