"""Build the object a configuration node describes."""

from collections.abc import Mapping
from typing import Any, TypeVar

from omegaconf import DictConfig, OmegaConf

from newllm.config.values import convert_options, resolve, signature_of
from newllm.errors import ConfigError, NewllmError, with_place

T = TypeVar("T")


def build(node: Mapping[str, Any] | DictConfig, base: type[T], **handed: Any) -> T:
    """Call the node's ``_target_`` with the node's other keys as options, converted to the types that it annotates.

    base: the class that the target must be, or be a subclass of.

    The caller passes the target's keyword-only parameters: of `handed`, the target gets those that its signature names
    (all, if it takes ``**``). Nested nodes are passed as plain dicts; the target builds them itself, with its own
    sizes. Raises ConfigError for an option or a value that the target does not take, for a target of another kind, one
    in a package that the user has not named (`newllm.trust`), or a user's class that raises an error.
    """
    plain: Any = OmegaConf.to_container(node, resolve=True) if isinstance(node, DictConfig) else node
    options = convert_options(plain)
    target = str(options.pop("_target_"))
    constructor, signature = resolve(target, base), signature_of(target)
    if not signature.rest:
        handed = {name: value for name, value in handed.items() if name in signature.handed}
    try:
        return constructor(**options, **handed)
    except NewllmError:
        raise
    except Exception as error:
        if target.startswith("newllm."):
            raise
        raise ConfigError(f"{target} can't be made with these options: {with_place(error)}.") from error
