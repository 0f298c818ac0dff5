"""Effective rank of contexts, and the gap between contexts computed in parallel and the true ones."""

import torch
import torch.nn.functional as F
from torch import Tensor

from newllm.data import Dataset
from newllm.effective_rank import SAMPLES, effective_rank
from newllm.errors import ConfigError
from newllm.evaluation.limits import require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table
from newllm.model import LanguageModel
from newllm.precision import Precision
from newllm.seeding import stream
from newllm.two_phase.stored_contexts import ContextRows, Text, parallel_contexts, true_contexts_in_memory

_PER_DIM = 8  # contexts per dimension: 8, 4, 2 and 1 of trained ones give 98, 96, 90 and 78 % of the whole text's rank
_START_STD = 0.01  # of the initial contexts of the parallel passes, as in phase 1
_CONVERGED = 1e-3  # MSE between two passes, below which the passes end
_MAX_PASSES = 20
_PIECE = 4096  # tokens per step of a pass


class EffectiveRank(Evaluator):
    """`context/rank@val` in dims and `context/rank_share@val` of the width C; a table of the ranks of all layers.

    Measures the last layer's contexts, which the next token reads, of the validation text by the true recurrence. See
    `effective_rank` for samples, seed, centred, squared. The rank increases with the sample size and decreases with a
    common mean of the contexts, so the output states both settings.

    Phase 1 computes contexts in parallel: in each pass every token reads its predecessor's context of the last pass,
    small random ones in the first pass. `context/parallel_cosine` (mean over tokens), `context/parallel_cosine_min` and
    `context/parallel_mse` compare the result of `context/parallel_passes` such passes, with the final weights and
    without noise, with the true contexts. A recurrence that forgets needs few passes; one that does not keeps a gap.

    Args:
        passes: number of passes; None: until the contexts move by less than 1e-3 (MSE), at most 20.
        tokens: number of validation tokens that these passes read; bounds their memory and time.
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
                "eval=effective_rank measures the contexts of a recurrence, and this model has none: "
                "leave it out of 'eval=[…]' ('eval=[rank]' measures hidden states), or type model=context_token."
            )
        data.stream("val")  # raises ConfigError if its rows are scattered

    def __call__(self, subject: Subject) -> Findings:
        with subject.autocast():
            bf16 = torch.is_autocast_enabled(subject.device.type)
        precision: Precision = "bf16" if bf16 else "fp32"
        tokens = subject.data.stream("val")
        if isinstance(subject.rows, ContextRows):
            contexts = subject.rows.contexts
        else:
            contexts = true_contexts_in_memory(subject.model, tokens, subject.device, precision)
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
        if min(count, self.samples) < _PER_DIM * width:
            body.append(
                f"Fewer than {_PER_DIM} contexts per dimension ({_PER_DIM * width:,}): the rank comes out too low"
            )

        tokens = tokens[: self.tokens]
        with subject.computing() as model:
            text = Text(model, tokens, subject.device)
            parallel, passes, moved = _contexts_of_passes(text, self.passes, self.seed, precision)
        true = contexts[: len(tokens), -1].float()
        cosines, mse = F.cosine_similarity(parallel, true, dim=1), float(F.mse_loss(parallel, true))
        mean, least = float(cosines.mean()), float(cosines.min())
        body.append(
            f"Computed in {passes} parallel passes over {len(tokens):,} tokens (the last moves them by {moved:.0e}, "
            f"MSE): cosine to the true contexts {mean:.4f} on average, minimum {least:.4f}, MSE {mse:.2e}"
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


def _contexts_of_passes(text: Text, passes: int | None, seed: int, precision: Precision) -> tuple[Tensor, int, float]:
    """Contexts [N, C] of the text after parallel passes, on the CPU; the number of passes; the last one's MSE.

    passes: None: stop once a pass moves contexts by less than 1e-3 (MSE), or after 20 passes.
    """
    recurrence = text.model.recurrence
    generator = torch.Generator().manual_seed(stream(seed, "parallel contexts"))
    contexts = _START_STD * torch.randn(len(text), recurrence.width, generator=generator)
    done, moved = 0, float("inf")
    while done < (passes or _MAX_PASSES) and (passes is not None or moved >= _CONVERGED):
        previous, contexts = contexts, torch.empty_like(contexts)
        for (start, stop), states in parallel_contexts(recurrence, text, previous.numpy(), _PIECE, precision):
            contexts[start:stop] = states[:, -1].float().cpu()
        done, moved = done + 1, float(F.mse_loss(contexts, previous))
    return contexts, done, moved
