"""A run starts fast."""

import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from newllm.train import main
status = main(sys.argv[1:])
print(status, sorted({"transformers", "datasets", "pandas", "matplotlib", "scipy"} & set(sys.modules)))
"""


def test_a_run_imports_no_library_that_it_does_not_use(tmp_path: Path) -> None:
    words = ["model.num_layers=1", "samples=200", "epochs=1", "facts=none", "eval=[loss]", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
