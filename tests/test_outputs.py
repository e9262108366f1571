"""What a run gives to others: the model card, the hub, trackers; one run on a tiny model that is given."""

from __future__ import annotations

import base64
import json
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import yaml
from accelerate import tracking as accelerate_tracking
from accelerate.utils import LoggerType
from huggingface_hub import constants
from test_given import write

from soul_cli.core.files import read_json, read_lines
from soul_cli.core.types import Metric, UserError
from soul_cli.experiment import card, hub, tracking
from soul_cli.experiment.config import compose
from soul_cli.experiment.overrides import quoted
from soul_cli.experiment.run import run

WANDB = '''
"""A stand-in that writes down what it is told."""
import json, os

class Table:
    def __init__(self, columns=None, data=None, dataframe=None):
        self.columns, self.data = columns, data

class Run:
    def log(self, values, step=None):
        plain = {k: {"columns": v.columns, "data": v.data} if isinstance(v, Table) else v for k, v in values.items()}
        self.write({"step": step, "values": plain})

    def write(self, line):
        with open(os.environ["WANDB_STAND_IN"], "a") as file:
            file.write(json.dumps(line) + "\\n")

    def finish(self):
        self.write({"end": True})

class Config:
    def update(self, values, allow_val_change):
        Run().write({"config": values})

config = Config()

def init(project):
    Run().write({"project": project})
    return Run()
'''


@pytest.fixture(scope="module")
def settings(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides of a short run on a given model whose card names a licence."""
    root = tmp_path_factory.mktemp("outputs")
    model = write(root / "tiny-llama")
    (model / "generation_config.json").unlink(missing_ok=True)
    (model / "README.md").write_text("---\nlicense: llama3.2\nlanguage: en\n---\n# A tiny model\n")
    return [
        f"task.source={quoted(str(data))}", f"task.target_model={model}", f"task.retain_model={model}", "model=hub",
        f"model.path={model}", "model.dtype=float32", "model.max_length=400", "method=npo", "optim=soul",
        "train.epochs=2", "train.precision=no", "eval.limit=1", "eval.max_total=160", "epoch_eval.every=1",
        "epoch_eval.limit=1", "save_model=true", f"cache_dir={root / 'cache'}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of that run, and what W&B was told."""
    root = tmp_path_factory.mktemp("done")
    (root / "site" / "wandb").mkdir(parents=True)
    (root / "site" / "wandb" / "__init__.py").write_text(WANDB)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "site")
        known = [LoggerType.TENSORBOARD, LoggerType.WANDB]
        patch.setattr(accelerate_tracking, "_available_trackers", known)  # found when it is imported
        patch.setenv("WANDB_STAND_IN", str(root / "wandb.jsonl"))
        folder = run(compose([*settings, f"output_dir={root / 'out'}", "trackers=[tensorboard,wandb]"]))
        sys.modules.pop("wandb", None)
    return folder, read_lines(root / "wandb.jsonl")


# --- the card ----------------------------------------------------------------------------------------------


def front(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def test_the_card_says_what_the_model_is(done: tuple[Path, Any]) -> None:
    folder, _ = done
    text = (folder / "model" / "README.md").read_text()
    assert huggingface_hub.ModelCard(text).data.to_dict() == front(text)  # as the hub reads it
    assert front(text) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": "llama3.2",
        "tags": ["unlearning", "soul-unlearn", "npo"],
    }  # fmt: skip
    assert "# tiny-llama, unlearned: npo" in text
    assert "That of tiny-llama: `llama3.2`" in text
    kept = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert kept == {k: config[k] for k in kept}
    assert {"method", "retain", "optim", "train", "seed"} <= kept.keys()
    assert str(folder.parents[2]) not in text  # no path of this machine
    saved = read_json(folder / "metrics.json", {})
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == ["metric", "original", "retain-trained", "this run"]
    shown = {line[0].split()[0]: line[1:] for line in lines[2:]}
    assert list(shown) == [name for name in saved["columns"] if name in saved["models"]["this_run"]]
    assert shown["forget_rougeL"][2] == f"{float(saved['models']['this_run']['forget_rougeL']['value']):.3g}"


METRICS = {
    "original": {"a": Metric(0.5, 3, "retain", "")},
    "this_run": {"a": Metric(0.25, 3, "retain", ""), "b": Metric(float("inf"), 3, "down", "")},
}


