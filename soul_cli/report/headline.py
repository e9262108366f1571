"""What a run shows first: a few metrics of its models, and in words where it stands beside the retain-trained one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from soul_cli.core.types import Headline, Metric

NEAR, SHORT, PAST = "near", "short of", "past"
LEGEND = "verdict: near (within the 95 % interval), short of or past retain-trained"
SHARE = 0.1  # of the way from the original model to the retain-trained one: what counts as near without an interval
RULE = (
    "Near: the retain-trained value lies in this run's 95 % interval (without one: within a tenth of the way from the "
    "original; of a p: 0.05 or more). Short of: not there yet. Past: beyond it."
)


@dataclass(frozen=True)
class Shown:
    """A line: the metric's value of each model that has it, and the verdict on this run ('' where there is none)."""

    aspect: str
    name: str
    goal: str
    values: dict[str, Metric]  # by model
    verdict: str


def headline_of(content: dict[str, Any]) -> list[Headline]:
    """Return the headline that metrics.json names; none of version 0.1, whose `headline` is a list of columns."""
    return [Headline(**line) for line in content.get("headline", []) if isinstance(line, dict)]


def lines(headline: list[Headline], models: dict[str, dict[str, Metric]]) -> list[Shown]:
    """Return the lines of the metrics that a model has, in order.  models: model -> metric."""
    found = []
    for line in headline:
        values = {model: metrics[line.metric] for model, metrics in models.items() if line.metric in metrics}
        if values:
            goal = next(iter(values.values())).goal
            found.append(Shown(line.aspect, line.metric, goal, values, _verdict(line, values)))
    return found


def _verdict(line: Headline, values: dict[str, Metric]) -> str:
    names = ("original", "retain_trained", "this_run")
    if not values.keys() >= set(names):
        return ""
    original, floor, now = (values[name] for name in names)
    return verdict(now, original.value, floor.value, line.near_from)


def verdict(now: Metric, original: float, floor: float, near_from: float | None = None) -> str:
    """Return whether a run is near, short of or past the retain-trained model in a metric: the one place of the rule.

    Near: the retain-trained model's value lies in the run's own 95 % interval; where the run has no interval, it is
    no further from that value than SHARE of the distance between the original and the retain-trained model; of a p
    (near_from) the run has near_from or more.
    Else, where more or less is better (goal up or down): short of it is worse, past it is better.
    Where the retain-trained model is the goal: short of it is on the original's side, past it on the other; where
    both models have the same value, any distance is past.
    """
    x = now.value
    if near_from is not None:
        near = x >= near_from
    elif now.ci95 is not None:
        near = now.ci95[0] <= floor <= now.ci95[1]
    else:
        near = x == floor or abs(x - floor) <= SHARE * abs(original - floor)
    if near:
        return NEAR
    if now.goal in ("up", "down"):
        return PAST if (x > floor) is (now.goal == "up") else SHORT
    return SHORT if (x - floor) * (original - floor) > 0 else PAST


# --- the sentences beside it -------------------------------------------------------------------------------


def title_of(content: dict[str, Any], *, trained: bool) -> str:
    """Return what was run: task, method, optimizer and, where something was trained, the seed."""
    seed = f"seed {content['seed']}" if trained else ""
    return " · ".join(filter(None, [content["task"], content["method"], content["optim"], seed]))


def absences(reasons: dict[str, str]) -> list[str]:
    """Return which metrics are absent, a sentence a reason.  reasons: metric -> why it is absent."""
    names: dict[str, list[str]] = {}
    for name, reason in reasons.items():
        names.setdefault(reason, []).append(name)
    return [f"absent: {', '.join(absent)} ({reason})" for reason, absent in names.items()]


def epoch_words(epoch: dict[str, Any] | None) -> str:
    """Return which epoch's weights were evaluated in full; nothing where no epochs were evaluated."""
    if epoch is None:
        return ""
    score = "" if epoch["score"] is None else f", selection score {epoch['score']:.3f} on a few rows"
    return f"weights of epoch {epoch['epoch']} ({epoch['select']} of epochs {', '.join(map(str, epoch['of']))}){score}"


def cost_words(cost: dict[str, dict[str, Any]]) -> str:
    """Return what a run took by itself, and what it found in the cache.  cost: that of metrics.json, by phase."""
    own = [spent for spent in cost.values() if not spent["cached"]]
    cached = {phase_words(phase): spent["seconds"] for phase, spent in cost.items() if spent["cached"]}
    words = f"cost: {sum(spent['seconds'] for spent in own):.1f} s"
    if peak := max((spent["peak_memory_bytes"] for spent in own), default=0):
        words += f", peak memory {peak / 1e6:,.0f} MB"
    if cached:
        words += f"; cached: {', '.join(cached)} ({sum(cached.values()):.1f} s when made)"
    return words


def phase_words(phase: str) -> str:
    """Return the words for a phase of the ledger."""
    return phase.replace("_", " ")
