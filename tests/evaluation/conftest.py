import pytest
from stand_in import make_subject

from newllm.evaluation.subject import Subject


@pytest.fixture
def subject() -> Subject:
    return make_subject()
