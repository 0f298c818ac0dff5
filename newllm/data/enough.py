"""How much text a store needs, and what is said when the corpus has less."""

from collections.abc import Mapping, Sequence

from newllm.data.corpora.base import Data
from newllm.errors import ConfigError

Budget = dict[str, int]  # tokens needed of each stream; all there are of one that is not named


def budget_of(data: Data, layout: str) -> Budget:
    """The tokens of each stream that the rows of `data` need, and the one that follows the last."""
    if data.rows is None:
        return {}
    both = zip(("train", "val"), data.rows, strict=True)
    sides = {side: rows * data.seq_len for side, rows in both if rows is not None}
    if layout == "prefix":
        return {"all": sum(sides.values()) + data.seq_len}
    return {side: tokens + 1 for side, tokens in sides.items()}


def refuse_too_few(asked: int, found: int) -> None:
    """Raise ConfigError when the corpus has fewer documents for training than are asked for."""
    if found < asked:
        fewer = f"type data.documents={found} or less, or " if found else ""
        raise ConfigError(
            f"data.documents={asked} asks for {asked:,} documents that train and the corpus has {found:,}; "
            f"{fewer}give more text"
        )


def refuse_range_beyond(asked: Sequence[int], found: int, trained: int | None) -> None:
    """Raise ConfigError when the documents that validate are numbered beyond the end of the corpus.

    trained: how many documents train, if that was asked for.
    """
    first, last = asked
    back = last - found + 1
    nearer = (
        f"type data.val_documents=[{first - back},{last - back}], or " if first - back >= max(trained or 0, 1) else ""
    )
    raise ConfigError(
        f"data.val_documents=[{first},{last}] asks for document {last} and the corpus has {found:,}, numbered from 0; "
        f"{nearer}give more text"
    )


def check_lengths(data: Data, layout: str, lengths: Mapping[str, int]) -> None:
    """Raise ConfigError when there is less text than the budget (or one row a side) needs."""
    budget = budget_of(data, layout)
    for side, length in lengths.items():
        needed = budget.get(side, data.seq_len + 1)
        if side == "all":  # the last row needs one token after it, not the whole row that is taken where there is one
            needed = needed - data.seq_len + 1 if budget else data.least_rows * data.seq_len + 1
        if length < needed:
            where = {"train": "training ", "val": "validation ", "all": ""}[side]
            raise ConfigError(
                f"too little {where}text: {needed:,} tokens are needed and {length:,} were found; give more text or "
                f"type {_fewer(data, side, length / needed if side in budget else 0.0)}"
            )


def _fewer(data: Data, side: str, share: float) -> str:
    """What to type where only this share of a stream's budget was found; 0: it had no budget of its own."""
    if not share or data.rows is None:
        return "a smaller seq_len"
    apart = side == "val" and data.val_samples is not None
    asked = data.rows[1:] if apart else data.rows[:1] if data.validates_apart else data.rows
    possible = int(sum(filter(None, asked)) * share)
    if possible < (1 if apart else data.least_rows):
        fewer = "a smaller seq_len"
    elif apart:
        fewer = f"data.val_samples={possible} or less"
    elif data.tokens is not None:
        fewer = f"tokens={possible * data.seq_len} or less"
    else:
        fewer = f"samples={possible} or less"
    everything = "data.val_samples=null" if apart else "samples=null tokens=null"
    return f"{fewer}, or {everything} for all there is"
