"""Composition: what a user types, what it becomes, and what is message when it can't be."""

import re
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import newllm
from newllm.config import compose, differences, effective, run_directory, signature, slug
from newllm.config.catalog import Catalog, shipped
from newllm.config.compose import catalog_for
from newllm.config.identity import changed_content, with_content
from newllm.config.values import check_values
from newllm.errors import ConfigError
from newllm.sweep.check import build_all, parts
from newllm.sweep.command import read

CATALOG = catalog_for()


@pytest.mark.parametrize("name", CATALOG.groups["experiment"])
def test_every_experiment_composes(name: str) -> None:
    cfg = compose([f"experiment={name}"])
    assert cfg.choices.experiment == name
    assert len(effective(cfg)["choices"]) == len(CATALOG.groups)
    assert CATALOG.describe("experiment", name), f"experiment/{name}.yaml begins with no comment"


def test_the_default_uses_exact_choices_of_train_yaml() -> None:
    cfg = newllm.compose()
    assert {group: cfg.choices[group] for group in CATALOG.defaults} == CATALOG.defaults


# --- axes -----------------------------------------------------------------------------------------------------------


def test_root_axis_and_option_are_two_ways_to_say_one_thing() -> None:
    by_axis = compose(["attention=mla", "kv_dim=16"])
    by_option = compose(["attention=mla", "attention.kv_dim=16"])
    assert by_axis.attention.kv_dim == by_option.attention.kv_dim == 16
    assert signature(by_axis) == signature(by_option)
    assert effective(by_axis)["kv_dim"] == 16
    assert "kv_dim" not in effective(by_option)  # the stale 64 says nothing about the run


@pytest.mark.parametrize("same", ["theta=1e4", "theta=10000", "theta=10000.0", "pos_encoding.theta=1e4", "+theta=1e4"])
def test_one_number_written_differently_is_one_configuration(same: str) -> None:
    assert signature(compose([same])) == signature(compose())
    assert type(compose([same]).pos_encoding.theta) is float


def test_an_axis_keeps_supplying_its_option_after_conversion() -> None:
    cfg = compose(["theta=500"])
    cfg.theta = 7.0
    assert cfg.pos_encoding.theta == 7.0


def test_unused_axis_is_refused_with_the_choices_that_use_it() -> None:
    with pytest.raises(ConfigError) as error:
        compose(["slope=0.125"])
    assert "slope is an axis of pos_encoding=alibi, rope_alibi; this run has pos_encoding=rope" in str(error.value)
    with pytest.raises(ConfigError, match=r"kv_dim is an axis of attention=mla; this run has attention=mha"):
        compose(["kv_dim=64"])


def test_unused_axis_is_accepted_in_a_sweep_and_changes_nothing() -> None:
    cfg = compose(["kv_dim=16"], unused_axes=True)
    assert signature(cfg) == signature(compose())
    assert slug(cfg) == slug(compose())


def test_an_axis_that_an_option_overrides_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"theta has no effect, since pos_encoding\.theta"):
        compose(["pos_encoding.theta=1e5", "theta=1e4"])


def test_axes_in_shared_base_files_are_known() -> None:
    assert set(CATALOG.users("seq_len")["data"]) == set(CATALOG.groups["data"])


