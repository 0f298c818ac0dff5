"""Statistics of queries and keys: magnitudes, frequency bands, massive dimensions."""

import math
from typing import Any

import torch
from torch import Tensor

from newllm.data import Dataset
from newllm.evaluation.limits import require_attention, require_positive
from newllm.evaluation.subject import Evaluator, Findings, Subject, Table
from newllm.model import LanguageModel

TENSORS = ("q_before", "k_before", "q", "k", "latent")


class QueryKey(Evaluator):
    """Magnitudes of q and k before (`qk/before/…`) and after (`qk/…`) rotation, without the scaling of scores.

    Sizes, as published: max |x|; mean |x| and unbiased std of the signed x per batch, averaged over batches. A
    model's max is the maximum over layers, its mean and std are averages over layers.

    Frequency bands: a rotary pair (a, b) is measured by its norm √(x_a² + x_b²), which rotation preserves. The pairs
    with the higher half of the inverse frequencies are the high band, the others the low band; dims without rotation
    are a third band, measured by |x_d|. The published halves, dims [0, r/2) against [r/2, r) of the r rotary dims, are
    reported too: in the half layout each half holds one coordinate of every pair, so their ratio is about 1 whatever
    the frequencies.

    Massive values (Jin et al. 2025, arXiv 2502.01563): M_{h,d}, the L2 norm of dim d of head h over positions, is
    massive above `factor` times its head's mean over d. Two measures without a threshold: the largest M over the mean,
    and the share of a head's largest dim in the sum of its M².

    batches, batch_size: number of validation rows, from the first on (10 × 8 as published).
    """

    def __init__(self, batches: int = 10, batch_size: int = 8, factor: float = 5.0):
        require_positive("eval.qk", batches=batches, batch_size=batch_size, factor=factor)
        self.batches, self.batch_size, self.factor = batches, batch_size, factor

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """Raises ConfigError for a model without queries and keys."""
        require_attention("eval.qk", model)

    def __call__(self, subject: Subject) -> Findings:
        pairs = [rotary_pairs(block) for block in subject.model.blocks]
        layers: list[dict[str, Statistics]] = [{} for _ in pairs]  # for each layer by tensor

        def see(layer: int, tensors: dict[str, Tensor]) -> None:
            for name in tensors.keys() & TENSORS:
                latent = name == "latent"  # [B, T, C], taken as one head without rotary pairs
                stats = layers[layer].setdefault(name, Statistics([] if latent else pairs[layer]))
                stats.add(tensors[name].unsqueeze(1) if latent else tensors[name])

        subject.observe(see, self.batches, self.batch_size)
        findings = Findings("Queries and keys")
        self._sizes(findings, layers)
        self._bands(findings, layers)
        self._massive(findings, layers)
        return findings

    def _sizes(self, findings: Findings, layers: list[dict[str, "Statistics"]]) -> None:
        rows: Table = []
        for layer, tensors in enumerate(layers):
            sizes = ((name, tensors[name].sizes()) for name in TENSORS if name in tensors)
            rows.append({"layer": layer, **{f"{name}_{what}": x for name, size in sizes for what, x in size.items()}})
        findings.tables["qk_layers"] = rows
        for name in ("q", "k"):
            for prefix, tensor in (("qk", name), ("qk/before", f"{name}_before")):
                findings.metrics[f"{prefix}/{name}_max"] = max(row[f"{tensor}_max"] for row in rows)
                for what in ("mean", "std"):
                    mean = sum(row[f"{tensor}_{what}"] for row in rows) / len(rows)
                    findings.metrics[f"{prefix}/{name}_{what}"] = mean
        if "latent_max" in rows[0]:
            findings.metrics["qk/latent_max"] = max(row["latent_max"] for row in rows)
        columns = ["layer", *(f"{name}_{what}" for name in ("q", "k") for what in ("max", "mean", "std"))]
        findings.body = ["After rotation", [{column: row[column] for column in columns} for row in rows]]

    def _bands(self, findings: Findings, layers: list[dict[str, "Statistics"]]) -> None:
        rows: Table = []
        pairs: Table = []
        for layer, tensors in enumerate(layers):
            for name in ("q", "k"):
                place: dict[str, Any] = {"layer": layer, "tensor": name}
                stats = tensors[name]
                rows += [{**place, **row} for row in band_rows(stats)]
                for (a, b, frequency), most, total in zip(stats.pairs, stats.pair_max, stats.pair_sum, strict=True):
                    sizes = {"max": float(most), "mean": float(total) / stats.count}
                    waves = {"inv_freq": frequency, "wavelength": 2 * math.pi / frequency}
                    pairs.append({**place, "dims": f"{a}+{b}", **waves, **sizes})
        findings.tables["qk_bands"] = rows
        if pairs:
            findings.tables["qk_pairs"] = pairs

        summary: Table = []
        for cut, prefix in (("frequency", "qk/bands"), ("published halves", "qk/published")):
            for name in ("q", "k"):
                line: dict[str, Any] = {"bands": cut, "tensor": name}
                for band in ("high", "low", "pass-through"):
                    chosen = [row for row in rows if (row["cut"], row["tensor"], row["band"]) == (cut, name, band)]
                    line[band] = max((row["max"] for row in chosen), default=None)
                    if chosen:
                        findings.metrics[f"{prefix}/{name}_{band.replace('-', '_')}_max"] = line[band]
                line["low/high"] = None
                if line["high"] and line["low"] is not None:
                    line["low/high"] = findings.metrics[f"{prefix}/{name}_low_over_high"] = line["low"] / line["high"]
                summary.append(line)
        findings.body += [
            "Largest value by band (frequency: norm of a rotary pair; published halves: |x| over dims)",
            summary,
        ]

    def _massive(self, findings: Findings, layers: list[dict[str, "Statistics"]]) -> None:
        findings.tables["qk_massive"] = rows = [
            {"layer": layer, "stage": stage, "tensor": name, **row}
            for layer, tensors in enumerate(layers)
            for stage, suffix in (("before", "_before"), ("after", ""))
            for name in ("q", "k")
            for row in massive(tensors[name + suffix].norms(), self.factor)
        ]
        summary: Table = []
        for name in ("q", "k"):
            after = [row for row in rows if row["tensor"] == name and row["stage"] == "after"]
            line = {
                "dims": sum(row["massive"] for row in after),
                "max_over_mean": max(row["max_over_mean"] for row in after),
                "top_share": sum(row["top_share"] for row in after) / len(after),
            }
            findings.metrics.update({f"qk/massive/{name}_{what}": float(value) for what, value in line.items()})
            summary.append({"tensor": name, "heads": len(after), **line})
        findings.body += [f"Massive dims: norm over positions above {self.factor:g} x the head's mean", summary]


