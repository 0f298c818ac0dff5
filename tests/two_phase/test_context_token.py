"""The context/token model: published sizes, what each part may see, decoding, refusals."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import newllm
from newllm.errors import ConfigError
from newllm.model.cast import cast_products
from newllm.model.decoder import generate
from newllm.two_phase.context_token import ContextToken

CONF = Path(__file__).parents[2] / "conf" / "model"
GPT2 = 50257

# layers, context_dim, num_input_tokens -> ContextBlock, TokenBlock, trainable, total, as published
PUBLISHED = {
    "6l_768_1tok": (7_091_712, 7_091_712, 7_093_248, 52_782_336),
    "6l_768_2tok": (10_630_656, 21_489_152, 21_490_688, 70_718_720),
    "6l_1152_1tok": (13_291_776, 8_861_184, 8_862_720, 60_751_872),
    "9l_768_1tok": (10_637_568, 10_637_568, 10_639_104, 59_874_048),
    "3l_1536_2tok": (14_169_600, 12_857_344, 12_858_880, 65_625_856),
}


def small_model(num_input_tokens: int = 2, layers: int = 3, seed: int = 1, **options: float) -> ContextToken:
    return ContextToken(layers, 24, num_input_tokens, 16, tokens=97, seq_len=32, seed=seed, **options)


def ids_of(rows: int, length: int) -> Tensor:
    return torch.randint(97, (rows, length), generator=torch.Generator().manual_seed(0))


def count(module: nn.Module, trainable: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


@pytest.mark.parametrize("shape", PUBLISHED)
def test_published_parameter_counts(shape):
    with torch.device("meta"):
        cfg = newllm.compose([f"model=context_token_{shape}"])
        model = newllm.build_model(cfg, tokens=GPT2)
    context, token, trainable, total = PUBLISHED[shape]
    assert (count(model.context_block), count(model.token_block)) == (context, token)
    assert (count(model, trainable=True), count(model)) == (trainable, total)
    comment = (CONF / f"context_token_{shape}.yaml").read_text().splitlines()[0]
    assert f"{context:,}" in comment
    assert f"{token:,}" in comment or context == token


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("context_token*.yaml")))
def test_the_model_chooses_for_the_other_groups(name):
    choices = newllm.compose([f"model={name}"]).choices
    chosen = {group: choices[group] for group in ("pos_encoding", "attention", "facts", "objective", "optim")}
    assert chosen == dict.fromkeys(("pos_encoding", "attention", "facts"), "none") | {
        "objective": "mcdl", "optim": "adam",
    }  # fmt: skip
    assert (choices["phase1"], choices["embeddings"]) == ("published", "corpus")
    assert choices["eval"] == ["loss", "accuracy", "effective_rank", "trigram"]


def test_widths_shrink_evenly_and_only_a_changed_width_is_projected():
    blocks = small_model(num_input_tokens=3, layers=4).token_block.blocks
    assert [block.norm.normalized_shape[0] for block in blocks] == [40, 32, 24, 16]
    assert all(isinstance(block.shortcut, nn.Linear) for block in blocks)
    assert all(isinstance(block.shortcut, nn.Identity) for block in small_model(num_input_tokens=1).token_block.blocks)


def test_initial_weights():
    model = ContextToken(2, 256, 1, 256, tokens=2000, seq_len=8, seed=1)
    again = ContextToken(2, 256, 1, 256, tokens=2000, seq_len=8, seed=1)
    other = ContextToken(2, 256, 1, 256, tokens=2000, seq_len=8, seed=2)
    for name, p in model.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
        if "norm" in name:
            assert (p == float(name.endswith("weight"))).all()
        else:
            assert p.std().item() == pytest.approx(0.01 if name.endswith("bias") else 0.1, rel=0.15)
            assert not torch.equal(p, other.get_parameter(name))


def test_frozen_parts_and_names():
    model = small_model()
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"token_block", "embed_norm"}
    assert {name.split(".")[0] for name in model.state_dict()} == {*trained, "embed", "context_block"}
    assert model.head_weight is model.embed.weight


def test_windows_hold_the_last_tokens_and_zeros_before_the_start():
    model, ids = small_model(num_input_tokens=3), ids_of(2, 5)
    e = model.embed_norm(model.embed(ids))  # [2, 5, 16]
    windows = model.recurrent_inputs(ids)
    assert windows.shape == (2, 5, 48)
    assert not windows[:, 0, :32].any()
    assert not windows[:, 1, :16].any()
    assert torch.equal(windows[:, 3], torch.cat((e[:, 1], e[:, 2], e[:, 3]), dim=-1))
    assert torch.equal(model.recurrent_inputs(ids[:, 3:], before=ids[:, 1:3]), windows[:, 3:])
    assert torch.equal(model.recurrent_inputs(ids[:, 1:], before=ids[:, :1]), windows[:, 1:])
    assert torch.equal(model.recurrent_inputs(ids[0]), windows[0])


@torch.no_grad()
def test_states_by_the_formulas():
    """hidden() against the definition, layer by layer and token by token, with whole matrices [W_c, W_u]."""
    model, ids = small_model(), ids_of(1, 6)
    context, previous = torch.zeros(24), torch.zeros(16)
    for t in range(6):
        e = model.embed_norm(model.embed(ids[0, t]))
        window, h = torch.cat((previous, e)), torch.cat((previous, e))
        previous = e
        for layer, reader in zip(model.context_block.blocks, model.token_block.blocks, strict=True):
            w = torch.cat((layer.of_context.weight, layer.of_inputs.weight), dim=1)
            context = layer.norm(context + torch.relu(w @ torch.cat((context, window)) + layer.of_inputs.bias))
            added = torch.relu(reader.linear.weight @ torch.cat((context, h)) + reader.linear.bias)
            h = reader.norm(reader.shortcut(h) + added)
        torch.testing.assert_close(model.hidden(ids)[0, t], h, atol=2e-6, rtol=1e-5)
    assert torch.equal(model(ids), model.hidden(ids) @ model.embed.weight.T)


@torch.no_grad()
@pytest.mark.parametrize("num_input_tokens", [1, 3])
def test_nothing_sees_the_future(num_input_tokens):
    model, ids = small_model(num_input_tokens), ids_of(2, 20)
    before = model.hidden(ids)
    for t in (1, 10, 19):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 97
        after = model.hidden(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] - before[:, t:]).abs().amax(dim=-1).min() > 1e-4  # it remembers the past


@torch.no_grad()
def test_the_token_block_reads_no_other_token():
    model = small_model()
    contexts, windows = torch.randn(1, 8, 3, 24), torch.randn(1, 8, 32)
    states = model.read(contexts, windows)
    contexts[:, 5] += 1
    windows[:, 5] += 1
    others = [t for t in range(8) if t != 5]
    assert torch.equal(model.read(contexts, windows)[:, others], states[:, others])


@torch.no_grad()
@pytest.mark.parametrize("num_input_tokens", [1, 4])
def test_decoding_in_pieces_equals_one_pass(num_input_tokens, monkeypatch):
    model, ids = small_model(num_input_tokens).double(), ids_of(2, 30)
    expected = model(ids)
    for pieces in ([30], [1] * 30, [5, 20, 1, 4]):
        cache = model.new_cache(2, 30)
        found = torch.cat([model(piece, cache=cache) for piece in ids.split(pieces, dim=1)], dim=1)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        assert cache.length == 30
    monkeypatch.setattr("newllm.two_phase.context_token._PIECE", 14)  # 7 tokens of either row at a time
    torch.testing.assert_close(model(ids), expected, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_the_cache_keeps_its_size_and_can_be_copied():
    model, ids = small_model(3), ids_of(2, 10)
    cache = model.new_cache(2, 10)
    model.hidden(ids[:, :6], cache)
    size = cache.nbytes
    copy = cache.select(torch.tensor([1, 1, 0]), 10)
    states = model.hidden(ids[[1, 1, 0], 6:], copy)
    torch.testing.assert_close(states, model.hidden(ids[[1, 1, 0]])[:, 6:], atol=2e-6, rtol=1e-5)
    assert cache.length == 6  # the copy left it unchanged
    model.hidden(ids[:, 6:], cache)
    assert cache.nbytes == size == 2 * (24 * 4 + 2 * 8)
    assert cache.bytes_per_token == size / 10
    with pytest.raises(ConfigError, match="capacity=11"):
        model.hidden(ids[:, :1], cache)


@torch.inference_mode()
def test_weights_cast_once_are_those_of_autocast():
    model, ids = small_model(), ids_of(2, 12)
    cast = cast_products(model, torch.bfloat16)
    assert cast.embed.weight is model.embed.weight
    assert cast.context_block.blocks[0].of_context.weight.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cache, cast_cache = model.new_cache(2), cast.new_cache(2)
        for piece in ids.split([9, 1, 2], dim=1):
            assert torch.equal(cast(piece, cast_cache), model(piece, cache))


def test_generation_follows_the_greedy_path():
    model, prompt = small_model(), ids_of(1, 5)[0].tolist()
    ids = list(prompt)
    for _ in range(4):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(generate(model, prompt, 4)) == ids[5:]


@pytest.mark.parametrize(
    "option",
    ["layers=0", "num_input_tokens=0", "context_dim=-4", "embed_dim=0", "init_std=-1", "bias_std=-1", "vocab_size=100"],
)
def test_refusals(option):
    with pytest.raises(ConfigError, match=f"model.{option.partition('=')[0]}"), torch.device("meta"):
        newllm.build_model(newllm.compose(["model=context_token_tiny", f"model.{option}"]), tokens=300)
