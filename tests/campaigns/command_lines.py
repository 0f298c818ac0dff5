"""Mutated command lines of all verbs: none may end in a traceback, hang, or succeed with a value that was ignored.

    python -m tests.campaigns.command_lines [COUNT] [SEED] [FIRST]

Each line is a valid one with one or two mutations: characters and words dropped, doubled or swapped, odd values,
misspelt keys, other groups. Each runs in a process forked from one that has imported everything, in a folder with a
finished run. A line that would train for long has dry_run=true or is the tiny run.
"""

import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

SECONDS = 20.0  # after which a line counts as hanging
TINY = [
    "model.hidden_size=32", "model.num_layers=1", "model.heads=2", "model.mlp_size=64", "facts=none", "data=text",
    "data.path=text.jsonl", "data.vocab_size=300", "seq_len=32", "samples=60", "epochs=1", "eval=[loss]",
    "runtime.threads=1",
]  # fmt: skip
TEXT = "".join(
    f'{{"text": "The {noun} of the {place} {verb} when it rains, and the {noun} knows why."}}\n'
    for noun in ("river", "mill", "road", "bridge", "harbour", "wall")
    for place in ("north", "village", "old town", "valley", "coast")
    for verb in ("rises", "stops", "sleeps", "glows", "waits")
)
DRY = ["train", "-m", "dry_run=true"]
VALID = [
    ["train", *TINY, "lr=0.002"],
    ["train", *TINY, "pos_encoding=alibi", "slope=0.125", "seed=3"],
    ["train", *TINY, "attention=mla", "kv_dim=16", "rope_dim=8", "optim.betas=[0.9,0.95]"],
    ["train", *TINY, "hydra.run.dir=run"],
    ["train", "--cfg", "job", "--resolve", "pos_encoding=rope", "theta=1e5", "rotary_pct=0.5", "batch_size=8"],
    ["train", "--cfg", "job", "--package", "attention", "attention=gqa", "kv_heads=2", "precision=fp32"],
    ["train", "--help"],
    [*DRY, *TINY, "pos_encoding=rope,alibi,nope", "theta=1e4,5e5", "seeds=3"],
    [*DRY, *TINY, "lr=1e-3,2e-3", "seed=range(1,4)", "hydra.sweep.dir=sweep", "retries=2", "only=[0,1]"],
    [*DRY, *TINY, "sweep.zip=[{lr:[1e-3,5e-4],batch_size:[4,8]}]", "pack=2", "canary=true", "fail_fast=true"],
    [*DRY, *TINY, "sweep.grids=[{theta:[1e3,1e4],seed:[1,2]}]", "hydra.launcher.slots=1", "rerun=failed"],
    [
        "train",
        *TINY,
        "eval=[loss,position,reversal,qk,kv_cache,rank,trigram]",
        "facts=reversal",
        "model.vocab_size=320",
    ],
    [*DRY, "model=context_token_tiny", "phase1=published", "objective=mcdl", "embeddings=none", "data.vocab_size=300"],
    [*DRY, *TINY, "attention=mha,mla", "kv_dim=16,32", "hydra/launcher=local", "hydra.launcher.threads=1"],
    ["train", *TINY, "hydra/launcher=local", "dry_run=true", "runtime.device=cpu", "trainer.patience=2"],
    ["evaluate", "run"],
    ["evaluate", "run", "eval=[loss,position]", "rerun=true"],
    ["evaluate", "run", "eval=[extrapolation]", "eval.extrapolation.lengths=[32,64]", "pos_encoding.scaling=yarn"],
    ["generate", "run", "The river", "--max-new-tokens", "3", "--temperature", "0.8", "--top-p", "0.9", "--seed", "1"],
    ["generate", "run", "", "--max-new-tokens=2"],
    ["status", "run"],
    ["status", "run", "--json"],
    ["status", "run", "run", "--logs"],
    ["status", "run", "--watch", "5"],
    ["report", "run", "metrics=[val/ppl]", "formats=[csv]", "out=report"],
    ["report", "run", "baseline=pos_encoding=rope", "confidence=0.9", "interval=t", "by=[seed]", "curves=4"],
    ["frequencies", "theta=1e4,1e5", "length=128,256", "out=spectrum.csv"],
    ["frequencies", "pos_encoding=rope", "pos_encoding.scaling=yarn", "rotary_pct=0.5"],
    ["conformance", "pos_encoding=alibi", "attention=mha", "slope=0.25"],
    ["bench", "attention", "--help"],
    ["bench", "train", "repeats=2", "out=bench.json"],
    ["compare", "run", "run"],
    ["help", "attention=mla"],
    ["--version"],
]
ODD = [
    "", "0", "-1", "1", "99999999999999999999", "-99999999999999999999", "1e400", "1e-400", "1e20", "nan", "inf",
    "-inf", "null", "none", "true", "False", "abc", "é", "日本", "\U0001f600", "'", '"', "''", '"a b"', "[", "]", "[]",
    "[1,2]", "[[1]]", "{", "}", "{}", "{a:1}", "${seed}", "'${seed}'", "'${nope}'", "'${oc.env:NOT_SET}'",
    "'${oc.env:HOME}'", "${", "'${'", "???", "~", "*", "**", "-", "--", "=", ",", "1,", ",1", "1,2", "1,,2",
    "range(1,3)", "range(1,1e9)", "range(3,1)", "glob(*)", "choice(1,2)", "interval(0,1)", "sort(2,1)", "(", ")",
    "a=b", "a:b", "\\", "\\n", "\n", "\t", "\x01", "\x1b[31m", "/", "/etc", "/dev/null", "/nowhere/at all", ".", "..",
    "run", "text.jsonl", "run/results.json", "x" * 300, "9" * 5000, "[" * 200, "0x10", "1_000", "1.5", "5e3", "1e-3",
    "007", "+1", "%s", "$HOME", "!!python/name:os.system", "&a", "*a", "|", ">", "#", "@", "`",
]  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """How a command line ended: its exit status (None: it did not end) and what it printed."""

    words: list[str]
    status: int | None
    out: str
    err: str

    def fault(self) -> str | None:
        """What is wrong with it, in a word."""
        if self.status is None:
            return "hang"
        if "Traceback (most recent call last)" in self.err + self.out or self.status not in (0, 1, 2):
            return "traceback"
        if self.status and not self.err.strip() and "FAIL" not in self.out:
            return "no reason"
        if self.status == 2 and len([line for line in self.err.splitlines() if line.startswith("newllm:")]) != 1:
            return "not one sentence"
        return "ignored" if self.status == 0 and ignored_value(self.words) else None


