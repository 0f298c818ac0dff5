"""What trains contexts in a first phase: one file per kind of diversity, and what they have in common (`Objective`)."""

from newllm.objectives.base import Objective
from newllm.objectives.covariance import Ctm, Decorr, Odcm, Udel, Wmse
from newllm.objectives.dispersion import Mcdl, Oacd
from newllm.objectives.independence import Hsic
from newllm.objectives.pairwise import InfoNCE, Unif
from newllm.objectives.spectral import Nuc, Sdl
from newllm.objectives.usage import Due

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
