"""Build the object a configuration node describes."""

from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from newllm.config.values import convert_options, resolve, signature_of


def build(node: Mapping[str, Any] | DictConfig, **handed: Any) -> Any:
    """Call the node's ``_target_`` with the node's other keys as options, converted to the types that it annotates.

    The caller passes the target's keyword-only parameters: of `handed`, the target gets those that its signature names
    (all, if it takes ``**``). Nested nodes are passed as plain dicts; the target builds them itself, with its own
    sizes. Raises ConfigError for an option or a value that the target does not take.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    options = convert_options(plain)
    target = options.pop("_target_")
    signature = signature_of(target)
    if not signature.rest:
        handed = {name: value for name, value in handed.items() if name in signature.handed}
    return resolve(target)(**options, **handed)
