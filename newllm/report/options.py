"""The command line of `newllm report`: folders, and options checked against their types."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Literal

from omegaconf import OmegaConf

from newllm.analysis.comparison import Rule, make_rule
from newllm.config.catalog import report_defaults
from newllm.config.values import convert_options
from newllm.errors import ConfigError
from newllm.store.run_names import located
from newllm.suggest import did_you_mean

FORMATS = ("csv", "md", "tex", "html", "svg", "png")


@dataclass(frozen=True)
class Options:
    """The options of a report, which conf/report.yaml explains, the folders of runs, and the rule for verdicts."""

    baseline: str | None
    metrics: list[str]
    compare: list[str]
    by: list[str] | None
    where: list[str]
    size: str
    law: Literal["power", "saturating"]
    against: str | None
    interval: Literal["t", "bootstrap"]
    confidence: float
    family: Literal["report", "table"]
    verdict: str
    curves: int
    formats: list[str]
    out: str | None
    _: KW_ONLY
    folders: list[str]
    rule: Rule

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise ConfigError(f"confidence={self.confidence:g}: expected a number between 0 and 1, as in 0.95.")
        if self.curves < 1:
            raise ConfigError(f"curves={self.curves}: expected at least 1, the groups drawn in a figure.")
        for name in ("metrics", "formats"):
            if not getattr(self, name):
                raise ConfigError(f"{name}=[]: expected at least one; leave {name} out for the usual ones.")
        for name in self.formats:
            if name not in FORMATS:
                raise ConfigError(f"formats={name} is not a format; {did_you_mean(name, FORMATS)}.")

    @property
    def folder(self) -> Path:
        """Where the report goes."""
        return Path(self.out) if self.out else Path(self.folders[0]) / "report"

    @property
    def main_metric(self) -> str:
        """What groups are ranked by."""
        return (self.compare or self.metrics)[0]


def read_options(argv: Sequence[str]) -> Options:
    """Words with an ``=`` that are no folders are options, the others are folders.

    Raises ConfigError for an unknown option or a value of the wrong type.
    """
    folders, node, of_rule = [], report_defaults(), {}
    lists = [name for name, value in node.items() if isinstance(value, list) or name == "by"]
    for word in argv:
        name, equals, text = word.partition("=")
        if word.startswith("-"):
            raise ConfigError(f"{word} is no flag of newllm report, which has --help; options are key=value.")
        if not equals or Path(word).is_dir():
            folders.append(str(located(word)))
            continue
        try:
            value = OmegaConf.from_dotlist([f"value={text}"])["value"]
        except Exception:  # several libraries raise errors of their own for invalid YAML
            expected = "expected key=value, lists in brackets as in 'by=[model]'"
            raise ConfigError(f"{word!r} can't be read; {expected}.") from None
        value = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        if name.startswith("verdict."):
            of_rule[name.removeprefix("verdict.")] = value
        elif name == "baseline":
            node[name] = text if value is not None else None  # choose_baseline reads its brackets
        else:
            node[name] = [value] if name in lists and isinstance(value, str) else value
    if not folders:
        raise ConfigError("expected a folder of runs; type newllm report DIR, as in newllm report outputs/sweeps.")
    typed = convert_options(node, owner="a report")
    del typed["_target_"]
    return Options(**typed, folders=folders, rule=make_rule(typed["verdict"], **of_rule))
