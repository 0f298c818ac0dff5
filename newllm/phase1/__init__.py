"""First phases: what is trained and frozen before the ordinary training of a run."""

from newllm.phase1.base import FirstPhase, Outcome, Work
from newllm.phase1.fixed_point import FixedPoint
from newllm.phase1.reconstruction import Reconstruction

__all__ = ["FirstPhase", "FixedPoint", "Outcome", "Reconstruction", "Work"]
