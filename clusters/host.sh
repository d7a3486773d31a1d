#!/usr/bin/env bash
# One training on several hosts without a scheduler. Start it on every host, in a folder that all of them share:
#
#   clusters/host.sh 0 2 10.0.0.1 pretrain bert_base data.path=/shared/corpus     # on the first host, 10.0.0.1
#   clusters/host.sh 1 2 10.0.0.1 pretrain bert_base data.path=/shared/corpus     # on the second
#
# The first three arguments are this host's number, the number of hosts, and the address of host 0. GPUS and PROCESSES
# set the processes of this host (by default all GPUs, or one process on a CPU), PORT the port of host 0. If a host has
# several networks, name the one to use in NCCL_SOCKET_IFNAME (GPUs) and GLOO_SOCKET_IFNAME.
set -euo pipefail

if (($# < 4)) || [[ ! $1$2 =~ ^[0-9]+$ ]]; then
  echo "usage: clusters/host.sh <number of this host, from 0> <hosts> <address of host 0> <command> ..." >&2
  exit 2
fi
rank=$1 hosts=$2 head=$3
shift 3
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-1} TOKENIZERS_PARALLELISM=false
gpus=${GPUS:-$(nvidia-smi --list-gpus 2>/dev/null | wc -l)}

if ((gpus > 0)); then
  exec accelerate launch --num_machines "$hosts" --machine_rank "$rank" --num_processes "$((gpus * hosts))" \
    --main_process_ip "$head" --main_process_port "${PORT:-29500}" --mixed_precision no --dynamo_backend no \
    --multi_gpu -m bertillery "$@"
fi
processes=${PROCESSES:-1}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + processes - 1) / processes))}
exec torchrun --nnodes "$hosts" --node-rank "$rank" --nproc-per-node "$processes" --master-addr "$head" \
  --master-port "${PORT:-29500}" -m bertillery "$@" run.device=cpu
