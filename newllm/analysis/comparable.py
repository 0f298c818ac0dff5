"""Which runs may stand in one table: those with one tokenizer and one validation set."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pandas as pd

from newllm.analysis.labels import SEPARATOR, value_text
from newllm.analysis.run_groups import lost_runs
from newllm.analysis.settings import canonical, flatten, names_of_content, places_of, with_names
from newllm.config.identity import relevant_nodes

TOKENIZER = ("data.tokenizer", "data.vocab_size", "data.tokenizer_bytes")
BUDGET = ("data.seq_len", "data.samples", "data.tokens", "data.documents")
TOKENS, BYTES, WEIGHTING = "data/val_tokens", "data/bytes_per_token", "eval.loss.weighting"


@dataclass(frozen=True)
class ComparableRuns:
    """Finished runs whose perplexities compare, and the failed or unreadable runs that would have compared with them.

    title: what sets them apart from the others; reason: why there are several such sets. Both are empty for the only
    one. runs: rows of the table.
    """

    title: str
    reason: str
    runs: pd.DataFrame


def split_comparable(frame: pd.DataFrame) -> list[ComparableRuns]:
    """The runs of `frame`, split by tokenizer and validation set; the set with the most finished runs first.

    The validation text is identified by the data node and by two numbers that the run measured on it: the tokens
    scored (`data/val_tokens`) and the bytes they stand for (`data/bytes_per_token`), which differ where another
    machine's corpus differs. The training budget does not matter with split=document, which leaves the validation
    documents as they are, nor where these are named (val_documents).
    """
    done = frame[frame["state"] == "done"]
    measured = [done[name] if name in done else [None] * len(done) for name in (TOKENS, BYTES)]
    identities = [_identity(config, *numbers) for config, *numbers in zip(done["config"], *measured, strict=True)]
    sets = sorted(places_of(map(canonical, identities)).values(), key=len, reverse=True)
    firsts = [identities[places[0]] for places in sets]
    keys = dict.fromkeys(key for identity in firsts for key in identity)
    different = [key for key in keys if len({canonical(identity.get(key)) for identity in firsts}) > 1]
    reason, names = _reason(different), names_of_content(done["config"])
    lost = frame[lost_runs(frame)]
    planned = lost["config"].map(lambda config: canonical(_identity(config, None, None)))  # these measured nothing
    split = []
    for first, places in zip(firsts, sets, strict=True):
        without = lost[planned == canonical({**first, TOKENS: None, BYTES: None})]
        title = _title(with_names(first, names), different)
        split.append(ComparableRuns(title, reason, pd.concat([done.iloc[places], without])))
    return split


def tokenizer_of(config: Mapping[str, Any]) -> str:
    """Equal for runs whose tokens are the same: the tokenizer and, where it is trained on the corpus, the corpus."""
    identity = _identity(config, None, None)
    trained = config["data"].get("tokenizer") == "auto"
    return canonical(identity if trained else {key: identity.get(key) for key in TOKENIZER})


def _identity(config: Mapping[str, Any], tokens: float | None, bytes_per_token: float | None) -> dict[str, Any]:
    flat = flatten(relevant_nodes(config).get("data", {}), "data")
    tokenizer = str(flat.get("data.tokenizer"))
    ignored = {
        "data.passkey",  # changes training rows only
        *(TOKENIZER[1:] if tokenizer != "auto" else ()),
        *(("data.split_seed",) if flat.get("data.split") != "chunks" else ()),
        *(BUDGET if flat.get("data.split") == "document" or flat.get("data.val_documents") else ()),
    }
    loss = config.get("eval", {}).get("loss") or {}
    return {
        **{key: value for key, value in flat.items() if key not in ignored},
        TOKENS: tokens if tokens is not None and isfinite(tokens) else None,
        BYTES: float(f"{bytes_per_token:.12g}") if bytes_per_token is not None and isfinite(bytes_per_token) else None,
        WEIGHTING: loss.get("weighting", "token"),
    }


def _title(identity: Mapping[str, Any], different: list[str]) -> str:
    words = []
    for key in different:
        value = identity.get(key)
        if key == TOKENS:
            words.append("unknown validation tokens" if value is None else f"{value:,.0f} validation tokens")
        elif key == BYTES:
            if TOKENS not in different:
                words.append("unknown bytes per token" if value is None else f"{value:.4f} bytes per validation token")
        elif key == "data._target_":
            words.append(str(value).rpartition(".")[2])
        elif value is not None or key in BUDGET:
            words.append(f"{key.removeprefix('data.')} {value_text(value)}")
    return SEPARATOR.join(words)


def _reason(different: list[str]) -> str:
    causes = {
        "tokenizer": any(key in TOKENIZER for key in different),
        "validation set": any(key not in (*TOKENIZER, WEIGHTING) for key in different),
        "weighting of the validation loss": WEIGHTING in different,
    }
    named = " and ".join(cause for cause, holds in causes.items() if holds)
    sentence = "These runs do not have the same {}, so their perplexities do not compare: each has a table of its own."
    return sentence.format(named) if named else ""
