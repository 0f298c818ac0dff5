"""`newllm import NAME_OR_FOLDER [DIRECTORY]`: make a run directory of a released Hugging Face checkpoint.

GPT-NeoX (Pythia), GPT-2, Llama (SmolLM2, Llama 3), Qwen2 and Qwen3, from safetensors; no code of a checkpoint is run.
"""

import sys

from newllm.errors import Parser, run_command


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command(_run, argv)


def _run(argv: list[str]) -> int:
    parser = Parser(prog="newllm import", description=__doc__)
    parser.add_argument("name", help="repository on the hub, as in EleutherAI/pythia-70m, or a folder in its layout")
    parser.add_argument("directory", nargs="?", help="run directory (default: one in outputs/runs)")
    parser.add_argument("--revision", metavar="R", help="branch, tag or commit of the repository, as in step1000")
    options = parser.parse_args(argv)

    from newllm.huggingface.import_run import import_checkpoint
    from newllm.store.run_directory import RunDirectory

    path = import_checkpoint(options.name, options.directory, options.revision)
    run = RunDirectory(path)
    about, results = run.config()["imported"], run.results()
    at = f" at {about['revision']}" if about["revision"] else ""
    print(f"Imported {about['name']}{at}: {about['family']}, {results['params/total']:,} parameters, in {path}")
    print(f"  newllm evaluate {path} 'eval=[loss,position]' data=text data.path=FILE seq_len=512")
    print(f'  newllm generate {path} "Once upon a time"')
    return 0


if __name__ == "__main__":
    sys.exit(main())
