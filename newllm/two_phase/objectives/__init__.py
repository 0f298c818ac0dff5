"""What trains contexts in a first phase: one file per kind of diversity, and what they have in common (`Objective`)."""

from newllm.two_phase.objectives.base import Objective
from newllm.two_phase.objectives.covariance import Ctm, Decorr, Odcm, Udel, Wmse
from newllm.two_phase.objectives.dispersion import Mcdl, Oacd
from newllm.two_phase.objectives.independence import Hsic
from newllm.two_phase.objectives.pairwise import InfoNCE, Unif
from newllm.two_phase.objectives.spectral import Nuc, Sdl
from newllm.two_phase.objectives.usage import Due

__all__ = [
    "Ctm",
    "Decorr",
    "Due",
    "Hsic",
    "InfoNCE",
    "Mcdl",
    "Nuc",
    "Oacd",
    "Objective",
    "Odcm",
    "Sdl",
    "Udel",
    "Unif",
    "Wmse",
]
