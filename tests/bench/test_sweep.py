"""The sweep bench: the figures it derives from measured seconds, and its contestants."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from newllm.bench import measure, sweep
from newllm.errors import ConfigError, RunError

TINY = [
    "model.hidden_size=32", "model.num_layers=1", "model.heads=2", "model.mlp_size=64", "model.vocab_size=512",
    "data.vocab_size=512", "seq_len=32", "samples=40", "runtime.threads=1",
]  # fmt: skip


def write_results(folder: Path, names: Iterable[object], seconds: float) -> None:
    for name in names:
        run = folder / "outputs" / "runs" / f"run-{name}"
        run.mkdir(parents=True)
        (run / "results.json").write_text(json.dumps({"speed/wall_seconds": seconds}))


def test_ratios_and_overhead_follow_from_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 0.0

    def run(folder: Path, module: str, *words: str, threads: int | None = None) -> None:
        nonlocal clock
        if "dry_run=true" in words:
            clock += 0.25
        elif module == "newllm.bench.hydra_app":
            clock += 40.0
            write_results(folder, range(4), 9.0)
        elif "-m" in words:
            clock += 22.0
            write_results(folder, range(4), 10.0)
        else:
            clock += 11.0
            write_results(folder, [word for word in words if word.startswith("seed=")], 10.0)

    monkeypatch.setattr(sweep.time, "perf_counter", lambda: clock)
    monkeypatch.setattr(sweep, "run_module", run)
    monkeypatch.setattr(sweep, "available_cores", lambda: 2)
    monkeypatch.setattr(sweep, "prepare", lambda *_, **__: None)
    result = measure("sweep", [*TINY, "runs=4", "rounds=2", "planned=200", "composed=2"])
    metrics = result.metrics
    assert metrics["seconds/newllm"] == [22.0, 22.0]
    assert metrics["ratio/hydra_basic"] == metrics["ratio/hydra_basic/min"] == pytest.approx(40 / 22)
    assert metrics["ratio/process_per_run"] == pytest.approx(4 * 11 / 22)
    assert metrics["runs_per_minute/newllm"] == pytest.approx(60 * 4 / 22)
    assert metrics["overhead"] == pytest.approx(22 / (4 * 10 / 2))
    assert metrics["overhead/seconds_per_run"] == pytest.approx((22 - 20) * 2 / 4)
    assert (metrics["planning/runs"], metrics["planning/seconds"]) == (200, 0.25)
    assert metrics["ratio/hydra_compose"] == metrics["planning/hydra_seconds_each"] * 200 / 0.25
    assert [len(rows) for _, _, rows in result.tables] == [3, 2]


def test_hydra_does_the_runs_with_their_seeds(tmp_path: Path) -> None:
    words = [*TINY, "epochs=1", "facts=none", "eval=[]", "seed=1,2"]
    sweep.run_module(tmp_path, "newllm.bench.hydra_app", "-m", "hydra/launcher=basic", *words)
    results = sorted(tmp_path.glob("outputs/*/*/results.json"))
    assert len(results) == 2
    assert len({json.loads(file.read_text())["val/loss"] for file in results}) == 2, "the seeds differ"


def test_a_contestant_that_does_not_finish_its_runs_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a process per run has finished 1 of 2 runs"):
        sweep.time_sweep("a process per run", lambda folder: write_results(folder, [0], 1.0), 2)
    with pytest.raises(RunError, match=r"status 2: .*theta=abc"):
        sweep.run_module(tmp_path, "newllm.train", "theta=abc")


@pytest.mark.parametrize(
    "word", ["seed=3", "seeds=3", "hydra.sweep.dir=here", "hydra/launcher=slurm", "sweep.retries=1"]
)
def test_overrides_that_the_bench_sets_itself_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="type runs=N"):
        measure("sweep", [word])
