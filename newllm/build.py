"""Build the object a configuration node describes."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.values import fitted, resolve, signature_of


def build(node: Mapping[str, Any] | DictConfig, **handed: Any) -> Any:
    """Call the node's ``_target_`` with the node's other keys as options, brought to the types that it annotates.

    The target's keyword-only parameters are handed over by the caller: of `handed`, it gets those that its
    signature names (all, if it takes ``**``). Nested nodes arrive as plain dicts; the target builds them itself,
    with sizes of its own. Raises ConfigError for an option that the target does not take, or not with this value.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    options = fitted(plain)
    target = options.pop("_target_")
    signature = signature_of(target)
    if not signature.rest:
        handed = {name: value for name, value in handed.items() if name in signature.handed}
    return resolve(target)(**options, **handed)
