#!/usr/bin/env bash
# One training on all nodes of a Slurm allocation: one task a node, which starts a process for each GPU of the node.
#
#   sbatch --nodes=4 --gpus-per-node=8 clusters/slurm.sh pretrain bert_large data.path=/shared/corpus
#   sbatch --nodes=2 --cpus-per-task=16 clusters/slurm.sh pretrain bert_mini           # nodes without GPUs
#
# Submit it from a folder that all nodes share, with torchrun on the PATH (source .venv/bin/activate). Submit the same
# line again to resume. PROCESSES sets the processes of a node without GPUs, PORT the port of the first node.
#SBATCH --job-name=bertillery
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# Two minutes before the time is over the run is asked to save a checkpoint and stop.
#SBATCH --signal=TERM@120
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
HEAD=${nodes[0]}
export HEAD PORT=${PORT:-$((20000 + SLURM_JOB_ID % 20000))} HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false

exec srun --kill-on-bad-exit=1 bash -c '
  processes=${SLURM_GPUS_ON_NODE:-0} device=()
  if ((processes == 0)); then
    processes=${PROCESSES:-1} device=(run.device=cpu)
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(((${SLURM_CPUS_PER_TASK:-$(nproc)} + processes - 1) / processes))}
  fi
  exec torchrun --nnodes "$SLURM_NNODES" --node-rank "$SLURM_NODEID" --nproc-per-node "$processes" \
    --master-addr "$HEAD" --master-port "$PORT" -m bertillery "$@" "${device[@]}"
' bertillery "$@"
