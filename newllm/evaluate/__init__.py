"""Evaluates finished runs again: `newllm.evaluate(…)` in Python; the command `newllm evaluate …` is in __main__.py."""

import os
from collections.abc import Sequence
from pathlib import Path


def evaluate(
    run: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    config_dir: str | Path | None = None,
    rerun: bool = False,
) -> dict[str, float]:
    """Evaluate a finished run again and return the metrics; the same as ``newllm evaluate RUN OVERRIDES``.

    ::

        newllm.evaluate(run, ["eval=[extrapolation]", "pos_encoding.scaling=yarn"])

    Nothing is trained and no stored number changes. New metrics are added to the run's directory; those of other
    settings go into a folder in its evaluations/.

    Args:
        run: a `Run`, its directory, or ``FOLDER:NUMBER`` as numbered by ``newllm status FOLDER``.
        overrides: as on the command line; none: repeat the run's own evaluation and compare.
        config_dir: a folder of YAML files and classes of your own, laid out like conf/.
        rerun: compute even what an earlier evaluation has stored, and compare.

    Raises:
        ConfigError: an override is not allowed, or the run is not done.
        RunError: a result differs from the stored one; nothing has been written.
    """
    from newllm.run.evaluation_plan import plan_evaluation
    from newllm.run.reevaluate import reevaluate
    from newllm.store.run_names import located
    from newllm.training.signals import Signals, redelivered

    with redelivered(), Signals().installed() as signals:
        return reevaluate(plan_evaluation(located(run), overrides, config_dir), rerun, signals)
