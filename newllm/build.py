"""Build the object a configuration node describes."""

import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def build(node: Mapping[str, Any] | DictConfig, **handed: Any) -> Any:
    """Call the node's ``_target_`` with the node's other keys as options.

    The target's keyword-only parameters are handed over by the caller: of `handed`, it gets those that its
    signature names (all, if it takes ``**``). Nested nodes arrive as plain dicts; the target builds them itself,
    with sizes of its own.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    options: dict[str, Any] = dict(plain)
    target = pkgutil.resolve_name(options.pop("_target_"))
    parameters = inspect.signature(target).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        wanted = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        handed = {name: value for name, value in handed.items() if name in wanted}
    return target(**options, **handed)
