"""What every part of a run needs: its configuration and data, the cache, the machine, the costs so far."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soul_cli.core import cost
from soul_cli.core.distributed import main, once, together
from soul_cli.core.files import read_json, write_text
from soul_cli.data.encode import Encoder
from soul_cli.data.prompts import CHAT, prompt_text
from soul_cli.models import load as models
from soul_cli.models import packaged
from soul_cli.models.load import ModelRef

if TYPE_CHECKING:  # the code behind what is handed in: what it decides stands in the keys as values
    from accelerate import Accelerator

    from soul_cli.core.cache import Cache
    from soul_cli.experiment.config import RunConfig
    from soul_cli.tasks.base import TaskData

COST = "cost.json"  # in a cache entry: what it cost to make


@dataclass
class Context:
    """What the parts of a run share: models, unlearning and evaluation are functions of it.

    On several processes all of them call each function: they build together what is missing, and rank 0 writes.
    """

    config: RunConfig
    data: TaskData
    cache: Cache
    accelerator: Accelerator
    ledger: cost.Ledger = field(default_factory=cost.Ledger)

    def entry(self, phase: str, kind: str, key: dict[str, Any], build: Callable[[Path, Path], None]) -> Path:
        """Return a cache entry, made where it is missing.

        key: all that determines its content, code included.  What it cost is kept with it and noted as that of the
        phase.
        """
        made = []

        def measured(work: Path, out: Path) -> None:
            with cost.measure():
                build(work, out)
                made.append(cost.spent())
            if main():
                write_text(out / COST, json.dumps(made[0]))

        label = f"{phase.replace('_', ' ')}, {self.config.task.name}, {self.config.model.name} model"
        path = together(partial(self.cache.get, kind, key, of=label), measured)
        self.ledger.note(phase, once(lambda: read_json(path / COST, {})), cached=not made)
        return path

    def given(self, path: str, revision: str | None = None) -> ModelRef:
        """Return a model the user gave, by content."""
        return once(lambda: models.reference(packaged.local(path, self.cache), self.cache.root, revision))

    def load(self, ref: ModelRef, device: Any = None, *, load_in_4bit: bool = False) -> Any:
        """Return the model of a reference, in eval mode."""
        device = device or self.accelerator.device
        return models.load(ref, device, self.config.model.dtype, load_in_4bit=load_in_4bit)

    def encoder(self, ref: ModelRef, system: str = "") -> Encoder:
        """Return what encodes questions and answers for the model of a reference."""
        return Encoder(models.load_tokenizer(ref), self.template, self.config.model.max_length, system)

    def rendered(self, ref: ModelRef, system: str = "") -> tuple[str, str]:
        """Return a question's prompt and what stands before its answer, as the model of a reference reads them.

        For keys: a chat template is a program, whose text may depend on more than its source.
        """
        tokenizer = models.load_tokenizer(ref) if self.template == CHAT else None
        return prompt_text(self.template, tokenizer, "Who?", system)

    @property
    def template(self) -> str:
        """Return the task's prompt template where it has one, else the model's."""
        return self.config.task.template or self.config.model.template
