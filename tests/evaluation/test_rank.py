from dataclasses import replace

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from newllm.evaluation.rank import EffectiveRank, hidden_states
from newllm.model import build_model
from tests.support.evaluation_subject import LENGTH


def test_layers_against_their_own_forward_pass(subject):
    positions = 5 * LENGTH
    states = hidden_states(subject, positions)
    inputs, _ = subject.data.val.batch(np.arange(5))
    with torch.no_grad():
        x = subject.model.embed(inputs)
        for layer, block in enumerate(subject.model.blocks):
            x = block(x, torch.arange(LENGTH))
            torch.testing.assert_close(states[str(layer)], x.flatten(0, 1), atol=1e-5, rtol=1e-5)
    final = subject.model.final_norm(x).flatten(0, 1)
    sigma = np.linalg.svd(final.detach().double().numpy(), compute_uv=False)
    share = sigma / sigma.sum()
    findings = EffectiveRank(positions=positions)(subject)
    assert findings.metrics["rank/effective_rank"] == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-5)
    assert findings.metrics["rank/share"] == pytest.approx(findings.metrics["rank/effective_rank"] / 64)
    assert not any(block._forward_hooks for block in subject.model.blocks)


def test_the_number_of_positions_is_shown_with_a_warning_if_too_few(subject):
    assert "biased down" in EffectiveRank(positions=200)(subject).body[-1]
    full = EffectiveRank()(subject).body
    assert "1,024 positions" in full[1]
    assert len(full) == 2


def test_ranks_compare_at_as_many_positions_per_dimension_and_not_if_a_text_is_too_short_for_that(subject):
    def scored(width: int) -> str:
        config = OmegaConf.merge(subject.config, {"model": {"hidden_size": width}})
        return EffectiveRank()(replace(subject, model=build_model(config, tokens=257))).scored["rank"]

    assert scored(32) == scored(64)
    assert scored(64) != scored(256)  # of 2,944 positions instead of 4,096
