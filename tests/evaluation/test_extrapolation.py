"""Perplexity at other lengths: the published slices, one text at all lengths, sliding windows, positions, bounds."""

import csv
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from newllm.errors import ConfigError, RunError
from newllm.evaluation import limits
from newllm.evaluation.extrapolation import Extrapolation, clustered_mean
from newllm.evaluation.limits import check_lengths, longest_row, parse_lengths, row_bytes
from newllm.evaluation.subject import Findings, Subject
from newllm.model import build_model
from newllm.run.execute import run
from newllm.training.memory import peak_bytes
from tests.support.evaluation_subject import make_subject
from tests.support.small_runs import small_config

LENGTHS = [32, 64, 128, 256]  # 1x, 2x, 4x, 8x of the subject's rows


@torch.no_grad()
def direct_losses(subject: Subject, window: np.ndarray) -> np.ndarray:
    """Nats float64 [L - 1] of a window of L tokens: all logits at once and torch's cross-entropy."""
    ids = torch.from_numpy(np.asarray(window, dtype=np.int64))
    logits = subject.model(ids[None, :-1])[0].double()
    return torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").numpy()


def lines_by_length(findings: Findings, protocol: str) -> dict[int, dict]:
    return {row["length"]: row for row in findings.tables["extrapolation"] if row["protocol"] == protocol}


