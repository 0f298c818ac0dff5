"""`python -m newllm.bench`."""

from newllm.bench import main

raise SystemExit(main())
