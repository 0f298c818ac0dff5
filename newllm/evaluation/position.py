"""Perplexity by the position of the label in its row."""

from itertools import pairwise

import numpy as np

from newllm.errors import ConfigError
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table


class Position(Evaluator):
    """`val/ppl_by_position/A-B`: exp of the mean loss of the labels A ≤ t < B of all validation rows.

    Label t is predicted from t + 1 tokens, so the first bucket holds labels with little context. The mean losses of
    the buckets, weighted by their tokens, give the token-weighted val/loss exactly.
    edges: starts of the buckets; the last one ends with the row, and edges beyond the row are ignored.
    tables/position.csv has one line per label position: mean loss with its standard error over rows.
    """

    def __init__(self, edges: list[int] = [0, 16, 32, 64, 96]):  # noqa: B006 (only read)
        if not edges or edges[0] != 0 or sorted(set(edges)) != list(edges):
            raise ConfigError(f"eval.position.edges must begin with 0 and ascend, as in [0,16,32,64,96]; got {edges}.")
        self.edges = edges

    def __call__(self, subject: Subject) -> Findings:
        losses, mask = subject.token_losses()
        length = losses.shape[1]
        edges = [edge for edge in self.edges if edge < length] + [length]
        metrics: dict[str, float] = {}
        scored_by: dict[str, str] = {}
        rows: Table = []
        for start, end in pairwise(edges):
            scored = losses[:, start:end][mask[:, start:end]]
            if scored.size == 0:
                continue
            ppl = float(np.exp(scored.mean(dtype=np.float64)))
            name = f"val/ppl_by_position/{start}-{end}"
            metrics[name] = ppl
            scored_by[name] = fingerprint(subject.scored_rows, length, start, end)
            rows.append({"positions": f"{start}-{end}", "ppl": ppl, "tokens": scored.size})
        tables = {"position": by_position(losses, mask)}
        return Findings("Perplexity by position", metrics, tables, [rows], scored_by)


def by_position(losses: np.ndarray, mask: np.ndarray) -> Table:
    """For each label position: number of scoring rows, mean loss, its standard error over rows, exp of the mean."""
    count = mask.sum(axis=0)
    mean = np.where(mask, losses, 0.0).sum(axis=0, dtype=np.float64) / np.maximum(count, 1)
    squares = np.where(mask, (losses - mean) ** 2, 0.0).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.sqrt(squares / (count - 1) / count)  # nan with fewer than two rows
    return [
        {"position": t, "rows": int(n), "loss": float(loss), "se": float(se), "ppl": float(np.exp(loss))}
        for t, (n, loss, se) in enumerate(zip(count, mean, error, strict=True))
        if n
    ]
