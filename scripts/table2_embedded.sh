#!/usr/bin/env bash
# Table 2 on the embedded books, default settings: results/table2_copyright_embedded.*
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=outputs/table2_embedded
soul-unlearn -m task=copyright output_dir=$out method=none,input_based
soul-unlearn -m task=copyright output_dir=$out method=ga,graddiff,po,npo optim=adamw,soul "seed=${SEEDS:-0,1,2}"
soul-report $out --out results/table2_copyright_embedded
