"""Encodings that add to the scores: their formulas, what they have in common, and the paths that serve them."""

import pytest
import torch

import newllm
from newllm.attention import kernels
from newllm.position import Cope, Fire, KerpleLog, KerplePower, PositionEncoding
from newllm.position.alibi import geometric_slopes
from newllm.position.bias import LinearBias, MatrixBias, ScoreBias, add
from newllm.position.t5 import T5, buckets

HEADS, T, D, SCALE = 4, 60, 8, 8**-0.5
SIZES = {"heads": HEADS, "num_layers": 1}


def filled(encoding: PositionEncoding, std: float = 0.5) -> PositionEncoding:
    """The encoding with first values of its own, where it has none at random, in fp64."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in encoding.named_parameters():
        value = encoding.initial(name, parameter.shape, generator)
        if value is None or not value.any():
            value = torch.randn(parameter.shape, generator=generator) * std
        parameter.data.copy_(value)
    return encoding.double()


def matrix(encoding: PositionEncoding, length: int = T) -> torch.Tensor:
    """The bias [heads or 1, T, T] over the causal half, 0 elsewhere."""
    bias, j = encoding.bias(), torch.arange(length)
    assert isinstance(bias, LinearBias | MatrixBias)
    return bias.matrix(j, j).tril()


def inputs(length: int = T, key_heads: int = HEADS, keys: int | None = None) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = [(2, HEADS, length, D)] + [(2, key_heads, keys or length, D)] * 2
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (8, 20), (2, 5), (64, 1000)])
def test_buckets_are_those_of_t5(num_buckets, max_distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(3000)
    theirs = T5Attention._relative_position_bucket(-distance, False, num_buckets, max_distance)
    assert torch.equal(buckets(distance, num_buckets, max_distance), theirs)


def test_t5_looks_up_the_bucket_of_the_distance():
    t5 = filled(T5(8, 20, **SIZES))
    actual = matrix(t5)
    for i, j in ((0, 0), (5, 4), (40, 33), (59, 0)):
        assert torch.equal(actual[:, i, j], t5.table[buckets(torch.tensor(i - j), 8, 20)])


def test_kerple_formulas():
    p, a = [0.5, 1.0, 1.5, 2.0], [0.1, 0.2, 0.3, 0.4]
    logarithmic, power = (matrix(filled(kind(p, a, **SIZES))) for kind in (KerpleLog, KerplePower))
    for head in range(HEADS):
        for i, j in ((7, 7), (20, 3), (59, 0)):
            distance = torch.tensor(float(i - j), dtype=torch.float64)
            torch.testing.assert_close(
                logarithmic[head, i, j], -p[head] * torch.log(1 + a[head] * distance), atol=1e-6, rtol=1e-6
            )
            torch.testing.assert_close(power[head, i, j], -a[head] * distance ** p[head], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_kerple_power_with_p_1_is_alibi(small_model):
    """Outputs of whole models, equal in all other weights."""
    ids = torch.arange(60)[None] % 50
    slopes = "[0.5,0.25,0.125,0.0625]"
    kerple = small_model("kerple_power", "mha", "pos_encoding.p=1", f"pos_encoding.a={slopes}")
    alibi = small_model("alibi", "mha", f"slope={slopes}")
    torch.testing.assert_close(kerple(ids), alibi(ids), atol=1e-5, rtol=1e-5)


def test_kerple_draws_from_its_domain_and_stays_in_it(small_model):
    model = small_model("kerple_power", "mha", "model.hidden_size=640", "model.heads=320", "model.num_layers=1")
    p, a = model.position.p, model.position.a
    assert 0.01 <= p.min() < 0.1 < 1.9 < p.max() <= 2
    assert 0.01 <= a.min() < 0.1 < 0.9 < a.max() <= 1
    p.data.uniform_(-3, 5)
    a.data.uniform_(-3, 5)
    inside = ((p > 0.01) & (p < 2)).detach()
    before = p.detach().clone()
    model(torch.arange(8)[None]).sum().backward()
    assert p.min() == a.min() == torch.tensor(0.01)
    assert p.max() == 2
    assert torch.equal(p[inside], before[inside])
    assert (p.grad != 0).all()  # what was put back to the border can leave it


def test_fire_can_represent_alibi():
    """With c near 0 the logarithms are linear, below the threshold: one hidden unit gives any slope."""
    fire = Fire(threshold=64, **SIZES)
    slopes = torch.tensor(geometric_slopes(HEADS))
    for parameter in fire.parameters():
        parameter.data.zero_()
    fire.c.data.fill_(1e-9)
    fire.factor.data.fill_(1)
    fire.weight1.data[0] = 1
    normalizer = torch.log1p(torch.tensor(64e-9)) + 1e-6
    fire.weight2.data[:, 0] = -slopes * normalizer / 1e-9
    expected = LinearBias(slopes).matrix(torch.arange(T), torch.arange(T)).tril()
    torch.testing.assert_close(matrix(fire), expected, atol=1e-5, rtol=1e-5)


def test_fire_interpolates_beyond_its_threshold():
    """The formula, entry by entry; a distance's bias is one below the threshold, and depends on the query beyond it."""
    fire = filled(Fire(threshold=20, **SIZES))
    actual = matrix(fire)
    for i, j in ((3, 3), (15, 2), (40, 12), (59, 0)):
        share = torch.log(0.1 * torch.tensor(i - j).double() + 1) / (
            torch.log(torch.tensor(0.1 * max(20, i) + 1)) + 1e-6
        )
        hidden = (fire.weight1[:, 0] * share + fire.bias1).relu()
        torch.testing.assert_close(actual[:, i, j], fire.weight2 @ hidden + fire.bias2, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(actual[:, 12, 2], actual[:, 19, 9])
    assert (actual[:, 59, 49] - actual[:, 12, 2]).abs().max() > 1e-3


def test_alibi_per_head_has_the_published_slopes(small_model):
    model = small_model("alibi_per_head", "mha")
    assert model.position.slopes.tolist() == geometric_slopes(4) == [2**-2, 2**-4, 2**-6, 2**-8]


# --- what all have in common ------------------------------------------------------------------------------------------

LEARNED = {
    "t5": lambda: T5(8, 20, **SIZES),
    "kerple_log": lambda: KerpleLog(**SIZES),
    "kerple_power": lambda: KerplePower(**SIZES),
    "fire": lambda: Fire(8, threshold=30, **SIZES),
}


@pytest.mark.parametrize("name", LEARNED)
def test_the_future_has_no_effect_on_a_gradient(name):
    """Keys after a query have finite biases and give the parameters nothing that could become NaN."""
    encoding = filled(LEARNED[name]())
    bias, j = encoding.bias(), torch.arange(20)
    values = bias.matrix(j[:5], j)
    assert values.isfinite().all()
    for gradient in torch.autograd.grad(values.sum(), bias.tensors):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LEARNED)
