"""Effective rank of contexts, and the gap between contexts made in parallel and the true ones."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data import Dataset
from newllm.effective_rank import SAMPLES, effective_rank
from newllm.errors import ConfigError
from newllm.evaluation.subject import Findings, Subject, Table
from newllm.model.language_model import LanguageModel
from newllm.seeding import stream
from newllm.training.precision import Precision
from newllm.two_phase.context_rows import ContextRows
from newllm.two_phase.contexts import Text, as_fp32, shifted, true_contexts_in_memory

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
        counts = (("samples", samples, "10000"), ("passes", passes, "10, or null"), ("tokens", tokens, "50000"))
        for name, value, example in counts:
            if value is not None and value < 1:
                raise ConfigError(
                    f"eval.effective_rank.{name} must be at least 1, as in eval.effective_rank.{name}={example}; "
                    f"got {value}."
                )
        self.samples, self.seed, self.centred, self.squared = samples, seed, centred, squared
        self.passes, self.tokens = passes, tokens

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """ConfigError for a model without a recurrence, and for a validation text that is not in one piece."""
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
            rank = effective_rank(_Layer(contexts, layer), self.samples, self.seed, self.centred, self.squared)
            rows.append({"layer": layer + 1, "rank": rank, "share": rank / width})
        last = rows[-1]
        sample = f"{self.samples:,} of {count:,} contexts" if count > self.samples else f"all {count:,} contexts"
        how = f"{'centred' if self.centred else 'not centred'}, shares of {'squared ' * self.squared}singular values"
        body: list = [
            f"{last['rank']:.1f} of {width:,} dims ({last['share']:.1%}): {sample}, {how}",
            *([rows] if layers > 1 else []),
        ]
        if min(count, self.samples) < _ENOUGH * width:
            body.append(
                f"Fewer than {_ENOUGH} contexts per dimension ({_ENOUGH * width:,}): the rank comes out too low"
            )
        metrics = {"context/rank@val": last["rank"], "context/rank_share@val": last["share"]}
        gap, line = self._gap(subject, contexts)
        return Findings("Effective rank of contexts", metrics | gap, {"effective_rank": rows}, [*body, line])

    def _gap(self, subject: Subject, contexts: Any) -> tuple[dict[str, float], str]:
        """The metrics of the parallel passes, and a line about them."""
        tokens = subject.data.stream("val")[: min(self.tokens, len(contexts))]
        with subject.computing() as model:
            parallel, passes, moved = in_parallel(model, tokens, subject.device, self.passes, self.seed)
        true = torch.from_numpy(np.array(contexts[: len(tokens), -1]))
        cosines = F.cosine_similarity(parallel, true, dim=1)
        mse = float(F.mse_loss(parallel, true))
        metrics = {
            "context/parallel_cosine": float(cosines.mean()),
            "context/parallel_cosine_min": float(cosines.min()),
            "context/parallel_mse": mse,
            "context/parallel_passes": passes,
        }
        line = (
            f"Made by {passes} parallel passes over {len(tokens):,} tokens (the last moves them by {moved:.0e}, MSE): "
            f"cosine {metrics['context/parallel_cosine']:.4f} to the true contexts, "
            f"{metrics['context/parallel_cosine_min']:.4f} at least, MSE {mse:.2e}"
        )
        return metrics, line


def _true_contexts(subject: Subject) -> Any:
    """[N, L, C] of the validation text by the true recurrence from zeros, read like an array of fp32.

    The last layer's context is the one that is carried on.
    """
    rows = subject.rows
    if isinstance(rows, ContextRows):
        return rows.contexts
    with subject.autocast():
        precision: Precision = "bf16" if torch.is_autocast_enabled(subject.device.type) else "fp32"
    return as_fp32(true_contexts_in_memory(subject.model, subject.data.stream("val"), subject.device, precision))


@torch.inference_mode()
def in_parallel(
    model: Any, tokens: np.ndarray, device: torch.device, passes: int | None, seed: int
) -> tuple[Tensor, int, float]:
    """Contexts [N, C] of the tokens after so many parallel passes, on the CPU; the passes made; the MSE of the last.

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


class _Layer:
    """One layer [N, C] of contexts [N, L, C] on the disk, of which only the rows that are asked for are read."""

    def __init__(self, contexts: Any, layer: int) -> None:
        self._contexts, self._layer = contexts, layer

    def __len__(self) -> int:
        return len(self._contexts)

    def __getitem__(self, rows: Any) -> Any:
        return self._contexts[rows, self._layer]