def mutated(number: int, seed: int) -> list[str]:
    """The command line `number` of a campaign."""
    draw = random.Random(f"{seed}/{number}")
    words = list(draw.choice(VALID))
    for _ in range(draw.choice((1, 1, 2))):
        words = draw.choice(_MUTATIONS)(words, draw)
    return [word.replace("\0", "") for word in words]


def _position(words: Sequence[str], draw: random.Random) -> int:
    """The place of a word; the last ones, which are not those of the tiny run, are more likely."""
    return min(len(words) - 1, max(0, len(words) - 1 - int(draw.expovariate(0.25))))


def _change_characters(words: list[str], draw: random.Random) -> list[str]:
    if not words:
        return words
    at = _position(words, draw)
    word = words[at] or "x"
    i = draw.randrange(len(word))
    changed = draw.choice([
        word[:i] + word[i + 1 :],
        word[:i] + word[i] + word[i:],
        word[:i] + word[i + 1 : i + 2] + word[i] + word[i + 2 :],
        word[:i] + draw.choice("=[]{}(),.'\"$~+-*/ \\é0") + word[i:],
    ])  # fmt: skip
    return [*words[:at], changed, *words[at + 1 :]]


def _change_words(words: list[str], draw: random.Random) -> list[str]:
    if not words:
        return words
    at, other = _position(words, draw), draw.randrange(len(words))
    swapped = list(words)
    swapped[at], swapped[other] = words[other], words[at]
    return draw.choice(
        [words[:at] + words[at + 1 :], [*words, words[at]], swapped, [*words[:at], *words[at + 1 :], ""]]
    )


