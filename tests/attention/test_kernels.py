"""Every path of kernels.py computes the same attention, and the fused ones build no T x T mask for a linear bias."""

import pytest
import torch
import torch.nn.functional as F

from newllm.attention import kernels
from newllm.position.alibi import geometric_slopes
from newllm.position.bias import LinearBias, MatrixBias, add
from newllm.training.memory import peak_bytes

HEADS, WIDTH = 4, 16


def inputs(
    length: int = 300, key_heads: int = HEADS, value_width: int = WIDTH, dtype=torch.float32, keys: int | None = None
):
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (2, HEADS, length, WIDTH),
        (2, key_heads, keys or length, WIDTH),
        (2, key_heads, keys or length, value_width),
    ]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def by_hand(q, k, v, bias: LinearBias | None, scale: float) -> torch.Tensor:
    """The formula, head by head, -m (i - j) written out."""
    out = torch.empty(*q.shape[:3], v.shape[-1])
    offset = k.shape[2] - q.shape[2]
    i, j = torch.arange(q.shape[2])[:, None] + offset, torch.arange(k.shape[2])[None, :]
    for h in range(q.shape[1]):
        key_head = h * k.shape[1] // q.shape[1]
        scores = q[:, h].float() @ k[:, key_head].float().transpose(1, 2) * scale
        if bias is not None:
            scores = scores - bias.slopes.expand(HEADS)[h] * (i - j)
        out[:, h] = scores.masked_fill(j > i, float("-inf")).softmax(-1) @ v[:, key_head].float()
    return out


SLOPES = {
    "uniform": LinearBias(torch.tensor([1 / 16])),
    "per head": LinearBias(torch.tensor(geometric_slopes(HEADS))),
    "not a bf16 number": LinearBias(torch.tensor([1 / 3])),
}


@pytest.mark.parametrize("kernel", ["auto", "row", "digits", "blocked", "plain"])
@pytest.mark.parametrize("slopes", SLOPES)
@pytest.mark.parametrize(("key_heads", "value_width"), [(HEADS, WIDTH), (1, WIDTH), (2, 8), (HEADS, 24)])
def test_linear_bias_on_every_path(kernel, slopes, key_heads, value_width):
    """Outputs and gradients equal to the formula, also for grouped keys and for values of another width."""
    q, k, v = inputs(key_heads=key_heads, value_width=value_width)
    expected = by_hand(q, k, v, SLOPES[slopes], 0.25)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
    expected_gradients = torch.autograd.grad((expected * weight).sum(), (q, k, v))
    out = kernels.attend(q, k, v, SLOPES[slopes], 0.25, kernel)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    gradients = torch.autograd.grad((out * weight).sum(), (q, k, v))
    for gradient, reference in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kernel", ["row", "digits", "blocked", "plain"])
