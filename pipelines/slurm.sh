#!/usr/bin/env bash
#SBATCH --nodes 2
#SBATCH --ntasks-per-node 1
#SBATCH --requeue
# Extraction and training over several machines under Slurm, in a folder that all of them mount:
#   sbatch --ntasks-per-node 4 --gpus-per-node 4 pipelines/slurm.sh DATASET STORE.h5 RUN [FLAGS OF TRAIN]
# A task a GPU, or a few a machine without. Killed or requeued, the same job resumes: finished shards and trainings are kept.
set -euo pipefail

DATASET=${1:?usage: sbatch pipelines/slurm.sh DATASET STORE.h5 RUN [FLAGS OF TRAIN]}
STORE=${2:?the store to make}
RUN=${3:?the run folder to make}
shift 3
VISION=${VISION:-facebook/dinov2-giant}
TEXT=${TEXT:-BAAI/bge-large-en-v1.5}
MASTER_ADDR=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?to be started by sbatch}" | head -n 1)
export MASTER_ADDR MASTER_PORT=${MASTER_PORT:-29400}

# Each task is told its place as torchrun tells it. Not by torchrun itself: where the machine that ends first held the
# rendezvous, the others fail.
PLACE='RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE'
everywhere() { srun --kill-on-bad-exit=1 bash -c "$PLACE"' exec "$@"' task "$@"; }

everywhere alignvl extract "$DATASET" -o "$STORE" --vision "$VISION" --text "$TEXT"
if [ -e "$RUN"/result.json ]; then
  echo "$RUN" is finished
elif [ -e "$RUN"/config.json ]; then
  everywhere alignvl train --resume "$RUN"
else
  everywhere alignvl train "$STORE" -o "$RUN" "$@"
fi
alignvl eval "$RUN"
