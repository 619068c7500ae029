#!/bin/bash
# On every machine, with its own number: docs/cluster/torchrun.sh RANK FIRST_MACHINE MACHINES recipes/radio_l.yaml ...
# Without DeepSpeed: every process holds all of the optimiser's state. For ZeRO launch with accelerate (train.slurm).
set -euo pipefail
rank=$1 first=$2 machines=$3
shift 3
exec torchrun --nnodes "$machines" --nproc-per-node 8 --node-rank "$rank" \
  --master-addr "$first" --master-port 29500 distill/run.py "$@"
