"""`python -m soul_cli.report`."""

from soul_cli.report.cli import main

main()
