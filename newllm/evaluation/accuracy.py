"""Accuracy of the most likely next token."""

import torch
from torch import Tensor

from newllm.data.facts import IGNORED
from newllm.evaluation.subject import Evaluator, Findings, Subject
from newllm.training.cross_entropy import CHUNK


class Accuracy(Evaluator):
    """`val/accuracy`: the share of the scored validation labels that have the largest logit.

    If several tokens tie, as bf16 logits often do, the hit is divided among them: a label that ties with one other
    token is half a hit.
    """

    def __call__(self, subject: Subject) -> Findings:
        hits, tokens = 0.0, 0
        for inputs, labels in subject.batches(subject.rows):
            with subject.reading() as model:
                scored = labels != IGNORED
                hidden = model.hidden(inputs)[scored]
                hits += float(top1(hidden, model.head_weight, labels[scored]).sum(dtype=torch.float64))
                tokens += len(hidden)
        share = hits / max(tokens, 1)
        body: list = [f"The likeliest token is right for {share:.2%} of {tokens:,}"]
        return Findings("Accuracy", {"val/accuracy": share}, body=body, scored={"val/accuracy": subject.scored_rows})


def top1(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """1 where hidden [N, D] @ weight [V, D].T is largest at the label [N], 1/k where k tokens tie with it, else 0.

    fp32 [N]. Logits are computed for 1024 rows at a time, in the weight's dtype.
    """
    hits = torch.empty(len(labels), device=hidden.device)
    for start in range(0, len(labels), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = hidden[rows].to(weight.dtype) @ weight.T
        best = logits.amax(dim=1, keepdim=True)
        right = logits.gather(1, labels[rows, None]) == best
        hits[rows] = right.squeeze(1) / (logits == best).sum(dim=1)
    return hits
