"""A run starts fast."""

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from newllm.train.__main__ import main
status = main(sys.argv[1:])
unused = {"transformers", "datasets", "pandas", "matplotlib", "scipy", "wandb", "trackio", "mlflow", "tensorboard"}
print(status, sorted(unused & set(sys.modules)))
"""


def test_a_run_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(Path(os.__file__).read_text())
    words = [
        "data=text", f"data.path={text}", "data.vocab_size=300", "data.split=contiguous", "model.num_layers=1",
        "samples=100", "epochs=1", "facts=none", "eval=[loss]", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
