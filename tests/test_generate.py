"""Generation, from a run that was really trained, if shortly."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch

import newllm
from newllm.config.identity import stored_signature
from newllm.data.tokenizer import train_bpe
from newllm.errors import ConfigError
from newllm.evaluate import evaluate
from newllm.generate import main
from newllm.model import decoder
from newllm.model.decoder import Decoder, generate
from newllm.run.load import Run
from newllm.store.run_directory import RunDirectory
from tests.support.small_runs import small_config

PROMPT = "def main(self"


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from newllm.run.execute import run

    directory = tmp_path_factory.mktemp("generate") / "run"
    cfg = small_config(directory, "epochs=1", "precision=fp32", "eval=[loss]")
    assert run(cfg) == 0
    return directory


@pytest.fixture(scope="module")
def trained(run_directory: Path) -> Run:
    return newllm.load_run(run_directory)


@pytest.fixture(scope="module")
def prompt(trained: Run) -> list[int]:
    return trained.tokenizer.encode(PROMPT)


def test_greedy_decoding_is_the_argmax_of_full_forward_passes(trained: Run, prompt: list[int]) -> None:
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(24):
            ids.append(int(trained.model(torch.tensor([ids]))[0, -1].argmax()))
    assert list(generate(trained.model, prompt, 24)) == ids[len(prompt) :]


@torch.inference_mode()
def test_a_long_prompt_is_read_in_pieces_with_logits_for_its_last_token_only(
    trained: Run, prompt: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows side by side; the pieces' logits are those of the whole."""
    monkeypatch.setattr(decoder, "PIECE", 7)
    pieces, heads = [], []
    hidden, linear = trained.model.hidden, torch.nn.functional.linear
    monkeypatch.setattr(trained.model, "hidden", lambda ids, cache: pieces.append(ids.shape) or hidden(ids, cache))
    monkeypatch.setattr(
        decoder.F, "linear", lambda x, weight, *rest: heads.append((x, weight)) or linear(x, weight, *rest)
    )
    ids = torch.tensor([prompt * 4, [*reversed(prompt * 4)]])[:, :20]
    logits = Decoder(trained.model, 20)(ids)
    assert pieces == [(2, 7), (2, 7), (2, 6)]
    assert [x.shape[:-1] for x, weight in heads if weight is trained.model.head_weight] == [(2,)]
    monkeypatch.undo()
    torch.testing.assert_close(logits, trained.model(ids)[:, -1], atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_bf16_decoding_equals_autocast(trained: Run, prompt: list[int]) -> None:
    """Decoding in a run's precision: greedy tokens are those of the model under autocast with a cache."""
    cache, step, expected = trained.model.new_cache(), torch.tensor([prompt]), []
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(12):
            expected.append(int(trained.model(step, cache)[0, -1].float().argmax()))
            step = torch.tensor([expected[-1:]])
    assert list(generate(trained.model, prompt, 12, precision="bf16")) == expected


def test_the_seed_decides_the_sampled_text(trained: Run, prompt: list[int]) -> None:
    def sampled(seed: int) -> list[int]:
        return list(generate(trained.model, prompt, 30, temperature=1.5, seed=seed))

    assert sampled(1) == sampled(1)
    assert sampled(1) != sampled(2)


def test_a_tiny_nucleus_contains_the_likeliest_token_only(trained: Run, prompt: list[int]) -> None:
    greedy = list(generate(trained.model, prompt, 20))
    assert list(generate(trained.model, prompt, 20, temperature=1.5, top_p=1e-6, seed=3)) == greedy
    assert list(generate(trained.model, prompt, 20, temperature=1e-320, seed=3)) == greedy
    assert list(generate(trained.model, prompt, 20, temperature=1.5, top_p=1.0, seed=3)) != greedy


def test_generation_ends_before_the_stop_token(trained: Run, prompt: list[int]) -> None:
    free = list(generate(trained.model, prompt, 30, temperature=1.5, seed=5))
    assert len(free) == 30
    stop = free[12]
    expected = list(itertools.takewhile(lambda token: token != stop, free))
    assert list(generate(trained.model, prompt, 30, temperature=1.5, seed=5, stop=stop)) == expected


def test_the_command_stops_at_end_of_text(
    run_directory: Path, trained: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    name = trained.tokenizer.encode(" name")
    monkeypatch.setattr(decoder, "_choose", lambda *_: next(tokens))
    tokens = iter([*name, trained.tokenizer.eot_id, *name])
    assert main([str(run_directory), PROMPT]) == 0
    assert capsys.readouterr().out == f"{PROMPT} name\n"


def test_the_command_prints_the_prompt_and_the_continuation(
    run_directory: Path, trained: Run, prompt: list[int], capsys: pytest.CaptureFixture
) -> None:
    assert main([str(run_directory), PROMPT, "--max-new-tokens", "12"]) == 0
    printed = capsys.readouterr()
    continuation = trained.tokenizer.decode(list(generate(trained.model, prompt, 12, stop=trained.tokenizer.eot_id)))
    assert continuation
    assert printed.out == f"{PROMPT}{continuation}\n"
    assert printed.err == ""


def test_an_empty_prompt_starts_after_an_end_of_text(
    run_directory: Path, trained: Run, capsys: pytest.CaptureFixture
) -> None:
    eot = trained.tokenizer.eot_id
    assert eot is not None
    assert main([str(run_directory), "", "--max-new-tokens", "6"]) == 0
    expected = trained.tokenizer.decode(list(generate(trained.model, [eot], 6, stop=eot)))
    assert capsys.readouterr().out == f"{expected}\n"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--temperature", "-1"], "--temperature must be 0 (greedy) or a greater finite number; got -1"),
        (["--temperature", "nan"], "--temperature must be 0 (greedy) or a greater finite number; got nan"),
        (["--top-p", "0"], "--top-p must lie in (0, 1]; got 0"),
        (["--top-p", "1.2"], "--top-p must lie in (0, 1]; got 1.2"),
        (["--max-new-tokens", "0"], "--max-new-tokens must lie in [1, 1,000,000]; got 0"),
        (["--max-new-tokens", "many"], "--max-new-tokens: invalid int value: 'many'"),
        (["--temperature", "1e400"], "got inf"),
        (["--seed", "99999999999999999999"], "--seed must be a whole number from 0"),
        (["--beams", "4"], "unrecognized arguments: --beams 4"),
    ],
)
def test_wrong_flags_give_one_sentence_and_status_2(
    run_directory: Path, capsys: pytest.CaptureFixture, flags: list[str], message: str
) -> None:
    assert main([str(run_directory), PROMPT, *flags]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("newllm: ")
    assert printed.err.count("\n") == 1


def test_a_missing_run_gives_one_sentence_and_status_2(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main([str(tmp_path / "nowhere"), PROMPT]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"{tmp_path / 'nowhere'} does not exist" in printed.err
    assert printed.err.count("\n") == 1


def test_a_run_without_weights_gives_one_sentence_and_status_2(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_bytes((run_directory / "config.yaml").read_bytes())
    assert main([str(tmp_path), PROMPT]) == 2
    printed = capsys.readouterr()
    assert f"{tmp_path} has no weights yet" in printed.err
    assert printed.err.count("\n") == 1


def test_files_of_another_run_and_lost_ones_are_said(
    run_directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = RunDirectory(shutil.copytree(run_directory, tmp_path / "own"))
    config = own.config()
    own.write_config({**config, "trainer": {**config["trainer"], "seed": 7}})
    own.update_status(signature=stored_signature(own.config()))
    assert main([str(own.path), PROMPT]) == 2
    assert "own/checkpoints/best.safetensors is of the run " in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"environment.json is of the run .* restore the one that is not this run's"):
        evaluate(own.path)
    own.environment_file.unlink()
    with pytest.raises(ConfigError, match=r"best.safetensors is of the run .* restore the one that is not this run's"):
        evaluate(own.path)
    own.write_config(config)
    own.update_status(signature=stored_signature(config))
    train_bpe(["Four score and seven years ago"], 300).save(own.tokenizer)
    assert main([str(own.path), PROMPT]) == 2
    assert "tokenizer.meta.json is damaged or was edited" in capsys.readouterr().err
    shutil.copytree(run_directory / "tokenizer", own.tokenizer, dirs_exist_ok=True)
    own.best_checkpoint.unlink()
    assert main([str(own.path), PROMPT]) == 2
    assert "own/checkpoints/best.safetensors is missing; restore it" in capsys.readouterr().err
