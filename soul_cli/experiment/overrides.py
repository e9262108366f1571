"""Overrides as one types them, in Hydra's grammar: how values are quoted, and what to type where Hydra reads none."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

from hydra._internal.grammar.functions import Functions
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from soul_cli.core.files import CONFIGS

PLAIN = re.compile(r"[A-Za-z0-9_/.\-+%:@$?*|]+")  # texts that may need no quotes
COMPOSING = HydraException, OmegaConfBaseException, ValueError  # what composing raises
RENAMED = {
    "method.retain_weight": "retain.weight",
    "optim.mode": "combine (combine=alternating, combine=sum)",
    **{f"{at}train.checkpoint_steps": f"{at}train.checkpoint_minutes" for at in ("", "model.base.", "model.finetune.")},
}


def quoted(value: Any) -> str:
    """Return a value as one types it, so that Hydra reads the same again: texts in quotes where it needs them."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{quoted(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(quoted, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    plain = PLAIN.fullmatch(value) and read(value) == value
    return value if plain else QuotedString(value, Quote.double).with_quotes()


def normalise(text: str) -> float | str:
    """Return what two spellings of a value have in common."""
    if text.startswith(("'", '"')):
        text = str(read(text))
    try:
        return float(text)
    except ValueError:
        return text.lower()


def read(text: str) -> Any:
    """Return the value that Hydra reads in what was typed; None where it can read none."""
    try:
        value = OverridesParser(Functions()).parse_rule(text, "element")
    except HydraException:
        return None
    return value.text if isinstance(value, QuotedString) else value


def explain_override(given: str, *, sweeps: bool) -> str:
    """Return how to type an argument that Hydra cannot read.  sweeps: commas part the values of several members."""
    key, equals, value = given.partition("=")
    begin, inner, end = ("[", value[1:-1], "]") if value.startswith("[") and value.endswith("]") else ("", value, "")
    parts = [part.strip() for part in inner.split(",")] if begin or sweeps else [inner]
    right = f"{key}={begin}{','.join(map(quoted, parts))}{end}"
    try:
        OverridesParser(Functions()).parse_override(right)
    except HydraException:
        equals = ""
    if not equals:
        return f"the argument {given!r} is not KEY=VALUE; soul-unlearn --help shows the keys"
    return (
        f"{given}: this value needs quotes, as all do that have other characters than a-z, 0-9 and /.-_+%:@, and the "
        f"shell takes one pair away. Type {shlex.quote(right)}"
    )


def explain_composition(error: Exception, *, sweeps: bool) -> str | None:
    """Return what is wrong with overrides that could not be composed, and what would be right.

    error: one of COMPOSING.  None: it is none of Hydra's.  sweeps: see explain_override.
    """
    if type(error) is ValueError and not str(error).startswith("Config group override"):
        return None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OverrideParseException):
            return explain_override(cause.override, sweeps=sweeps)
        key = getattr(cause, "full_key", None)
        if key in RENAMED:
            return f"{key} is called {RENAMED[key]} now"
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and cause.parent_node is not None and key:
            place, _, name = key.rpartition(".")
            return (
                f"{place or 'the configuration'} has no key {name!r}; it has {', '.join(map(str, cause.parent_node))}"
            )
        if isinstance(cause, OmegaConfBaseException) and key:
            return f"{key}: {str(cause).splitlines()[0]}"
        cause = cause.__cause__
    text = str(error).split("Config search path")[0]  # of no use to the reader
    text = " ".join(text.removeprefix("In 'config': ").split())
    if isinstance(error, ValueError):
        text += "; a group is chosen by name, as in method=npo"
    found = re.match(r"Could not find '(\w+)/[^']*'", text)  # Hydra's own list leaves out what lies in folders
    return f"{found[0]}; there are {', '.join(choices(found[1]))}" if found else text


def choices(group: str) -> list[str]:
    """Return the names of a group's configurations, those in folders of it included."""
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
