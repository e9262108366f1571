#!/usr/bin/env bash
# Table 1 on the embedded benchmark, default settings: results/table1_tofu_embedded*
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=outputs/table1_embedded
soul-unlearn -m output_dir=$out method=none,input_based
soul-unlearn -m output_dir=$out method=ga,graddiff,po,npo optim=adamw,soul,soul_released "seed=${SEEDS:-0,1,2,3,4}"
soul-report $out --out results/table1_tofu_embedded --paper