# --- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("pos_encodin=rope", "pos_encodin is unknown; did you mean pos_encoding?"),
        ("pos_encoding=alibbi", "did you mean pos_encoding=alibi? (there are: alibi,"),
        ("pos_encoding=3", "pos_encoding=3: there is no such pos_encoding; expected one of: alibi"),
        ("pos_encoding=[rope]", "pos_encoding takes one choice"),
        ("eval=[loss,qq]", "eval=qq: there is no such eval"),
        ("facts=null", "facts=null: there is no such facts; expected one of: none"),
        ("experiment=zzz", "experiment=zzz: there is no such experiment"),
        ("thta=1e5", "thta is unknown; did you mean theta?"),
        ("+thta=1e5", "thta is unknown; did you mean theta?"),
        ("++thta=1e5", "thta is unknown; did you mean theta?"),
        ("weight_decay=0", "weight_decay is not a root key; did you mean optim.weight_decay?"),
        ("data.tokeniser=auto", "did you mean data.tokenizer?"),
        ("+data.tokeniser=auto", "did you mean data.tokenizer?"),
        ("++trainer.epoch=3", "did you mean trainer.epochs?"),
        ("pos_encoding.head_dim=3", "pos_encoding.head_dim follows from other settings"),
        ("atention.bias=true", "atention is unknown; did you mean attention?"),
        ("theta.x=3", "theta is a single value"),
        ("+experiment=x", "type experiment=x, without +"),
        ("theta=[1", "'theta=[1' can't be read"),
        ("theta", "'theta' is not an override; expected key=value, as in theta=VALUE"),
        (
            "theta=1,2",
            "theta=1,2 is a sweep over several runs; add -m (in Python: newllm.sweep) to run them, or write a list as "
            "'theta=[1,2]'",
        ),
        ("pos_encoding=rope,alibi", "is a sweep over several runs; add -m (in Python: newllm.sweep) to run them."),
        ("seed=range(1,4)", "is a sweep over several runs; add -m (in Python: newllm.sweep) to run them."),
        ("~facts", "nothing can be deleted from a configuration; type facts=none"),
        ("~theta", "can be deleted"),
        ("~pos_encoding.layout", "can be deleted"),
        ("pos_encoding.theta=${thta}", "pos_encoding.theta=${thta} can't be resolved"),
        ("hydra.rn.dir=x", "hydra.rn.dir is no key of Hydra that newllm reads; did you mean hydra.run.dir?"),
        ("hydra/launcher=zzz", "expected one of: local, slurm"),
    ],
)
def test_bad_input_gets_one_sentence_with_advice(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([typed])
    sentence = str(error.value)
    assert message in sentence
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    assert error.value.exit_status == 2


@pytest.mark.parametrize(
    "key", ["hydra.run.dir", "hydra.sweep.dir", "seeds", "zip", "only", "pack", "lr", "data.path", "eval.loss._target_"]
)
@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("'${seed} ${'", "can't be"),
        ("'${oc.env:NOT_SET}'", "Environment variable 'NOT_SET' not found"),
        ("'x/${hydra:nope}'", "can't be resolved"),
        ("'${nope:1}'", "Unsupported interpolation type nope"),
        ("'${nope}'", "can't be resolved"),
        ("'${'", "can't be"),
        ("???", ""),
    ],
)
def test_what_cannot_be_resolved_is_one_sentence(key: str, value: str, reason: str) -> None:
    def both() -> None:
        read(["data=text", f"{key}={value}"], config_dir=None, several=key != "hydra.run.dir")
        compose(["data=text", f"{key}={value}"])

    with pytest.raises(ConfigError, match=re.escape(key)) as error:
        both()
    assert reason in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_values_of_the_environment_are_numbers_where_numbers_belong(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = {"lr": "2e-3", "trainer.epochs": "3", "precision": "fp32", "data.path": "007", "optim.betas": "[0.8,0.9]"}
    names = {"lr": "LR", "trainer.epochs": "EPOCHS", "precision": "WHICH", "data.path": "PLACE", "optim.betas": "BETAS"}
    for key, value in typed.items():
        monkeypatch.setenv(names[key], value)
    cfg = compose(["data=text", *(f"{key}='${{oc.env:{name}}}'" for key, name in names.items())])
    lines = [f"{key}='{value}'" if key == "data.path" else f"{key}={value}" for key, value in typed.items()]
    assert signature(cfg) == signature(compose(["data=text", *lines]))
    (job,) = read(["lr='${oc.env:LR}'", "retries='${oc.env:EPOCHS}'"], config_dir=None, several=True).runs
    assert job.config["optim"]["lr"] == 0.002


def test_the_folder_of_a_run_takes_the_values_of_the_command_line() -> None:
    assert compose(["seed=7", "hydra.run.dir='out/${seed}/${optim.lr}'"]).run_dir == "out/7/0.001"
    assert compose(["hydra.run.dir='~/x'"]).run_dir == str(Path.home() / "x")


@pytest.mark.parametrize("folder", ["x" * 300, "a/" + "é" * 130, "/".join(["x" * 200] * 20), "null", "''", "[1]"])
def test_a_folder_that_cannot_be_made_is_refused(folder: str) -> None:
    for key in ("hydra.run.dir", "hydra.sweep.dir"):
        with pytest.raises(ConfigError, match=key):
            read([f"{key}={folder}"], config_dir=None, several=key == "hydra.sweep.dir")


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("epochs=x", "epochs=x: expected a whole number or null for trainer.epochs"),
        ("seed=99999999999999999999", "at most 2^63 - 1"),
        ("batch_size=1e300", "at most 2^63 - 1"),
        ("epochs=" + "9" * 5000, "can't be read"),
        ("slope=" + "[" * 2000 + "]" * 2000, "can't be read"),
    ],
)
def test_values_are_judged_when_a_configuration_is_composed(typed: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        compose([typed])


@pytest.mark.parametrize(
    "size",
    ["model.hidden_size", "model.num_layers", "model.heads", "model.mlp_size", "model.vocab_size", "data.vocab_size",
     "seq_len"],
)  # fmt: skip
def test_sizes_beyond_any_machine_are_refused(size: str) -> None:
    for value in (10**15, -1):
        config = effective(compose([f"{size}={value}"]))
        assert f"{size} must lie in" in build_all(parts([config]))[0]


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("lr=abc,1e-3", "lr=abc: expected a number for optim.lr"),
        ("optim.lr=abc", "optim.lr=abc: expected a number"),
        ("theta=x,1e4", "theta=x: expected a number or null for pos_encoding.theta"),
        ("seed=abc,1", "seed=abc: expected a whole number for trainer.seed"),
        ("samples=1e20", "at most 2^63 - 1 for data.samples"),
    ],
)
def test_a_bad_value_in_a_sweep_is_named_as_it_was_typed(typed: str, message: str) -> None:
    runs = read([typed], config_dir=None, several=True).runs
    assert message in build_all(parts(run.config for run in runs))[0]


