"""`python -m newllm VERB …`, the same as `newllm VERB …`."""

from newllm.cli import main

raise SystemExit(main())
