import pytest

from newllm.evaluation.subject import Subject
from tests.support.evaluation_subject import make_subject


@pytest.fixture
def subject() -> Subject:
    return make_subject()
