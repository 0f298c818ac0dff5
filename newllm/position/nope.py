"""No position encoding."""

from newllm.position.encoding import PositionEncoding


class NoPE(PositionEncoding):
    """No encoding: the model learns order only from the causal mask (Kazemnejad et al. 2023, arXiv 2305.19466).

    Kernel: plain causal attention.
    """

    def __init__(self, *, num_layers: int):
        super().__init__(num_layers=num_layers)
