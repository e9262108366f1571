"""`soul-report`: tables, figures and a page from finished run folders.  It reads files, never a model."""

from soul_cli.report.cli import main

__all__ = ["main"]
