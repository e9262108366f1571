"""What a task's report shows, and in which order: the one place to touch for a new task.

Methods and optimizers stand in the order of their registries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from soul_cli.core.run_folder import NAMES
from soul_cli.core.types import Headline
from soul_cli.objective.methods import METHODS
from soul_cli.optim.build import OPTIMS


@dataclass(frozen=True)
class Column:
    """One metric.  A column that no run has is left out."""

    metric: str
    title: str
    paper: str = ""  # its name in paper.yaml, where the paper's table has it in the same definition
    per: float = 1.0  # unit of the paper's number: 100 = percent
    brief: bool = True  # False: only in CSV files and on the page


@dataclass(frozen=True)
class Group:
    """Columns under one heading.  noun: what their questions are called in the caption ('' = not counted)."""

    title: str
    noun: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Layout:
    """A task's table, its trade-off figure and its answers."""

    groups: tuple[Group, ...]
    axes: tuple[tuple[str, str], ...]  # (forgotten, kept) of the trade-off figure: the first pair that the runs have
    curves: tuple[tuple[str, str], ...] = ()  # likewise of the figure over epochs; where there are none, those of axes
    scores: tuple[str, ...] = ("rougeL",)  # row fields shown beside an answer
    variants: tuple[str, ...] = ()  # row fields that tell rows of one split and index apart
    unit: str = "questions"  # what the metrics' n counts

    @property
    def columns(self) -> list[Column]:
        return [c for g in self.groups for c in g.columns]


WORDS = (20, 60, 100, 300)  # prompt lengths of the copyright task: the embedded defaults, and the paper's


def _continued(split: str, tail: str = "", paper: bool = False) -> tuple[Column, ...]:
    """Return BLEU and ROUGE-L by prompt length.  paper: the paper's table has the two longer ones."""
    out = []
    for words in WORDS:
        for metric, title in (("bleu", "BLEU"), ("rougeL", "ROUGE-L")):
            theirs = f"{metric}_{words}" if paper and words >= 100 else ""
            out.append(Column(f"{split}_{metric}_{words}{tail}", f"{title} @{words}", paper=theirs))
    return tuple(out)


GENERAL = Group("General ability", "", (
    Column("wikitext_word_ppl", "WikiText PPL", paper="ppl"),
    Column("zero_shot_acc", "Zero-shot acc", paper="zero_shot_acc", per=100),
    Column("truthfulqa_mc1", "TruthfulQA MC1", paper="truthfulqa"),
    Column("truthfulqa_mc2", "TruthfulQA MC2", brief=False),
))  # fmt: skip

COST = Group("Cost", "", (
    Column("unlearn_seconds", "Unlearn s"),
    Column("unlearn_peak_mb", "Peak MB"),
    Column("optimizer_state_mb", "States MB"),
    Column("parameter_mb", "Weights MB", brief=False),
    Column("unlearn_tokens", "Tokens", brief=False),
    Column("unlearn_forward_passes", "Forward", brief=False),
    Column("unlearn_backward_passes", "Backward", brief=False),
    Column("evaluate_seconds", "Evaluate s", brief=False),
))  # fmt: skip

