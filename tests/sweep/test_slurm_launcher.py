"""The decisions of the SLURM launcher, without a SLURM; tests/launch has tests with a real one."""

import signal
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import pytest

from newllm.errors import ConfigError, RunError
from newllm.store.run_directory import RunDirectory
from newllm.sweep import slurm
from newllm.sweep.launches import Policy, launches
from newllm.sweep.slurm import Slurm, arrays, follow, resources, settle
from newllm.sweep.slurm_job import Task
from newllm.sweep.slurm_states import job_states
from tests.support.sweep_folders import RecordingDisplay, make_run


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only one on PATH, for fake SLURM programs."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def write_program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize(
    ("runs", "runs_per_job", "sizes"), [(1, 1, [1]), (5, 1, [4, 1]), (8, 1, [4, 4]), (41, 3, [4] * 3 + [2])]
)
def test_arrays_hold_each_run_once_and_are_below_the_largest_size(
    runs: int, runs_per_job: int, sizes: list[int]
) -> None:
    paths = [Path(f"s{seed}") for seed in range(runs)]
    found = arrays(dict.fromkeys(paths, 1), runs_per_job, largest=4)
    assert [len(tasks) for _, tasks in found] == sizes
    assert [run for _, tasks in found for task in tasks for run in task] == paths
    assert all(len(task) <= runs_per_job for _, tasks in found for task in tasks)


def test_runs_that_need_more_devices_get_arrays_of_their_own() -> None:
    one, two, three, four = map(Path, ("s1", "s2", "s3", "s4"))
    found = arrays({one: 1, two: 2, three: 1, four: 2}, 2, largest=100)
    assert found == [(1, [[one, three]]), (2, [[two, four]])]
    assert resources(devices=4, gpus=1, cpus=8) == (4, 8)
    assert resources(devices=2, gpus=None, cpus=3) == (None, 6)


def test_states_of_jobs_come_from_squeue_and_then_from_sacct(commands: Path) -> None:
    write_program(
        commands,
        "squeue",
        "echo '7_0|RUNNING|None'; echo '7_3|PENDING|JobArrayTaskLimit'; echo '9|FAILED|NonZeroExitCode'",
    )
    write_program(commands, "sacct", "echo 'JobID|State'; echo '7_[1-2%1]|CANCELLED by 1000'")
    assert job_states(["7_0", "7_1", "7_3", "8", "9"]) == {
        "7_0": "RUNNING", "7_1": "CANCELLED", "7_3": "PENDING (JobArrayTaskLimit)", "9": "FAILED (NonZeroExitCode)",
    }  # fmt: skip


