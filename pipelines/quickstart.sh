#!/usr/bin/env bash
# The whole main job on the built-in demo: 1,911 emoji pictures with their captions. Needs the extra `demo`.
set -euo pipefail

STORE=$(alignvl extract demo:emoji)
RUN=$(alignvl train "$STORE")
alignvl eval "$RUN" --data "$STORE"
INDEX=$(alignvl index "$RUN" --data "$STORE")
alignvl search --index "$INDEX" "red heart"
alignvl search --index "$INDEX" "a slice of pizza"
alignvl search --index "$INDEX" "thunderstorm"
