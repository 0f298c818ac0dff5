"""`python -m newllm.training.rank_process RUN_DIRECTORY`: another process of a run with trainer.devices above 1.

Started and led by the run's own process, rank 0: see newllm.training.distributed. It reads its orders from stdin, a
JSON object a line: first its place, then the rows and the rate of each step. Its answers on stdout are likewise
{"ready": true} and, at worst, {"error": one sentence}. The end of stdin is the end of the run.
"""

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from newllm.errors import NewllmError
from newllm.training.signals import STOPPING

GRACE = 5.0  # seconds for a good end once rank 0 has gone; a kernel that waits for it would never return


def main() -> int:
    """Obey until stdin ends; returns the exit status."""
    for signum in STOPPING:  # they come to the whole process group, and rank 0 alone decides
        signal.signal(signum, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # no library's print may look like an answer

    def answer(**words: Any) -> None:
        with suppress(OSError):  # nobody listens any more
            print(json.dumps(words), file=answers, flush=True)

    orders: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
    gone = threading.Event()
    threading.Thread(target=_listen, args=(orders, gone), daemon=True).start()
    try:
        _obey(Path(sys.argv[1]), orders, lambda: answer(ready=True))
    except NewllmError as error:
        answer(error=str(error))
        return 1
    except BaseException as error:
        answer(error=str(error).strip().partition("\n")[0] or type(error).__name__)
        # Where another process has ended, this is but the echo: that one is to be heard first, or nobody listens.
        if not gone.wait(1.0):
            traceback.print_exc()
        return 1
    return 0


def _listen(orders: "SimpleQueue[dict[str, Any] | None]", gone: threading.Event) -> None:
    for line in sys.stdin:
        orders.put(json.loads(line))
    gone.set()
    orders.put(None)
    time.sleep(GRACE)
    os._exit(1)


def _obey(path: Path, orders: "SimpleQueue[dict[str, Any] | None]", ready: Callable[[], None]) -> None:
    place = orders.get()
    if place is None:
        return
    import numpy as np
    import torch.distributed as dist
    from omegaconf import OmegaConf

    from newllm.run.prepare import prepare
    from newllm.store.run_directory import RunDirectory
    from newllm.training.checkpoint import load_training
    from newllm.training.distributed import enter_group
    from newllm.training.step import Step, cut

    directory = RunDirectory(path)
    cfg = OmegaConf.create(directory.config())
    cfg.run_dir = str(path)
    p = prepare(cfg, rank=place["rank"], threads=place["threads"])
    p.model.train()
    step = Step(p.model, p.optim, p.device, p.precision, p.runtime.fused)
    if directory.last_checkpoint.exists():  # none is written before the first step, which waits for this process
        load_training(directory.last_checkpoint, p.model, step.optimizer, {})
    store = dist.TCPStore("127.0.0.1", place["port"], is_master=False)
    ready()
    enter_group(store, place["rank"], place["ranks"], p.device)
    step.distribute()
    while (order := orders.get()) is not None:
        step(cut(p.data.train, np.array(order["rows"]), p.trainer.accumulate), order["rate"])
    dist.destroy_process_group()


if __name__ == "__main__":
    sys.exit(main())
