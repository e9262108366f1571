"""The costly parts of a run as cached, resumable pieces: base model, fine-tuned models, rows, reference log-probs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from soul_cli import models
from soul_cli.base_models import EmbeddedModel, HubModel, MuonRecipe, Recipe
from soul_cli.cache import Cache, code_digest, digest, read_json, write_text
from soul_cli.config import Parallel, RunConfig, plain
from soul_cli.data.encode import Encoder
from soul_cli.data.generator import generate_authors
from soul_cli.distributed import gather, main, once, share, together, whole_state, world
from soul_cli.evaluate.likelihood import score
from soul_cli.methods import Finetune, Method
from soul_cli.models import AnswerModel, ModelRef
from soul_cli.optim.build import Optim
from soul_cli.screen import Bar, bar
from soul_cli.tasks.base import TaskData
from soul_cli.train import TrainConfig, TrainData, Trainer
from soul_cli.types import QA, Prompted, Row

LIBRARIES = ("torch", "transformers", "tokenizers")
# source files that determine a model's weights, and those that determine rows
TRAINING = (
    "train.py", "checkpoint.py", "distributed.py", "losses.py", "methods.py", "models.py", "base_models.py",
    "optim", "data",
)  # fmt: skip
EVALUATION = ("distributed.py", "losses.py", "metrics.py", "models.py", "tasks", "evaluate", "data")


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

    def _entry(self, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
        return together(partial(self.cache.get, kind, key), build)

    def target(self) -> ModelRef:
        """The model that has learned everything."""
        if self.config.task.target_model:
            return self._given(self.config.task.target_model)
        return self._finetuned(self.base(), self.data.full, "target model")

    def retain_trained(self) -> ModelRef | None:
        """The model that never saw the forget set; None where there is none to be had without the base model."""
        task = self.config.task
        if task.retain_model:
            return self._given(task.retain_model)
        if task.retain_rows or not self.needs_base():
            return None
        return self._finetuned(self.base(), self.data.retain, "retain-trained model")

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
            with bar("base model, trained from scratch") as progress:
                self._finetune(ModelRef(str(untrained), ""), rows, model.base, work, out, progress)

        return ModelRef(str(self._entry("models", key, build)), digest(key))

    def _base_rows(self, model: EmbeddedModel) -> list[QA]:
        """Facts, and generated authors for the style; no author of the benchmark."""
        style = [r for author in generate_authors(model.style_authors, seed=0) for r in author["rows"]]
        return [QA(r["question"], r["answer"]) for r in style] + self._facts() * model.fact_repeats

    def _facts(self) -> list[QA]:
        rows = [qa for name in ("real_authors", "world_facts") for qa in self.data.splits[name]]
        return [QA(qa.question, qa.answer) for qa in rows]

    def _base_key(self, model: EmbeddedModel) -> dict[str, Any]:
        settings = {k: v for k, v in plain(model).items() if k != "finetune"}
        rows = digest([(qa.question, qa.answer) for qa in [*self._base_rows(model), *self.data.retain]])
        return {"model": settings, "rows": rows, "seed": self.config.target_seed, **self._code(TRAINING)}

    def _finetuned(self, base: ModelRef, rows: list[QA], label: str) -> ModelRef:
        """The base model fine-tuned on rows: target model (full set) or retain-trained model."""
        rows = self._finetune_rows(rows)
        key = self._finetune_key(base, rows)

        def build(work: Path, out: Path) -> None:
            with bar(f"{label}, fine-tuned on {len(rows)} pairs") as progress:
                self._finetune(base, rows, self.config.model.finetune, work, out, progress)

        return ModelRef(str(self._entry("models", key, build)), digest(key))

    def _finetune_rows(self, rows: list[QA]) -> list[QA]:
        return rows + self._facts() if isinstance(self.config.model, EmbeddedModel) else rows

    def _finetune_key(self, base: ModelRef, rows: list[QA]) -> dict[str, Any]:
        model = self.config.model
        return {
            "base": base.digest,
            "rows": digest([(qa.question, qa.answer) for qa in rows]),
            "template": [model.template, model.max_length, model.dtype],
            "recipe": plain(model.finetune),
            "seed": self.config.target_seed,
            **self._code(TRAINING),
        }

    def _finetune(
        self, base: ModelRef, rows: list[QA], recipe: Recipe | MuonRecipe, work: Path, out: Path, progress: Bar
    ) -> None:
        lm, encoder = self.load(base, "cpu"), self.encoder(base)
        data = TrainData(forget=None, retain=[encoder.pair(qa.question, qa.answer) for qa in rows])
        self.train(lm, data, Finetune("finetune"), recipe.optim, recipe.train, self.config.target_seed, work, progress)
        save(lm, encoder, out)

    def train(
        self,
        lm: Any,
        data: TrainData,
        method: Method,
        optim: Optim,
        config: TrainConfig,
        seed: int,
        work: Path,
        progress: Bar,
    ) -> list[dict[str, Any]]:
        """Train lm, which may lie on the CPU; with parallel=fsdp it is sharded from then on."""
        sharded = self.config.parallel is Parallel.fsdp and world() > 1
        trainer = Trainer(lm, data, method, optim, config, seed, self.accelerator, sharded=sharded)

        def show(done: int, total: int, record: dict[str, float]) -> None:
            losses = ", ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in record.items() if k.startswith("loss_"))
            progress.to("", done, total, f"loss {losses}")
            if self.accelerator.trackers:
                self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=done)

        return trainer.train(work, show)

    def load(self, ref: ModelRef, device: Any = None) -> Any:
        return models.load(ref, device or self.accelerator.device, self.config.model.dtype)

    def encoder(self, ref: ModelRef, system: str = "") -> Encoder:
        model = self.config.model
        return Encoder(models.load_tokenizer(ref), model.template, model.max_length, system)

    # --- data of the unlearning run ------------------------------------------------------------------------

    def unlearning_data(self, target: ModelRef, method: Method) -> TrainData:
        encoder = self.encoder(target)
        forget = [encoder.pair(qa.question, qa.answer) for qa in self.data.forget]
        retain = [encoder.pair(qa.question, qa.answer) for qa in self.data.retain] if method.uses_retain else []
        reference = self._reference_logps(target, forget) if method.uses_reference else []
        if not method.learns_refusal:
            return TrainData(lambda epoch: forget, retain, reference)

        def refusals(epoch: int) -> list[Prompted]:
            generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + epoch)
            drawn = torch.randint(len(self.data.refusals), (len(forget),), generator=generator).tolist()
            return [
                encoder.pair(qa.question, self.data.refusals[i]) for qa, i in zip(self.data.forget, drawn, strict=True)
            ]

        return TrainData(refusals, retain, reference)

    def _reference_logps(self, target: ModelRef, forget: list[Prompted]) -> list[float]:
        """Summed answer log-probabilities under the target model: constants, so computed once and kept."""
        key = {
            "model": target.digest,
            "rows": digest([(p.prompt, p.answers) for p in forget]),
            "dtype": self.config.model.dtype,
            "precision": self.config.train.precision,
            **self._code(("losses.py", "models.py", "evaluate", "data")),
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

        return json.loads((self._entry("reference", key, build) / "logps.json").read_text())

    # --- evaluation ----------------------------------------------------------------------------------------

    def rows(self, ref: ModelRef, label: str, system: str = "") -> list[Row]:
        """Rows of a model that is in the cache or on the hub, computed once."""
        key = self._rows_key(ref, system)

        def build(work: Path, out: Path) -> None:
            with bar(f"evaluating {label}") as progress:
                rows = self.evaluate(lambda: self.load(ref), self.encoder(ref, system), work, progress)
            if main():
                write_rows(out / "rows.jsonl", rows)

        return read_rows(self._entry("rows", key, build) / "rows.jsonl")

    def _rows_key(self, ref: ModelRef, system: str) -> dict[str, Any]:
        model = self.config.model
        splits = {name: digest([asdict(qa) for qa in items]) for name, items in self.splits().items()}
        return {
            "model": ref.digest,
            "splits": splits,
            "template": [model.template, model.max_length, model.dtype, system],
            "eval": plain(self.config.eval),
            **self._code(EVALUATION),
        }

    def splits(self) -> dict[str, list[QA]]:
        limit = self.config.eval.limit
        return {name: items[:limit] for name, items in self.data.splits.items()}

    def evaluate(self, load: Callable[[], Any], encoder: Encoder, work: Path, progress: Bar) -> list[Row]:
        """Rows of all splits.  Each split is kept in `work` as soon as it is done.

        Every process evaluates its share of a split, with a whole model of its own.
        """
        rows: list[Row] = []
        lm = None
        for split, items in self.splits().items():
            path = work / f"rows_{split}.json"
            part = once(partial(read_json, path, None))
            if part is None:
                lm = load() if lm is None else lm

                def show(what: str, done: int, total: int, split: str = split) -> None:
                    progress.to(f"{split}, {what}", done, total)

                own = share(items)
                part = gather(self.config.task.evaluate(lm, encoder, split, own, self.config.eval, show))
                for i, row in enumerate(part):
                    row["index"] = i  # in the split, not in the share
                if main():
                    write_text(path, json.dumps(part))
            rows += part
        return rows

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


def read_rows(path: Path) -> list[Row]:
    # not splitlines: JSON leaves U+2028 and the like as they are
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
