"""The bench of the context/token model, end to end on small shapes."""

import pytest

from newllm.bench import measure
from newllm.errors import ConfigError

SMALL = ["model.embed_dim=16", "data.vocab_size=512", "samples=60", "seq_len=32", "tokens=700"]


def test_all_contestants_compute_the_same_contexts_and_iterations_are_timed() -> None:
    words = ["shapes=2x24x1,1x32x2", "iterations=3", "rounds=1", "loop_tokens=350", "phase1.batch_tokens=300"]
    result = measure("context", [*SMALL, *words])
    metrics = result.metrics
    for shape in ("2x24x1", "1x32x2"):
        assert (
            max(metrics[f"difference/{shape}/{name}"] for name in ("newllm", "ahead")) < 1e-3
        )  # contexts are of size 1
        (newllm_seconds,) = metrics[f"seconds/{shape}/newllm"]
        for other in ("loop", "ahead"):
            (loop_seconds,) = metrics[f"seconds/{shape}/{other}"]  # for half of the text
            assert metrics[f"ratio/{shape}/{other}"] == pytest.approx(2 * loop_seconds / newllm_seconds)
            assert metrics[f"tokens_per_second/{shape}/{other}"] == pytest.approx(350 / loop_seconds)
        assert metrics[f"tokens_per_second/{shape}/newllm"] == pytest.approx(700 / newllm_seconds)
        assert len(metrics[f"seconds/{shape}/iteration"]) == 2
        assert metrics[f"phase1/{shape}/bound"] < metrics[f"phase1/{shape}/loss"] < 1
    assert [len(rows) for _, _, rows in result.tables] == [2 * 3, 2]
    assert "repeated" not in " ".join(result.notes)


@pytest.mark.parametrize("word", ["shapes=2x24", "shapes=2x24x1,0x2x1", "iterations=1"])
def test_wrong_sizes_are_refused(word: str) -> None:
    with pytest.raises(ConfigError, match=word.partition("=")[0]):
        measure("context", [*SMALL, word])