def test_blocks_give_the_gradients_of_the_whole_matrix(name):
    encoding = filled(LEARNED[name]())
    results = {}
    for kernel in ("plain", "blocked"):
        q, k, v = inputs(300, 2)
        out = kernels.attend(q, k, v, encoding.bias(), SCALE, kernel)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
        results[kernel] = [out, *torch.autograd.grad((out * weight).sum(), (q, k, v, *encoding.parameters()))]
    for ours, theirs in zip(results["blocked"], results["plain"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("name", ["t5", "kerple_log", "kerple_power", "fire", "cope", "alibi_per_head"])
@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_any_length_has_a_value_and_parameters_count_once(small_model, name, attention):
    model = small_model(name, attention, "seq_len=16")
    names = [parameter for parameter, _ in model.named_parameters() if parameter.startswith("position.")]
    expected = {"t5": 1, "kerple_log": 2, "kerple_power": 2, "fire": 6, "cope": 1, "alibi_per_head": 0}
    assert len(names) == expected[name]
    assert model.position.limit is None
    assert model(torch.arange(400)[None] % 100).isfinite().all()


def test_absolute_positions_say_where_they_end(small_model):
    assert small_model("learned", "mha", "seq_len=16").position.limit == 16
    assert small_model("sinusoidal", "mha", "seq_len=16").position.limit is None


def test_a_compiler_does_not_look_into_the_blocks():
    """It would make a graph of every tile, and take minutes; the graph is cut in two around them."""
    import newllm.attention.blocked_operator  # noqa: F401 (as whoever compiles does)

    encoding, (q, k, v), sizes = filled(KerpleLog(**SIZES)), inputs(600), []

    def backend(graph, _):
        sizes.append(len(graph.graph.nodes))
        return graph.forward

    def attention(q):
        return kernels.attend(2 * q, k, v, encoding.bias(), SCALE) + 1

    out = torch.compile(attention, backend=backend)(q)
    torch.testing.assert_close(out, attention(q))
    assert 0 < sum(sizes) < 40


# --- CoPE -------------------------------------------------------------------------------------------------------------


def cope(npos_max: int = 6) -> Cope:
    return filled(Cope(npos_max, query_dim=D, seq_len=T, num_layers=1))


def cope_by_hand(q, k, v, table) -> torch.Tensor:
    """The formula with a loop over queries and keys."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    before = k.shape[2] - q.shape[2]
    rows = []
    for i in range(q.shape[2]):
        last = before + i
        scores = (q[:, :, i, None] * k[:, :, : last + 1]).sum(-1) * SCALE  # [B, H, i + 1]
        gates, columns = scores.sigmoid(), []
        for j in range(last + 1):
            p = gates[..., j:].sum(-1).clamp(max=len(table) - 1)  # [B, H]
            low, high = table[p.floor().long()], table[p.ceil().long()]  # [B, H, D]
            e = low + (p - p.floor())[..., None] * (high - low)
            columns.append(scores[..., j] + (q[:, :, i] * e).sum(-1) * SCALE)
        rows.append((torch.stack(columns, -1).softmax(-1)[..., None] * v[:, :, : last + 1]).sum(2))
    return torch.stack(rows, dim=2)


@pytest.mark.parametrize("kernel", ["plain", "blocked", "auto"])
@pytest.mark.parametrize("key_heads", [HEADS, 2, 1])
def test_cope_is_its_formula(monkeypatch, kernel, key_heads):
    """Outputs and gradients of queries, keys, values and table, also where tiles are small."""
    from newllm.attention import blocked

    monkeypatch.setattr(blocked, "_MAX_TILE", {"cpu": 8 * 16 * 24})
    encoding, (q, k, v) = cope(), inputs(24, key_heads)
    expected = cope_by_hand(q, k, v, encoding.table)
    out = kernels.attend(q, k, v, encoding.bias(), SCALE, kernel)
    torch.testing.assert_close(out, expected, atol=1e-10, rtol=1e-10)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    actual, reference = (torch.autograd.grad((x * weight).sum(), (q, k, v, encoding.table)) for x in (out, expected))
    for ours, theirs in zip(actual, reference, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("attention", ["mha", "mla"])
def test_cope_reads_whole_queries_when_heads_have_a_width_of_their_own(attention):
    sizes = ["model.hidden_size=32", "model.heads=4", "model.head_dim=16", "model.num_layers=1", "model.vocab_size=64"]
    model = newllm.build_model(newllm.compose(["pos_encoding=cope", f"attention={attention}", *sizes])).double()
    table = filled(model.position).table
    assert table.shape[1] == 16
    (gradient,) = torch.autograd.grad(model(torch.arange(24)[None] % 7).square().sum(), table)
    assert (gradient.abs().sum(0) > 0).all()


def test_cope_with_a_table_in_each_layer():
    sizes = {"query_dim": D, "seq_len": T, "num_layers": 4}
    encoding, (q, k, v) = filled(Cope(6, shared=False, layers=[1, 3], **sizes)), inputs(24)
    assert [name for name, _ in encoding.named_parameters()] == ["table1", "table3"]
    assert encoding.at_layer(0) is None
    for layer in (1, 3):
        out = kernels.attend(q, k, v, encoding.at_layer(layer).bias(), SCALE)
        torch.testing.assert_close(out, cope_by_hand(q, k, v, getattr(encoding, f"table{layer}")))


def test_cope_passes_a_numerical_gradient_check():
    encoding, given = cope(4), [x[:1, :2].detach().requires_grad_() for x in inputs(4)]
    leaves = (*given, encoding.table)  # perturbed in place

    def attention(q, k, v, table):
        return kernels.attend(q, k, v, encoding.bias(), SCALE, "blocked")

    assert torch.autograd.gradcheck(attention, leaves)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 7])
def test_cope_over_a_cache(monkeypatch, queries):
    """Queries behind a past, one and several, in storage longer than the tokens and with something left over there."""
    monkeypatch.setattr(kernels, "_CACHED_SCORES", 3 * 2 * 2 * 49)
    encoding, (q, k, v) = cope(), inputs(queries, 2, keys=49)
    expected = cope_by_hand(q, k[:, :, :40], v[:, :, :40], encoding.table)
    torch.testing.assert_close(
        kernels.attend_cached(q, k, v, 40, encoding.bias(), SCALE), expected, atol=1e-10, rtol=1e-10
    )


@pytest.mark.parametrize("kernel", ["plain", "blocked"])
def test_cope_beside_other_biases(kernel):
    """A sum adds what needs the scores to what needs positions alone; and two that read the scores."""
    encoding, (q, k, v) = cope(), inputs()
    slopes, t5 = LinearBias(torch.tensor([0.5, 0.25, 0.1, 0.0])), filled(T5(8, 20, **SIZES))

    def attend(*biases):
        total = None
        for bias in biases:
            total = add(total, bias)
        return kernels.attend(q, k, v, total, SCALE, kernel), total

    alone = encoding.bias()

    def both(q, scores, i, j):  # the sum written out, for all heads at once
        return 2 * alone.read(q, scores, i, j) + slopes.matrix(i, j) + t5.bias().matrix(i, j)

    out, total = attend(slopes, alone, t5.bias(), alone)
    assert isinstance(total, ScoreBias)
    expected = kernels.attend(q, k, v, ScoreBias(both, (encoding.table, t5.table)), SCALE, "plain")
    torch.testing.assert_close(out, expected, atol=1e-7, rtol=1e-7)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out).sin()
    leaves = (q, k, v, encoding.table, t5.table)
    actual, reference = (torch.autograd.grad((x * weight).sum(), leaves) for x in (out, expected))
    for ours, theirs in zip(actual, reference, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)


def test_a_bias_that_treats_rows_apart_is_given_all_of_them(monkeypatch):
    """As in packed runs; tiles that a bias of one kind for all rows would have are cut there."""
    from newllm.attention import blocked

    monkeypatch.setattr(blocked, "_MAX_TILE", {"cpu": 8 * 16 * 60})
    one, other, (q, k, v) = cope(), cope(9), inputs()

    def read(q, *given):
        scores, *positions = given
        parts = zip((one, other), q.split(1), scores.split(1), strict=True)
        return torch.cat([encoding._read(*part, *positions) for encoding, *part in parts])

    out = kernels.attend(q, k, v, ScoreBias(read, (one.table, other.table), whole_batch=True), SCALE, "blocked")
    for row, encoding in enumerate((one, other)):
        alone = kernels.attend(*(x[row : row + 1] for x in (q, k, v)), encoding.bias(), SCALE, "plain")
        torch.testing.assert_close(out[row : row + 1], alone, atol=1e-10, rtol=1e-10)
