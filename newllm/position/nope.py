"""No position encoding."""

from newllm.position.encoding import PositionEncoding


class NoPE(PositionEncoding):
    """Nothing at all: order reaches the model through the causal mask alone (Kazemnejad et al. 2023, arXiv 2305.19466).

    Kernel: plain causal attention.
    """

    def __init__(self, *, num_layers: int):
        super().__init__(num_layers=num_layers)
