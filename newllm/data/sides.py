"""Which stream of a store each document goes into, where that is decided as the documents come."""

from collections.abc import Iterator, Mapping

from newllm.data.corpora.base import Data, Piece
from newllm.data.enough import refuse_range_beyond, refuse_too_few
from newllm.data.split import Layout, hash_validates, number_validates, numbered
from newllm.data.store import StreamWriter


def sides(data: Data, layout: Layout, writers: Mapping[str, StreamWriter]) -> Iterator[tuple[str, Piece]]:
    """Pieces in the corpus' order with the stream of each, until every stream is full."""
    most: dict[str, int | None] = {"train": data.documents}
    if data.val_documents is not None:
        most["val"] = data.val_documents[1] - data.val_documents[0] + 1
    taken = dict.fromkeys(writers, 0)  # documents

    def full(side: str) -> bool:
        return writers[side].full or taken[side] == most.get(side)

    def side_of(number: int, piece: Piece) -> str:
        if layout == "prefix":
            return "all"
        if data.own_validation:
            return "train"
        if data.val_documents is not None:
            return "val" if number_validates(number, data.val_documents) else "train"
        return "val" if hash_validates(piece.text, data.val_fraction) else "train"

    here = ["train"] if data.own_validation else [*writers]  # streams that the corpus' main text fills
    joined: list[str] = []
    total = 0
    for number, piece in numbered(data.pieces()):
        if all(full(side) for side in here):
            break
        total = number + 1
        side = side_of(number, piece)
        if full(side):
            continue
        taken[side] += piece.last
        if side == "val" and data.val_joint is not None:
            joined += [piece.text, data.val_joint] if piece.last else [piece.text]
        else:
            yield side, piece
    if data.val_documents is not None and not full("val"):
        refuse_range_beyond(data.val_documents, total, data.documents)
    if data.documents is not None:
        refuse_too_few(data.documents, taken["train"])
    if joined:
        yield "val", Piece("".join(joined[:-1]))
    if data.own_validation:
        for piece in data.validation_pieces():
            if full("val"):
                break
            yield "val", piece
