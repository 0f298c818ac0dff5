"""Help on a choice shows each of its options with default, type and comment."""

import re
from pathlib import Path

import pytest

from newllm.cli import main
from newllm.config.catalog import shipped
from newllm.config.compose import catalog_for
from newllm.config.explain import explain
from newllm.config.values import signature_of
from newllm.errors import ConfigError

CATALOG = catalog_for()


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        ("attention=mla", [
            "attention.kv_dim=64 a whole number; follows kv_dim; MLA latent width",
            "attention.latent_norm=false true or false; RMS norm on the latent (true in DeepSeek)",
        ]),
        ("attention=mla kv_dim=32", ["attention.kv_dim=32 a whole number; follows kv_dim; MLA latent width"]),
        ("attention=gqa", ["attention.bias=false true, false or qkv; follows model.bias"]),
        ("model=llama_350m", ["model.vocab_size=50304 a whole number or null; null: the tokenizer's, rounded up"]),
        ("eval=[loss]", ["eval.loss.batch_size=8 a whole number; rows in a batch of batch_mean"]),
        ("pos_encoding=rope,alibi", ["rope_alibi", "newllm help pos_encoding=alibi shows the options of a choice."]),
        ("theta", ["theta=10000 RoPE base", "used by pos_encoding=fope, p_rope"]),
        ("logger=none", ["no options"]),
        ("eval.accuracy eval.loss.weighting", ["eval=[accuracy] Share of the", "eval.loss.weighting=token token or"]),
        ("data=text data.val_joint", ["data.val_joint=null text or null; text that joins these documents into one"]),
        ("model=dproj_tiny model.norm", ["model.norm=rmsnorm layernorm or rmsnorm; rmsnorm | layernorm"]),
        ("trainer.patience", ["trainer.patience=null a whole number or null; stop after this many epochs without a"]),
        ("hydra/launcher=slurm", ["hydra.launcher.gpus=null a whole number or null; GPUs per job; null: none"]),
        ("tags dry_run", ["tags=[] [long_context, draft]", "dry_run=false show the plan, start nothing"]),
    ],
)  # fmt: skip
def test_options_have_their_default_type_and_comment(words: str, lines: list[str]) -> None:
    shown = re.sub(r" +", " ", explain(words.split(), CATALOG))
    for line in lines:
        assert line in shown, shown


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("model.hed", r"model\.hed is not an option of model=nano; did you mean model\.heads\?"),
        (
            "eval.los",
            r"eval\.los: unknown; did you mean eval\.loss|eval=los: there is no such eval; did you mean eval=loss",
        ),
        ("eval.loss.weight", r"did you mean eval\.loss\.weighting\?"),
        ("phase1.lr", "no phase1 is chosen|phase1=none has no options"),
    ],
)
def test_an_option_that_does_not_exist_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        explain([word], CATALOG)


def test_only_the_option_asked_for_is_shown() -> None:
    assert explain(["model.heads"], CATALOG).count("\n") == 1


def test_every_option_of_every_choice_is_explained() -> None:
    for group in ("attention", "optim"):
        for name in CATALOG.groups[group]:
            target = re.search(r"^_target_: (\S+)", "\n".join(CATALOG.texts(f"{group}/{name}")), re.MULTILINE)
            shown = explain([f"{group}={name}"], CATALOG)
            assert CATALOG.describe(group, name) in shown
            for option in signature_of(target[1]).options if target else ():
                assert f"  {group}.{option}=" in shown


def test_a_choice_of_one_s_own_is_explained_too(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    text = (shipped() / "optim/adamw.yaml").read_text().replace("# largest norm of", "# mine: # of")
    (tmp_path / "optim/mine.yaml").write_text(text)
    assert "a number or null; mine: # of the whole gradient" in explain(["optim=mine"], catalog_for(tmp_path))


def test_help_is_asked_for_in_two_ways(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "attention=mla"]) == main(["train", "attention=mla", "--help"]) == 0
    first, second = capsys.readouterr().out.split("attention=mla  ")[1:]
    assert first == second
    assert main(["help", "attenton=mla"]) == 2
    assert main(["help", "conformance"]) == 0
