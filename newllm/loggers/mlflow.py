"""MLflow."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from newllm.analysis.settings import flatten
from newllm.loggers.logger import Logger, Tracked, require

_TAG, _STEP = "newllm.id", "step"
_PARAMS = 100  # in one call, by MLflow's limit


class MLflow(Logger):
    """A run on the server or in the database at `uri`, which is asked for the last step when a run is resumed.

    Results are metrics results/…, tables are artifacts.
    """

    def __init__(self, experiment: str = "newllm", uri: str | None = None) -> None:
        require("mlflow", "mlflow")
        self.experiment, self.uri = experiment, uri
        self._status = "KILLED"

    def start(self, run: Tracked) -> int:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own 7 wait for minutes
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client: Any = MlflowClient(self.uri)
        identity = run.directory.tracker_id()
        experiment = self._experiment()
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{identity}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status="RUNNING")
        else:
            self._run = self._client.create_run(experiment, run_name=run.name).info.run_id
            params = [Param(key, str(value)) for key, value in flatten(run.config).items()]
            for first in range(0, len(params), _PARAMS):
                self._client.log_batch(self._run, params=params[first : first + _PARAMS])
            self._client.log_dict(self._run, dict(run.config), "config.yaml")
        tags = {"group": run.group, "tags": ", ".join(run.tags), "mlflow.note.content": run.notes, _TAG: identity}
        for key, text in tags.items():  # the tag by which the run is found is set last
            if text:
                self._client.set_tag(self._run, key, text)
        self._step = max((metric.step for metric in self._client.get_metric_history(self._run, _STEP)), default=-1)
        return self._step

    def _experiment(self) -> str:
        """The id of the experiment, which is made if there is none; another run may make it at the same time."""
        from mlflow.exceptions import MlflowException

        if (known := self._client.get_experiment_by_name(self.experiment)) is not None:
            return known.experiment_id
        try:
            return self._client.create_experiment(self.experiment)
        except MlflowException:
            return self._client.get_experiment_by_name(self.experiment).experiment_id

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._send(step, {_STEP: step, **metrics})
        self._step = step

    def finish(self, results: Mapping[str, float], tables: Mapping[str, Path]) -> None:
        known = self._client.get_run(self._run).data.metrics  # an attempt that was killed may have sent them
        named = {f"results/{name}": value for name, value in results.items()}
        self._send(self._step, {name: value for name, value in named.items() if known.get(name) != value})
        for file in tables.values():
            self._client.log_artifact(self._run, str(file), "tables")
        self._status = "FINISHED"

    def close(self) -> None:
        self._client.set_terminated(self._run, self._status)

    def _send(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send all in one call, which a database stores completely or not at all."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._run, [Metric(name, value, now, step) for name, value in metrics.items()])