LAYOUTS = {
    "tofu": Layout(
        axes=(("forget_rougeL", "retain_rougeL"),),
        # accuracy, as in the paper, but for the question as trained on: of a paraphrase a small model knows nothing
        curves=(("forget_acc_own", "retain_acc_own"),),
        scores=("rougeL", "fluency"),
        groups=(
            Group("Forgetting efficacy", "forget", (
                Column("forget_quality", "Quality (TOFU)"),
                Column("forget_quality_D", "KS D"),
                Column("forget_quality_soul", "Quality (SOUL)", paper="forget_quality"),
                Column("forget_acc", "Acc", paper="forget_acc", per=100),
                Column("forget_acc_own", "Acc own"),
                Column("forget_rougeL", "ROUGE-L", paper="forget_rougeL"),
                Column("forget_prob", "Prob", brief=False),
                Column("forget_truth_ratio", "Truth ratio", brief=False),
                Column("forget_extraction_strength", "Extraction", brief=False),
                Column("forget_extraction_strength_ou", "Extraction (OU)", brief=False),
                Column("forget_exact_memorization", "Exact mem.", brief=False),
                Column("forget_exact_memorization_ou", "Exact mem. (OU)", brief=False),
                Column("forget_fluency", "Fluency"),
                Column("mia", "MIA"),
                Column("mia_min_k_ou", "MIA Min-40% (OU)", brief=False),
                Column("mia_facts", "MIA facts", brief=False),
                Column("mia_released", "MIA (released)", paper="mia"),
            )),
            Group("Utility on retain", "retain", (
                Column("retain_acc", "Acc", paper="retain_acc", per=100),
                Column("retain_acc_own", "Acc own"),
                Column("retain_rougeL", "ROUGE-L", paper="retain_rougeL"),
                Column("retain_prob", "Prob", brief=False),
                Column("retain_truth_ratio", "Truth ratio", brief=False),
                Column("retain_fluency", "Fluency", brief=False),
            )),
            Group("Real authors", "real-author", (
                Column("real_authors_acc", "Acc", paper="real_authors_acc", per=100),
                Column("real_authors_rougeL", "ROUGE-L", paper="real_authors_rougeL"),
                Column("real_authors_prob", "Prob", brief=False),
                Column("real_authors_truth_ratio", "Truth ratio", brief=False),
            )),
            Group("World facts", "world-fact", (
                Column("world_facts_acc", "Acc", paper="world_facts_acc", per=100),
                Column("world_facts_rougeL", "ROUGE-L", paper="world_facts_rougeL"),
                Column("world_facts_prob", "Prob", brief=False),
                Column("world_facts_truth_ratio", "Truth ratio", brief=False),
            )),
            Group("Held out", "held-out", (
                Column("holdout_rougeL", "ROUGE-L", brief=False),
                Column("holdout_prob", "Prob", brief=False),
            )),
            GENERAL,
            Group("Overall", "", (
                Column("model_utility", "Utility (TOFU)"),
                Column("model_utility_arithmetic", "Utility (arithm.)", brief=False),
                Column("utility_soul", "Utility (SOUL)", brief=False),
                Column("displacement", "‖Δθ‖", brief=False),
            )),
            COST,
        ),
    ),
    "copyright": Layout(
        axes=tuple((f"forget_rougeL_{w}", f"retain_rougeL_{w}") for w in WORDS),
        scores=("rougeL", "bleu", "verbmem", "verbatim_tokens"),
        variants=("prompt_words", "wording"),
        unit="prompts",
        groups=(
            Group("Forgetting efficacy", "forget", _continued("forget", paper=True)),
            Group("Unseen instruction", "", _continued("forget", "_unseen")),
            Group("Verbatim", "", (
                Column("forget_verbatim_longest", "Longest"),
                Column("forget_verbatim_50", "50 tokens"),
                Column("forget_verbmem", "VerbMem"),
                Column("forget_verbmem_muse", "VerbMem (MUSE)", brief=False),
                Column("forget_fluency", "Fluency"),
            )),
            Group("Utility on retain", "retain", (
                *_continued("retain"),
                Column("retain_fluency", "Fluency", brief=False),
            )),
            Group("Perplexity", "", (
                Column("forget_ppl", "Forget", brief=False),
                Column("retain_ppl", "Retain"),
                Column("heldout_ppl", "Held out"),
            )),
            GENERAL,
            Group("Overall", "", (Column("displacement", "‖Δθ‖", brief=False),)),
            COST,
        ),
    ),
}  # fmt: skip


def layout_of(task: str, metrics: list[str]) -> Layout:
    """Return the task's layout, and under a last heading those of the task's metrics that the layout does not know.

    For a task without a layout that is all of them, and the trade-off is of the first forget and retain metric.
    """
    if task in LAYOUTS:
        layout = LAYOUTS[task]
        known = {c.metric for c in layout.columns}
        more = tuple(Column(m, m) for m in metrics if m not in known)
        return replace(layout, groups=(*layout.groups, Group("Other", "", more)))
    forget = next((m for m in metrics if m.startswith("forget")), "")
    keep = next((m for m in metrics if m.startswith("retain")), "")
    return Layout((Group(task, "", tuple(Column(m, m) for m in metrics)), COST), ((forget, keep),))


def headline_layout(headline: list[Headline]) -> Layout:
    """Return the headline's metrics as a layout, a group an aspect."""
    groups: dict[str, list[Column]] = {}
    for line in headline:
        groups.setdefault(line.aspect, []).append(Column(line.metric, line.metric))
    return Layout(tuple(Group(aspect, "", tuple(columns)) for aspect, columns in groups.items()), ())


def rank(method: str, optim: str) -> tuple[int, str, int, str]:
    """Return the sorting key of a row: original, retain-trained, then methods and optimizers as `place` has them."""
    return *place(method, (*NAMES.values(), *METHODS)), *place(optim, ("", *OPTIMS))


def place(name: str, registry: Iterable[str]) -> tuple[int, str]:
    """Return the sorting key of a name: as the registry has it; behind, by name, those of other versions.

    A method with other terms than usual (npo+kl) stands behind the usual one.
    """
    known = list(registry)
    first, *others = name.split("+")
    return (known.index(first), "+".join(others)) if first in known else (len(known), name)
