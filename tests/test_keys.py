"""soul_cli.core.sources, soul_cli.experiment.keys: no result outlives the code that made it."""

from __future__ import annotations

import ast
import copy
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from generator import generate_authors
from runs import TINY
from safetensors.torch import save_file
from transformers.utils import chat_template_utils

from soul_cli.core import sources
from soul_cli.core.cache import Cache
from soul_cli.core.files import PACKAGE, read_lines
from soul_cli.core.sources import closure
from soul_cli.core.types import QA
from soul_cli.data import prompts
from soul_cli.data.embedded import write_layout
from soul_cli.experiment import evaluation, models, unlearning
from soul_cli.experiment import run as run_module
from soul_cli.experiment.config import compose
from soul_cli.experiment.context import Context
from soul_cli.experiment.keys import EXEMPT, EXEMPT_LIBRARIES, OPTIONAL, code
from soul_cli.models import load
from soul_cli.models.load import ModelRef

FINE_TUNED = ("soul_cli.experiment.models",)
REFERENCE = ("soul_cli.experiment.unlearning",)
ROWS = ("soul_cli.experiment.evaluation", "soul_cli.tasks.tofu")
RUN = ("soul_cli.experiment.run",)
ALL = {"models": FINE_TUNED, "reference": REFERENCE, "rows": ROWS, "run": RUN}
REFUSING = {"models": ("soul_cli.evaluate.abilities",)}


def exempt(kind: str) -> set[str]:
    return {*EXEMPT, *REFUSING.get(kind, ())}


def hashed(kind: str) -> set[str]:
    return {f.relative_to(PACKAGE).as_posix() for f in closure(ALL[kind], exempt(kind)).files}


def places(modules: set[str]) -> set[Path]:
    return {PACKAGE.parent.joinpath(*name.split(".")).with_suffix(".py") for name in modules}


# --- the closure -------------------------------------------------------------------------------------------

