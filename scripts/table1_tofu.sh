#!/usr/bin/env bash
# The real TOFU data on the embedded architecture: results/table1_tofu_real*
# usage: table1_tofu.sh FOLDER    a copy of the TOFU data set in the hub's layout
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=outputs/table1_tofu
common="output_dir=$out task.source=$1 task.holdout_authors=10 eval.limit=200"
soul-unlearn -m $common method=none
soul-unlearn -m $common method=graddiff,po,npo optim=adamw,soul
soul-report $out --out results/table1_tofu_real
