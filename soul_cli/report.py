"""`soul-report`: tables from finished run folders.  Reads metrics.json and config.yaml, never a model."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from soul_cli.cache import write_text
from soul_cli.figures import tradeoff
from soul_cli.results import ARROWS, NAMES
from soul_cli.types import UserError

ORDER = ["none", "input_based", "finetune", "ga", "graddiff", "po", "npo"]
OPTIMS = ["adamw", "soul", "soul_released", "signum", "lion", "muon"]
# what must agree for two rows to stand in one table
COMPARABLE = ("task.source", "task.forget", "task.holdout_authors", "model", "eval", "target_seed")
COLUMNS = {
    "tofu": [
        "forget_quality", "forget_quality_D", "forget_quality_soul", "forget_acc", "forget_acc_own", "forget_rougeL",
        "forget_prob", "forget_truth_ratio", "forget_fluency", "mia", "retain_acc", "retain_acc_own", "retain_rougeL",
        "real_authors_acc", "real_authors_rougeL", "world_facts_acc", "world_facts_rougeL", "model_utility",
        "wikitext_word_ppl", "zero_shot_acc", "truthfulqa_mc1", "truthfulqa_mc2", "displacement",
    ],
}  # fmt: skip


def read_run(folder: Path) -> dict[str, Any]:
    """One finished run: metrics, configuration and the distance travelled."""
    content = json.loads((folder / "metrics.json").read_text())
    config = OmegaConf.load(folder / "config.yaml")
    steps = folder / "train.jsonl"
    last = json.loads(steps.read_text().splitlines()[-1]) if steps.is_file() else {}
    return {"folder": folder, "config": config, "displacement": last.get("displacement"), **content}


def find_runs(roots: list[Path]) -> list[dict[str, Any]]:
    folders = sorted({p.parent for root in roots for p in root.rglob("metrics.json")})
    if not folders:
        raise UserError(f"no finished run (metrics.json) under {', '.join(map(str, roots))}")
    return [read_run(f) for f in folders]


def check_comparable(runs: list[dict[str, Any]]) -> None:
    """Rows of one table share data, model, evaluation and target seed."""
    for key in COMPARABLE:
        values = {json.dumps(_plain(OmegaConf.select(r["config"], key)), sort_keys=True) for r in runs}
        if len(values) > 1:
            shown = "; ".join(sorted(v[:80] for v in values))
            raise UserError(f"these runs do not belong in one table: {key} differs ({shown}). Report them apart")


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def values_of(metrics: dict[str, Any], displacement: float | None) -> dict[str, float]:
    out = {k: m["value"] for k, m in metrics.items()}
    if "forget_quality" in metrics:
        out["forget_quality_D"] = metrics["forget_quality"]["extra"]["D"]
    if displacement is not None:
        out["displacement"] = displacement
    return out


def table(runs: list[dict[str, Any]]) -> pd.DataFrame:
    """Long table: one line a (row, metric) with mean, sd, median and n over the unlearning seeds."""
    check_comparable(runs)
    rows: dict[tuple[str, str], dict[int, dict[str, float]]] = {}
    for run in runs:
        for name in ("original", "retain_trained"):
            if name in run["models"]:
                rows.setdefault((NAMES[name], ""), {})[run["target_seed"]] = values_of(run["models"][name], None)
        if "this_run" in run["models"]:
            trained = run["displacement"] is not None
            key = (run["method"], run["optim"] if trained else "")
            if run["seed"] in rows.setdefault(key, {}) and trained:
                raise UserError(
                    f"two runs of {key[0]} with {key[1]} and seed {run['seed']} but other settings: {run['folder']}; "
                    "report them apart"
                )
            rows[key][run["seed"]] = values_of(run["models"]["this_run"], run["displacement"])
    lines = []
    for (method, optim), seeds in sorted(rows.items(), key=lambda item: _rank(*item[0])):
        frame = pd.DataFrame(seeds.values())
        for metric in frame.columns:
            column = frame[metric]
            lines.append({
                "method": method, "optim": optim, "metric": metric, "mean": column.mean(),
                "sd": column.std(ddof=1) if len(column) > 1 else None, "median": column.median(), "n": len(column),
            })  # fmt: skip
    return pd.DataFrame(lines)


def _rank(method: str, optim: str) -> tuple[int, int]:
    top = {NAMES["original"]: -2, NAMES["retain_trained"]: -1}
    return (
        top.get(method, ORDER.index(method) if method in ORDER else len(ORDER)),
        OPTIMS.index(optim) if optim in OPTIMS else -1,
    )


def markdown(long: pd.DataFrame, columns: list[str], goals: dict[str, str]) -> str:
    """One line a row, mean ± sd; n is the number of unlearning seeds."""
    columns = [c for c in columns if (long.metric == c).any()]
    head = [f"{c} {ARROWS.get(goals.get(c, ''), '')}".strip() for c in columns]
    lines = ["| method | optimizer | n | " + " | ".join(head) + " |", "|---|---|---|" + "---|" * len(columns)]
    for (method, optim), part in long.groupby(["method", "optim"], sort=False):
        cells = {r.metric: (r["mean"], r["sd"]) for _, r in part.iterrows()}
        shown = [cell(*cells[c]) if c in cells else "-" for c in columns]
        lines.append(f"| {method} | {optim or '-'} | {part['n'].max()} | " + " | ".join(shown) + " |")
    return "\n".join(lines) + "\n"


def cell(mean: float, sd: float | None) -> str:
    def short(x: float) -> str:
        return f"{x:.0e}" if 0 < abs(x) < 1e-3 else f"{x:.3f}"

    return short(mean) if sd is None or pd.isna(sd) else f"{short(mean)} ± {short(sd)}"


def caption(runs: list[dict[str, Any]]) -> str:
    """What the numbers are, in words: data, model, sizes, and what varies behind the ±."""
    first = runs[0]
    config, metrics = first["config"], first["models"]["original"]
    model = config.model.get("path") or config.task.target_model or config.model.name
    judge = metrics["forget_acc"]["definition"].split("judge ")[-1] if "forget_acc" in metrics else "none"
    return (
        f"{config.task.name}, source {config.task.source}, {config.task.forget}, model {model}, "
        f"{metrics['forget_rougeL']['n']} forget and {metrics['retain_rougeL']['n']} retain questions, judge {judge}. "
        "Mean ± sd over n unlearning seeds; one target and one retain-trained model "
        f"(target seed {first['target_seed']}).\n"
        "↑ higher, ↓ lower is better; →R nearest to the retain-trained row is best.\n"
    )


def goals_of(runs: list[dict[str, Any]]) -> dict[str, str]:
    goals = {k: m["goal"] for r in runs for some in r["models"].values() for k, m in some.items()}
    return {**goals, "forget_quality_D": "down"}


def main() -> None:
    """Entry point: soul-report FOLDER... --out NAME writes NAME.md, NAME.csv and NAME.png."""
    parser = argparse.ArgumentParser(description="Tables and a figure from finished run folders: mean ± sd over seeds.")
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders above them")
    parser.add_argument("--out", type=Path, help="write OUT.md, OUT.csv and OUT.png (default: print)")
    args = parser.parse_args()
    try:
        runs = find_runs(args.folders)
        long = table(runs)
    except UserError as error:
        sys.exit(f"error: {error}")
    text = caption(runs) + "\n" + markdown(long, COLUMNS[runs[0]["task"]], goals_of(runs))
    if args.out is None:
        print(text)
        return
    write_text(args.out.with_suffix(".md"), text)
    write_text(args.out.with_suffix(".csv"), long.to_csv(index=False, float_format="%.6g"))
    tradeoff(long, args.out.with_suffix(".png"), forget="forget_rougeL", keep="retain_rougeL")
    print(f"{len(runs)} runs -> {args.out}.md, .csv, .png")


if __name__ == "__main__":
    main()
