"""Rotary position embedding without its lowest frequencies."""

from newllm.errors import ConfigError
from newllm.position.frequencies import geometric, proportional
from newllm.position.rotary import Layout, Rotary, Scaling


class PRope(Rotary):
    """p-RoPE: RoPE whose lowest frequencies are 0 (Barbero et al. 2024, "Round and Round We Go!", arXiv 2410.06205).

    ``w_k = theta ** (-2k / d)`` for the first ``int(fraction * d / 2)`` of the d/2 pairs, 0 for the others, which
    thereby say what they say whatever the distance. fraction: 1 is RoPE, 0 is NoPE; the paper's best is 0.75.

    rotary_pct is another thing: there the narrower rotary part has the whole spectrum, lowest frequencies
    included (the exponent is over its own width); here the pairs that turn are those of the full spectrum, and the slow
    end of it is cut off. It is what transformers calls the "proportional" RoPE of Gemma 4.
    Cost: O(T d) per head. Kernel: plain causal attention. On MLA d is the decoupled key's width (`rope_dim`).
    """

    def __init__(
        self,
        theta: float = 10000.0,
        fraction: float = 0.75,
        layout: Layout = "half",
        layers: str | list[int] = "all",
        scaling: Scaling = None,
        *,
        head_dim: int,
        num_layers: int,
        seq_len: int,
    ):
        sizes = {"head_dim": head_dim, "num_layers": num_layers, "seq_len": seq_len}
        super().__init__(
            lambda width: proportional(geometric(width, theta), fraction), 1.0, layout, layers, scaling, **sizes
        )
        if fraction and not any(self.trained):
            raise ConfigError(
                f"fraction={fraction:g} leaves none of the {self.width // 2} pairs a frequency; "
                f"type fraction={2 / self.width:g} or more, or fraction=0 if none is meant to turn."
            )
