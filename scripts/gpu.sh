#!/usr/bin/env bash
# What only a GPU can show, the most valuable first, each stage within its own time: agreement with the CPU (parity), the
# optimizers' step (step), LLaMA2-7B (7b), Table 1 on SmolLM2-135M and the real TOFU data (real) -> OUT/gpu.md
# usage: gpu.sh [--out DIR] [--stages parity,step,7b,real] [--minutes N] [--model FOLDER --tofu FOLDER] [--rehearse]
#   --minutes   for all stages together      --model, --tofu  SmolLM2-135M-Instruct; the TOFU data set in the hub's layout
#   --rehearse  every stage on a CPU with tiny sizes: whether it runs, not how fast
# One GPU and no network; what else the package needs is collected by gpu_wheels.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1
exec "${PYTHON:-python3}" scripts/gpu.py "$@"
