from pathlib import Path

import pytest

from tests.support.report_runs import grid, make_runs, write_status


@pytest.fixture(scope="session")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six groups of four seeds; also a failed run, a queued one, and one whose results are broken."""
    folder = tmp_path_factory.mktemp("runs") / "sweep"
    make_runs(folder, grid(pos_encoding=["rope", "alibi", "nope"]), seeds=(1, 2, 3, 4))
    make_runs(folder, grid(attention=["mla"], kv_dim=[64, 128]), seeds=(1, 2, 3, 4))
    make_runs(folder, [["theta=500000"]], seeds=(1, 2, 3, 4))
    config = next(folder.glob("*/config.yaml")).read_text()
    for name, state, error in (("broke", "failed", "The loss is not finite at step 40."), ("waits", "queued", None)):
        write_status(folder / name, state, error=error)
        (folder / name / "config.yaml").write_text(config)
    write_status(folder / "torn", "done")
    (folder / "torn" / "config.yaml").write_text(config)
    (folder / "torn" / "results.json").write_text('{"val/ppl": 1')
    return folder
