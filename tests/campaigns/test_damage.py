"""The campaign of damaged files, as a test: `pytest -m slow tests/campaigns/test_damage.py`."""

import random
from pathlib import Path

import pytest

from tests.campaigns.damage import Campaign


@pytest.mark.slow
def test_no_damage_gives_silent_wrong_numbers_tracebacks_or_hangs(tmp_path: Path) -> None:
    import newllm.run.execute
    import newllm.two_phase.fixed_point  # noqa: F401 (before the forks)

    campaign = Campaign(tmp_path)
    cases = list(campaign.cases())
    random.Random(0).shuffle(cases)
    faults = [(case, fault) for case in cases[:1000] if (fault := campaign.fault(case))]
    assert not faults
