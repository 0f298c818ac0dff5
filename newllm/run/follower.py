"""The ranks above 0 of a run on several devices: they make its training steps, and nothing else.

`python -m newllm.run.follower RUN_DIRECTORY` is how rank 0 starts them; under torchrun or srun, `newllm train` is.
"""

import os
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from omegaconf import DictConfig

from newllm.errors import STOPPING, NewllmError
from newllm.run.prepare import frozen_config, prepare
from newllm.runtime import Place
from newllm.store.run_directory import RunDirectory
from newllm.training.checkpoint import load_training
from newllm.training.distributed import GRACE, form_group, launched_store, next_order, open_store
from newllm.training.step import Step, cut

FOREVER = timedelta(days=365)  # preparation, validation and stages of rank 0 have no time limit


def follow(cfg: DictConfig, place: Place) -> int:
    """Make the steps that rank 0 orders, until training ends; returns the exit status."""
    for signum in STOPPING:  # launchers send them to all processes, and rank 0 alone decides
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    store = launched_store()
    try:
        store.wait(["train"], FOREVER)  # until rank 0 has prepared the data
        if store.get("train") == b"yes":
            _make_steps(cfg, place, store)
    except BaseException as error:
        message = str(error).strip().partition("\n")[0] or type(error).__name__
        with suppress(dist.DistError):
            store.set(f"error/{place.rank}", message)
            # If another rank has ended, this error only follows from it: rank 0 has to notice that one first.
            time.sleep(1.0)
            running = store.get("train") == b"yes"  # fails if rank 0 is the one that has ended
            if running and not isinstance(error, NewllmError):
                traceback.print_exception(error)
        return 1
    finally:
        with suppress(dist.DistError):
            store.set(f"ended/{place.rank}", "")
    return 0


def _make_steps(cfg: DictConfig, place: Place, store: dist.Store) -> None:
    run = prepare(cfg)
    run.model.train()
    step = Step(run.model, run.optim, run.device, run.precision, run.runtime.fused)
    checkpoint = run.directory.last_checkpoint
    if checkpoint.exists():  # none is written before the first step, which waits for this process
        step.restore_scale(load_training(checkpoint, run.model, step.optimizer, {}).scaler)
    store.set(f"ready/{place.rank}", "")
    form_group(store, place, run.device)
    step.distribute()
    orders = open_store()  # a connection of its own, since waiting blocks it
    orders.set_timeout(FOREVER)
    while (order := next_order(orders, place.rank)) is not None:
        indices, rate = order
        step(cut(run.data.train, indices, run.trainer.accumulate), rate)
    dist.destroy_process_group()


def main(directory: str) -> int:
    """Follow the rank 0 that has started this process, and end when its pipe to stdin closes, however it ended."""

    def end_with_rank_0() -> None:
        sys.stdin.read()
        time.sleep(GRACE)  # for a clean end; a kernel that waits for rank 0 would never return
        os._exit(1)

    threading.Thread(target=end_with_rank_0, daemon=True).start()
    return follow(frozen_config(RunDirectory(directory)), Place.from_environment())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
