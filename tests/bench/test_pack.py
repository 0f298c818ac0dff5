"""The bench of packed runs, as small as it can be."""

from newllm.bench.pack import measure
from tests.support.packs import SMALL


def test_each_shape_has_a_row_and_each_size_a_ratio() -> None:
    result = measure(SMALL, packs=(2, 3), batches=(2,), lengths=(16, 32), rounds=1, steps=1)
    (title, columns, rows) = result.tables[0]
    assert "fp32, cpu, 1 thread" in title
    assert columns == ["batch x tokens", "ms of a step alone", "packs of 2", "packs of 3"]
    assert [row[0] for row in rows] == ["2 x 16", "2 x 32"]
    for size in (2, 3):
        (alone,), (packed,) = result.metrics["seconds/pack1/2x16"], result.metrics[f"seconds/pack{size}/2x16"]
        assert result.metrics[f"ratio/pack{size}/2x16"] == alone / packed
