"""Evaluators of a trained model, one per file, and the `Subject` that they evaluate."""

from newllm.evaluation.diagnosis import diagnose
from newllm.evaluation.subject import Findings, Subject, evaluate

__all__ = ["Findings", "Subject", "diagnose", "evaluate"]
