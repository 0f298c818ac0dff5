"""A constructor's signature is the schema of its YAML node, read without importing it."""

import sys
from pathlib import Path
from types import NoneType
from typing import Any, Literal

import pytest

from newllm.config.coercion import coerce, expected
from newllm.config.schema import REQUIRED, UNREAD, options
from newllm.errors import ConfigError

SOURCE = """
import dataclasses
from dataclasses import dataclass, field, KW_ONLY
from typing import Literal, Optional
import package_that_does_not_exist
from . import elsewhere
from .elsewhere import Parent, Layout as Arrangement

Mode = Literal["fast", "slow"]
Twin = None
def scale(x: float, by: "int | None" = None, *, size): ...
class Plain:
    def __init__(self, path: str, layout: Arrangement = "half", mode: Mode = "fast", heads: list[int] = [1],
                 free=3, late: float = 1 / 3, *, width: int, **sizes): ...
Same = Plain
class Child(Parent): pass
class Distant(elsewhere.Parent): pass
class Empty(package_that_does_not_exist.Module): pass
class Anything:
    def __init__(self, known: int = 1, **more): ...
@dataclass
class Base:
    a: int
    b: Optional[str] = None
@dataclasses.dataclass(frozen=True)
class Record(Base):
    c: list[str] = field(default_factory=list)
    hidden: int = field(init=False, default=0)
    _: KW_ONLY
    d: int = 2
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package that cannot be imported, since it imports what is not there."""
    name = f"unimportable_{abs(hash(tmp_path))}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("from .inside import Plain, Same as Alias\n")
    (folder / "inside.py").write_text(SOURCE)
    (folder / "elsewhere.py").write_text(
        "from typing import Literal\nLayout = Literal['half', 'interleaved']\n"
        "class Parent:\n    def __init__(self, rate: float, on: bool = True, *, steps): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_options_stand_before_the_star_and_what_is_handed_over_after_it(package: str) -> None:
    signature = options(f"{package}.inside.Plain")
    assert {name: (o.annotation, o.default) for name, o in signature.options.items()} == {
        "path": (str, REQUIRED),
        "layout": (Literal["half", "interleaved"], "half"),
        "mode": (Literal["fast", "slow"], "fast"),
        "heads": (list[int], [1]),
        "free": (Any, 3),
        "late": (float, UNREAD),
    }
    assert signature.handed == ("width",)
    assert not signature.open
    assert package not in sys.modules


@pytest.mark.parametrize("name", ["Plain", "Alias", "inside.Same"])
def test_reexports_and_aliases_are_followed(package: str, name: str) -> None:
    assert list(options(f"{package}.{name}").options) == ["path", "layout", "mode", "heads", "free", "late"]


@pytest.mark.parametrize("name", ["Child", "Distant"])
def test_constructor_of_a_base_class_is_found(package: str, name: str) -> None:
    signature = options(f"{package}.inside.{name}")
    assert list(signature.options) == ["rate", "on"]
    assert signature.handed == ("steps",)


def test_dataclass_fields_are_options(package: str) -> None:
    signature = options(f"{package}.inside.Record")
    assert {name: o.default for name, o in signature.options.items()} == {
        "a": REQUIRED,
        "b": None,
        "c": UNREAD,
    }
    assert signature.options["b"].annotation == str | None
    assert signature.handed == ("d",)


def test_functions_and_classes_without_constructor(package: str) -> None:
    assert options(f"{package}.inside.scale").options["by"].annotation == int | None
    assert options(f"{package}.inside.Empty").options == {}
    assert options(f"{package}.inside.Anything").open


def test_a_name_that_does_not_exist_gets_the_nearest_one(package: str) -> None:
    with pytest.raises(ConfigError, match=rf"no Plane in {package}; did you mean Plain\?"):
        options(f"{package}.Plane")
    with pytest.raises(ConfigError, match="did you mean Rope"):
        options("newllm.position.Rop")
    with pytest.raises(ConfigError, match="no_such_package"):
        options("no_such_package.Thing")


def test_what_the_source_cannot_tell_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_at_run_time.py").write_text(
        "def make():\n    class Made:\n        def __init__(self, rate: float = 0.5, *, size): ...\n    return Made\n"
        "Made = make()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    signature = options("made_at_run_time.Made")
    assert signature.options["rate"].annotation is float
    assert signature.handed == ("size",)


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
    converted = coerce(value, annotation)
    assert (converted, type(converted)) == (result, type(result))


@pytest.mark.parametrize(
    ("value", "annotation", "message"),
    [
        (2.5, int, "expected a whole number"),
        (True, int, "expected a whole number"),
        (1, bool, "expected true or false"),
        ("1e4x", float, "expected a number"),
        (None, float, "expected a number"),
        (float("nan"), float, r"expected a number \(a finite one\)"),
        (float("inf"), float | None, "a finite one"),
        ([0.5, float("inf")], list[float], "expected a list"),
        (1.5, str, "expected text"),
        (1, None, "expected null"),
        ("hal", Literal["half", "interleaved"], r"expected half or interleaved \(did you mean half\?\)"),
        ([1, "a"], list[int], r"expected a list, as in \[1,2\]"),
        ("a", list[float] | None, r"expected a list, as in \[0.5,1\] or null"),
        (3, dict, "expected a mapping"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_was_expected(value: Any, annotation: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        coerce(value, NoneType if annotation is None else annotation)


def test_annotations_in_words() -> None:
    assert expected(int | Literal["auto"] | None) == "a whole number or auto or null"
