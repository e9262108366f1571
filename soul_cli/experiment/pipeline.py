"""The costly parts of a run as cached, resumable pieces: base model, fine-tuned models, rows, reference log-probs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from soul_cli.core import cost
from soul_cli.core.cache import Cache
from soul_cli.core.distributed import everyone, gather, main, once, rank, share, together, whole_state, world
from soul_cli.core.files import code_digest, digest, read_json, read_lines, write_text
from soul_cli.core.screen import Bar, Line, bar, say
from soul_cli.core.types import QA, Prompted, Row, UserError
from soul_cli.data.encode import Encoder, Pairs
from soul_cli.data.generator import generate_authors
from soul_cli.evaluate import general
from soul_cli.evaluate.likelihood import score
from soul_cli.experiment.base_models import EmbeddedModel, HubModel, MuonRecipe, Recipe
from soul_cli.experiment.config import Parallel, RunConfig, plain
from soul_cli.models import load as models
from soul_cli.models.answer_model import AnswerModel
from soul_cli.models.load import ModelRef
from soul_cli.objective.methods import IU, Finetune, Method
from soul_cli.optim.build import Optim
from soul_cli.tasks.base import TaskData, check_lengths, measure_training
from soul_cli.train.config import TrainConfig
from soul_cli.train.influence import Influence
from soul_cli.train.loop import TrainData, Trainer

COST = "cost.json"  # in a cache entry: what it cost to make
LIBRARIES = ("torch", "transformers", "tokenizers")
# source files that determine the weights of fine-tuned models, those of unlearned ones, and those that determine rows
TRAINING = (
    "train/loop.py", "train/checkpoint.py", "core/distributed.py", "objective", "models",
    "experiment/base_models.py", "optim", "data",
)  # fmt: skip
UNLEARNING = (*TRAINING, "train/influence.py")
EVALUATION = ("core/distributed.py", "objective/losses.py", "models", "tasks", "evaluate", "data")


def versions() -> dict[str, str]:
    return {name: version(name) for name in LIBRARIES}


@dataclass
class Pipeline:
    """Everything the pieces need.  Each piece's key holds all that determines its content, code included.

    On several processes all of them call each piece: they build it together, and rank 0 writes.
    """

    config: RunConfig
    data: TaskData
    cache: Cache
    accelerator: Accelerator
    ledger: cost.Ledger = field(default_factory=cost.Ledger)

    # --- models --------------------------------------------------------------------------------------------

    def needs_base(self) -> bool:
        """False where target and retain-trained model are given or not asked for."""
        return self.config.task.target_model is None

    def ready(self) -> list[ModelRef]:
        """The models the user gave, by content."""
        model, task = self.config.model, self.config.task
        paths: list[tuple[str, str | None]] = [(p, None) for p in (task.target_model, task.retain_model) if p]
        if self.needs_base() and isinstance(model, HubModel):
            paths.append((model.path, model.revision))
        return [self._given(path, revision) for path, revision in paths]

    def _given(self, path: str, revision: str | None = None) -> ModelRef:
        return once(lambda: models.reference(path, self.cache.root, revision))

    def _entry(self, phase: str, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
        """A cache entry, made where it is missing.  What it cost is kept with it and noted as that of the phase."""
        made = []

        def measured(work: Path, out: Path) -> None:
            with cost.measure():
                build(work, out)
                made.append(cost.spent())
            if main():
                write_text(out / COST, json.dumps(made[0]))

        path = together(partial(self.cache.get, kind, key), measured)
        self.ledger.note(phase, once(lambda: read_json(path / COST, {})), cached=not made)
        return path

    def target(self) -> ModelRef:
        """The model that has learned everything."""
        if self.config.task.target_model:
            return self._given(self.config.task.target_model)
        return self._finetuned("target_model", self.base(), self.data.full, "target model")

    def retain_trained(self) -> ModelRef | None:
        """The model that never saw the forget set; None where there is none to be had without the base model."""
        task = self.config.task
        if task.retain_model:
            return self._given(task.retain_model)
        if task.retain_rows or not self.needs_base():
            return None
        return self._finetuned("retain_model", self.base(), self.data.retain, "retain-trained model")

    def missing(self) -> set[str]:
        """Which of base, target and retain are still to be trained."""
        if not self.needs_base():
            return set()
        model = self.config.model
        out: set[str] = set()
        if isinstance(model, EmbeddedModel):
            base = ModelRef("", digest(self._base_key(model)))
            if not self.cache.has("models", self._base_key(model)):
                out.add("base")
        else:
            base = self.base()
        wanted = {"target": self.data.full}
        if not (self.config.task.retain_model or self.config.task.retain_rows):
            wanted["retain"] = self.data.retain
        for name, rows in wanted.items():
            if not self.cache.has("models", self._finetune_key(base, self._finetune_rows(rows))):
                out.add(name)
        return out

    def base(self) -> ModelRef:
        """The model before fine-tuning."""
        model = self.config.model
        if isinstance(model, HubModel):
            return self._given(model.path, model.revision)
        assert isinstance(model, EmbeddedModel)
        key = self._base_key(model)

        def build(work: Path, out: Path) -> None:
            rows = self._base_rows(model)
            untrained = work / "untrained"

            def initialise() -> None:
                if not (untrained / "tokenizer.json").is_file():
                    texts = [f"Question: {qa.question}\nAnswer: {qa.answer}" for qa in [*rows, *self.data.retain]]
                    model.initialise(texts, self.config.target_seed, untrained)

            once(initialise)
            self.check_texts(ModelRef(str(untrained), ""))
            with bar("base model, trained from scratch") as progress:
                self._finetune(ModelRef(str(untrained), ""), rows, model.base, work, out, progress)

        return ModelRef(str(self._entry("base_model", "models", key, build)), digest(key))

    def _base_rows(self, model: EmbeddedModel) -> list[QA]:
        """Generated authors for the style, none of the benchmark, and what must be known beside it."""
        style = [r for author in generate_authors(model.style_authors, seed=0) for r in author["rows"]]
        return [QA(r["question"], r["answer"]) for r in style] + self.data.rehearsed * model.fact_repeats

    def _base_key(self, model: EmbeddedModel) -> dict[str, Any]:
        settings = {k: v for k, v in plain(model).items() if k != "finetune"} | {"template": self.template}
        rows = digest([(qa.question, qa.answer) for qa in [*self._base_rows(model), *self.data.retain]])
        return {"model": settings, "rows": rows, "seed": self.config.target_seed, **self._code(TRAINING)}

    def _finetuned(self, phase: str, base: ModelRef, rows: list[QA], label: str) -> ModelRef:
        """The base model fine-tuned on rows: target model (full set) or retain-trained model."""
        rows = self._finetune_rows(rows)
        key = self._finetune_key(base, rows)

        def build(work: Path, out: Path) -> None:
            with bar(f"{label}, fine-tuned on {len(rows)} pairs") as progress:
                self._finetune(base, rows, self.config.model.finetune, work, out, progress)

        return ModelRef(str(self._entry(phase, "models", key, build)), digest(key))

    def _finetune_rows(self, rows: list[QA]) -> list[QA]:
        return rows + self.data.rehearsed if isinstance(self.config.model, EmbeddedModel) else rows

    def _finetune_key(self, base: ModelRef, rows: list[QA]) -> dict[str, Any]:
        model = self.config.model
        return {
            "base": base.digest,
            "rows": digest([(qa.question, qa.answer) for qa in rows]),
            "template": [self.template, model.max_length, model.dtype],
            "recipe": plain(model.finetune),
            "seed": self.config.target_seed,
            **self._code(TRAINING),
        }

    def _finetune(
        self, base: ModelRef, rows: list[QA], recipe: Recipe | MuonRecipe, work: Path, out: Path, progress: Bar
    ) -> None:
        encoder = self.encoder(base)
        data, method = TrainData(forget=None, retain=Pairs(encoder, rows)), Finetune("finetune")
        lm, _ = self.train(base, data, method, recipe.optim, recipe.train, self.config.target_seed, work, progress)
        save(lm, encoder, out)

    def train(
        self,
        ref: ModelRef,
        data: TrainData,
        method: Method,
        optim: Optim,
        config: TrainConfig,
        seed: int,
        work: Path,
        progress: Bar,
        after_epoch: Callable[[Any, int], None] | None = None,
    ) -> tuple[Any, list[dict[str, Any]]]:
        """-> the model of the reference, trained (and sharded, with parallel=fsdp), and one record a step.

        after_epoch: see Trainer.train; it gets the model too.
        """
        sharded = self.config.parallel is Parallel.fsdp and world() > 1
        if self.config.offload and world() > 1 and not sharded:
            raise UserError(
                "offload=true on several processes, each with all states: use parallel=fsdp, which shards them"
            )
        lora = config.lora
        in_4bit = lora is not None and lora.load_in_4bit
        device = self.accelerator.device if in_4bit else "cpu"  # sharded, no device need hold all of it
        lm = models.load(ref, device, self.config.model.dtype, load_in_4bit=in_4bit)
        adapters = lora.attach(lm, seed) if lora else None
        trainer = Trainer(
            lm, data, method, optim, config, seed, self.accelerator, sharded=sharded, offload=self.config.offload,
            activation_checkpointing=self.config.activation_checkpointing,
        )  # fmt: skip

        def show(done: int, total: int, record: dict[str, float]) -> None:
            losses = ", ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in record.items() if k.startswith("loss_"))
            progress.to("", done, total, f"loss {losses}")
            if self.accelerator.trackers:
                self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=done)

        records = trainer.train(work, show, partial(after_epoch, lm) if after_epoch else None)
        return (lora.merge(adapters, lambda: self.load(ref, "cpu")) if lora else lm), records

    def influence(self, ref: ModelRef, data: TrainData, method: IU, progress: Bar) -> tuple[Any, list[dict[str, Any]]]:
        """-> the model of the reference after the one step of method=iu, and the step's record."""
        lm = self.load(ref, "cpu")
        run = Influence(lm, data, method, self.config.train, self.config.seed, self.accelerator)
        return lm, run.unlearn(lambda done, total, what: progress.to("", done, total, what))

    def load(self, ref: ModelRef, device: Any = None) -> Any:
        return models.load(ref, device or self.accelerator.device, self.config.model.dtype)

    def encoder(self, ref: ModelRef, system: str = "") -> Encoder:
        return Encoder(models.load_tokenizer(ref), self.template, self.config.model.max_length, system)

    def check_texts(self, ref: ModelRef | None = None) -> None:
        """Refuse texts that the model cannot read, before anything is trained; say what evaluation cuts short.

        ref: whose tokenizer; None: the run's own, where there is one before the base model is trained.
        """
        model, method, task = self.config.model, self.config.method, self.config.task
        if ref is None:
            if isinstance(model, EmbeddedModel) and "base" in self.missing():
                return  # base() comes back with it
            ref = self.base() if self.needs_base() else self.target()
        encoder = self.encoder(ref)
        asked = self.encoder(ref, self.data.system_prompt) if method.prompts else encoder
        rows = self.data.full if self.needs_base() else []
        if method.trains and not rows:
            rows = self.data.forget + (self.data.retain if method.needs_retain else [])

        def check() -> None:
            parts = measure_training(encoder, self.data, rows, refuses=method.learns_refusal)
            parts |= {split: task.measure(asked, split, items) for split, items in self.splits().items()}
            check_lengths(parts, model.max_length)
            for note in task.cut(encoder, self.splits(), self.config.eval):
                say(note)

        once(check)

    @property
    def template(self) -> str:
        """The task's prompt template where it has one, else the model's."""
        return self.config.task.template or self.config.model.template

    # --- data of the unlearning run ------------------------------------------------------------------------

    def unlearning_data(self, target: ModelRef, method: Method) -> TrainData:
        encoder = self.encoder(target)
        forget = Pairs(encoder, self.data.forget)
        retain = Pairs(encoder, self.data.retain if method.needs_retain else [])
        reference = self._reference_logps(target, forget) if method.uses_reference else []
        if not method.learns_refusal:
            return TrainData(lambda epoch: forget, retain, reference)

        def refusals(epoch: int) -> Pairs:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            drawn = torch.randint(len(self.data.refusals), (len(forget),), generator=generator).tolist()
            asked = zip(self.data.forget, drawn, strict=True)
            return Pairs(encoder, [QA(qa.question, self.data.refusals[i]) for qa, i in asked])

        return TrainData(refusals, retain, reference)

    def _reference_logps(self, target: ModelRef, forget: Sequence[Prompted]) -> list[float]:
        """Summed answer log-probabilities under the target model: constants, so computed once and kept."""
        key = {
            "model": target.digest,
            "rows": digest([(p.prompt, p.answers) for p in forget]),
            "dtype": self.config.model.dtype,
            "precision": self.config.train.precision,
            **self._code(("objective/losses.py", "models", "evaluate", "data")),
        }

        def build(work: Path, out: Path) -> None:
            model = AnswerModel(self.load(target))
            device, precision = self.accelerator.device, self.config.train.precision
            scored = score(
                model, share(forget), budget=self.config.eval.batch_tokens,
                autocast=lambda: models.autocast(device, precision),
            )  # fmt: skip
            logps = gather([math.fsum(s[0].logps) for s in scored])
            if main():
                write_text(out / "logps.json", json.dumps(logps))

        return json.loads((self._entry("reference", "reference", key, build) / "logps.json").read_text())

    # --- evaluation ----------------------------------------------------------------------------------------

    def rows(self, phase: str, ref: ModelRef, label: str, system: str = "") -> list[Row]:
        """Rows of a model that is in the cache or on the hub, computed once."""
        key = self._rows_key(ref, system)

        def build(work: Path, out: Path) -> None:
            with bar(f"evaluating {label}") as progress:
                rows = self.evaluate(lambda: self.load(ref), self.encoder(ref, system), work, progress)
            if main():
                write_rows(out / "rows.jsonl", rows)

        return read_lines(self._entry(phase, "rows", key, build) / "rows.jsonl")

    def _rows_key(self, ref: ModelRef, system: str) -> dict[str, Any]:
        model = self.config.model
        splits = {name: digest([asdict(qa) for qa in items]) for name, items in self.splits().items()}
        return {
            "model": ref.digest,
            "splits": splits,
            "template": [self.template, model.max_length, model.dtype, system],
            "eval": self.config.eval.identity(),
            **self._code(EVALUATION),
        }

    def splits(self, limit: int | None = None) -> dict[str, list[QA]]:
        """The questions of each split.  limit: at most so many, where eval.limit leaves more."""
        most = min((n for n in (self.config.eval.limit, limit) if n is not None), default=None)
        return {name: items[:most] for name, items in self.data.splits.items()}

    def evaluate(
        self, load: Callable[[], Any], encoder: Encoder, work: Path, progress: Bar | Line, limit: int | None = None
    ) -> list[Row]:
        """Rows of all splits, then lm-eval's.  Each part is kept in `work` as soon as it is done.

        limit: rows a split, without lm-eval.
        """
        rows: list[Row] = []
        lm = None
        for part, compute in self._parts(encoder, limit):
            path = work / f"rows_{part}.json"
            kept = once(partial(read_json, path, None))
            if kept is None:
                lm = load() if lm is None else lm

                def show(what: str, done: int, total: int, part: str = part) -> None:
                    progress.to(f"{part}, {what}", done, total)

                with cost.measure():
                    cost.count(parameter_bytes=cost.tensor_bytes(lm.parameters()))
                    kept = {"rows": compute(lm, progress=show), "cost": cost.spent()}
                if main():
                    write_text(path, json.dumps(kept))
            cost.resume(kept["cost"])
            rows += kept["rows"]
        for i, row in enumerate(row for row in rows if row["split"] == general.SPLIT):
            row["index"] = i
        return rows

    def _parts(self, encoder: Encoder, limit: int | None) -> Iterator[tuple[str, Callable[..., list[Row]]]]:
        """Name and evaluation (of a model, to rows) of each part: the task's splits, lm-eval's tasks."""
        config = self.config.eval
        for split, items in self.splits(limit).items():
            yield split, partial(self._split, encoder=encoder, split=split, items=items)
        if limit is not None:
            return
        about = {"tokenizer": encoder.tokenizer, "config": config.lm_eval, "system": encoder.system}
        for name in config.lm_eval.names():
            compute = partial(general.evaluate, name=name, **about)
            yield f"{general.SPLIT}_{name}", lambda lm, progress, run=compute: once(lambda: run(lm, progress=progress))

    def _split(
        self, lm: Any, *, encoder: Encoder, split: str, items: list[QA], progress: Callable[[str, int, int], None]
    ) -> list[Row]:
        """Rows of a split, by item.  Every process evaluates its share with a whole model of its own."""
        own = self.config.task.evaluate(lm, encoder, split, list(share(items)), self.config.eval, progress)
        for row in own:
            row["index"] = row["index"] * world() + rank()  # in the split, not in the share
        return sorted((row for rows in everyone(own) for row in rows), key=lambda row: row["index"])

    def _code(self, parts: tuple[str, ...]) -> dict[str, Any]:
        return {"code": code_digest(*parts), "versions": versions()}


def save(lm: Any, encoder: Encoder, out: Path) -> None:
    """An ordinary Hugging Face folder, safetensors.  All processes call it: a sharded model is gathered by rank 0."""
    state = whole_state(lm)

    def write() -> None:
        lm.save_pretrained(out, state_dict=state)
        encoder.tokenizer.save_pretrained(out)

    once(write)


def write_rows(path: Path, rows: list[Row]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
