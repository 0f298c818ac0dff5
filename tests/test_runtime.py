"""Threads: of the cores that a process may use, those that are not busy."""

import math
import os
from pathlib import Path

import pytest

from newllm import runtime
from newllm.runtime import Runtime


@pytest.mark.parametrize(
    ("cores", "busy", "threads"),
    [(2, 0.0, 2), (2, 0.3, 2), (2, 1.0, 1), (2, 2.0, 1), (2, 7.5, 1), (16, 8.2, 8), (16, 0.4, 16), (1, 5.0, 1)],
)
def test_auto_leaves_busy_cores_to_others_and_says_so(
    cores: int, busy: float, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(runtime, "available_cores", lambda: cores)
    monkeypatch.setattr(runtime, "_busy_cores", lambda: busy)
    found = Runtime()
    assert found.threads == threads
    assert bool(found.load_note) == (threads < cores)
    if found.load_note:
        assert f"of {cores} cores are busy with other work, so runtime.threads=auto takes {threads};" in found.load_note
    given = Runtime(threads=cores)
    assert (given.threads, given.load_note) == (cores, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (Runtime().threads, Runtime().load_note) == (3, None)


def test_busy_cores_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([{0: (100, 1000), 1: (50, 1000)}, {0: (120, 1020), 1: (55, 1020)}])
    monkeypatch.setattr(runtime, "_core_times", lambda: next(times))
    assert runtime._busy_cores(0.0) == pytest.approx(1.25)
    monkeypatch.setattr(runtime, "_core_times", lambda: {0: (0, 0)})  # a kernel that does not count
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert runtime._busy_cores(0.0) == 1.5


def test_a_quota_of_the_container_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    (tmp_path / "v2" / "job" / "step").mkdir(parents=True)
    (tmp_path / "v1" / "cpu,cpuacct" / "job").mkdir(parents=True)
    own.write_text("0::/job/step\n")
    assert runtime._cgroup_quota(tmp_path / "v2", own) == math.inf
    (tmp_path / "v2" / "job" / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "v2" / "job" / "step" / "cpu.max").write_text("max 100000\n")
    assert runtime._cgroup_quota(tmp_path / "v2", own) == 1.5
    own.write_text("5:memory:/job\n4:cpu,cpuacct:/job\n")
    for name, value in {"quota": "200000", "period": "100000"}.items():
        (tmp_path / "v1" / "cpu,cpuacct" / "job" / f"cpu.cfs_{name}_us").write_text(value)
    assert runtime._cgroup_quota(tmp_path / "v1", own) == 2.0
    assert runtime._cgroup_quota(tmp_path / "nowhere", own) == math.inf