SMALL = {
    "__init__.py": "",
    "root.py": "from small.a import f\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import small.typed\n"
    "else:\n    import small.untyped\n",
    "a/__init__.py": "import small.of_package",
    "a/table.txt": "1",
    "a/deep/more.json": "{}",
    "a/other/__init__.py": "",
    "a/other/data.txt": "",
    "f.py": "",
    "of_package.py": "def late():\n    from small import late\n    import numpy.linalg, json\n",
    "late.py": "from small.shown import say",
    "shown.py": "import small.only_shown\nimport rich",
    "only_shown.py": "",
    "typed.py": "",
    "untyped.py": "import small.root",
    "stranger.py": "",
    "settings.yaml": "",
}
EXPECTED = {"__init__.py", "root.py", "a/__init__.py", "a/table.txt", "a/deep/more.json", "of_package.py", "late.py",
            "untyped.py"}  # fmt: skip


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A package that has every kind of import."""
    package = tmp_path / "small"
    for name, text in SMALL.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_closure_follows_what_runs(small: Path) -> None:
    found = closure(["small.root"], ["small.shown"], small)
    assert {f.relative_to(small).as_posix() for f in found.files} == EXPECTED
    assert found.libraries == {"numpy"}


@pytest.mark.parametrize("name", SMALL)
def test_digest_follows_the_closure_and_nothing_else(small: Path, name: str) -> None:
    def now() -> str:
        sources._imports.cache_clear()
        return closure(["small.root"], ["small.shown"], small).digest(small)

    before = now()
    (small / name).write_text(SMALL[name] + "\n# edited" * name.endswith(".py") + " " * (not name.endswith(".py")))
    assert (now() != before) is (name in EXPECTED)


def test_new_file_beside_counts(small: Path) -> None:
    before = closure(["small.root"], (), small).digest(small)
    (small / "a" / "table2.txt").touch()
    assert closure(["small.root"], (), small).digest(small) != before


@pytest.mark.parametrize("line", ["from . import a", "from small.a import *"])
def test_imports_that_cannot_be_followed_are_refused(small: Path, line: str) -> None:
    (small / "stranger.py").write_text(line)
    with pytest.raises(SyntaxError, match="line 1"):
        closure(["small.stranger"], (), small)


# --- what is hashed ----------------------------------------------------------------------------------------


def imported(file: Path) -> set[Path]:
    """Modules of the package that a module imports when it runs: another reading than the closure's."""
    text = re.sub(r"^if TYPE_CHECKING:.*\n(?:(?: .*)?\n)*", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            start = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            names |= {start + alias.name for alias in node.names} | {start.rstrip(".")}
    places = [PACKAGE.parent.joinpath(*name.split(".")) for name in names if name.startswith("soul_cli")]
    return {p for place in places for p in (place.with_suffix(".py"), place / "__init__.py") if p.is_file()}


@pytest.mark.parametrize("kind", ALL)
def test_nothing_that_hashed_code_imports_is_left_out(kind: str) -> None:
    files = set(closure(ALL[kind], exempt(kind)).files)
    for file in files:
        if file.suffix == ".py":
            assert imported(file) <= files | places(exempt(kind)), file


def test_what_was_left_out_once() -> None:
    assert {"core/types.py", "core/cost.py", "experiment/run.py", "experiment/epochs.py", "experiment/models.py",
            "experiment/unlearning.py", "experiment/evaluation.py", "optim/step.c"} <= hashed("run")  # fmt: skip
    assert {"core/types.py", "experiment/models.py", "experiment/context.py"} <= hashed("models")
    assert {"evaluate/lm_tasks/__init__.py", "evaluate/lm_tasks/wikitext.yaml", "data/embedded/idontknow.jsonl"} <= (
        hashed("rows")
    )


def test_what_makes_nothing_anew() -> None:
    for kind in ALL:
        rooms = {name.split("/")[0] for name in hashed(kind)}
        assert not rooms & {"planning", "report", "cli.py"}
    assert not {f for f in hashed("models") if f.startswith(("tasks/", "evaluate/", "train/influence"))}
    assert not {f for f in hashed("rows") if f.startswith(("train/", "optim/", "objective/methods"))}


def test_exceptions_are_needed() -> None:
    """A list that only grows would hide a mistake."""
    bare = closure(RUN)
    assert places(set(EXEMPT)) <= set(bare.files)
    assert bare.libraries >= EXEMPT_LIBRARIES.keys()


def test_versions_where_they_matter() -> None:
    def versions(kind: str) -> set[str]:
        return set(code(*ALL[kind], refusing=REFUSING.get(kind, ()))["versions"])

    training = {"torch", "transformers", "tokenizers", "accelerate", "numpy", "pytorch_optimizer"}
    assert versions("models") == training
    evaluation = {"torch", "transformers", "tokenizers", "accelerate", "numpy"}
    evaluation |= {"scipy", "rouge_score", "nltk", "sacrebleu", "regex"}
    assert versions("rows") == evaluation
    assert versions("run") == training | evaluation
    assert code(*ALL["run"], libraries=["peft"])["versions"]["peft"]


@pytest.mark.parametrize(
    ("overrides", "libraries"),
    [
        ([], set()),
        (["train.lora={r:8,alpha:16,load_in_4bit:false}"], {"peft"}),
        (["model.finetune.train.lora={r:8,alpha:16,load_in_4bit:true}", "plan=true"], {"peft", "bitsandbytes"}),
    ],
)
def test_versions_of_what_is_asked_for(overrides: list[str], libraries: set[str]) -> None:
    assert compose(overrides).libraries == libraries <= OPTIONAL


def test_version_of_the_sentence_encoder_only_where_it_judges() -> None:
    config = compose([])
    config.eval.judge = "sbert"
    assert config.libraries == {"sentence_transformers"}


# --- files by content --------------------------------------------------------------------------------------


def test_sentence_encoder_counts_by_content(tmp_path: Path) -> None:
    def identity(judge: str, folder: str) -> dict[str, Any]:
        config = compose([f"eval.sbert_model={tmp_path / folder}"]).eval
        config.judge = judge
        return config.identity()

    for folder in ("a", "b"):
        (tmp_path / folder / "1_Pooling").mkdir(parents=True)
        (tmp_path / folder / "1_Pooling" / "config.json").write_text("{}")
    assert identity("sbert", "a") == identity("sbert", "b") != identity("rougeL", "a") == identity("rougeL", "c")
    before = identity("sbert", "a")
    (tmp_path / "a" / "1_Pooling" / "config.json").write_text("[]")
    assert identity("sbert", "a") != before


@pytest.mark.parametrize("name", ["model.safetensors", "merges.txt", "vocab.txt", "qwen.tiktoken", "chat.jinja"])
def test_model_folder_counts_by_content(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    if name == "model.safetensors":
        before = load.reference(str(tmp_path), tmp_path).digest
        save_file({"a": torch.ones(1)}, tmp_path / name)
    else:
        (tmp_path / name).write_text("1")
        before = load.reference(str(tmp_path), tmp_path).digest
        (tmp_path / name).write_text("2")
    assert load.reference(str(tmp_path), tmp_path).digest != before


def test_books_of_a_data_set_count_by_content(tmp_path: Path) -> None:
    def contents() -> str:
        books = [f"task.{kind}_books=[hub:{tmp_path / kind}]" for kind in ("forget", "retain", "heldout")]
        task = compose(["task=copyright", *books, "task.chunk_words=30", "task.prompt_words=[5]"]).task
        return task.load(tmp_path / "cache").digest

    def write(kind: str, start: int) -> None:
        text = " ".join(f"The {kind} of day {i} was a very long one indeed, they said." for i in range(start, 40))
        (tmp_path / kind).mkdir(exist_ok=True)
        (tmp_path / kind / "train.jsonl").write_text(json.dumps({"text": text}) + "\n")

    for kind in ("forget", "retain", "heldout"):
        write(kind, 0)
    before = contents()
    assert contents() == before
    write("forget", 1)
    assert contents() != before


def test_a_change_of_the_code_is_not_finished_before(tmp_path: Path) -> None:
    data = PACKAGE / "data" / "embedded"
    package = shutil.copytree(PACKAGE, tmp_path / "soul_cli", ignore=lambda folder, names: {
        n for n in names if n == "__pycache__" or (folder == str(data) and n in ("authors", "books"))
    })  # fmt: skip

    def now() -> str:
        sources._imports.cache_clear()
        return closure(RUN, EXEMPT, package).digest(package)

    def edit(*names: str) -> Iterator[str]:
        for name in names:
            with (package / name).open("a") as file:
                file.write("\n")
            yield now()

    seen = [now(), *edit("core/types.py", "experiment/unlearning.py", "experiment/epochs.py", "experiment/run.py")]
    assert len(set(seen)) == 5
    others = edit("core/screen.py", "cli.py", "report/tables.py", "planning/memory.py", "experiment/sweep.py")
    assert set(others) == {seen[-1]}


# --- the template ------------------------------------------------------------------------------------------

CLOCKED = (
    "{{ 'Today: ' + strftime_now('%d %B %Y') + (date_string or '') }}"
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content }}{% endfor %}"
)


