#!/usr/bin/env bash
# Table 1 on a real pretrained model and a part of the real TOFU data: results/table1_tofu_smollm2*
# usage: table1_smollm2.sh MODEL TOFU
#   MODEL  a folder with SmolLM2-135M-Instruct     TOFU  a copy of the TOFU data set in the hub's layout
# The ten authors of forget05, 20 of the retain set, 5 more held out; 100 questions a split.  Nothing was searched: the
# peak rate is 2e-5 with AdamW and a quarter of that with SOUL, the ratio of the embedded search, for all methods.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=outputs/table1_smollm2
common="task=tofu task.source=$2 task.forget=forget05 task.retain_authors=20 task.holdout_authors=5 eval.limit=100
  model=smollm2_135m model.path=$1 model.finetune.train.accumulation=1 output_dir=$out
  train.epochs=5 train.batch_size=8 train.precision=bf16"
soul-unlearn -m $common method=none
soul-unlearn -m $common method=graddiff,po,npo optim=adamw optim.lr=2e-5
soul-unlearn -m $common method=graddiff,po,npo optim=soul optim.lr=5e-6
soul-report $out --out results/table1_tofu_smollm2 --paper
