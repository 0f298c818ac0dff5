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


class RecordingDisplay:
    """A display that records what a launcher reports."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def started(self, run: Path) -> None:
        self.lines.append(f"started {run.name}")

    def ended(self, run: Path, state: str, error: str | None, again: bool) -> None:
        self.lines.append(f"{run.name} {state}{' again' * again}{f': {error}' if error else ''}")

    def note(self, text: str) -> None:
        self.lines.append(text)

    def tick(self) -> None: ...
