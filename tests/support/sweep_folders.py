"""Run directories as launchers and runs leave them."""

from pathlib import Path

from newllm.store.run_directory import RunDirectory


def make_run(sweep: Path, name: str, state: str = "queued", **status: object) -> RunDirectory:
    run = RunDirectory(sweep / name)
    run.freeze({"trainer": {"batch_size": 8}, "data": {"seq_len": 32}})
    run.update_status(state=state, **status)
    if state == "done":
        run.write_results({"val/ppl": 98.76})
    return run
