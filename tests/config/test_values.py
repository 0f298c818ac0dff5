"""Constructors judge the options that YAML gives them: names, required options, types."""

from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from newllm.build import build
from newllm.config import compose, effective
from newllm.config.catalog import plain, shipped
from newllm.config.compose import catalog_for
from newllm.config.groups import group_of
from newllm.config.values import REQUIRED, check_values, convert, convert_options, expected, signature_of
from newllm.errors import ConfigError

SOURCE = """
import dataclasses
from dataclasses import dataclass, field, KW_ONLY
from typing import TYPE_CHECKING, Literal, Optional
if TYPE_CHECKING:
    from somewhere import Thing

Mode = Literal["fast", "slow"]
def scale(x: float, by: "int | None" = None, *, size) -> "Plain": ...
class Plain:
    def __init__(self, path: str, mode: Mode = "fast", heads: list[int] = [1], free=3, late: float = 1 / 3,
                 *, width: int, **sizes):
        self.path, self.mode, self.heads, self.width, self.sizes = path, mode, heads, width, sizes
class Child(Plain): pass
class Empty: pass
class Hidden:
    def __init__(self, thing: "Thing" = None): ...
class Anything:
    def __init__(self, known: int = 1, **more): ...
@dataclass
class Base:
    a: int
    b: Optional[str] = None
@dataclasses.dataclass
class Record(Base):
    c: list[str] = field(default_factory=list)
    hidden: int = field(init=False, default=0)
    _: KW_ONLY
    d: int = 2
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"options_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NEWLLM_TRUST", name)
    return name


def test_options_stand_before_the_star_and_what_is_handed_over_after_it(module: str) -> None:
    for name in ("Plain", "Child"):
        signature = signature_of(f"{module}.{name}")
        assert list(signature.options) == ["path", "mode", "heads", "free", "late"]
        assert signature.options["path"].default is REQUIRED
        assert signature.handed == ("width",)
        assert not signature.open
    record = signature_of(f"{module}.Record")
    assert (list(record.options), record.handed) == (["a", "b", "c"], ("d",))
    assert signature_of(f"{module}.scale").options["by"].annotation == int | None
    assert signature_of(f"{module}.Anything").open
    assert not signature_of(f"{module}.Empty").options
    assert convert_options({"_target_": f"{module}.Hidden", "thing": 3})["thing"] == 3


def test_build_hands_over_what_the_signature_names(module: str) -> None:
    built: Any = build({"_target_": f"{module}.Plain", "path": 42, "heads": [2.0]}, object, width=3, depth=4)
    assert (built.path, built.heads, built.width, built.sizes) == ("42", [2], 3, {"depth": 4})
    assert build({"_target_": f"{module}.scale", "x": 1}, object, size=3, depth=4) is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("newllm.position.Rop", "there is no Rop in newllm.position; did you mean Rope?"),
        ("newllm.positions.Rope", "there is no positions in newllm; did you mean position?"),
        ("tests.no_such_module.Thing", "there is no no_such_module in tests"),
        ("newllm.position.Rope.turn", "there is no turn in newllm.position.Rope"),
    ],
)
def test_a_target_that_does_not_exist_gets_the_nearest_name(target: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        signature_of(target)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "part.path is required and has no value: type part.path=VALUE, text."),
        ({"path": "x", "mod": "fast"}, "part.mod is not an option of part=mine; did you mean part.mode?"),
        ({"path": "x", "width": 3}, "part.width follows from other settings and can't be set"),
        ({"path": "x", "mode": "fas"}, "part.mode=fas: expected fast or slow (did you mean fast?)."),
        ({"path": 1.5}, "part.path=1.5: expected text."),
    ],
)
def test_sentences_about_a_node(module: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        convert_options({"_target_": f"{module}.Plain", **options}, "part", owner="part=mine")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("theta=abc", "theta=abc: expected a number or null for pos_encoding.theta."),
        ("theta=true", "theta=true: expected a number"),
        ("rotary_pct=null", "rotary_pct=null: expected a number"),
        ("epochs=2.5", "epochs=2.5: expected a whole number"),
        ("pos_encoding.layout=hal", "expected half or interleaved (did you mean half?)"),
        ("seed=x", "seed=x: expected a whole number"),
        ("eval.qk.batches=two", "eval.qk.batches=two: expected a whole number"),
        ("pos_encoding._target_=newllm.position.Rop", "there is no Rop in newllm.position; did you mean Rope?"),
        ("runtime.threads=many", "runtime.threads=many: expected a whole number or auto"),
        ("attention=none", "attention=none: model=nano needs one; type attention=mha."),
    ],
)
def test_a_wrong_value_gets_one_sentence_with_advice(typed: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_values(compose([typed]))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_part_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="model=context_token_tiny has no attention; leave attention=mha out"):
        check_values(compose(["model=context_token_tiny", "attention=mha"]))


def test_values_take_their_types_at_the_axis_that_supplies_them() -> None:
    cfg = check_values(compose(["tokens=5e3", "pos_encoding=alibi", "slope=1", "trainer.patience=2.0"]))
    assert [type(value) for value in (cfg.tokens, cfg.data.tokens, cfg.trainer.patience)] == [int] * 3
    cfg.slope = 0.5
    assert cfg.pos_encoding.slope == 0.5


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (5, float, 5.0),
        (5e3, int, 5000),
        (42, str, "42"),
        (None, int | None, None),
        (3.0, int | Literal["auto"], 3),
        ("auto", int | Literal["auto"], "auto"),
        (1, float | list[float], 1.0),
        ([1, 2], float | list[float], [1.0, 2.0]),
        (True, bool | Literal["auto"], True),
        (7, int | float, 7),
        (7.0, int | float, 7.0),
        ({"a": 1}, dict, {"a": 1}),
        ("x", Any, "x"),
    ],
)
def test_values_take_the_type_of_the_annotation(value: Any, annotation: Any, result: Any) -> None:
    converted = convert(value, annotation)
    assert (converted, type(converted)) == (result, type(result))


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (2.5, int, "expected a whole number"),
        (True, int, "expected a whole number"),
        (1, bool, "expected true or false"),
        ("1e4x", float, "expected a number"),
        (None, float, "expected a number"),
        (float("nan"), float, "expected a finite number"),
        (float("inf"), float | None, "expected a finite number or null"),
        ([0.5, float("inf")], list[float], "expected a list"),
        (1.5, str, "expected text"),
        ("hal", Literal["half", "interleaved"], r"expected half or interleaved \(did you mean half\?\)"),
        ([1, "a"], list[int], r"expected a list such as \[1,2\]"),
        ("a", list[float] | None, r"expected a list such as \[0.5,1\] or null"),
        (3, dict, "expected a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert(value, annotation)


def test_annotations_in_words() -> None:
    assert expected(int | Literal["auto"] | None) == "a whole number, auto or null"
    assert expected(bool | Literal["auto"]) == "true, false or auto"
    assert expected(list[dict[str, int]]) == "a list such as [{lr:[1e-3,5e-4],batch_size:[4,8]}]"


# --- the YAML files, which name what the constructors have ----------------------------------------------------------


CHOICES = [(group, name) for group, names in catalog_for().groups.items() if group != "experiment" for name in names]


def nodes(value: Any, path: str) -> list[tuple[str, dict[str, Any]]]:
    """The nodes with a target in a plain value, at any depth."""
    found = [(path, value)] if isinstance(value, dict) and "_target_" in value else []
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return found + [node for key, one in inner for node in nodes(one, f"{path}.{key}")]


@pytest.mark.parametrize(("group", "name"), CHOICES, ids=lambda part: part)
def test_every_yaml_lists_all_options_of_its_target_in_their_types(group: str, name: str) -> None:
    without = name == "none" and group in ("attention", "pos_encoding")
    cfg = compose([f"{group}={name}", *(["model=context_token"] if without else [])])
    assert cfg.choices[group] in (name, [name])
    assert catalog_for().describe(group, name) or group == "trainer", f"{group}/{name}.yaml begins with no comment"
    for path, node in nodes(effective(cfg)[group], group) if cfg[group] else []:
        assert {*node} - {"_target_"} == {*signature_of(node["_target_"]).options}, path
        assert convert_options(node, path).keys() == node.keys()


NOT_GROUPS = ["hydra/launcher/local", "hydra/launcher/slurm", "report/verdict/interval", "report/verdict/published"]


@pytest.mark.parametrize("file", ["train.yaml", "report.yaml", *(f"{name}.yaml" for name in NOT_GROUPS)])
def test_other_yaml_files_list_all_options_of_their_class(file: str) -> None:
    content = plain(OmegaConf.load(shipped() / file))
    node = content.get("sweep", content)
    options = signature_of(node["_target_"]).options
    assert {*node} - {"_target_"} == {*options}


def test_yaml_files_agree_with_their_constructors() -> None:
    """A constructor's default is the value in one of its YAML files, and groups.yaml lists what others pass to it."""
    values: dict[str, dict[str, list[Any]]] = {}
    names = {group: names for group, names in catalog_for().groups.items() if group != "experiment"}
    models = [{"model": name} for name in names.pop("model")]
    others = [dict(zip(names, row, strict=True)) for row in zip_longest(*names.values())]  # of every group at once
    for chosen in models + [{group: name for group, name in row.items() if name} for row in others]:
        cfg = compose([f"{group}={name}" for group, name in chosen.items()], unused_axes=True, check=False)
        for group, name in chosen.items():
            for _, node in nodes(plain(cfg).get(group), group):
                for option, value in node.items():
                    values.setdefault(node["_target_"], {}).setdefault(option, []).append(value)
            for path, node in nodes(effective(cfg)[group], group) if name != "none" else []:
                assert {*signature_of(node["_target_"]).handed} <= {*group_of(group).handed}, path
    for target, options in values.items():
        for option, parameter in signature_of(target).options.items():
            from_an_axis = any("${" in str(value) for value in options[option])
            if parameter.default not in (REQUIRED, None) and not from_an_axis and "factory" not in repr(parameter):
                assert parameter.default in options[option], f"{target}: {option}"