def on(day: int, patch: pytest.MonkeyPatch) -> None:
    """Let transformers' clock show a day of a January."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2030, 1, day)

    patch.setattr(chat_template_utils, "datetime", Clock)


@pytest.fixture
def chat(tokenizer: Any, tiny_lm: Callable[..., Any], tmp_path: Path) -> Path:
    """A model folder with a chat template that looks at the clock."""
    made = copy.deepcopy(tokenizer)
    made.chat_template = CLOCKED
    made.save_pretrained(tmp_path / "chat")
    tiny_lm(vocab=len(made)).save_pretrained(tmp_path / "chat")
    return tmp_path / "chat"


def keys(chat: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The keys of a target model, of rows, and of reference log-probabilities."""
    config = compose(["model=hub", f"model.path={chat}", "model.template=chat", f"cache_dir={root}", "eval.limit=1"])
    qa = QA("Who wrote it?", "She did.")
    data = SimpleNamespace(full=[qa], forget=[qa], retain=[qa], splits={"forget": [qa]}, refusals=[])
    found: dict[str, Any] = {}

    def entry(self: Context, phase: str, kind: str, key: dict[str, Any], build: Any) -> Path:
        found[phase] = key
        return root

    monkeypatch.setattr(Context, "entry", entry)
    context = Context(config, data, Cache(root, print), SimpleNamespace(device="cpu"))
    models.target(context)
    evaluation.rows(context, "rows", models.base(context), "it", "Be brief.")
    unlearning.unlearning_data(context, models.base(context)).forget(0)
    found["prompt"] = context.encoder(models.base(context)).prompt(qa.question)
    return found


