"""`python -m newllm.frequencies`."""

from newllm.frequencies import main

raise SystemExit(main())
