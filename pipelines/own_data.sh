#!/usr/bin/env bash
# The main job on your own pairs: bash pipelines/own_data.sh MANIFEST [QUERY]
# MANIFEST is a JSONL, CSV, TSV or Parquet file with the columns `image` and `caption` (or `captions`).
set -euo pipefail

MANIFEST=${1:?usage: bash pipelines/own_data.sh MANIFEST [QUERY]}

STORE=$(alignvl extract "$MANIFEST")
RUN=$(alignvl train "$STORE")
alignvl eval "$RUN" --data "$STORE"
INDEX=$(alignvl index "$RUN" --data "$STORE")
if [ -n "${2:-}" ]; then alignvl search --index "$INDEX" "$2"; fi
