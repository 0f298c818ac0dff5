"""Evaluators of a trained model, one per file, and the `Subject` that they evaluate."""

from newllm.evaluation.diagnosis import judge
from newllm.evaluation.subject import Evaluator, Findings, Subject, evaluate

__all__ = ["Evaluator", "Findings", "Subject", "evaluate", "judge"]