def test_prompts_and_keys_are_the_same_on_another_day(
    chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").touch()
    days = []
    for day in (1, 2):
        on(day, monkeypatch)
        days.append(keys(chat, tmp_path, monkeypatch))
    assert days[0] == days[1]
    for phase in ("target_model", "rows"):
        assert "Today: 10 April 202510 Apr 2025" in json.dumps(days[0][phase]["template"])
    assert "<system>Be brief." in json.dumps(days[0]["rows"]["template"])


def test_keys_follow_what_a_template_says(chat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the files of the model are the same: as with a library that renders them otherwise."""
    (tmp_path / "rows.jsonl").touch()
    before = keys(chat, tmp_path, monkeypatch)
    monkeypatch.setattr(prompts, "TODAY", datetime(2025, 4, 11))
    after = keys(chat, tmp_path, monkeypatch)
    assert all(before[phase] != after[phase] for phase in ("target_model", "rows", "reference"))


def test_clock_of_a_template_stands_and_nothing_else_changes(chat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against transformers on that day: every directive, in a function of the template too, and leading blanks."""
    formats = ["%a %A %b %B %d %H:%M:%S %j %m %p %U %w %W %y %Y %% %d%%d", "%-d %-m", "%G-%u %V %f %c %x %X"]
    told = "".join(f"{{{{ strftime_now({f!r}) + '|' }}}}" for f in formats)
    asked = (
        "{% macro day() %}{{ strftime_now('%d') }}{% endmacro %}{% if strftime_now is defined %}{{ day() }}{% endif %}"
    )
    tokenizer = load.load_tokenizer(ModelRef(str(chat), ""))
    on(1, monkeypatch)
    monkeypatch.setattr(prompts, "TODAY", datetime(2030, 1, 1))
    for start in ("", "\n", "\n\n  ", "  {% if true %}\n x{% endif %}\n", "{%- if true %} {%- endif -%} \n"):
        tokenizer.chat_template = f"{start}{told}{asked} {{{{ messages[0].content }}}}\n"
        message = [{"role": "user", "content": "Who?"}]
        expected = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        assert prompts.prompt_text("chat", tokenizer, "Who?") == (expected, "")


# --- what runs ---------------------------------------------------------------------------------------------


@contextmanager
def watched(files: set[str]) -> Iterator[None]:
    """Note the files of the package whose functions are called."""

    called, before = set(), sys.gettrace()
    sys.settrace(lambda frame, event, arg: called.add(frame.f_code))
    try:
        yield
    finally:
        sys.settrace(before)
        paths = {Path(c.co_filename) for c in called}
        files |= {p.relative_to(PACKAGE).as_posix() for p in paths if p.is_relative_to(PACKAGE)}


def ran(root: Path, *more: str) -> Path:
    """A run with everything in it, on a model that has learned next to nothing."""
    short = ["model.finetune.train.epochs=1", "train.epochs=2", "eval.limit=2", "eval.max_total=100",
             "epoch_eval.every=1", "epoch_eval.limit=1", "epoch_eval.select=best"]  # fmt: skip
    where = [f"task.source={root.parent / 'data'}", f"cache_dir={root / 'cache'}", f"output_dir={root / 'out'}"]
    return run_module.run(compose([*TINY, *where, *short, *more]))


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    """A run's folder, and for each kind of result the files whose code ran while it was made."""
    root = tmp_path_factory.mktemp("seen")
    write_layout(root / "data", generate_authors(11, seed=7))
    files: dict[str, set[str]] = {kind: set() for kind in ALL}
    asked: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    entry = Context.entry

    def watch(self: Context, phase: str, kind: str, key: Any, build: Callable[[Path, Path], None]) -> Path:
        def making(work: Path, out: Path) -> None:
            with watched(files[kind]):
                build(work, out)

        return entry(self, phase, kind, key, making)

    def recorded(*made_by: str, refusing: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
        asked.add((made_by, refusing))
        return code(*made_by, refusing=refusing, **more)

    with pytest.MonkeyPatch.context() as patch, watched(files["run"]):
        patch.setattr(Context, "entry", watch)
        for module in (models, unlearning, evaluation, run_module):
            patch.setattr(module, "code", recorded)
        folder = ran(root / "a")
    # what is tested here is what the keys are made of
    assert asked == {(ALL[kind], REFUSING.get(kind, ())) for kind in ALL}
    return folder, files


@pytest.mark.parametrize("kind", ALL)
def test_all_code_that_runs_is_hashed(seen: tuple[Path, dict[str, set[str]]], kind: str) -> None:
    """Imports do not show what is handed in as an object; this does."""
    assert len(seen[1][kind]) > 10
    left = {PACKAGE / name for name in seen[1][kind] - hashed(kind)}
    behind = set(closure(["soul_cli.core.screen", *REFUSING.get(kind, ())]).files)
    assert left <= places(exempt(kind)) | behind


STUBS: dict[str, Any] = {"code": lambda *_, **__: {"code": "same"}, "requested": int, "deferred": nullcontext}


def contents(folder: Path) -> dict[str, Any]:
    saved = json.loads((folder / "metrics.json").read_text())
    steps = [{k: v for k, v in s.items() if k != "tokens_per_s"} for s in read_lines(folder / "train.jsonl")]
    rows = {p.name: read_lines(p) for p in folder.glob("rows*.jsonl")}
    return {"models": saved["models"], "epoch": saved["epoch_eval"], "steps": steps, **rows}


def test_exceptions_decide_nothing(
    seen: tuple[Path, dict[str, set[str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing in the place of everything that they define, a run comes to the same numbers."""
    stubbed = set()
    for module in [m for name, m in sys.modules.items() if name.startswith("soul_cli")]:
        for name, value in list(vars(module).items()):
            if getattr(value, "__module__", None) in EXEMPT:
                monkeypatch.setattr(module, name, STUBS.get(name, MagicMock()))
                stubbed.add(value.__module__)
    assert stubbed == set(EXEMPT)
    monkeypatch.setattr(models, "abilities", MagicMock())
    (tmp_path / "data").symlink_to(seen[0].parents[3] / "data")
    assert contents(ran(tmp_path / "b")) == contents(seen[0])
