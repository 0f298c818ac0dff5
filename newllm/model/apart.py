"""The scan of a recurrence for torch.compile, which would unroll it step by step: here the graph is cut in two."""

import torch

from newllm.model import recurrence

scan = torch.compiler.disable(recurrence.scan)