def test_matrix_equals_linear_bias(kernel):
    """The sum of a linear and a general bias is general, and equal to the linear one where the other is 0."""
    q, k, v = inputs(80)
    linear = SLOPES["per head"]
    general = add(linear, MatrixBias(lambda i, j: torch.zeros(1, len(i), len(j))))
    assert isinstance(general, MatrixBias)
    expected = kernels.attend(q, k, v, linear, 0.25, kernel)
    torch.testing.assert_close(kernels.attend(q, k, v, general, 0.25), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("key_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("shared", [True, False], ids=["one for all heads", "per head"])
def test_a_learned_bias_gets_its_gradient_block_by_block(key_heads, shared):
    """KERPLE's logarithmic bias: outputs and all gradients equal to those of the whole matrix."""
    q, k, v = inputs(300, key_heads, dtype=torch.float64)
    parameters = [torch.rand(1 if shared else HEADS, 1, 1, dtype=torch.float64).requires_grad_() for _ in range(2)]

    def matrix(i, j):
        a, p = parameters
        return -p * torch.log1p(a * (i[:, None] - j[None, :]).clamp(min=0).double())

    blocked_gradients, reference = [], []
    for kernel, into in (("blocked", blocked_gradients), ("plain", reference)):
        out = kernels.attend(q, k, v, MatrixBias(matrix, tuple(parameters)), 0.25, kernel)
        weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
        into += [out, *torch.autograd.grad((out * weight).sum(), (q, k, v, *parameters))]
    for ours, theirs in zip(blocked_gradients, reference, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("kernel", ["auto", "row", "digits", "blocked", "plain"])
def test_rows_of_a_batch_may_have_slopes_of_their_own(kernel):
    q, k, v = inputs(70)
    slopes = torch.tensor([[0.5, 0.25, 0.125, 0.0625], [0.0, 1.0, 0.5, 0.3]])
    out = kernels.attend(q, k, v, LinearBias(slopes), 0.25, kernel)
    for row in range(2):
        alone = kernels.attend(*(x[row : row + 1] for x in (q, k, v)), LinearBias(slopes[row]), 0.25, "plain")
        torch.testing.assert_close(out[row : row + 1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("queries", [1, 5, 40])
@pytest.mark.parametrize("key_heads", [HEADS, 1])
def test_queries_at_the_end_of_the_keys(queries, key_heads):
    """Decoding: the last `queries` rows of the whole, with and without a bias."""
    q, k, v = inputs(90, key_heads)
    for bias in (None, SLOPES["per head"]):
        full = kernels.attend(q, k, v, bias, 0.25)
        end = kernels.attend(q[:, :, -queries:], k, v, bias, 0.25)
        torch.testing.assert_close(end, full[:, :, -queries:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocked_needs_no_private_function_of_torch(monkeypatch, dtype):
    def gradients() -> tuple[torch.Tensor, ...]:
        q, k, v = inputs(60, dtype=dtype)
        out = kernels.attend(q, k, v, SLOPES["per head"], 0.25, "blocked")
        return torch.autograd.grad(out.float().square().sum(), (q, k, v))

    expected = gradients()
    monkeypatch.delattr(torch, "_softmax_backward_data")
    for ours, theirs in zip(gradients(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@torch.no_grad()
@pytest.mark.parametrize("kernel", ["auto", "row", "digits", "blocked"])
def test_bf16_keeps_the_bias_exact_far_out(kernel):
    """At position 4000 a bias rounded to bf16 is off by 0.5; the fused paths stay within the noise of bf16 products."""
    q, k, v = inputs(4000, dtype=torch.bfloat16)
    exact = by_hand(q[:, :, -256:], k, v, SLOPES["not a bf16 number"], 0.25)
    out = kernels.attend(q, k, v, SLOPES["not a bf16 number"], 0.25, kernel)
    assert out.dtype == torch.bfloat16
    assert (out[:, :, -256:].float() - exact).abs().max() < 0.02


@pytest.mark.parametrize("kernel", ["row", "digits"])
def test_linear_bias_builds_no_square_mask(monkeypatch, kernel):
    masks = []
    original = F.scaled_dot_product_attention

    def spy(q, k, v, attn_mask=None, **options):
        masks.append(attn_mask)
        return original(q, k, v, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    q, k, v = inputs(70)
    kernels.attend(q, k, v, SLOPES["per head"], 0.25, kernel)
    assert len(masks) == 1
    assert masks[0] is None or masks[0].numel() == HEADS * 70


def test_blocked_never_holds_a_square_of_scores():
    """At 4096 tokens and 4 heads all scores take 268 MB; forward and backward stay far below, gradients and all."""
    q, k, v = inputs(4096)
    kernels.attend(q, k, v, SLOPES["per head"], 0.25, "blocked").sum().backward()  # warm

    def step():
        kernels.attend(q, k, v, SLOPES["per head"], 0.25, "blocked").sum().backward()

    assert peak_bytes(step, [q, k, v], torch.device("cpu")) < 60e6


def test_auto_leaves_the_row_mask_where_it_is_refused(monkeypatch):
    """A torch that forbids mask + is_causal, as its documentation has it, gets the digits."""

    def strict(q, k, v, attn_mask=None, is_causal=False, **options):
        if attn_mask is not None and is_causal:
            raise RuntimeError("Explicit attn_mask should not be set when is_causal=True")
        return original(q, k, v, attn_mask=attn_mask, is_causal=is_causal, **options)

    original = F.scaled_dot_product_attention
    q, k, v = inputs(70)
    expected = by_hand(q, k, v, SLOPES["uniform"], 0.25)
    kernels.supports_row_bias.cache_clear()
    monkeypatch.setattr(F, "scaled_dot_product_attention", strict)
    try:
        assert not kernels.supports_row_bias("cpu", q.dtype)
        torch.testing.assert_close(kernels.attend(q, k, v, SLOPES["uniform"], 0.25), expected, atol=1e-5, rtol=1e-5)
    finally:
        kernels.supports_row_bias.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_row_bias_serves_every_dtype_on_cpu(dtype):
    """A mask of another dtype than the kernel expects is misread in silence; the probe must not hide that."""
    assert kernels.supports_row_bias("cpu", dtype)
