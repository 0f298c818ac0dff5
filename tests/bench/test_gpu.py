"""The bench of a GPU: its sections on small shapes, and that none takes another's figures with it."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from newllm import bench
from newllm.bench import gpu, main
from newllm.errors import RunError

TWO_LINES = "import sys, time\nprint('a', flush=True)\nprint('b', flush=True)\n"


@pytest.mark.parametrize(
    ("section", "figures"),
    [
        (gpu.peak, {"matmul_bf16_tflops", "copy_tb_per_second", "kernel_start_us"}),
        (gpu.head, {"seconds/128/chunk_1024", "peak_bytes/128/logits"}),
        (gpu.profile, {"big", "tiny"}),
        (gpu.encodings, {"seconds/rope/mha/graph", "seconds/rope/mha/eager"}),
    ],
)
def test_a_section_yields_its_figures(section, figures: set[str]) -> None:
    found = dict(section(small=True))
    assert figures <= found.keys()
    assert not [value for value in found.values() if isinstance(value, str)], "a text says why a figure is missing"


def test_the_words_of_every_section_are_options_or_overrides_of_its_bench() -> None:
    for measured_by, words in gpu.SECTIONS.values():
        if isinstance(measured_by, str):
            module = bench._bench(measured_by)
            for small in (False, True):
                options, overrides = bench.parse(gpu._words(measured_by, words, small), module.measure, module.DEFAULTS)
                assert options.keys() == bench.options_of(module.measure).keys()
                assert len({word.partition("=")[0] for word in overrides}) == len(overrides)


def test_each_figure_is_written_at_once_and_a_section_that_fails_loses_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "gpu.json"

    def lines(command: list[str], seconds: float, environment: dict[str, str]) -> Iterator[str]:
        assert environment["CUDA_VISIBLE_DEVICES"] == ""
        yield json.dumps({"metrics": {"seconds/newllm": [2.0], "product_flops": 1e12}})
        assert json.loads(file.read_text())[f"{command[-2]}/seconds/newllm"] == [2.0]
        if command[-2] == "big":
            raise RunError("ended after 90 s")
        yield json.dumps(
            {
                "metrics": {
                    "matmul_bf16_tflops": [5.0],
                    "seconds/alone": [8.0, 1.0],
                    "seconds/packed": [2.0, 1.0],
                    "seconds/shared": "failed: no memory",
                }
            }
        )

    monkeypatch.setattr(gpu, "lines_of", lines)
    assert main(["gpu", "device=cpu", "sections=big,peak,sharing", f"out={file}"]) == 0
    results = json.loads(file.read_text())
    assert results["big/failed"] == "ended after 90 s"
    assert results["big/share_of_peak"] == 0.1
    assert results["sharing/packed_over_alone"] == 4.0
    assert "big/failed: ended after 90 s" in capsys.readouterr().out
    measured = {row[0]: row[1] for row in gpu.goals(results)}
    assert [value for value in measured.values() if value != "not measured"] == ["0.10", "4.00"]


def test_sections_that_would_begin_too_late_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.time, "monotonic", iter(range(0, 1000, 10)).__next__)
    monkeypatch.setattr(gpu, "lines_of", lambda *_: iter(()))
    metrics = bench.measure("gpu", ["device=cpu", "sections=peak,head", "seconds=15"]).metrics
    assert "peak/failed" not in metrics
    assert metrics["head/failed"] == "left out, since 15 s were over"


def test_a_process_that_hangs_is_ended_with_those_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    started = f"import subprocess; open({str(file)!r}, 'w').write(str(subprocess.Popen(['sleep', '60']).pid))\n"
    lines = gpu.lines_of([sys.executable, "-c", started + TWO_LINES + "time.sleep(60)"], 1.0, os.environ)
    assert [next(lines), next(lines)] == ["a\n", "b\n"]
    with pytest.raises(RunError, match="ended after 1 s"):
        next(lines)
    end = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError, FileNotFoundError):
        while Path(f"/proc/{file.read_text()}/stat").read_text().split()[2] not in "ZX":
            assert time.monotonic() < end
            time.sleep(0.01)


def test_a_process_that_crashes_leaves_its_lines() -> None:
    lines = gpu.lines_of([sys.executable, "-c", TWO_LINES + "sys.exit(3)"], 60.0, os.environ)
    assert [next(lines), next(lines)] == ["a\n", "b\n"]
    with pytest.raises(RunError, match="its process ended with status 3"):
        next(lines)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["device=cpu", "sections=peek"], "sections=peek has 'peek'; did you mean peak?"),
        (["device=tpu"], "device=tpu is not on this machine; device=cpu tries"),
        (["model=tiny"], "this bench has no option 'model'"),
    ],
)
def test_bad_input(words: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    assert main(["gpu", *words]) == 2
    assert message in capsys.readouterr().err