def test_a_model_of_the_hub_is_named_as_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    asked: list[tuple[str, str]] = []

    def download(name: str, file: str) -> str:
        asked.append((name, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    text = card.write(compose(["model=phi_1_5", "method=ga", "optim=adamw"]), METRICS, ["b", "a", "c"])
    (name,) = {name for name, _ in asked}
    assert front(text)["base_model"] == name == compose(["model=phi_1_5"]).model.path
    assert front(text)["license"] == "apache-2.0"
    assert f"{name} was fine-tuned on the data of the task. Then `ga` with the optimizer `adamw`" in " ".join(
        text.split()
    )
    assert "| b ↓ | - | inf |\n| a →R | 0.5 | 0.25 |" in text


@pytest.mark.parametrize("card_text", [None, "# no front matter\n", "---\nlicense: [a, b]\n---\n", "---\n: [\n---\n"])
def test_a_licence_that_is_not_known_is_not_made_up(tmp_path: Path, card_text: str | None) -> None:
    (tmp_path / "base").mkdir()
    if card_text is not None:
        (tmp_path / "base" / "README.md").write_text(card_text)
    config = compose(["model=hub", f"model.path={tmp_path / 'base'}", "method=ga", "optim=adamw"])
    text = card.write(config, METRICS, ["a"])
    assert "license" not in front(text)
    assert "base_model" not in front(text)
    assert "The card of base names no licence. Find out its terms" in text


def test_a_packaged_model_is_named_with_its_licence() -> None:
    text = card.write(compose(["model=smollm2_135m", "method=ga", "optim=adamw"]), METRICS, ["a"])
    assert front(text)["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert front(text)["license"] == "apache-2.0"
    text = card.write(compose(["method=iu"]), METRICS, ["a"])
    assert "base_model" not in front(text)
    assert front(text)["license"] == "mit"
    assert "soul-unlearn's embedded model was fine-tuned on the data of the task" in text
    assert "optimizer" not in text.split("## Results")[0]


# --- the hub -----------------------------------------------------------------------------------------------


class Hub(BaseHTTPRequestHandler):
    """A stand-in that keeps what is committed.  It knows one token."""

    repos: dict[str, dict[str, bytes]]
    private: dict[str, bool]

    def answer(self, content: Any, code: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.headers["authorization"] != "Bearer hf_good":
            return self.answer({"error": "Invalid user token."}, 401)
        return self.answer({"name": "ann", "type": "user", "orgs": []})

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else self.chunks()
        url = f"http://{self.headers['Host']}"
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"ann/{asked['name']}"
            self.private.setdefault(name, asked.get("private", asked.get("visibility") == "private"))
            known = name in self.repos
            self.repos.setdefault(name, {})
            return self.answer({"url": f"{url}/{name}"}, 409 if known else 200)
        name = "/".join(self.path.split("/")[3:5])
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40, "success": True})

    def chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """A network with the stand-in as the hub, and a token that it takes."""
    handler = type("OneHub", (Hub,), {"repos": {}, "private": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    huggingface_hub.utils.close_session()  # a session is made for a network or for none
    yield handler
    server.shutdown()
    server.server_close()
    huggingface_hub.utils.close_session()


def test_a_finished_run_is_pushed_with_its_card(online: type[Hub], done: tuple[Path, Any], settings: list[str]) -> None:
    folder, _ = done
    for _ in range(2):  # the second time the repository is there
        assert run(compose([*settings, f"output_dir={folder.parents[1]}", "push_to_hub=ann/forgetful"])) == folder
        kept = {p.name: p.read_bytes() for p in (folder / "model").iterdir()}
        assert online.repos == {"ann/forgetful": kept}
        assert online.private == {"ann/forgetful": True}
    assert {"README.md", "model.safetensors", "tokenizer.json"} <= kept.keys()


Change = Callable[[pytest.MonkeyPatch], None]
REFUSED: dict[str, tuple[str, Change, str]] = {
    "offline": ("a/b", lambda p: p.setattr(constants, "HF_HUB_OFFLINE", True), "HF_HUB_OFFLINE is set"),
    "no token": ("a/b", lambda p: p.setattr(huggingface_hub, "get_token", lambda: None), "there is no token; set"),
    "a wrong token": ("a/b", lambda p: p.setenv("HF_TOKEN", "hf_bad"), "the hub refuses the token"),
    "no hub": ("a/b", lambda p: p.setattr(constants, "ENDPOINT", "http://127.0.0.1:9"), "the hub failed"),
    "no name": ("a/b/c", lambda p: None, "no name of a repository"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_pushed_is_refused_before_anything_is_done(
    online: type[Hub], settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    name, change, words = REFUSED[case]
    change(monkeypatch)
    with pytest.raises(UserError, match=f"push_to_hub={name}: .*{words}"):
        run(compose([*settings, f"output_dir={tmp_path}", f"push_to_hub={name}"]))
    assert not list(tmp_path.iterdir())
    assert not online.repos


def test_without_a_kept_model_there_is_nothing_to_push() -> None:
    with pytest.raises(UserError, match="set save_model=true too"):
        compose(["push_to_hub=a/b"])
    with pytest.raises(UserError, match="method=none, which changes no weights"):
        compose(["push_to_hub=a/b", "save_model=true", "method=none"])
    assert compose(["push_to_hub=a/b", "save_model=true"]).identity() == compose([]).identity()


def test_an_upload_that_fails_keeps_the_model(online: type[Hub], done: tuple[Path, Any], monkeypatch: Any) -> None:
    def fail(self: Any, **given: Any) -> None:
        raise ConnectionError("cut off")

    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", fail)
    with pytest.raises(UserError, match=r"cut off.*The model is kept in .*, and the same command uploads it"):
        hub.push("ann/forgetful", done[0] / "model")


# --- trackers ----------------------------------------------------------------------------------------------


def expected(folder: Path) -> dict[str, dict[int, float]]:
    """name -> step -> number, as the run's files have them."""
    out: dict[str, dict[int, float]] = {}
    steps = read_lines(folder / "train.jsonl")
    for record in steps:
        for name, value in record.items():
            if name != "step":
                out.setdefault(f"unlearn/{name}", {})[record["step"]] = value
    each = len(steps) // 2  # two epochs
    for line in read_lines(folder / "epochs.jsonl"):
        for name, metric in line["metrics"].items():
            out.setdefault(f"epochs/{name}", {})[line["epoch"] * each] = float(metric["value"])
        if line["score"] is not None:
            out.setdefault("epochs/score", {})[line["epoch"] * each] = line["score"]
    for model, metrics in read_json(folder / "metrics.json", {})["models"].items():
        out |= {f"final/{model}/{name}": {len(steps): float(m["value"])} for name, m in metrics.items()}
    assert {"unlearn/loss_forget", "unlearn/unclipped_share", "epochs/forget_rougeL"} <= out.keys()
    assert "final/this_run/forget_rougeL" in out
    return out


def test_tensorboard_has_the_numbers_of_the_files(done: tuple[Path, Any]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _ = done
    (events,) = (folder / tracking.PROJECT).glob("events.*")
    read = EventAccumulator(str(events), size_guidance={"scalars": 0})
    read.Reload()
    numbers = expected(folder)
    assert set(read.Tags()["scalars"]) == set(numbers)
    for name, values in numbers.items():
        found = {event.step: event.value for event in read.Scalars(name)}
        assert found == {step: pytest.approx(value, rel=1e-6) for step, value in values.items()}, name
    (table,) = read.Tensors("final/table/text_summary")
    text = table.tensor_proto.string_val[0].decode()
    assert text.startswith("| metric | original | retain-trained | this run |")


def test_wandb_has_them_too_and_steps_rise(done: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, lines = done
    assert lines[0] == {"project": "soul-unlearn"}
    config = lines[1]["config"]
    assert (config["optim.name"], config["train.epochs"], config["train.lora"]) == ("soul", 2, "None")
    assert lines[-1] == {"end": True}
    told = lines[2:-1]
    assert [line["step"] for line in told] == sorted(line["step"] for line in told)
    found: dict[str, dict[int, float]] = {}
    for line in told:
        for name, value in line["values"].items():
            found.setdefault(name, {})[line["step"]] = value
    (table,) = found.pop("final/table").values()
    assert table["columns"] == ["metric", "original", "retain-trained", "this run"]
    assert found == expected(folder)


def test_trackers_are_closed_whatever_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate import Accelerator

    closed: list[str] = []
    accelerator = Accelerator(cpu=True)

    class Tracker:
        def finish(self) -> None:
            closed.append("closed")

    monkeypatch.setattr(accelerator, "init_trackers", lambda *given: accelerator.trackers.append(Tracker()))
    with pytest.raises(KeyboardInterrupt), tracking.tracked(accelerator, ["tensorboard"], str(tmp_path), {}):
        raise KeyboardInterrupt
    assert closed == ["closed"]