def test_jobs_that_slurm_has_forgotten_are_no_error_and_a_silent_slurm_is_one(commands: Path) -> None:
    write_program(commands, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert job_states(["1"]) == {}
    write_program(commands, "squeue", "echo 'squeue: error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(RunError, match=r"^SLURM's squeue failed: Unable to contact slurm controller$"):
        job_states(["1"])


@pytest.mark.parametrize(
    ("state", "job_state", "after", "error"),
    [
        ("running", "OUT_OF_MEMORY", "failed", "SLURM ended job 5_1: OUT_OF_MEMORY."),
        ("running", "TIMEOUT (TimeLimit)", "interrupted", "SLURM ended job 5_1: TIMEOUT (TimeLimit)."),
        ("interrupted", "CANCELLED", "interrupted", "SLURM ended job 5_1: CANCELLED."),
        ("queued", "FAILED (NonZeroExitCode)", "failed", "SLURM ended job 5_1 before the run began: FAILED (NonZero"),
        ("queued", None, "interrupted", "SLURM ended job 5_1 before the run began: not known"),
        ("done", "COMPLETED", "done", None),
    ],
)
def test_a_run_whose_job_has_ended_gets_the_state_of_the_job(
    tmp_path: Path, state: str, job_state: str | None, after: str, error: str | None
) -> None:
    run = make_run(tmp_path, "run", state=state, slurm="5_1")
    settle(run, {"5_1": job_state} if job_state else {})
    assert run.status()["state"] == after
    assert (run.status()["error"] is None) if error is None else run.status()["error"].startswith(error)


def test_following_survives_a_silent_slurm_and_reports_requeues_and_lost_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = make_run(tmp_path, "a", slurm="1_0"), make_run(tmp_path, "b", slurm="1_1")
    script: deque[tuple[str, dict[str, str] | None]] = deque([
        ("queued", None),
        ("running", {"1_0": "RUNNING", "1_1": "PENDING (JobHeldUser)"}),
        ("queued", {"1_0": "PENDING (BeginTime)"}),
        ("running", {"1_0": "RUNNING"}),
        ("done", {"1_0": "RUNNING"}),
    ])  # fmt: skip

    def ask(jobs: Iterable[str]) -> dict[str, str]:
        state, words = script.popleft()
        a.write_results({"val/ppl": 9.0})
        a.update_status(state=state)
        if words is None:
            raise RunError("SLURM is away")
        return words

    monkeypatch.setattr(slurm, "job_states", ask)
    monkeypatch.setattr(slurm, "TICK", 0)
    display = RecordingDisplay()
    assert follow([a.path, b.path], display) is False
    assert display.lines == [
        "SLURM is away; trying again.",
        "1 job PENDING (JobHeldUser): squeue(1) explains the reason.",
        "started a",
        "a interrupted again",
        "started a",
        "b interrupted: SLURM ended job 1_1 before the run began: not known.",
        "a done",
    ]


def test_a_job_that_may_not_be_requeued_says_why(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run", state="interrupted", slurm="5")
    task = Task(str(tmp_path), "newllm", [str(run.path)], Policy(), jobs_per_gpu=1, requeues=1)
    before = signal.getsignal(signal.SIGUSR2)
    try:
        again = task.checkpoint()
        assert run.status()["state"] == "queued"
        assert again is not None
        assert again.function.checkpoint() is None
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert run.status()["state"] == "interrupted"
    assert "as often as max_requeues allows" in run.status()["error"]


@pytest.mark.parametrize(
    ("options", "key"), [({"runs_per_job": 0}, "runs_per_job"), ({"max_running": -1}, "max_running"),
                         ({"time_min": 2}, "signal_delay_s")],
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{key}"):
        Slurm(**options)


def test_without_slurm_the_launcher_refuses_and_the_run_stays_queued(tmp_path: Path, commands: Path) -> None:
    run = make_run(tmp_path, "run")
    with pytest.raises(ConfigError, match="sbatch"):
        Slurm().start(tmp_path, [run.path], Policy())
    assert run.status()["state"] == "queued"


def test_a_cluster_that_refuses_the_second_array_keeps_the_first(
    tmp_path: Path, commands: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_program(commands, "scontrol", "echo 'MaxArraySize            = 2'")
    write_program(commands, "srun", "")
    write_program(commands, "squeue", "")
    write_program(
        commands,
        "sbatch",
        f"""if mkdir {tmp_path}/first 2> /dev/null; then cp "$1" {tmp_path}/first/job.sh; echo Submitted batch job 5
            else echo 'sbatch: error: QOSMaxSubmitJobPerUserLimit' >&2; exit 1; fi""",
    )
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    runs = [make_run(tmp_path / "sweep", name).path for name in "abc"]
    launcher = Slurm(
        account="lab", gpus=2, max_running=1, setup=["module load cuda"], additional={"constraint": "a100"}
    )
    with pytest.raises(ConfigError, match=r"refused the jobs: QOSMax.*; the runs are queued.* before, 5, continue\.$"):
        launcher.start(tmp_path / "sweep", runs, Policy())
    assert [RunDirectory(run).status().get("slurm") for run in runs] == ["5_0", "5_1", None]
    assert [RunDirectory(run).status()["state"] for run in runs] == ["queued"] * 3
    assert [record["slurm_jobs"] for record in launches(tmp_path / "sweep")] == [["5"]]
    job = (tmp_path / "first" / "job.sh").read_text().splitlines()
    for option in ("account=lab", "gpus-per-node=2", "constraint=a100", "time=60", "signal=USR2@120", "requeue"):
        assert f"#SBATCH --{option}" in job
    assert job.index("module load cuda") < next(
        i for i, line in enumerate(job) if line.startswith("export PYTHONPATH=")
    )