def _change_value(words: list[str], draw: random.Random) -> list[str]:
    at = _position(words, draw) if words else 0
    if at == 0:
        return [*words, draw.choice(ODD)]
    key, equals, _ = words[at].partition("=")
    return [*words[:at], f"{key}={draw.choice(ODD)}" if equals else draw.choice(ODD), *words[at + 1 :]]


def _change_key(words: list[str], draw: random.Random) -> list[str]:
    keys = [word.partition("=")[0] for line in VALID for word in line if "=" in word]
    at = _position(words, draw) if words else 0
    if not words or "=" not in words[at]:
        return [*words, f"{draw.choice(keys)}={draw.choice(ODD)}"]
    _, _, value = words[at].partition("=")
    return [*words[:at], f"{draw.choice(keys)}={value}", *words[at + 1 :]]


def _add_again(words: list[str], draw: random.Random) -> list[str]:
    """A key of the line once more, with other values."""
    keys = [word.partition("=")[0] for word in words if "=" in word] or ["lr"]
    return [*words, f"{draw.choice(keys)}={draw.choice(['1', '2,3', *ODD])}"]


@cache
def _all_options() -> list[str]:
    """Axes and options of every choice: ``theta``, ``attention.kv_dim``, ``eval.qk.rows``."""
    from newllm.config.catalog import Catalog, shipped

    catalog, options = Catalog((shipped(),)), set()
    for group, names in catalog.groups.items():
        for name in names if group != "experiment" else []:
            root = f"{group}.{name}" if group in catalog.lists else group
            if root != group:
                options |= {root, f"{root}._target_"}
            for content in catalog.contents(f"{group}/{name}"):
                for key, value in content.items():
                    if key not in ("defaults", "_target_"):
                        inner = value if isinstance(value, dict) else {}
                        options |= {f"{root}.{key}", *(f"{root}.{key}.{last}" for last in inner)}
    return sorted({*options, *catalog.axes})


def _set_any_option(words: list[str], draw: random.Random) -> list[str]:
    """An option of a choice, which the line may or may not have, with an odd value."""
    return [*words, f"{draw.choice(_all_options())}={draw.choice(ODD)}"]


_MUTATIONS: list[Callable[[list[str], random.Random], list[str]]] = [
    _change_characters, _change_words, _change_value, _change_value, _change_key, _add_again,
    _set_any_option, _set_any_option,
]  # fmt: skip


def ignored_value(words: Sequence[str]) -> str | None:
    """The word of a single run or of --cfg whose value is not in the configuration that the line gives, if any."""
    from newllm.config.compose import compose

    if not words or words[0] != "train" or {"-m", "--multirun", "--help", "-h"}.intersection(words):
        return None
    typed = {}
    for word in words:
        key, equals, value = word.lstrip("+").partition("=")
        if equals and not key.startswith(("hydra", "-", "sweep.", "dry_run")):
            typed[key] = value
    lines = [word for word in words[1:] if "=" in word and not word.lstrip("+").startswith(("dry_run", "sweep."))]
    cfg = compose([line for line in lines if not line.startswith("--")], check=False)
    from omegaconf import OmegaConf

    for key, value in typed.items():
        found = OmegaConf.select(cfg, key)
        if OmegaConf.is_dict(found) and key in cfg.choices:
            found = cfg.choices[key]
        found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
        if "${" not in value and value != "???" and not _same(found, value):
            return f"{key}={value}: {found!r}"
    return None


