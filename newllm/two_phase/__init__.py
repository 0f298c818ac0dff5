"""First phases: what is trained and frozen before the ordinary training of a run."""

from newllm.two_phase.base import FirstPhase, Outcome, Work
from newllm.two_phase.fixed_point import FixedPoint
from newllm.two_phase.reconstruction import Reconstruction

__all__ = ["FirstPhase", "FixedPoint", "Outcome", "Reconstruction", "Work"]
