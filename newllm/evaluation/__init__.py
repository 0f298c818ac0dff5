"""Evaluators of a trained model, one per file, and the `Subject` that they evaluate."""

from newllm.evaluation.diagnosis import judge
from newllm.evaluation.subject import Findings, Subject, evaluate

__all__ = ["Findings", "Subject", "evaluate", "judge"]
