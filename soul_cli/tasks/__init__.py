"""Benchmarks.  A task loads data, evaluates a model to rows, and reduces rows to metrics."""

from typing import Any

from soul_cli.tasks.copyright import Copyright
from soul_cli.tasks.tofu import TOFU

TASKS: dict[str, Any] = {"tofu": TOFU, "copyright": Copyright}
