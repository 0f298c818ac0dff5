"""The limits of containers and jobs, as files in the layout of both versions of cgroups."""

import pytest
import torch

from newllm.evaluation import limits

GIB = 1 << 30


@pytest.fixture
def mounted(tmp_path, monkeypatch):
    def mount(own: str, files: dict[str, str]):
        for name, text in files.items():
            (tmp_path / "fs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "fs" / name).write_text(text)
        (tmp_path / "cgroup").write_text(own)
        monkeypatch.setattr(limits, "_CGROUP_MOUNT", tmp_path / "fs")
        monkeypatch.setattr(limits, "_CGROUP_SELF", tmp_path / "cgroup")

    return mount


def test_the_tightest_limit_on_the_way_up_counts_and_file_cache_does_not(mounted):
    files = {
        "memory.max": "max\n",
        "job/memory.max": f"{4 * GIB}\n",
        "job/memory.current": f"{3 * GIB}\n",
        "job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "job/step/memory.max": f"{8 * GIB}\n",
        "job/step/memory.current": f"{GIB}\n",
    }
    mounted("0::/job/step\n", files)
    assert limits.free_in_cgroup() == 2 * GIB
    assert limits.free_bytes(torch.device("cpu")) <= 2 * GIB


def test_version_1_and_no_limit(mounted):
    mounted("0::/\n", {"memory.max": "max\n"})
    assert limits.free_in_cgroup() is None
    limit = {"memory/a/memory.limit_in_bytes": f"{2 * GIB}", "memory/a/memory.usage_in_bytes": f"{3 * GIB}"}
    mounted("4:memory:/a\n", limit)
    assert limits.free_in_cgroup() == 0
