"""Forget terms: what is minimised on the rows to forget."""

from soul_cli.objective.forget.base import Finetune, Objective
from soul_cli.objective.forget.distribution import CEU, IHL, ME, PDU, UNDIAL, Direction
from soul_cli.objective.forget.likelihood import GA, NPO, PO, TNPO, WGA, GradDiff, Normalize, SatImp, SimNPO
from soul_cli.objective.forget.preference import DPO, FLAT, AltPO, Divergence
from soul_cli.objective.forget.representation import RMU, AdaptiveRMU

__all__ = [
    "CEU", "DPO", "FLAT", "GA", "IHL", "ME", "NPO", "PDU", "PO", "RMU", "TNPO", "UNDIAL", "WGA", "AdaptiveRMU", "AltPO",
    "Direction", "Divergence", "Finetune", "GradDiff", "Normalize", "Objective", "SatImp", "SimNPO",
]  # fmt: skip
