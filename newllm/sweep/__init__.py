"""Sweeps: planned once, frozen on disk, run by a launcher. Works on run directories and imports no model.

`newllm.sweep(…)` does in Python what `newllm train -m …` does.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from newllm.run.load import Run


def sweep(overrides: Sequence[str], *, config_dir: str | Path | None = None) -> "list[Run]":
    """Train the runs of a sweep and return them in the order of its plan; the same as ``newllm train -m OVERRIDES``.

    ::

        runs = newllm.sweep(["pos_encoding=rope,alibi", "seeds=3"])
        newllm.report(runs)

    Runs, folder and launcher are the same as for the command, and each run has a process of its own. The same call
    continues where an earlier call or the command stopped. Runs that were not launched (``dry_run=true``, ``only=…``,
    ``skip_invalid=true``) are left out. Runs that are not done yet, as with ``hydra.launcher.wait=false``, have no
    results; see `Run.state`. Ctrl-C lets the running ones save and raises KeyboardInterrupt.

    Args:
        overrides: as on the command line, one per item; ``a=1,2`` varies a.
        config_dir: a folder of YAML files and classes of your own, laid out like conf/.

    Raises:
        ConfigError: the input is wrong; nothing has been written.
        RunError: some runs are not complete (the command would exit with status 1). It names them; the others are done.
    """
    from newllm.errors import ConfigError, Interrupted, RunError
    from newllm.run.load import load_run
    from newllm.store.run_directory import RunDirectory
    from newllm.suggest import listed
    from newllm.sweep.command import run_sweep
    from newllm.training.signals import redelivered

    if any(line.startswith("hydra/sweeper=") for line in overrides):
        raise ConfigError("hydra/sweeper is for the command newllm train -m; newllm.sweep always uses its own planner.")
    with redelivered():
        plan, status = run_sweep(overrides, config_dir=config_dir)
        if status > 128:
            raise Interrupted(status - 128)
    begun = [run.path for run in plan.runs if run.known.state != "invalid" and (run.path / "config.yaml").exists()]
    if status:
        left = [run for run in map(RunDirectory, begun) if not run.is_done() or run.asked()]
        words = [f"{run.path.name} {run.observed()} ({run.status().get('error') or 'no error'})" for run in left]
        raise RunError(
            f"{len(left)} of {len(plan.runs)} runs are not complete: {listed(words)}; the same call continues them, "
            f"and newllm.load_runs('{plan.sweep}') reads the others"
        )
    return [load_run(path) for path in begun]
