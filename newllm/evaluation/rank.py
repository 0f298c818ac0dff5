"""Effective rank of hidden states."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor

from newllm.effective_rank import effective_rank
from newllm.evaluation.fingerprint import fingerprint
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table


class EffectiveRank(Evaluator):
    """`rank/effective_rank` of the final hidden states, `rank/share` of the width; a table has every layer.

    positions: number of hidden states in the matrix, from the first validation rows; null takes 16 per dimension.
    Fewer bias the rank down: Gaussian N × 64 gives 52, 62, 63.5 at N = 64, 256, 1024.
    center: subtract the mean state first. A large common component lowers the uncentred rank.
    """

    def __init__(self, positions: int | None = None, center: bool = False):
        require_positive("eval.rank", positions=positions)
        self.positions, self.center = positions, center

    def __call__(self, subject: Subject) -> Findings:
        width = subject.model.hidden_size
        wanted = self.positions or 16 * width
        states = hidden_states(subject, wanted)
        rows: Table = []
        for layer, matrix in states.items():
            rank = effective_rank(matrix, samples=None, centred=self.center)
            rows.append({"layer": layer, "effective_rank": rank, "share": rank / matrix.shape[1]})
        used = len(states["final"])
        body: list = [rows, f"{used:,} positions of width {width}, {'centred' if self.center else 'not centred'}"]
        if used < 16 * width:
            body.append(f"Fewer than 16 positions per dimension ({16 * width:,}): the rank is biased down")
        metrics = {"rank/effective_rank": rows[-1]["effective_rank"], "rank/share": rows[-1]["share"]}
        # Models of other widths compare at as many positions per dimension, unless a short text gives fewer.
        how = self.positions, self.center, used / wanted
        scored = fingerprint(subject.scored_rows, subject.data.val.seq_len, how)
        return Findings("Effective rank of hidden states", metrics, {"rank": rows}, body, {"rank": scored})


@torch.inference_mode()
def hidden_states(subject: Subject, positions: int) -> dict[str, Tensor]:
    """Hidden states [positions or fewer, hidden] after each block, and "final" (after the last norm), on the CPU."""
    layers: dict[str, list[Tensor]] = {}

    def keep(layer: str, module: Any, inputs: Any, output: Tensor) -> None:
        layers.setdefault(layer, []).append(output.flatten(0, 1).float().cpu())

    with ExitStack() as hooks:
        for index, block in enumerate(subject.model.blocks):
            hooks.callback(block.register_forward_hook(partial(keep, str(index))).remove)
        done = 0
        for inputs, _ in subject.batches():
            with subject.autocast():
                keep("final", None, inputs, subject.model.hidden(inputs))
            done += inputs.numel()
            if done >= positions:
                break
    return {layer: torch.cat(parts)[:positions] for layer, parts in layers.items()}
