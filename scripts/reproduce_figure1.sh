#!/usr/bin/env bash
# Figure 1: forget and retain accuracy by epoch, first and second order: results/figure1_tofu_embedded*
# usage: reproduce_figure1.sh            the embedded benchmark
#        reproduce_figure1.sh --paper    the paper's settings on LLaMA2-7B (a GPU of 80 GB, gated weights)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
common="epoch_eval.every=1 seed=${SEEDS:-0,1,2}"
if [ "${1:-}" = --paper ]; then
  out=outputs/figure1_paper name=figure1_tofu_paper
  soul-unlearn -m output_dir=$out $common \
    experiment=paper/tofu_graddiff_fo,paper/tofu_graddiff_so,paper/tofu_po_fo,paper/tofu_po_so,paper/tofu_npo_fo,paper/tofu_npo_so
else
  out=outputs/figure1 name=figure1_tofu_embedded
  soul-unlearn -m output_dir=$out $common "method=${METHODS:-graddiff,po,npo}" optim=adamw,soul
fi
soul-report $out --out results/$name
