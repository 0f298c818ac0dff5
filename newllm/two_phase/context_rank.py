"""Effective rank of contexts, and the gap between contexts made in parallel and the true ones."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data import Dataset
from newllm.effective_rank import SAMPLES, effective_rank
from newllm.errors import ConfigError
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Findings, Subject, Table
from newllm.model import LanguageModel
from newllm.seeding import stream
from newllm.two_phase.context_rows import ContextRows
from newllm.two_phase.contexts import Text, shifted, true_contexts_in_memory

_ENOUGH = 8  # contexts per dimension: of trained ones 8, 4, 2 and 1 bring 98, 96, 90 and 78 % of the whole text's rank
_STARTS = 0.01  # standard deviation of the contexts that parallel passes begin from, as phase 1's do
_STILL = 1e-3  # MSE between two passes, below which there is no need for a third
_MOST = 20
_PIECE = 4096  # tokens that a pass reads at a time


class EffectiveRank:
    """`context/rank@val` in dims and `context/rank_share@val` of the width C; a table of the ranks of all layers.

    Of the contexts of the validation text by the true recurrence, the last layer's, which is the one that is carried
    on. See `effective_rank` for samples, seed, centred, squared. The rank rises with the sample and falls with a mean
    that the contexts share, so both are said beside it.

    Phase 1 makes contexts in parallel: in each pass every token begins from its predecessor's context of the pass
    before, from small random ones in the first pass. `context/parallel_cosine` (mean over tokens),
    `context/parallel_cosine_min` and `context/parallel_mse` compare what `context/parallel_passes` such passes with the
    final weights, without noise, come to with the true contexts of the same tokens. A model whose recurrence forgets
    needs few; one that does not keeps a gap.

    Args:
        passes: how many; None: until the contexts move by less than 1e-3 in the mean square, at most 20.
        tokens: of the validation text, from its beginning, that these passes read; bounds their memory and time.
    """

    def __init__(
        self,
        samples: int = SAMPLES,
        seed: int = 0,
        centred: bool = False,
        squared: bool = False,
        passes: int | None = None,
        tokens: int = 50_000,
    ) -> None:
        require_positive("eval.effective_rank", samples=samples, passes=passes, tokens=tokens)
        self.samples, self.seed, self.centred, self.squared = samples, seed, centred, squared
        self.passes, self.tokens = passes, tokens

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError for a model without a recurrence, and for a scattered validation text."""
        if not hasattr(model, "recurrence"):
            raise ConfigError(
                "eval=effective_rank measures contexts that are carried from token to token, and this model has none: "
                "take it out of eval=[…] (eval=[rank] measures hidden states), or type model=context_token."
            )
        data.stream("val")

    def __call__(self, subject: Subject) -> Findings:
        contexts = _true_contexts(subject)
        count, layers, width = contexts.shape
        rows: Table = []
        for layer in range(layers):
            rank = effective_rank(contexts[:, layer], self.samples, self.seed, self.centred, self.squared)
            rows.append({"layer": layer + 1, "rank": rank, "share": rank / width})
        rank, share = rows[-1]["rank"], rows[-1]["share"]
        sample = f"{self.samples:,} of {count:,} contexts" if count > self.samples else f"all {count:,} contexts"
        how = f"{'centred' if self.centred else 'not centred'}, shares of {'squared ' * self.squared}singular values"
        body: list = [f"{rank:.1f} of {width:,} dims ({share:.1%}): {sample}, {how}"]
        if layers > 1:
            body.append(rows)
        if min(count, self.samples) < _ENOUGH * width:
            body.append(
                f"Fewer than {_ENOUGH} contexts per dimension ({_ENOUGH * width:,}): the rank comes out too low"
            )

        tokens = subject.data.stream("val")[: min(self.tokens, count)]
        with subject.computing() as model:
            parallel, passes, moved = _in_parallel(model, tokens, subject.device, self.passes, self.seed)
        true = contexts[: len(tokens), -1].float()
        cosines, mse = F.cosine_similarity(parallel, true, dim=1), float(F.mse_loss(parallel, true))
        mean, least = float(cosines.mean()), float(cosines.min())
        body.append(
            f"Made by {passes} parallel passes over {len(tokens):,} tokens (the last moves them by {moved:.0e}, MSE): "
            f"cosine {mean:.4f} to the true contexts, {least:.4f} at least, MSE {mse:.2e}"
        )
        metrics = {
            "context/rank@val": rank,
            "context/rank_share@val": share,
            "context/parallel_cosine": mean,
            "context/parallel_cosine_min": least,
            "context/parallel_mse": mse,
            "context/parallel_passes": passes,
        }
        return Findings("Effective rank of contexts", metrics, {"effective_rank": rows}, body)


def _true_contexts(subject: Subject) -> Tensor:
    """[N, L, C] of the validation text by the true recurrence from zeros."""
    if isinstance(subject.rows, ContextRows):
        return subject.rows.contexts
    with subject.autocast():
        bf16 = torch.is_autocast_enabled(subject.device.type)
    tokens = subject.data.stream("val")
    return true_contexts_in_memory(subject.model, tokens, subject.device, "bf16" if bf16 else "fp32")


@torch.inference_mode()
def _in_parallel(
    model: Any, tokens: np.ndarray, device: torch.device, passes: int | None, seed: int
) -> tuple[Tensor, int, float]:
    """Contexts [N, C] of the tokens after parallel passes, on the CPU; the number of passes; the MSE of the last.

    passes: None stops once a pass moves contexts by less than 1e-3 in the mean square, at most after 20.
    """
    text = Text(model, tokens, device)
    width = model.recurrence.width
    generator = torch.Generator().manual_seed(stream(seed, "parallel contexts"))
    previous = _STARTS * torch.randn(len(tokens), width, generator=generator)
    zeros = np.zeros(width, np.float32)  # the first token's, as in the true recurrence
    made, moved = 0, float("inf")
    while made < (passes or _MOST) and (passes is not None or moved >= _STILL):
        out = torch.empty_like(previous)
        for start, stop in text.pieces(_PIECE):
            carried = torch.from_numpy(shifted(previous.numpy(), start, stop, zeros)).to(device)
            out[start:stop] = model.recurrence(carried, text(start, stop))[:, -1].float().cpu()
        made, moved, previous = made + 1, float(F.mse_loss(out, previous)), out
    return previous, made, moved
