"""What a finished model is asked: one file per evaluator, and what they all look at (`Subject`)."""

from newllm.evaluation.diagnosis import diagnose
from newllm.evaluation.subject import Findings, Subject, evaluate

__all__ = ["Findings", "Subject", "diagnose", "evaluate"]
