"""Released checkpoints as runs, against transformers. The models are small and random, the tokenizer is a real one."""

import argparse
import inspect
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import newllm
from newllm import cli
from newllm.config import compose, effective, signature
from newllm.data.tokenizer import EOT, train_bpe
from newllm.model.decoder import Decoder

TEXT = "\n\n".join(inspect.getsource(module) for module in (json, shutil, argparse))
VOCABULARY, WIDTH, HEADS, LENGTH = 512, 64, 4, 96
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": LENGTH, "bos_token_id": 0, "eos_token_id": 0}
LAYERS = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": HEADS, "intermediate_size": 96}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 24}
GPT2 = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS}

# Class of transformers, and its configuration.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "pythia": ("GPTNeoX", {**LAYERS, "rotary_pct": 0.25, "rotary_emb_base": 5000}),
    "gpt-neox, one after the other": ("GPTNeoX", {**LAYERS, "use_parallel_residual": False, "hidden_act": "gelu_fast"}),
    "gpt-2": ("GPT2", GPT2),
    "gpt-2, exact gelu": ("GPT2", {**GPT2, "activation_function": "gelu", "n_inner": 80, "tie_word_embeddings": False}),
    "smollm": ("Llama", {**LAYERS, "num_key_value_heads": 2, "tie_word_embeddings": True, "rope_theta": 1e5}),
    "llama 3": (
        "Llama",
        {**LAYERS, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e3, **LLAMA3}},
    ),
    "llama with biases, stretched": (
        "Llama",
        {**LAYERS, "attention_bias": True, "mlp_bias": True, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 24}},
    ),
    "qwen 2": ("Qwen2", {**LAYERS, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen 3": ("Qwen3", {**LAYERS, "num_key_value_heads": 2, "head_dim": 24, "rms_norm_eps": 1e-5}),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level BPE trained on Python's own sources."""
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    backend = train_bpe([TEXT], VOCABULARY).backend
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOT).save_pretrained(folder)
    return folder


Save = Callable[..., torch.nn.Module]


@pytest.fixture
def save(tokenizer: Path) -> Save:
    """save(name of MODELS, folder, **how) -> transformers' model, whose checkpoint is in the folder."""

    def save(name: str, folder: Path, **how: Any) -> torch.nn.Module:
        import transformers

        kind, options = MODELS[name]
        torch.manual_seed(0)
        config = getattr(transformers, f"{kind}Config")(**SIZES, **options, attn_implementation="eager")
        model = getattr(transformers, f"{kind}ForCausalLM" if kind != "GPT2" else "GPT2LMHeadModel")(config).eval()
        with torch.no_grad():  # weights at which a wrong scale, pairing, norm or bias shows
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
        shutil.copytree(tokenizer, folder)
        model.save_pretrained(folder, **how)
        return model

    return save


@torch.inference_mode()
def import_and_compare(folder: Path, theirs: torch.nn.Module) -> None:
    """Import the folder; the run's logits, all at once and from a cache, are those of transformers."""
    path = folder.with_name(f"{folder.name}-run")
    assert cli.main(["import", str(folder), str(path)]) == 0
    run = newllm.load_run(path)
    ids = torch.tensor([run.tokenizer.encode(TEXT)[:LENGTH]])
    expected = theirs(ids).logits
    torch.testing.assert_close(run.model(ids), expected, atol=1e-5, rtol=1e-5)
    decoder = Decoder(run.model, LENGTH)
    steps = [decoder(piece) for piece in ids.split([LENGTH - 8] + [1] * 8, dim=1)]
    torch.testing.assert_close(torch.stack(steps, dim=1), expected[:, -9:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("llama 3", "gpt-2")])
def test_logits_are_those_of_transformers(name: str, save: Save, tmp_path: Path) -> None:
    import_and_compare(tmp_path / "released", save(name, tmp_path / "released"))


def test_shards_and_fields_of_files_before_transformers_5(save: Save, tmp_path: Path) -> None:
    theirs = save("llama 3", tmp_path / "llama", max_shard_size="100KB")
    assert not (tmp_path / "llama/model.safetensors").exists()
    config = json.loads((tmp_path / "llama/config.json").read_text())
    scaling = config.pop("rope_parameters")
    config |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": {**scaling, "type": scaling["rope_type"]}}
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    import_and_compare(tmp_path / "llama", theirs)


def test_names_without_a_prefix_constants_and_a_copy_of_the_embedding(save: Save, tmp_path: Path) -> None:
    """As in GPT-2's own file."""
    theirs = save("gpt-2", tmp_path / "gpt2")
    change(tmp_path / "gpt2", lambda w: {name.removeprefix("transformer."): tensor for name, tensor in w.items()})
    change(tmp_path / "gpt2", lambda w: {**w, "h.0.attn.bias": torch.ones(1), "lm_head.weight": w["wte.weight"] + 0})
    import_and_compare(tmp_path / "gpt2", theirs)


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in edit(weights).items()}, folder / "model.safetensors")


