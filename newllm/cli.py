"""`newllm VERB …`: the console script."""

import os
from importlib import import_module
from importlib.metadata import version

from newllm.errors import ConfigError, run_command
from newllm.suggest import did_you_mean

VERBS = {
    "train": "train a model and evaluate it; with -m, sweep",
    "evaluate": "evaluate finished runs again, with other evaluators or settings",
    "status": "the runs of a sweep and their logs; cancel, retry",
    "compare": "what differs between two runs or folders of runs: settings, and metrics side by side",
    "report": "tables, figures and verdicts of finished runs, as files and as a page",
    "import": "make a run directory of a released Hugging Face checkpoint",
    "generate": "continue a text with a finished run",
    "frequencies": "rotary spectra of configurations as a table and a picture; trains nothing",
    "conformance": "check that an encoding keeps the contract with an attention; trains nothing",
    "bench": "speed as ratios: training, attention, decoding, evaluation, data, sweeps",
}


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit status."""
    return run_command(_dispatch, argv)


def _dispatch(argv: list[str]) -> int:
    if argv and argv[0] in ("-sc", "--shell-completion"):
        return _complete(argv[1:])
    if argv[:1] == ["help"] and len(argv) > 1:  # newllm help attention=mla, newllm help status
        topic = argv[1:]
        argv = [*topic, "--help"] if topic[0] in VERBS else ["train", *topic, "--help"]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"newllm {version('newllm')}")
        return 0
    verb, *rest = argv
    if verb not in VERBS:
        raise ConfigError(f"{verb!r} is not a command; {did_you_mean(verb, VERBS, prefix='newllm ')}.")
    return int(import_module(module_of(verb)).main(rest))


def module_of(verb: str) -> str:
    """The module whose function `main` is the command."""
    if verb == "import":
        return "newllm.import_checkpoint"  # `import` is a keyword of Python
    return f"newllm.{verb}.__main__" if verb in ("train", "evaluate", "report") else f"newllm.{verb}"


def _usage() -> str:
    verbs = [f"  newllm {verb:<12} {purpose}" for verb, purpose in VERBS.items()]
    completion = '  eval "$(newllm -sc install=bash)"   completes choices and keys in this shell (zsh, fish likewise)'
    help_line = "  newllm help attention=mla                        the options of a choice: type, default, meaning"
    return "\n".join(["newllm: a laboratory bench for small language models", "", *verbs, "", help_line, completion])


def _complete(words: list[str]) -> int:
    """``install=SHELL``: print the script that lets a shell complete; ``query=SHELL``: what that script asks for."""
    from newllm import completion

    action, _, shell = (words or [""])[0].partition("=")
    if action not in ("install", "query") or shell not in completion.SCRIPTS:
        raise ConfigError(f"expected newllm -sc install=SHELL; SHELL is one of {', '.join(completion.SCRIPTS)}.")
    if action == "install":
        print(completion.SCRIPTS[shell])
    else:
        line, breaks = os.environ.get("COMP_LINE", ""), os.environ.get("COMP_WORDBREAKS", "")
        print("\n".join(completion.answer(shell, line, breaks, VERBS)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
