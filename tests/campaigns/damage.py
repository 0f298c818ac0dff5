"""Damages files of runs and of the cache, and judges what each command makes of them.

`python -m tests.campaigns.damage N [SEED]` tries N cases, drawn at random, and prints what was wrong and the counts;
as root, after `setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all`, since root reads any file.
A case is a file, a damage and a command. A fault is a silent wrong number (the command gives another output than
without the damage, and neither names the file nor says that something is damaged, missing or made again), a traceback,
or no answer in time. Each command runs in a process that is forked from this one, which has imported everything.
"""

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SECONDS = 90.0  # before a command counts as hanging
SMALL = [
    "data=stdlib", "data.vocab_size=300", "data.tokenizer_bytes=20000", "samples=40", "seq_len=32", "facts=none",
    "batch_size=8", "epochs=2", "trainer.log_every=1", "runtime.threads=1", "precision=fp32", "runtime.compile=false",
]  # fmt: skip
RUN = [
    "model.hidden_size=32", "model.num_layers=1", "model.heads=2", "model.mlp_size=64", "eval=[loss,position,qk]",
]  # fmt: skip
TWO_PHASES = [
    "model=context_token_tiny", "model.embed_dim=16", "model.context_dim=24", "model.layers=2", "embeddings=none",
    "phase1.batch_tokens=500", "phase1.iterations=3", "phase1.least=2", "phase1.require_convergence=false",
    "eval=[loss]",
]  # fmt: skip

_WORDS = ("damaged", "is missing", "again", "gone", "queued")  # a run without status.json counts as queued
_TIMES = re.compile(r"[0-9.]+ ?s\b|[0-9,]+ tokens/s|[0-9]:[0-9:]+")
Damage = Callable[[Path], None]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.Random(path.name).randrange(len(content))] ^= 1 << random.Random(len(content)).randrange(8)
    path.write_bytes(content)


def _digit(path: Path) -> None:
    """Change a digit, as a flipped bit in the middle of a number does."""
    content = path.read_bytes()
    places = [match.start() for match in re.finditer(rb"\d", content)] or [0]
    place = places[len(places) // 2]
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])


def _instead(content: bytes) -> Damage:
    return lambda path: path.write_bytes(content) and None


def _replaced(make: Callable[[Path], object]) -> Damage:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