def configure(folder: Path, **fields: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


Q = "model.layers.1.self_attn.q_proj.weight"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {  # how to spoil a folder, and what is named
    "another activation": (partial(configure, hidden_act="relu"), "hidden_act=relu"),
    "another family": (partial(configure, model_type="mamba"), "model_type=mamba"),
    "another scaling": (
        partial(configure, rope_parameters={"rope_type": "longrope", "rope_theta": 1e4}), "rope_parameters"
    ),
    "an unknown part of a scaling": (
        partial(configure, rope_parameters={"rope_type": "yarn", "factor": 2.0, "mscale": 1.0}), "mscale"
    ),
    "an unknown part of no scaling": (
        partial(configure, rope_parameters={"rope_type": "default", "mrope_section": [1]}), "mrope_section"
    ),
    "sliding windows": (partial(configure, use_sliding_window=True), "use_sliding_window=true"),
    "windows in some layers": (
        partial(configure, layer_types=["full_attention", "sliding_attention"]), "layer_types"
    ),
    "code of its own": (partial(configure, auto_map={"AutoModel": "x.Y"}), "auto_map"),
    "quantized weights": (partial(configure, quantization_config={"bits": 4}), "quantization_config"),
    "no size": (partial(configure, hidden_size=None), "hidden_size"),
    "a missing tensor": (lambda folder: change(folder, lambda w: {n: t for n, t in w.items() if n != Q}), "q_proj"),
    "an extra tensor": (lambda folder: change(folder, lambda w: {**w, "score.weight": torch.ones(2)}), "score.weight"),
    "a wrong shape": (lambda folder: change(folder, lambda w: {**w, Q: torch.ones(WIDTH, 2)}), "(64, 2)"),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), "no config.json"),
    "a broken configuration": (lambda folder: (folder / "config.json").write_text("{"), "JSON"),
    "a pickle": (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), "pickles"),
    "a broken file": (lambda folder: (folder / "model.safetensors").write_text("x"), "safetensors"),
    "a lost shard": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
        "b.safetensors",
    ),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
}  # fmt: skip


def test_what_does_not_fit_is_refused_by_its_name(
    save: Save, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    save("qwen 2", tmp_path / "good")
    capfd.readouterr()
    for name, (spoil, named) in WRONG.items():
        shutil.copytree(tmp_path / "good", tmp_path / name)
        spoil(tmp_path / name)
        assert cli.main(["import", str(tmp_path / name), str(tmp_path / "runs/run")]) == 2, name
        message = capfd.readouterr().err
        assert named in message, message
        assert message.count("\n") == 1, message
        assert not (tmp_path / "runs").exists() or not any((tmp_path / "runs").iterdir())


def test_an_imported_run_is_a_run(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save("smollm", tmp_path / "released")
    (tmp_path / "text.txt").write_text(TEXT)
    assert cli.main(["import", "released"]) == 0
    (run,) = (tmp_path / "outputs/runs").iterdir()
    assert run.name.startswith("released-")
    assert cli.main(["import", "released"]) == 0  # it is there already
    capfd.readouterr()

    assert cli.main(["generate", str(run), "import", "--max-new-tokens", "8"]) == 0
    assert capfd.readouterr().out.startswith("import")
    words = ["data=text", "data.path=text.txt", "seq_len=48", "runtime.threads=1"]
    assert cli.main(["evaluate", str(run), "eval=[loss,position,kv_cache,qk]", *words]) == 0
    (found,) = newllm.load_runs(run, evaluations=True).query("evaluated_from.notna()").to_dict("records")
    assert found["val/loss"] > 0
    assert found["kv_cache/reduction"] == 0.5
    assert cli.main(["evaluate", str(run), "eval=[loss]", "pos_encoding.scaling=yarn", *words]) == 0
    assert cli.main(["report", str(run), "formats=[csv]"]) == 0
    assert cli.main(["status", str(run)]) == 0
    capfd.readouterr()
    assert cli.main(["evaluate", str(run), "eval=[loss]"]) == 2  # its text is unknown
    assert "data.path" in capfd.readouterr().err


def test_what_is_in_the_hubs_cache_is_read_without_a_network(
    save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commit = "0123456789" * 4
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    repository = tmp_path / "hub/models--someone--small"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    (repository / "snapshots").mkdir()
    save("pythia", repository / "snapshots" / commit)
    assert cli.main(["import", "someone/small", str(tmp_path / "run")]) == 0
    config = newllm.load_run(tmp_path / "run").config
    assert config.imported.name == "someone/small"
    assert config.imported.revision == commit
    assert config.choices.model == "small"
    capfd.readouterr()
    assert cli.main(["import", "someone/other", str(tmp_path / "run2")]) == 2
    assert "nor in the hub's cache" in capfd.readouterr().err


def test_options_that_came_later_do_not_change_signatures() -> None:
    config = effective(compose(["data=text"]))
    before = {**config, "model": {**config["model"]}, "attention": {**config["attention"]}}
    del before["model"]["head_dim"], before["attention"]["qk_norm"]
    assert signature(before) == signature(config)
    assert signature(compose(["data=text", "attention.qk_norm=true"])) != signature(config)
