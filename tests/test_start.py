"""A run starts fast."""

import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from newllm.train import main
status = main(sys.argv[1:])
print(status, sorted({"torch._dynamo", "sympy", "transformers", "datasets", "pandas"} & set(sys.modules)))
"""


def test_a_run_imports_no_compiler(tmp_path: Path) -> None:
    """The machinery of torch.compile alone takes a second or more to import."""
    words = ["model.num_layers=1", "samples=200", "epochs=1", "facts=none", "eval=[loss]", f"hydra.run.dir={tmp_path}"]
    done = subprocess.run([sys.executable, "-c", RUN, *words], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