DAMAGES: dict[str, Damage] = {
    "bit": _flip,
    "digit": _digit,
    "zeroed": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "emptied": lambda path: os.truncate(path, 0),
    "removed": Path.unlink,
    "null": _instead(b"null"), "list": _instead(b"[]"), "number": _instead(b"3"), "text": _instead(b'"x"'),
    "NaN": _instead(b"NaN"), "deep": _instead(b"[" * 100_000),
    "BOM": lambda path: path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes()) and None,
    "random": lambda path: path.write_bytes(random.Random(1).randbytes(4096)) and None,
    "folder": _replaced(Path.mkdir), "pipe": _replaced(os.mkfifo),
    "link": _replaced(lambda path: path.symlink_to(path.name)),
    "unreadable": lambda path: path.chmod(0),
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A file, relative to the folder of the campaign; a damage; a command."""

    file: str
    damage: str
    verb: str


class Campaign:
    """Runs and a cache in a folder, with a copy to restore them from, and what the commands give without damage."""

    def __init__(self, folder: Path, verbs: tuple[str, ...] = ()) -> None:
        self.work, self._whole = folder / "work", folder / "whole"
        self.work.mkdir()
        os.environ["NEWLLM_CACHE"] = str(self.work / "cache")
        for verb in ("make a", "make b", "make cut", "make two", "make sweep", "make evaluations"):
            status, out = self.run(verb)
            assert status == 0, out
        shutil.copytree(self.work, self._whole)
        self.right: dict[str, str] = {}
        for verb in verbs or _COMMANDS:
            self.restore()
            status, out = self.run(verb)
            assert status == 0, (verb, out)
            self.right[verb] = self._outcome(status, out, verb)

    def restore(self) -> None:
        shutil.rmtree(self.work)
        shutil.copytree(self._whole, self.work)

    def cases(self) -> Iterator[Case]:
        """All cases: each file with each damage and each command that may read it."""
        for path in sorted(self._whole.rglob("*")):
            name = path.relative_to(self._whole).as_posix()
            if not path.is_file() or path.name.endswith(".lock") or "train.log" in name:
                continue
            if "/.sweep/code/" in name and path.name not in ("cli.py", "rope.py"):  # two of its files stand for all
                continue
            verbs = [verb for verb in self.right if any(re.match(p, name) for p in _READ[verb])]
            yield from (Case(name, damage, verb) for verb in verbs for damage in DAMAGES)

    def fault(self, case: Case) -> str | None:
        """What is wrong with a command's answer to a damage; None if it is right."""
        self.restore()
        file = self.work / case.file
        if case.damage in ("bit", "digit") and not file.stat().st_size:
            return None
        DAMAGES[case.damage](file)
        if case.damage == "unreadable" and os.access(file, os.R_OK):
            return None
        status, out = self.run(case.verb)
        if status is None:
            return f"no answer in {SECONDS:g} s"
        if "Traceback (most recent call last)" in out or status not in (0, 1, 2):
            return f"traceback, status {status}: {out[-600:]}"
        skipped = re.search(rf"Skipped, not done: .*\b{case.file.split('/')[1]}\b", out)
        said = status == 2 or file.name in out or skipped or any(word in out for word in _WORDS)
        if not said and (found := self._outcome(status, out, case.verb)) != self.right[case.verb]:
            return f"silent, status {status}: {_difference(self.right[case.verb], found)}"
        return None

    def run(self, verb: str) -> tuple[int | None, str]:
        """Exit status and output of a command in a forked process; None if it had to be killed."""
        log = self.work.parent / "output.txt"
        process = multiprocessing.get_context("fork").Process(target=_child, args=(verb, self.work, log))
        process.start()
        process.join(SECONDS)
        if process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            process.join()
            return None, log.read_text(errors="replace")
        return process.exitcode, log.read_text(errors="replace")

    def _outcome(self, status: int | None, out: str, verb: str) -> str:
        """What counts of a command's outcome: its numbers, without times."""
        text = out
        if verb.startswith("train"):  # the results that it leaves
            with suppress(OSError, ValueError):
                results = json.loads((self.work / "runs" / verb.partition(" ")[2] / "results.json").read_text())
                kept = {k: v for k, v in results.items() if not k.startswith(("speed/", "time/", "memory/"))}
                text = json.dumps(kept, indent=1)
        if verb == "report":
            tables = sorted((self.work / "runs" / "report").rglob("*.csv"))
            text = "\n".join(file.read_text() for file in tables if "seconds" not in file.name)
        return f"{status}\n{_TIMES.sub('', text)}"


def _difference(right: str, found: str) -> str:
    lines = [f"{a!r} -> {b!r}" for a, b in zip(right.splitlines(), found.splitlines(), strict=False) if a != b]
    return "; ".join(lines[:3]) or f"{len(right.splitlines())} lines -> {len(found.splitlines())}"


def _child(verb: str, work: Path, log: Path) -> None:
    os.setsid()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.chdir(work)
    signal.alarm(int(SECONDS) + 5)
    status = _COMMANDS.get(verb, _MAKE.get(verb, lambda: 9))()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _train(name: str, *overrides: str) -> int:
    from newllm.train.__main__ import main

    return main([*SMALL, *overrides, f"hydra.run.dir=runs/{name}"])


def _sweep() -> int:
    from newllm.train.__main__ import main

    runs = ["-m", "seed=1,2", "hydra.sweep.dir=sweep", "hydra.launcher.slots=1"]
    return main([*SMALL, *RUN[:-1], "eval=[loss]", *runs])


def _train_and_stop() -> int:
    """A run that a signal stops in its second epoch."""
    from newllm.training.loop import Loop

    step = Loop._step

    def stopping(loop: Loop, indices: object) -> None:
        step(loop, indices)  # type: ignore[arg-type]
        if loop.progress.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)

    Loop._step = stopping  # type: ignore[method-assign,assignment]
    return int(_train("cut", *RUN, "seed=3") != 143)


