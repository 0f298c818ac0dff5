"""model.width_base: the factors of µP's table for Adam, and their purpose: activations that do not grow with width."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from newllm import conformance
from newllm.model import Transformer
from newllm.training.muon import Muon
from newllm.training.optimizer import AdamW
from newllm.training.step import Step

SPREAD = 0.125  # init_std: 1 / sqrt(64), so that a matrix of the base width keeps the size of its input


@pytest.fixture
def model_of(small_model: Callable) -> Callable[..., Transformer]:
    def build(width: int, base: int | None) -> Transformer:
        sizes = [f"model.hidden_size={width}", f"model.heads={width // 16}", f"model.mlp_size={width * 3 // 2}"]
        return small_model("rope", "mha", *sizes, f"model.init_std={SPREAD}", f"model.width_base={base or 'null'}")

    return build


def test_at_the_base_width_nothing_changes(model_of: Callable[..., Transformer]) -> None:
    ids = conformance.token_ids()
    assert torch.equal(model_of(64, 64)(ids), model_of(64, None)(ids))


@pytest.mark.parametrize(("options", "factor"), [(AdamW, 1 / 4), (Muon, 1 / 2)])
def test_factors_at_four_times_the_base_width(
    model_of: Callable[..., Transformer], options: type[AdamW], factor: float
) -> None:
    scaled, plain = model_of(256, 64), model_of(256, None)
    for name, parameter in scaled.named_parameters():
        hidden = name.startswith("blocks.") and parameter.dim() == 2
        assert torch.equal(parameter * (2 if hidden else 1), plain.get_parameter(name))
    groups = options(lr=1e-3, betas=[0.9, 0.95]).optimizer(scaled).param_groups
    factors = {id(p): group["rate_factor"] for group in groups for p in group["params"]}
    for name, parameter in scaled.named_parameters():
        assert factors[id(parameter)] == (factor if name.startswith("blocks.") and parameter.dim() == 2 else 1)
    plain.load_state_dict(scaled.state_dict())
    ids = conformance.token_ids()
    torch.testing.assert_close(scaled(ids), plain(ids) / 4)


@pytest.mark.parametrize("options", [AdamW, Muon])
def test_three_steps_move_wide_models_no_more_than_narrow_ones(
    model_of: Callable[..., Transformer], options: type[AdamW]
) -> None:
    """The coordinate check of Yang et al. 2022 (figure 5) on 256 bytes of text: root mean square of the change."""
    ids = torch.tensor(list(Path(conformance.__file__).read_bytes()[:256])).view(4, 64) % conformance.VOCABULARY

    def change(width: int, base: int | None) -> float:
        model = model_of(width, base).train()
        states: list[torch.Tensor] = []
        model.blocks[-1].register_forward_hook(lambda module, inputs, output: states.append(output.detach()))
        step = Step(model, options(lr=1e-2, betas=[0.9, 0.95]), torch.device("cpu"), "fp32")
        for _ in range(4):
            step([(ids, ids)], 1e-2)
        return (states[-1] - states[0]).square().mean().sqrt().item()

    changes = [change(width, 64) for width in ((64, 128, 256) if options is AdamW else (64, 256))]
    assert max(changes) < 1.2 * changes[0]
    assert change(256, None) > 3 * changes[0]
