"""Benchmarks.  A task loads data, evaluates a model to rows, and reduces rows to metrics."""

from soul_cli.tasks.base import Task
from soul_cli.tasks.copyright import Copyright
from soul_cli.tasks.tofu import TOFU

TASKS: dict[str, type[Task]] = {"tofu": TOFU, "copyright": Copyright}