class Recorder:
    """Records the rows that a subject reads and the lengths that its encoding is adapted to."""

    def __init__(self, subject: Subject, monkeypatch: pytest.MonkeyPatch):
        self.rows: list[tuple[np.ndarray, np.ndarray]] = []
        self.adapted: list[int] = []
        losses_of = subject.losses_of

        def record(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            self.rows += zip(inputs.numpy().copy(), labels.numpy().copy(), strict=True)
            assert self.adapted[-1] == inputs.shape[1] + 1
            return losses_of(inputs, labels)

        monkeypatch.setattr(subject, "losses_of", record)
        monkeypatch.setattr(subject.model.position, "adapt", self.adapted.append)


@pytest.mark.parametrize(("encoding", "attention"), [("rope", "mha"), ("alibi", "mla")])
def test_slices_are_the_published_protocol(encoding, attention):
    subject = make_subject(encoding, attention)
    text = subject.data.val_tokens
    findings = Extrapolation(chunks=10, windows="first")(subject)
    lines = lines_by_length(findings, "slices")
    assert list(lines) == LENGTHS
    for length in LENGTHS:
        chunks = [direct_losses(subject, text[i * length : (i + 1) * length]).mean() for i in range(10)]
        assert findings.metrics[f"extrapolation/ppl@{length}"] == pytest.approx(math.exp(np.mean(chunks)), rel=1e-6)
        line = lines[length]
        assert line["loss"] == pytest.approx(np.mean(chunks), abs=1e-6)
        assert line["se"] == pytest.approx(np.std(chunks, ddof=1) / math.sqrt(10), abs=1e-6)
        assert (line["chunks"], line["tokens"]) == (10, 10 * (length - 1))
        # Bytes are tokens here, and no end-of-text stands in these targets.
        assert line["bytes"] == line["tokens"]
        assert line["bits_per_byte"] == pytest.approx(np.mean(chunks) / math.log(2), abs=1e-6)


def test_the_windows_are_consecutive_slices_of_the_text(subject, monkeypatch):
    text, record = subject.data.val_tokens, Recorder(subject, monkeypatch)
    Extrapolation(lengths=[48, 128], chunks=7, windows="first", tail=None, sliding=[])(subject)
    assert len(record.rows) == 14
    windows = [text[i * length : (i + 1) * length] for length in (48, 128) for i in range(7)]
    for (inputs, labels), window in zip(record.rows, windows, strict=True):
        np.testing.assert_array_equal(inputs, window[:-1])
        np.testing.assert_array_equal(labels, window[1:])
    assert record.adapted == [48, 32, 128, 32]  # the encoding is set for each length, then back


def test_tail_scores_the_same_targets_with_growing_context(subject, monkeypatch):
    text, record = subject.data.val_tokens, Recorder(subject, monkeypatch)
    options = {"chunks": 5, "windows": "first", "tail": 11, "slices": False, "positions": False, "sliding": []}
    findings = Extrapolation(**options)(subject)
    assert len(record.rows) == 5 * len(LENGTHS)
    for length in LENGTHS:
        windows = [text[end - length : end] for end in range(256, 256 * 6, 256)]
        losses = np.concatenate([direct_losses(subject, window)[-11:] for window in windows])
        assert findings.metrics[f"extrapolation/tail_ppl@{length}"] == pytest.approx(math.exp(losses.mean()), rel=1e-6)
        assert lines_by_length(findings, "tail")[length]["tokens"] == 55
    targets = [labels[labels != -100] for _, labels in record.rows]
    assert {len(one) for one in targets} == {11}  # and nothing else has logits
    for place in range(5):
        assert len({targets[place + 5 * length].tobytes() for length in range(len(LENGTHS))}) == 1
    names = ("tail_ppl", "tail_share")
    assert set(findings.metrics) == {f"extrapolation/{name}@{length}" for name in names for length in LENGTHS}


def test_the_longest_windows_are_read_once_for_slices_and_tail(subject, monkeypatch):
    alone = Extrapolation(slices=False, positions=False, sliding=[])(subject)
    record = Recorder(subject, monkeypatch)
    together = Extrapolation(sliding=[])(subject)
    # The text fills so few windows that all are read; those of 256 once for slices and tail.
    assert len(record.rows) == 93 + 46 + 23 + 11 + 3 * 11
    for name, value in alone.metrics.items():
        assert together.metrics[name] == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("half", [False, True])
def test_a_scaling_without_a_factor_adapts_to_each_length(half):
    """Also where weights are cast to bf16, in a copy of the model that shares the encoding's buffers."""

    def metrics_with(scaling: object) -> dict[str, float]:
        subject = make_subject()
        subject.config.pos_encoding.scaling = scaling
        subject.model = build_model(subject.config, tokens=257)
        if half:
            subject.autocast = partial(torch.autocast, "cpu", dtype=torch.bfloat16)
        metrics = Extrapolation(lengths=["1x", "4x"], chunks=2, sliding=[])(subject).metrics
        assert subject.model.position.inv_freq[0] == (0.25 if isinstance(scaling, dict) else 1)  # as it was before
        return metrics

    by_length, plain = metrics_with("position_interpolation"), metrics_with(None)
    fixed = metrics_with({"kind": "position_interpolation", "factor": 4})
    for name in ("ppl", "tail_ppl"):
        assert by_length[f"extrapolation/{name}@32"] == plain[f"extrapolation/{name}@32"]
        assert by_length[f"extrapolation/{name}@128"] == fixed[f"extrapolation/{name}@128"]
        assert by_length[f"extrapolation/{name}@128"] != plain[f"extrapolation/{name}@128"]


def test_windows_are_spread_over_documents_and_errors_clustered_by_them(subject, monkeypatch):
    text = subject.data.val_tokens
    monkeypatch.setattr(subject.data.val, "documents_at", lambda places: np.searchsorted([900, 1300, 2200], places))
    findings = Extrapolation(lengths=[32, 128], chunks=4, sliding=[32])(subject)
    for length, count in ((32, 16), (128, 4)):
        all_windows = len(text) // length
        starts = [int((i + 0.5) * all_windows / count) * length for i in range(count)]
        losses = np.array([direct_losses(subject, text[start : start + length]) for start in starts])
        places = np.array(starts)[:, None] + np.arange(1, length)
        documents = np.searchsorted([900, 1300, 2200], places)
        line = lines_by_length(findings, "slices")[length]
        assert (line["chunks"], line["documents"]) == (count, 4)
        assert findings.metrics[f"extrapolation/share@{length}"] == line["share"] == places.size / len(text)
        assert line["loss"] == pytest.approx(losses.mean(), abs=1e-6)
        deviations = [(losses - losses.mean())[documents == document].sum() for document in range(4)]
        assert line["se"] == pytest.approx(math.sqrt(4 / 3 * np.square(deviations).sum()) / losses.size, abs=1e-6)
    sliding = lines_by_length(findings, "sliding")[32]
    assert sliding["tokens"] == 16 * 32
    assert sliding["share"] == 16 * 32 / len(text)


def test_clustered_errors_cover_where_errors_over_windows_do_not():
    """Simulated texts: losses of windows of documents of 1 to 40 windows that differ in how hard they are."""
    random = np.random.default_rng(0)
    hits = {"document": 0, "window": 0}
    for _ in range(400):
        documents = np.repeat(np.arange(25), random.integers(1, 41, size=25))
        losses = random.normal(scale=0.5, size=25)[documents] + random.normal(scale=0.5, size=len(documents))
        for kind, clusters, freedom in (("document", documents, 24), ("window", np.arange(len(documents)), 1000)):
            mean, error = clustered_mean(losses, clusters)
            hits[kind] += abs(mean) < scipy.stats.t.ppf(0.975, freedom) * error
    assert 0.90 < hits["document"] / 400 < 0.97
    assert hits["window"] / 400 < 0.5


def test_tail_is_at_most_half_of_the_shortest_length(subject):
    findings = Extrapolation()(subject)
    assert {row["tokens"] for row in lines_by_length(findings, "tail").values()} == {11 * 16}
    assert "the last 16 tokens" in "\n".join(line for line in findings.body if isinstance(line, str))


@pytest.mark.parametrize("stride", [None, 5])
def test_sliding_windows_score_each_target_once_with_enough_context(subject, monkeypatch, stride):
    text, record = subject.data.val_tokens, Recorder(subject, monkeypatch)
    options = {"chunks": 3, "windows": "first", "slices": False, "tail": None, "positions": False}
    findings = Extrapolation(**options, sliding=["1x", "2x"], stride=stride)(subject)
    read = 0
    for window in (32, 64):
        step = stride or window // 2
        starts = range(64 + step - window, 64 * 4 - window + 1, step)
        losses = [direct_losses(subject, text[start : start + window])[-step:] for start in starts]
        assert findings.metrics[f"extrapolation/sliding_ppl@{window}"] == pytest.approx(
            math.exp(np.mean(losses)), rel=1e-6
        )
        rows = record.rows[read : read + len(losses)]
        read += len(losses)
        scored = np.concatenate([labels[labels != -100] for _, labels in rows])
        np.testing.assert_array_equal(scored, text[64 : 64 + len(scored)])
        assert len(scored) > 3 * 64 - step
        assert all((labels[: window - 1 - step] == -100).all() for _, labels in rows)
    assert read == len(record.rows)


def test_positions_recombine_to_the_slices_and_are_means_of_direct_losses(subject):
    findings = Extrapolation(lengths=["1x", 100], chunks=6, windows="first")(subject)
    for length in (32, 100):
        bins = [row for row in findings.tables["extrapolation_positions"] if row["length"] == length]
        assert [(row["from"], row["to"]) for row in bins[:3]] == [(1, 2), (2, 4), (4, 8)]
        assert (bins[-1]["from"], bins[-1]["to"]) == ((16, 32) if length == 32 else (64, 100))
        tokens, loss = (np.array([row[column] for row in bins]) for column in ("tokens", "loss"))
        line = lines_by_length(findings, "slices")[length]
        assert tokens.sum() == line["tokens"]
        assert (tokens * loss).sum() / tokens.sum() == pytest.approx(line["loss"], abs=1e-9)
        text = subject.data.val_tokens
        losses = np.array([direct_losses(subject, text[i * length : (i + 1) * length]) for i in range(6)])
        for row in bins:
            each = losses[:, row["from"] - 1 : row["to"] - 1].mean(axis=1)  # target t has t tokens before it
            assert row["loss"] == pytest.approx(each.mean(), abs=1e-6)
            assert row["se"] == pytest.approx(each.std(ddof=1) / math.sqrt(6), abs=1e-6)
            assert row["ppl"] == pytest.approx(math.exp(row["loss"]))


def test_positions_alone_report_no_perplexity_at_lengths(subject):
    findings = Extrapolation(slices=False, tail=None, sliding=[])(subject)
    assert list(findings.tables) == ["extrapolation_positions"]
    assert not findings.metrics


@pytest.mark.parametrize("failure", [RuntimeError("not enough memory: you tried to allocate"), MemoryError()])
def test_a_length_that_fails_leaves_the_numbers_of_the_others(subject, monkeypatch, failure):
    undisturbed = Extrapolation()(subject)
    losses_of, adapted = subject.losses_of, []

    def fail(inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if inputs.shape[1] > 200:
            raise failure
        return losses_of(inputs, labels)

    monkeypatch.setattr(subject, "losses_of", fail)
    monkeypatch.setattr(subject.model.position, "adapt", adapted.append)
    findings = Extrapolation()(subject)
    lost = {f"extrapolation/{name}@256" for name in ("ppl", "share", "tail_ppl", "tail_share")}
    assert findings.metrics == {name: ppl for name, ppl in undisturbed.metrics.items() if name not in lost}
    for protocol in ("slices", "tail"):
        line = lines_by_length(findings, protocol)[256]
        assert line["failed"] == (str(failure) or "MemoryError")
        assert "ppl" not in line
        assert not lines_by_length(findings, protocol)[128]["failed"]
    assert sum(isinstance(line, str) and line.startswith("FAILED: ") for line in findings.body) == 2
    assert adapted[-1] == 32
    assert max(row["length"] for row in findings.tables["extrapolation_positions"]) == 128


def test_a_length_that_exceeds_free_memory_is_not_tried(subject, monkeypatch):
    free = row_bytes(subject.model, 130)
    monkeypatch.setattr(limits, "free_bytes", lambda device: free)
    findings = Extrapolation(sliding=[])(subject)
    assert set(findings.metrics) == {
        f"extrapolation/{name}@{length}"
        for name in ("ppl", "share", "tail_ppl", "tail_share")
        for length in LENGTHS[:3]
    }
    assert "are free on cpu" in lines_by_length(findings, "slices")[256]["failed"]


def test_losses_that_are_not_finite_fail_and_without_a_result_the_run_fails(subject):
    with torch.no_grad():
        subject.model.final_norm.weight.fill_(math.nan)
    with pytest.raises(RunError, match="loss is not finite"):
        Extrapolation()(subject)


def test_a_note_says_that_the_text_fills_fewer_windows(subject):
    Extrapolation(lengths=["1x", 1000], chunks=4, windows="first", sliding=[]).check(subject.data, subject.model)
    assert subject.data.notes[0].endswith("there are 3 windows of 1,000")
    assert lines_by_length(Extrapolation(lengths=["1x", 1000])(subject), "tail")[32]["chunks"] == 3


def test_lengths_beyond_the_table_of_an_encoding_are_refused(small_model, subject):
    learned = small_model("learned", "mha", "seq_len=64")
    with pytest.raises(
        ConfigError, match=r"512 tokens, and pos_encoding has values for 64 positions: .*=\[64\]', or train"
    ):
        Extrapolation().check(subject.data, learned)
    Extrapolation(lengths=["0.5x", "1x"]).check(subject.data, learned)
    Extrapolation().check(subject.data, small_model("sinusoidal", "mha", "seq_len=64"))


def test_lengths_beyond_free_memory_are_refused_with_the_longest_that_fits(subject, monkeypatch):
    free = row_bytes(subject.model, 200)
    assert longest_row(subject.model, free) == 200
    monkeypatch.setattr(limits, "free_bytes", lambda device: free)
    with pytest.raises(
        ConfigError, match=r"256 tokens, and one takes .* the longest that fits has 200; .*\[32,64,128\]"
    ):
        Extrapolation().check(subject.data, subject.model)
    monkeypatch.setattr(limits, "free_bytes", lambda device: None)  # a system that does not say
    Extrapolation().check(subject.data, subject.model)


@pytest.mark.parametrize(("encoding", "attention"), [("alibi", "gqa"), ("rope", "mla")])
def test_the_estimate_of_memory_holds_and_the_peak_grows_linearly(encoding, attention):
    subject = make_subject(encoding, attention)
    text = torch.from_numpy(np.resize(subject.data.val_tokens, 6145))[None]
    peaks = []
    for length in (2048, 4096, 6144):
        held = [*subject.model.parameters(), *subject.model.buffers(), text]

        def read(length: int = length) -> None:
            subject.losses_of(text[:, :length], text[:, 1 : length + 1])

        peaks.append(peak_bytes(read, held, subject.device) - sum(tensor.nbytes for tensor in held))
        assert peaks[-1] < row_bytes(subject.model, length) < 8 * peaks[-1] + limits._TILES
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.05)


def test_free_memory_is_what_the_system_says(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal: 100 kB\nMemFree:  5 kB\nMemAvailable:    7 kB\n")
    monkeypatch.setattr(limits, "_MEMINFO", tmp_path / "meminfo")
    assert limits.free_bytes(torch.device("cpu")) == 7 * 1024
    monkeypatch.setattr(limits, "_MEMINFO", tmp_path / "none")
    assert limits.free_bytes(torch.device("cpu")) is None


def test_lengths_are_tokens_or_multiples():
    assert parse_lengths(["4x", 100, "1x", "0.5x", 128], 128, "o") == [64, 100, 128, 512]
    for wrong in ("x4", "4", "2048 tokens", "-1x"):
        with pytest.raises(ConfigError, match="o must be tokens or multiples"):
            check_lengths([wrong], "o")
    for short in (1, -5, 0, "0.01x"):
        with pytest.raises(ConfigError, match=r"o must be 2 tokens or more each"):
            parse_lengths([short], 128, "o")


def test_a_run_writes_metrics_and_tables(tmp_path: Path) -> None:
    """The numbers at the training length agree with val/loss, which is of the same text, within the errors."""
    options = ["epochs=1", "eval=[loss,extrapolation]", "eval.extrapolation.lengths=[1x,4x]"]
    assert run(small_config(tmp_path / "run", *options)) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = {f"{name}@{length}" for name in ("ppl", "share", "tail_ppl", "tail_share") for length in (32, 128)}
    names |= {"sliding_ppl@32", "sliding_share@32"}
    assert {name for name in results if name.startswith("extrapolation/")} == {f"extrapolation/{n}" for n in names}
    with open(tmp_path / "run" / "tables" / "extrapolation.csv") as file:
        lines = list(csv.DictReader(file))
    assert [(line["length"], line["protocol"]) for line in lines] == [
        ("32", "slices"), ("32", "tail"), ("128", "slices"), ("128", "tail"), ("32", "sliding"),
    ]  # fmt: skip
    assert float(lines[2]["ppl"]) == results["extrapolation/ppl@128"]
    for line in (lines[0], lines[4]):
        assert float(line["share"]) > 0.8
        assert float(line["loss"]) == pytest.approx(results["val/loss"], abs=3 * float(line["se"]))
    assert (tmp_path / "run" / "tables" / "extrapolation_positions.csv").exists()


def test_a_run_with_lengths_beyond_its_text_writes_nothing(tmp_path: Path) -> None:
    cfg = small_config(tmp_path / "run", "eval=[extrapolation]", "eval.extrapolation.lengths=[1x,4096]")
    with pytest.raises(ConfigError, match=r"eval\.extrapolation\.lengths"):
        run(cfg)
    assert not (tmp_path / "run").exists()
