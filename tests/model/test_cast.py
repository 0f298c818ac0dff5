"""Weights cast once are the weights that autocast casts at every use."""

import pytest
import torch

from newllm.model.cast import cast_products


@torch.inference_mode()
@pytest.mark.parametrize("choice", [("rope", "mha"), ("rope", "mla"), ("alibi", "mla"), ("learned", "mha")])
@pytest.mark.parametrize("tied", ["false", "true"])
def test_numbers_are_those_of_autocast_to_the_last_bit(small_model, choice, tied):
    model = small_model(*choice, f"model.tied={tied}")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    cast = cast_products(model, torch.bfloat16)
    ids = torch.randint(128, (2, 30), generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        here, there = model.new_cache(2), cast.new_cache(2)
        for piece in ids.split([25, 1, 4], dim=1):
            assert torch.equal(cast(piece, there), model(piece, here))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_only_the_matrices_are_copied(small_model):
    model = small_model("rope", "mha")
    cast = cast_products(model, torch.bfloat16)
    assert cast.head_weight.dtype == torch.bfloat16
    assert cast.blocks[0].attention.qkv.weight.dtype == torch.bfloat16
    assert cast.embed.weight is model.embed.weight
    assert cast.final_norm.weight is model.final_norm.weight
