"""The text of `newllm train --help`, generated from the YAML files."""

import json
from typing import Any

from newllm.config.catalog import Catalog

_USAGE = """\
Train a small language model, evaluate it, and leave a run directory.

  newllm train [CHOICE=NAME …] [AXIS=VALUE …] [GROUP.OPTION=VALUE …] [flags]     (or python -m newllm.train …)

Examples
  newllm train                                                  the default run, minutes on a laptop's CPU
  newllm train pos_encoding=alibi attention=mla kv_dim=64       other choices, another axis value
  newllm train data=text data.path=FILE_OR_FOLDER               your own text
  newllm train -m pos_encoding=rope,alibi seeds=3               a sweep: six runs; with dry_run=true, their plan
  newllm train attention=mla --cfg job                          show the configuration, run nothing"""

_FLAGS = """\
Flags
  -m, --multirun        sweep over a=1,2 or a=range(1,4)
  --cfg job             print the configuration and stop; --resolve fills in references, --package GROUP shows a part
  --config-dir FOLDER   add YAML files of your own, laid out like conf/
  hydra.run.dir=FOLDER  where the run lands (default: outputs/runs/NAME-SIGNATURE); the same command resumes it
  HYDRA_FULL_ERROR=1    (environment) show tracebacks"""


def page(catalog: Catalog) -> str:
    """Usage, every choice with its description (the default marked ``*``), every axis with its default."""
    lines = [_USAGE, "", "Choices"]
    for group, names in catalog.groups.items():
        default = catalog.defaults.get(group)
        chosen = default if isinstance(default, list) else [default]
        lines.append(f"  {group}=")
        for name in names:
            mark = "*" if name in chosen else " "
            lines.append(f"   {mark} {name:<18} {_short(catalog.describe(group, name))}".rstrip())
    lines += ["", "Axes (root keys that choices refer to)", *_keys(catalog.axes, catalog)]
    lines += ["", "Sweeps (with -m; not part of a run)", *_keys(catalog.sweep_options, catalog)]
    lines.append(f"  {'hydra/launcher=local':<20} where runs execute: {', '.join(catalog.launchers)}")
    return "\n".join([*lines, "", _FLAGS])


def _keys(keys: dict[str, Any], catalog: Catalog) -> list[str]:
    typed = {
        key: json.dumps(value) if value is None or isinstance(value, bool) else value for key, value in keys.items()
    }
    return [f"  {f'{key}={value}':<20} {catalog.comments.get(key, '')}".rstrip() for key, value in typed.items()]


def _short(text: str, width: int = 100) -> str:
    return text if len(text) <= width else text[: width - 1].rsplit(" ", 1)[0] + " …"