def test_options_of_choices_not_made() -> None:
    with pytest.raises(ConfigError, match=r"facts.repeats: facts=none has no options"):
        compose(["facts=none", "facts.repeats=3"])
    with pytest.raises(ConfigError, match=r"eval.qk is not among this run's eval; add it with 'eval=\[loss,qk\]'"):
        compose(["eval=[loss]", "eval.qk.batch_size=3"])
    with pytest.raises(
        ConfigError, match=r"pos_encoding.parts.rope.thta .* did you mean pos_encoding.parts.rope.theta"
    ):
        compose(["pos_encoding=rope_alibi", "pos_encoding.parts.rope.thta=3"])


def test_the_list_group_takes_a_list_one_or_none() -> None:
    assert list(compose(["eval=[qk,loss]"]).eval) == ["qk", "loss"]
    assert compose(["eval=loss"]).choices.eval == ["loss"]
    assert compose(["eval=[]"]).eval == {}


# --- a user's own files ---------------------------------------------------------------------------------------------


@pytest.fixture
def user_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an encoding whose class lies outside the package, and an experiment with an axis of its own."""
    (tmp_path / "my_encoding.py").write_text(
        "class Wave:\n    def __init__(self, tau: float, depth: int = 2, *, head_dim: int): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for group in ("pos_encoding", "experiment"):
        (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf/pos_encoding/wave.yaml").write_text("# Waves.\n_target_: my_encoding.Wave\ntau: ${tau}\n")
    (tmp_path / "conf/experiment/waves.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /pos_encoding: wave\ntau: 3\nlr: 0.5\n"
    )
    return tmp_path / "conf"


def test_files_of_the_user_are_choices_like_the_shipped_ones(user_folder: Path) -> None:
    cfg = compose(["experiment=waves", "lr=0.25"], config_dir=user_folder)
    assert cfg.choices.pos_encoding == "wave"
    assert cfg.choices.experiment == "waves"
    assert (cfg.pos_encoding.tau, cfg.optim.lr) == (3.0, 0.25)
    assert compose(["experiment=waves", "tau=4"], config_dir=user_folder).pos_encoding.tau == 4.0
    with pytest.raises(ConfigError, match=r"did you mean pos_encoding=wave"):
        compose(["pos_encoding=wav"], config_dir=user_folder)
    assert compose(["experiment=waves", "pos_encoding.depth=3"], config_dir=user_folder).pos_encoding.depth == 3
    with pytest.raises(ConfigError, match=r"did you mean pos_encoding\.depth"):
        compose(["experiment=waves", "pos_encoding.dept=2"], config_dir=user_folder)


def test_a_required_option_is_named(user_folder: Path) -> None:
    (user_folder / "pos_encoding/wave.yaml").write_text("_target_: my_encoding.Wave\n")
    with pytest.raises(ConfigError, match=r"pos_encoding.tau is required and has no value"):
        check_values(compose(["pos_encoding=wave"], config_dir=user_folder))
    assert compose(["pos_encoding=wave", "pos_encoding.tau=2"], config_dir=user_folder).pos_encoding.tau == 2


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose(config_dir=tmp_path / "nowhere")


# --- identity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["seed=43", "theta=1e5", "pos_encoding=nope", "trainer.patience=1"])
def test_what_changes_a_number_changes_the_signature(change: str) -> None:
    assert signature(compose([change])) != signature(compose())


@pytest.mark.parametrize(
    "change",
    [
        "runtime.threads=2",
        "runtime.checkpoint_steps=5",
        "logger=tensorboard",
        "logger=[wandb,csv]",
        "hydra.run.dir=x",
        "eval=[loss]",
        "trainer.log_every=1",
        "trainer.recompute=true",
        "lr=1e-3",
        "optim.lr=0.001",
        "name=x",
        "tags=[a,b]",
    ],
)
def test_what_changes_no_number_does_not(change: str) -> None:
    assert signature(compose([change])) == signature(compose())


def test_signature_survives_the_way_through_a_file(tmp_path: Path) -> None:
    cfg = compose(["pos_encoding=alibi", "slope=[1,2,4,8]"])
    OmegaConf.save(OmegaConf.create(effective(cfg)), tmp_path / "config.yaml")
    loaded = OmegaConf.load(tmp_path / "config.yaml")
    assert OmegaConf.is_dict(loaded)
    assert signature(loaded) == signature(effective(cfg)) == signature(cfg)
    assert differences(loaded, cfg) == []


def test_what_is_read_counts_by_its_content_not_by_its_place_or_name(tmp_path: Path) -> None:
    """Of a text, a tokenizer, a folder in the hub's layout, and embeddings alike."""

    def write(place: str, content: str) -> Path:
        folder = tmp_path / place / "same"
        for name in ("a.txt", "tokenizer.json", "train.jsonl", "model.safetensors", "checkpoints/best.safetensors"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return folder

    one, copy, other = (
        write("one", "It was the best"),
        write("copy", "It was the best"),
        write("other", "It was a worst"),
    )
    for command in (
        "data=text data.path=FOLDER", "data=text data.path=FOLDER/a.txt", "data.tokenizer=FOLDER",
        "data=tinystories data.name=FOLDER", "embeddings=gpt2 embeddings.name=FOLDER",
        "embeddings=run embeddings.run=FOLDER",
    ):  # fmt: skip

        def mark(folder: Path, command: str = command) -> str:
            return signature(compose(command.replace("FOLDER", str(folder)).split()))

        assert mark(one) == mark(copy) == mark(Path(f"{one}/../same/")) != mark(other), command
    stored = with_content(effective(compose(["data=text", f"data.path={one}"])))
    before = signature(stored)
    (one / "a.txt").write_text("It was the age of wisdom")
    assert signature(stored) == before != signature(compose(["data=text", f"data.path={one}"]))
    assert changed_content(stored) == [("data.path", str(one))]
    shutil.rmtree(one)  # moved away: the stored configuration still tells
    assert signature(stored) == before == signature(compose(["data=text", f"data.path={copy}"]))
    assert differences(stored, compose(["data=text", f"data.path={copy}"])) == []


def test_differences_name_the_keys() -> None:
    found = differences(compose(["pos_encoding=alibi"]), compose(["seed=7", "runtime.threads=3"]))
    assert "trainer.seed: 42 != 7" in found
    assert "pos_encoding.slope: 0.0625 != absent" in found
    assert not any("runtime" in line for line in found)


def test_slug_reads_well_and_is_a_safe_short_file_name() -> None:
    typed = ["pos_encoding=alibi", "attention=mla", "slope=1.25e-1", "kv_dim=64", "runtime.threads=1"]
    assert slug(compose(typed)) == "nano-alibi-mla-stdlib-slope0.125-kv_dim64-s42"
    nasty = compose(["data=text", "data.path='/tmp/a b/c:d?*'", "slope=0.5", "pos_encoding=alibi", "seed=123"])
    assert slug(nasty) == "nano-alibi-mha-text-slope0.5-pathc_d-s123"
    assert slug(compose(["samples=null", "tokens=2e3"])) == "nano-rope-mha-stdlib-samplesnull-tokens2000-s42"


def test_a_long_slug_leaves_values_out_whole() -> None:
    many = compose([
        "attention=mla", "optim.weight_decay=0.31", "data.tokenizer_bytes=1000000", "optim.warmup=0.25",
        "model.hidden_size=128", "kv_dim=96", "data.vocab_size=512",
    ])  # fmt: skip
    assert len(slug(many)) <= 80
    assert slug(many).startswith("nano-rope-mla-stdlib-kv_dim96-")
    known = {"tokenizer_bytes1000000", "vocab_size512", "hidden_size128", "warmup0.25", "weight_decay0.31", "s42"}
    assert set(slug(many).split("-")[5:]) < known


def test_run_directory_is_the_named_one_or_follows_from_the_configuration(tmp_path: Path) -> None:
    assert run_directory(compose(["hydra.run.dir=some/where"])) == Path("some/where")
    assert run_directory(compose(["hydra.run.dir=."])) == Path()
    by_axis, by_option = (
        compose(["theta=1e5"]),
        compose(["pos_encoding.theta=100000", f"batch_size={compose().batch_size}"]),
    )
    first = run_directory(by_axis, tmp_path)
    assert first == tmp_path / f"{slug(by_axis)}-{signature(by_axis)}"
    first.mkdir()
    assert run_directory(by_option, tmp_path) == first  # the same run typed differently resumes it


def test_composition_works_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = signature(compose())
    monkeypatch.chdir(tmp_path)
    assert signature(compose()) == expected
    assert not any(tmp_path.iterdir())


def test_the_catalog_reads_the_files_alone() -> None:
    assert Catalog((shipped(),)).axes["theta"] == 10000.0
    assert CATALOG.comments["theta"]


def test_an_experiment_says_nothing_of_what_the_command_line_left_out():
    """Its options for an evaluator, or for the facts, go with these; options typed by hand do not."""
    cfg = compose(["experiment=position_encoding", "eval=[loss]", "facts=none"])
    assert list(cfg.eval) == ["loss"]
    assert not cfg.facts
    with pytest.raises(ConfigError, match=r"eval\.reversal is not among this run's eval"):
        compose(["experiment=position_encoding", "eval=[loss]", "eval.reversal.scoring=answer"])
    assert not compose(["experiment=context_token_steps_small", "embeddings=none"]).embeddings
    with pytest.raises(ConfigError, match=r"embeddings\.tokens: embeddings=none has no options"):
        compose(["experiment=context_token_steps_small", "embeddings=none", "embeddings.tokens=5"])


def test_a_node_is_no_value() -> None:
    with pytest.raises(ConfigError, match=r"sweep takes no value of its own, but options such as sweep\.seeds=VALUE"):
        compose(["sweep=null"])
    with pytest.raises(ConfigError, match=r"eval\.qk takes no value of its own, but options such as eval\.qk\.batches"):
        compose(["eval.qk=null"])


def test_values_of_several_parts_are_set_whole_or_in_part() -> None:
    whole, part = (
        compose(["pos_encoding.scaling={kind:yarn,factor:8}"]),
        compose(["pos_encoding.scaling.kind=yarn", "pos_encoding.scaling.factor=8"]),
    )
    assert whole.pos_encoding.scaling == part.pos_encoding.scaling == {"kind": "yarn", "factor": 8}
    assert compose(["data=text", "data.path=42"]).data.path == "42"


def test_a_misspelt_axis_in_an_experiment_of_the_users_is_refused(user_folder: Path) -> None:
    (user_folder / "experiment/waves.yaml").write_text("# @package _global_\nthta: 3\n")
    with pytest.raises(ConfigError, match="did you mean theta"):
        compose(["experiment=waves"], config_dir=user_folder)


def test_a_misspelt_evaluator_gets_its_name():
    with pytest.raises(ConfigError, match=r"eval\.qkk: unknown; did you mean eval\.qk"):
        compose(["eval.qkk.batches=3"])
