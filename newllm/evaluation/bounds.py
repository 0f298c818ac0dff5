"""How long a row may be: bounds that a configuration is held to before anything is trained."""

from newllm.errors import ConfigError
from newllm.evaluation.memory import free_bytes, gigabytes, longest_row, row_bytes
from newllm.model import LanguageModel


def require(
    option: str, lengths: list[int], model: LanguageModel, text: int, memory: bool = True, several: bool = True
) -> None:
    """ConfigError where the longest of `lengths` (ascending) is beyond text, encoding or memory; it names what fits.

    option: which configuration key gave them. text: tokens of the longest row that the validation text has room for.
    memory: the machine's memory bounds them too, by the estimate of `newllm.evaluation.memory`. several: the
    option is a list.
    """
    if not lengths:
        return
    longest, limit = lengths[-1], model.position.limit
    bounds = [(text, f"the validation text has room for {text:,}", "give more text (samples, data.val_fraction)")]
    if limit is not None:
        table = f"pos_encoding has values for {limit:,} positions"
        bounds.append((limit, table, "train with an encoding that has no table, as pos_encoding=rope"))
    device = next(model.parameters()).device
    free = free_bytes(device) if memory else None
    if free is not None:
        takes = (
            f"one takes about {gigabytes(row_bytes(model, longest))}, of which {gigabytes(free)} are free on {device}"
        )
        bounds.append((longest_row(model, free), takes, "take a machine with more memory"))
    most, why, instead = min(bounds)
    if longest > most:
        fitting = [length for length in lengths if length <= most] or [most]
        listed = ",".join(map(str, fitting))
        raise ConfigError(
            f"{option} asks for rows of {longest:,} tokens, and {why}: the longest that fits has {most:,}; type "
            f"{option}={f'[{listed}]' if several else listed}, or {instead}."
        )
