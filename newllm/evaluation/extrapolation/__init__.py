"""Perplexity at other lengths than that of training."""

from newllm.evaluation.extrapolation.evaluator import Extrapolation

__all__ = ["Extrapolation"]
