"""Number of tokens that a store needs, and suggestions if the corpus has fewer."""

from collections.abc import Mapping, Sequence

from newllm.data.corpora.corpus import Corpus
from newllm.errors import ConfigError


def budget_of(corpus: Corpus, layout: str) -> dict[str, int]:
    """Tokens needed per stream, including the one after the last row; a stream without a limit is left out."""
    if corpus.rows is None:
        return {}
    train, val = (rows and rows * corpus.seq_len for rows in corpus.rows)
    if layout == "prefix":
        return {"all": (train or 0) + (val or 0) + corpus.seq_len}
    return {side: tokens + 1 for side, tokens in (("train", train), ("val", val)) if tokens is not None}


def check_lengths(corpus: Corpus, layout: str, lengths: Mapping[str, int]) -> None:
    """Raises ConfigError if a stream is shorter than its budget, or than one row."""
    budget = budget_of(corpus, layout)
    for side, length in lengths.items():
        needed = budget.get(side, corpus.seq_len + 1)
        if side == "all":  # one token after the last row is enough, although the budget takes a whole row
            needed = needed - corpus.seq_len + 1 if budget else corpus.least_rows * corpus.seq_len + 1
        if length < needed:
            where = {"train": "training ", "val": "validation ", "all": ""}[side]
            raise ConfigError(
                f"too little {where}text: {needed:,} tokens are needed and {length:,} were found; give more text or "
                f"type {_smaller_budget(corpus, side, length / needed if side in budget else 0.0)}"
            )


def _smaller_budget(corpus: Corpus, side: str, share: float) -> str:
    """The option to type if only this share of a stream's budget was found (0: the stream has no budget)."""
    own_budget = side == "val" and corpus.val_samples is not None
    if not share or corpus.rows is None:
        return "a smaller seq_len"
    asked = corpus.rows[1:] if own_budget else corpus.rows[:1] if corpus.separate_validation else corpus.rows
    possible = int(sum(filter(None, asked)) * share)
    if possible < (1 if own_budget else corpus.least_rows):
        fewer = "a smaller seq_len"
    elif own_budget:
        fewer = f"data.val_samples={possible} or less"
    elif corpus.tokens is not None:
        fewer = f"tokens={possible * corpus.seq_len} or less"
    else:
        fewer = f"samples={possible} or less"
    return f"{fewer}, or {'data.val_samples=null' if own_budget else 'samples=null tokens=null'} for all there is"


def check_documents(asked: int, found: int) -> None:
    """Raises ConfigError if the corpus has fewer training documents than data.documents."""
    if found < asked:
        fewer = f"type data.documents={found} or less, or " if found else ""
        raise ConfigError(
            f"data.documents={asked} asks for {asked:,} documents that train and the corpus has {found:,}; "
            f"{fewer}give more text"
        )


def refuse_val_documents(asked: Sequence[int], found: int, training: int | None) -> None:
    """Raises ConfigError for data.val_documents beyond the last of the `found` documents.

    training: data.documents, which the suggested range must not overlap.
    """
    first, last = asked
    back = last - found + 1
    nearer = (
        f"type data.val_documents=[{first - back},{last - back}], or " if first - back >= max(training or 0, 1) else ""
    )
    raise ConfigError(
        f"data.val_documents=[{first},{last}] asks for document {last} and the corpus has {found:,}, numbered from 0; "
        f"{nearer}give more text"
    )
