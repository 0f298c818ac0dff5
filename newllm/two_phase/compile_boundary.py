"""The scan of a recurrence for torch.compile, which would unroll it step by step: here the graph is cut in two."""

import torch

from newllm.two_phase import recurrence

scan = torch.compiler.disable(recurrence.scan)