def _same(found: Any, value: str) -> bool:
    text = value.strip().strip("'\"")
    try:
        read: Any = yaml.safe_load(text.replace(":", ": ")) if text else ""
    except yaml.YAMLError:
        read = text
    with suppress(TypeError, ValueError):
        if float(found) == float(text.replace("_", "")):
            return True
    return (
        found == read
        or str(found) == text
        or repr(found).replace(" ", "") == repr(read).replace(" ", "")
        or (
            isinstance(found, list)
            and [str(one) for one in found] == [one.strip() for one in text.strip("[]").split(",")]
        )
    )


# --- execution ------------------------------------------------------------------------------------------------------


def import_everything() -> None:
    """What the forked processes share."""
    names = (
        "report.__main__ report.sections report.page report.study report.options run.execute run.load run.reevaluate "
        "run.evaluation_plan sweep.control sweep.plan_table pack.meeting model.decoder frequencies conformance status "
        "evaluate.__main__ generate train.__main__ bench"
    )
    for name in names.split():
        import_module(f"newllm.{name}")
    import torch

    torch.set_num_threads(1)


def prepare(folder: Path) -> None:
    """A text and a finished run in `folder`."""
    (folder / "text.jsonl").write_text(TEXT, encoding="utf-8")
    outcome = run(["train", *TINY, "hydra.run.dir=run"], folder)
    assert outcome.status == 0, outcome.err


def run(words: list[str], folder: Path, seconds: float = SECONDS) -> Outcome:
    """Run a command line in a forked process with `folder` as its working directory."""
    with tempfile.TemporaryDirectory() as out:
        files = Path(out) / "out", Path(out) / "err"
        child = os.fork()
        if child == 0:
            _in_child(words, folder, files)
        status, ends = None, time.monotonic() + seconds
        while status is None and time.monotonic() < ends:
            pid, code = os.waitpid(child, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(code)
            else:
                time.sleep(0.005)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        if status is None:
            os.waitpid(child, 0)
        texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return Outcome(words, status, *texts)


def _in_child(words: list[str], folder: Path, files: tuple[Path, Path]) -> None:
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.environ |= {"NEWLLM_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
        null = os.open(os.devnull, os.O_RDONLY)
        outputs = [os.open(file, os.O_WRONLY | os.O_CREAT) for file in files]
        for descriptor, source in enumerate([null, *outputs]):
            os.dup2(source, descriptor)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))  # noqa: SIM115
        _without_measurements()
        from newllm import cli

        status = cli.main(words)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _without_measurements() -> None:
    """A bench checks its words, and then measures nothing."""
    from types import SimpleNamespace

    from newllm import bench
    from newllm.errors import ConfigError

    real = bench._bench

    def checked_only(name: str) -> Any:
        module = real(name)

        def measure(overrides: Sequence[str], **options: Any) -> None:
            raise ConfigError("nothing is measured.")

        measure.__wrapped__ = module.measure  # type: ignore[attr-defined]  # for its signature
        return SimpleNamespace(measure=measure, DEFAULTS=module.DEFAULTS, __doc__=module.__doc__)

    bench._bench = checked_only


def main(count: int = 2000, seed: int = 0, first: int = 0) -> int:
    """Run the lines `first` to `count` - 1 of a seed; Ctrl-C stops with the counts so far."""
    import_everything()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background job of a script
    faults: Counter[str] = Counter()
    statuses: Counter[int | None] = Counter()
    with tempfile.TemporaryDirectory() as name, suppress(KeyboardInterrupt):
        prepare(Path(name))
        for number in range(first, count):
            outcome = run(mutated(number, seed), Path(name))
            statuses[outcome.status] += 1
            if fault := outcome.fault():
                faults[fault] += 1
                shown = " ".join(repr(word)[:80] for word in outcome.words if word not in TINY)
                last = (outcome.err.strip().splitlines() or [""])[-1]
                print(f"{number} {fault} {outcome.status}: {shown}\n    {last[:300]}", flush=True)
    lines = f"{statuses.total()} lines from {first}, seed {seed}"
    print(f"{lines}: {dict(faults) or 'no faults'}; by exit status: {dict(statuses)}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main(*map(int, sys.argv[1:])))
