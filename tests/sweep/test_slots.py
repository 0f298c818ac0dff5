import pytest

from newllm.errors import ConfigError
from newllm.sweep import slots
from newllm.sweep.slots import Grant, Slots, visible_gpus

LISTING = """GPU 0: NVIDIA A100 (UUID: GPU-aaaa)
GPU 1: NVIDIA A100 (UUID: GPU-bbbb)
  MIG 3g.20gb     Device  0: (UUID: MIG-cccc)
  MIG 3g.20gb     Device  1: (UUID: MIG-dddd)
"""


def config(device: str = "auto", threads: int | str = "auto", devices: int = 1) -> dict[str, dict[str, object]]:
    return {"runtime": {"device": device, "threads": threads}, "trainer": {"devices": devices}}


@pytest.mark.parametrize(
    ("cores", "runs", "options", "at_once", "threads"),
    [
        (2, 12, {}, 2, 1),
        (8, 3, {}, 3, 2),
        (8, 1, {}, 1, 8),
        (8, 100, {"threads": 4}, 2, 4),
        (8, 100, {"slots": 2}, 2, 4),
        (8, 100, {"slots": 2, "threads": 1}, 2, 1),
        (2, 100, {"threads": 4}, 1, 4),
    ],
)
def test_cores_are_shared_out_and_never_oversubscribed(
    cores: int, runs: int, options: dict, at_once: int, threads: int
) -> None:
    slots = Slots(cores, (), runs, **options)
    grants = [slots.take(config()) for _ in range(at_once)]
    assert slots.take(config()) is None
    assert slots.full
    assert grants == [Grant(threads, 1)] * at_once
    assert grants[0].environment() == {"OMP_NUM_THREADS": str(threads)}
    slots.give(grants[0])
    assert slots.take(config()) == grants[0]


def test_a_run_with_threads_of_its_own_takes_as_many_cores() -> None:
    slots = Slots(4, (), runs=10)
    wide = slots.take(config(threads=3))
    assert wide == Grant(3, 3)
    assert slots.take(config(threads=2)) is None
    assert slots.take(config()) == Grant(1, 1)
    assert Slots(4, (), runs=10).take(config(threads=64)) == Grant(64, 4)  # all there is, rather than waiting for ever
    assert Slots(4, (), runs=10).take(config(devices=2)) == Grant(2, 2)


def test_each_gpu_gets_its_jobs_and_the_emptiest_comes_first() -> None:
    slots = Slots(8, ("GPU-aaaa", "MIG-bbbb"), runs=10, jobs_per_gpu=2)
    grants = [slots.take(config()) for _ in range(4)]
    assert [grant.gpus for grant in grants if grant] == [("GPU-aaaa",), ("MIG-bbbb",), ("GPU-aaaa",), ("MIG-bbbb",)]
    assert slots.take(config()) is None
    assert grants[1] is not None
    assert grants[1].environment() == {"OMP_NUM_THREADS": "2", "CUDA_VISIBLE_DEVICES": "MIG-bbbb"}
    slots.give(grants[1])
    assert slots.take(config()) == grants[1]


def test_a_run_on_several_gpus_gets_different_ones_and_waits_for_them() -> None:
    slots = Slots(8, ("0", "1", "2", "3"), runs=10)
    first = slots.take(config())
    assert first is not None
    assert slots.take(config(devices=4)) is None
    slots.give(first)
    whole = slots.take(config(devices=4))
    assert whole is not None
    assert sorted(whole.gpus) == ["0", "1", "2", "3"]
    assert slots.full


def test_a_run_on_the_cpu_of_a_gpu_machine_sees_no_gpu() -> None:
    grant = Slots(8, ("0",), runs=1).take(config(device="cpu"))
    assert grant is not None
    assert grant.environment()["CUDA_VISIBLE_DEVICES"] == ""


def test_threads_come_from_the_configuration_or_from_an_earlier_attempt_or_are_shared_out() -> None:
    grants = [Slots(8, (), runs=2).take(config(threads=threads), earlier) for threads, earlier in ((3, 2), ("auto", 2))]
    assert [grant.threads for grant in grants if grant] == [3, 2]
    assert Slots(8, ("0", "1"), runs=2).take(config(device="cuda", devices=2)) == Grant(8, 2, ("0", "1"))


def test_a_run_may_not_name_a_gpu_of_its_own() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.device=cuda:1"):
        Slots(8, ("0", "1"), runs=1).take(config(device="cuda:1"))
    assert Slots(8, (), runs=1).take(config(device="cuda:1"))  # the run itself says that there is no GPU


@pytest.mark.parametrize("options", [{"slots": 0}, {"threads": -1}, {"jobs_per_gpu": 0}])
def test_numbers_that_make_no_sense_are_refused(options: dict) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{next(iter(options))}"):
        Slots(2, (), 1, **options)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("2,3", ("2", "3")),
        ("GPU-8932f937, MIG-GPU-1/2/0", ("GPU-8932f937", "MIG-GPU-1/2/0")),
        ("", ()),
        ("-1", ()),
        ("0,-1,1", ("0",)),
        ("NoDevFiles", ()),
    ],
)
def test_an_outer_choice_of_gpus_is_passed_on_as_it_stands(
    given: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == found


@pytest.mark.parametrize(("listing", "found"), [(LISTING, ("0", "MIG-cccc", "MIG-dddd")), ("", ())])
def test_without_one_all_gpus_are_used_and_mig_instances_in_place_of_their_gpu(
    listing: str, found: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(slots, "_nvidia_smi", lambda: listing)
    assert visible_gpus() == found
