"""Hydra takes sweepers from modules of this namespace package alone."""

from soul_cli.experiment import sweep


class Members(sweep.Members):
    """See soul_cli.experiment.sweep."""