def _load_runs() -> int:
    from newllm import load_runs
    from newllm.errors import run_command
    from newllm.run.load import load_run

    def command(argv: list[str]) -> int:
        frame = load_runs("runs", evaluations=True)
        print(frame[["run", "state", "error"]].to_json(), frame["val/ppl"].to_json())
        run = load_run("runs/a")
        print(
            run.metrics["val/loss"].iloc[-1],
            run.results["val/ppl"],
            run.status["state"],
            run.tokenizer.decode([65, 66]),
        )
        print(float(run.model.embed.weight.sum()))
        return 0

    return run_command(command, [])


def _verb(verb: str, *argv: str) -> Callable[[], int]:
    def run() -> int:
        from newllm.cli import main

        return main([verb, *argv])

    return run


_MAKE: dict[str, Callable[[], int]] = {
    "make a": lambda: _train("a", *RUN, "seed=1"),
    "make b": lambda: _train("b", *RUN, "seed=2"),
    "make cut": _train_and_stop,
    "make two": lambda: _train("two", *TWO_PHASES),
    "make sweep": lambda: _sweep(),
    "make evaluations": lambda: (
        _verb("evaluate", "runs/a", "eval=[rank]")() or _verb("evaluate", "runs/a", "eval=[loss]", "theta=100")()
    ),
}
_COMMANDS: dict[str, Callable[[], int]] = {
    "train a": _MAKE["make a"],
    "train cut": lambda: _train("cut", *RUN, "seed=3"),
    "train two": _MAKE["make two"],
    "train c": lambda: _train("c", *RUN, "seed=4"),
    "train two_c": lambda: _train("two_c", *TWO_PHASES, "lr=0.002"),
    "train sweep": _sweep,
    "status": _verb("status", "runs"),
    "status sweep": _verb("status", "sweep"),
    "report sweep": _verb("report", "sweep", "formats=[csv]", "baseline=null"),
    "report": _verb("report", "runs", "formats=[csv,svg]", "baseline=null"),
    "evaluate": _verb("evaluate", "runs/a"),
    "evaluate all": _verb("evaluate", "runs", "eval=[loss]"),
    "compare": _verb("compare", "runs/a", "runs/b"),
    "generate": _verb("generate", "runs/a", "def", "--max-new-tokens", "8"),
    "load_runs": _load_runs,
}
_READ = {  # command -> patterns of the files that it may read
    "train a": ["runs/a/"], "train cut": ["runs/cut/"], "train two": ["runs/two/"],
    "train c": ["cache/(stores|tokenizers)"], "train two_c": ["cache/"],
    "train sweep": ["sweep/"], "status sweep": ["sweep/"], "report sweep": ["sweep/"],
    "status": ["runs/"], "report": ["runs/"], "evaluate": ["runs/a/", "cache/(stores|tokenizers)"],
    "evaluate all": ["runs/"], "compare": ["runs/[ab]/"], "generate": ["runs/a/"], "load_runs": ["runs/"],
}  # fmt: skip


def try_all(campaign: Campaign, cases: list[Case]) -> list[tuple[Case, str]]:
    return [(case, fault) for case in cases if (fault := campaign.fault(case))]


def main(count: int, seed: int = 0) -> int:
    """Try `count` random cases and print the faults and their number by kind."""
    import newllm.run.execute
    import newllm.two_phase.fixed_point  # noqa: F401 (before the forks)

    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder))
        cases = list(campaign.cases())
        random.Random(seed).shuffle(cases)
        kinds: Counter[str] = Counter()
        began = time.monotonic()
        for number, case in enumerate(cases[:count], 1):
            if fault := campaign.fault(case):
                kinds[fault.partition(",")[0].split(" in ")[0]] += 1
                print(case, fault, flush=True)
            if number % 50 == 0:
                print(f"{number} of {len(cases)} cases, {time.monotonic() - began:.0f} s: {dict(kinds)}", flush=True)
        print(f"{min(count, len(cases))} of {len(cases)} cases, seed {seed}: {dict(kinds) or 'no fault'}")
    return int(bool(kinds))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