class Statistics:
    """Running statistics of one tensor of one layer over batches; stores nothing of size B or T.

    pairs: (dim, dim, inv_freq) of the rotary pairs to measure.
    """

    def __init__(self, pairs: list[tuple[int, int, float]]):
        self.pairs = pairs
        self.batches: list[tuple[float, float, float]] = []  # max |x|, mean |x|, std of x
        self.count = self.sequences = 0
        # Set by the first batch. dim_max [D] max |x_d|; squares [H, D] fp64 sum over sequences of the squared L2 norm
        # over positions; pair_max, pair_sum [P] max and fp64 sum over `count` vectors of the pairs' norms.
        self.dim_max = self.squares = self.pair_max = self.pair_sum = torch.zeros(0)

    def add(self, x: Tensor) -> None:
        """x [B, H, T, D] in any precision."""
        x = x.detach().float()
        size = x.abs()
        first, second = torch.tensor([pair[:2] for pair in self.pairs], dtype=torch.long).view(-1, 2).unbind(1)
        norm = torch.hypot(x[..., first], x[..., second])  # [B, H, T, P]
        if not self.batches:
            self.dim_max, self.squares = x.new_zeros(x.shape[3]), x.new_zeros(x.shape[1::2], dtype=torch.float64)
            self.pair_max, self.pair_sum = (x.new_zeros(len(self.pairs), dtype=d) for d in (x.dtype, torch.float64))
        self.batches.append((float(size.max()), float(size.mean()), float(x.std())))
        self.dim_max = torch.maximum(self.dim_max, size.amax(dim=(0, 1, 2)))
        self.squares += x.double().square().sum(dim=(0, 2))
        self.pair_max = torch.maximum(self.pair_max, norm.amax(dim=(0, 1, 2)))
        self.pair_sum += norm.double().sum(dim=(0, 1, 2))
        self.count += x[..., 0].numel()
        self.sequences += len(x)

    def sizes(self) -> dict[str, float]:
        """max |x|; mean |x| and unbiased std of the signed x, averaged over batches."""
        largest, means, stds = zip(*self.batches, strict=True)
        return {"max": max(largest), "mean": sum(means) / len(means), "std": sum(stds) / len(stds)}

    def norms(self) -> Tensor:
        """M [H, D]: L2 norm over the positions of a sequence (Jin et al. 2025), root mean square over sequences."""
        return (self.squares / self.sequences).sqrt()


def rotary_pairs(block: Any) -> list[tuple[int, int, float]]:
    """(dim, dim, inv_freq) of the dims of q and k that this block rotates; pairs with frequency 0 are left out."""
    if block.encoding is None:
        return []
    offset = block.attention.rotary_offset
    return [(a + offset, b + offset, frequency) for a, b, frequency in block.encoding.pairs() if frequency != 0]


def massive(norms: Tensor, factor: float) -> Table:
    """Per head of M [H, D]: number of dims above factor x the head's mean, the largest dim, and its size."""
    rows: Table = []
    for head, line in enumerate(norms):
        mean, energy = float(line.mean()), float(line.square().sum())
        rows.append(
            {
                "head": head,
                "massive": int((line > factor * mean).sum()),
                "top_dim": int(line.argmax()),
                "max_over_mean": float(line.max()) / mean if mean else 0.0,
                "top_share": float(line.max().square()) / energy if energy else 0.0,
            }
        )
    return rows


def band_rows(stats: Statistics) -> Table:
    """The dims of one tensor by frequency band, and by the published halves."""
    rows: Table = []
    by_frequency = sorted(range(len(stats.pairs)), key=lambda pair: -stats.pairs[pair][2])
    middle = math.ceil(len(by_frequency) / 2)
    for band, pairs in (("high", by_frequency[:middle]), ("low", by_frequency[middle:])):
        if pairs:
            mean, largest = float(stats.pair_sum[pairs].mean()) / stats.count, float(stats.pair_max[pairs].max())
            rows.append({"cut": "frequency", "band": band, "dims": 2 * len(pairs), "max": largest, "mean": mean})

    rotary = sorted({dim for a, b, _ in stats.pairs for dim in (a, b)})
    others = [dim for dim in range(len(stats.dim_max)) if dim not in rotary]
    halved = rotary or others  # as published: without rotation the whole head is halved
    half = len(halved) // 2
    for cut, band, dims in (
        ("frequency", "pass-through", others),
        ("published halves", "high", halved[:half]),
        ("published halves", "low", halved[half:]),
        ("published halves", "pass-through", others if rotary else []),
    ):
        if dims:
            largest = float(stats.dim_max[dims].max())
            rows.append({"cut": cut, "band": band, "dims": len(dims), "max": largest, "mean": None})
    return rows
