"""Trackers: each gets each step once, though the run is killed; one that fails is switched off."""

import csv
import json
import os
import signal
import sqlite3
import struct
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from newllm.errors import ConfigError
from newllm.loggers import Logger, Loggers, Tracked
from newllm.run.execute import run
from newllm.store.run_directory import RunDirectory
from tests.support.small_runs import small_config

PACKAGES = {"wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "tensorboard": "tensorboard"}
INSTALLED = ["csv", *(name for name, package in PACKAGES.items() if find_spec(package))]
HERE = "tests.loggers.test_loggers"
Rows = dict[int, list[dict[str, float]]]  # step -> the rows that the tracker has of it


class Keeping(Logger):
    """Has the steps up to `has` from an earlier attempt."""

    def __init__(self, has: int = -1, broken: str = "") -> None:
        self.has, self.broken, self.rows = has, broken, list[tuple[int, dict[str, float]]]()

    def start(self, run: Tracked) -> int:
        if self.broken == "start":
            raise ConnectionError("no network\nand more")
        return self.has

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.broken == "log" and step == 2:
            raise ValueError
        self.rows.append((step, dict(metrics)))

    def close(self) -> None: ...


class Killer(Logger):
    """Kills its process with step 5, when trackers that write in the background have written."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step == 5:
            time.sleep(1.0)
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None: ...


def node(**options: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.Keeping", **options}


def test_a_tracker_gets_the_steps_that_it_lacks_and_a_broken_one_is_switched_off(tmp_path: Path) -> None:
    nodes = {"new": node(), "old": node(has=2), "offline": node(broken="start"), "fails": node(broken="log")}
    loggers, said = Loggers(nodes, tmp_path), list[str]()
    kept = dict(loggers._loggers)
    epoch = {"step": 2, "epoch": 1, "train/loss": 3.5, "val/loss": 3.0, "val/best": True, "train/tokens": 64}
    stored = [{"step": 1, "phase1/loss": 9.0}, {"step": 1, "train/loss": 4.0}, {"step": 2, "train/loss": 3.0}]
    loggers.start(Tracked(RunDirectory(tmp_path), {}), stored, said.append)
    loggers.log(epoch)
    loggers.log({"step": 3, "train/loss": float("inf"), "train/lr": 0.1})
    loggers.finish({"val/loss": 3.0}, tmp_path)
    last = {"train/loss": 3.0, "epoch": 1.0, "train/epoch_loss": 3.5, "val/loss": 3.0, "val/best": 1.0}
    rows = [(1, {"train/loss": 4.0}), (2, {**last, "train/tokens": 64.0}), (3, {"train/lr": 0.1})]
    assert (kept["new"].rows, kept["old"].rows, kept["fails"].rows) == (rows, rows[2:], rows[:1])
    assert said == [f"The logger {name} failed ({why}) and is off for the rest of this attempt."
                    for name, why in (("offline", "no network"), ("fails", "ValueError"))]  # fmt: skip


def test_a_tracker_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("newllm.loggers.logger.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"logger=wandb needs the package wandb.* pip install 'newllm\[wandb\]'"):
        run(small_config(tmp_path / "run", "logger=[csv,wandb]"))
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with all installed trackers that was killed two steps after a checkpoint, and resumed."""
    folder = tmp_path_factory.mktemp("trackers") / "sweep"
    (folder / ".sweep").mkdir(parents=True)
    run_folder = folder / "run"
    options = ["epochs=1", "runtime.checkpoint_steps=3", f"logger=[{','.join(INSTALLED)}]"]
    for killed in (True, False):
        child = os.fork()
        if not child:
            _away_from_home(folder)
            cfg = small_config(run_folder, *options, "tags=[draft]", "notes=why")
            if killed:
                cfg.logger = {**cfg.logger, "killer": {"_target_": f"{HERE}.Killer"}}
            try:
                run(cfg)
            finally:
                os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == (-signal.SIGKILL if killed else 0)
    log = (run_folder / "train.log").read_text()
    assert "Attempt 2: goes on after step 3" in log
    assert " failed (" not in log
    return folder


def _away_from_home(folder: Path) -> None:
    """Trackers work offline, and write into `folder` alone."""
    os.chdir(folder)
    os.environ |= {"WANDB_MODE": "offline", "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
    os.environ |= {name: str(folder / "home") for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
    os.environ |= {"TRACKIO_DIR": str(folder / "trackio"), "HOME": str(folder / "home")}


@pytest.mark.xdist_group("trackers")
@pytest.mark.parametrize("name", ["csv", *PACKAGES])
def test_a_run_killed_and_resumed_shows_every_step_once(resumed: Path, name: str) -> None:
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed")
    found: Rows = globals()[f"_read_{name}"](resumed)
    lines = [line for line in RunDirectory(resumed / "run").metrics() if "train/loss" in line]
    assert {step: len(rows) for step, rows in found.items()} == {line["step"]: 1 for line in lines}
    for line in lines:
        (row,) = found[line["step"]]
        loss = "train/epoch_loss" if "epoch" in line else "train/loss"
        assert row[loss] == pytest.approx(line["train/loss"], rel=1e-6)  # TensorBoard has float32
        assert row["train/tokens"] == line["train/tokens"]


def _read_csv(folder: Path) -> Rows:
    found: Rows = {}
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(int(row["step"]), []).append({key: float(value) for key, value in row.items() if value})
    return found


def _read_tensorboard(folder: Path) -> Rows:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard")).Reload()
    found: Rows = {}
    for tag in (tag for tag in events.Tags()["scalars"] if not tag.startswith("results/")):
        for event in events.Scalars(tag):
            rows = found.setdefault(event.step, [{}])
            if tag in rows[-1]:
                rows.append({})
            rows[-1][tag] = event.value
    assert {"run/text_summary", "tables/position/text_summary"} <= {*events.Tags()["tensors"]}
    assert any(tag.startswith("results/val/") for tag in events.Tags()["scalars"])
    return found


def _read_wandb(folder: Path) -> Rows:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (folder / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    found: Rows = {}
    summary: dict[str, Any] = {}
    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            values = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}
            found.setdefault(int(values["_step"]), []).append(values)
        summary |= {item.key or ".".join(item.nested_key): item.value_json for item in record.summary.update}
        if record.WhichOneof("record_type") == "run":
            shown = record.run
    assert (shown.run_group, [*shown.tags], shown.notes) == ("sweep", ["draft"], "why")
    assert {"val/bits_per_byte", "tables/position"} <= {*summary}, summary.keys()
    return found


def _records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file, which has LevelDB's log format after seven bytes."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if (rest := 32768 - place % 32768) < 7:
            place += rest
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            yield parts
            parts = b""


def _read_trackio(folder: Path) -> Rows:
    (file,) = (file for file in (folder / "trackio").glob("newllm*.db"))
    rows = sqlite3.connect(file).execute("select step, metrics, run_name from metrics order by id").fetchall()
    (*rows, last) = [(step, json.loads(metrics), name) for step, metrics, name in rows]
    assert {"results/val/loss", "tables/position"} <= {*last[1]}
    assert {name for _, _, name in rows} == {f"run-{RunDirectory(folder / 'run').tracker_id()}"}
    found: Rows = {}
    for step, metrics, _ in rows:
        found.setdefault(step, []).append(metrics)
    return found


def _read_mlflow(folder: Path) -> Rows:
    database = sqlite3.connect(folder / "mlflow.db")
    ((name, status),) = database.execute("select name, status from runs").fetchall()
    assert (name, status) == ("run", "FINISHED")
    tags = dict(database.execute("select key, value from tags").fetchall())
    assert (tags["group"], tags["tags"], tags["mlflow.note.content"]) == ("sweep", "draft", "why")
    assert dict(database.execute("select key, value from params").fetchall())["trainer.batch_size"] == "8"
    assert database.execute("select count(*) from metrics where key = 'results/val/loss'").fetchone() == (1,)
    assert [*folder.rglob("tables/position.csv")] != [folder / "run" / "tables" / "position.csv"]
    found: Rows = {}
    for key, step, value in database.execute("select key, step, value from metrics where key not like 'results/%'"):
        rows = found.setdefault(step, [{}])
        if key in rows[-1]:
            rows.append({})
        rows[-1][key] = value
    return found


def test_a_run_trained_afresh_is_another_one_to_trackers(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    first = directory.tracker_id()
    assert directory.tracker_id() == first
    directory.clear()
    assert directory.tracker_id() != first
