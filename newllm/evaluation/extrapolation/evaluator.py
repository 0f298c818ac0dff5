"""The evaluator: its options, what they ask of text, encoding and memory, and what it reports."""

from newllm.data.dataset import Dataset
from newllm.errors import ConfigError, RunError
from newllm.evaluation import lengths as given
from newllm.evaluation.bounds import require
from newllm.evaluation.extrapolation import windows as layout
from newllm.evaluation.extrapolation.measure import Part, measure
from newllm.evaluation.extrapolation.screen import body
from newllm.evaluation.subject import Findings, Subject
from newllm.model import LanguageModel

_OPTION = "eval.extrapolation"
_METRIC = {"slices": "ppl", "tail": "tail_ppl", "sliding": "sliding_ppl"}


class Extrapolation:
    """Perplexity of the validation text in windows of other lengths N than the training length.

    slices: ``extrapolation/ppl@N``, exp of the mean loss of the chunks ``val[i N : (i + 1) N]``, each read by itself
    (N − 1 inputs, N − 1 targets): non-overlapping inference, as most length studies publish (Press et al. 2022, arXiv
    2108.12409, appendix B). Each N scores other text, and the first tokens of a window have little context: it
    ranks models at one N and does not compare lengths.

    tail: ``extrapolation/tail_ppl@N``, of the last `tail` tokens of windows that end at the same places whatever
    their length. All N score the same targets, so the difference is what more context gives, or costs. Where the
    shortest length is below twice `tail`, half of that length is scored.

    positions: tables/extrapolation_positions.csv, the mean loss of the slices' targets with 1, 2 – 3, 4 – 7 … tokens
    before them and its standard error over windows; the perplexity is exp of the mean.

    sliding: ``extrapolation/sliding_ppl@N`` of windows of N tokens that move on by `stride` (null: N / 2) and score
    their last `stride` tokens only, so that each of these has N − stride tokens before it at least. All these N
    score the same text, up to a part of a stride at its end.

    tables/extrapolation.csv has a line per length and protocol: windows (chunks), tokens scored, loss with its
    standard error over windows, and the UTF-8 bytes of the text scored. A length that fails is named there and costs
    the others nothing. Perplexity hides much of what long context does to a model, since most tokens need near context
    only (Fang et al. 2024, arXiv 2410.23771).

    lengths, sliding: tokens, or multiples of the training length as in "4x". chunks: windows at each length, fewer
    where the text ends; the windows of `tail` end where the longest slices do. Time is that of reading all these
    tokens; memory grows linearly with the length (`newllm.evaluation.memory`).
    """

    def __init__(
        self,
        lengths: list[int | str] = ["1x", "2x", "4x", "8x"],  # noqa: B006 (only read)
        chunks: int = 10,
        slices: bool = True,
        tail: int | None = 256,
        positions: bool = True,
        sliding: list[int | str] = ["1x"],  # noqa: B006
        stride: int | None = None,
    ):
        given.check(lengths, f"{_OPTION}.lengths")
        given.check(sliding, f"{_OPTION}.sliding")
        if not lengths:
            raise ConfigError(f"{_OPTION}.lengths must have one length at least, as in [1x,2x,4x,8x]; got [].")
        for name, value, example in (("chunks", chunks, 10), ("tail", tail, 256), ("stride", stride, 64)):
            if value is not None and value < 1:
                raise ConfigError(
                    f"{_OPTION}.{name} must be at least 1, as in {_OPTION}.{name}={example}; got {value}."
                )
        if not (slices or tail or positions or sliding):
            raise ConfigError(f"{_OPTION} has all its parts off: type {_OPTION}.slices=true, or leave it out of eval.")
        self.lengths, self.chunks = lengths, chunks
        self.slices, self.tail, self.positions = slices, tail, positions
        self.sliding, self.stride = sliding, stride

    def check(self, data: Dataset, model: LanguageModel) -> None:
        """ConfigError for lengths that this text, this encoding or this machine's memory cannot give.

        Lengths at which the text fills fewer windows than `chunks` are said in data.notes.
        """
        tokens = len(data.val_tokens)
        parts = self.parts(tokens, model, memory=True)
        fewer = [
            f"{len(part.windows)} windows of {part.windows.length:,}"
            for part in parts
            if part.protocol == parts[0].protocol != "sliding" and len(part.windows) < self.chunks
        ]
        if fewer:
            data.notes.append(
                f"{_OPTION}.chunks={self.chunks} is more than {tokens:,} tokens of validation text hold: there are "
                f"{', '.join(fewer)}"
            )

    def __call__(self, subject: Subject) -> Findings:
        measured = measure(subject, self.parts(len(subject.data.val_tokens), subject.model))
        failures = [one.failure for one in measured if one.failed]
        if len(failures) == len(measured):
            raise RunError(f"{_OPTION} has measured nothing: {failures[0]}.")
        shown = [one for one in measured if self.slices or one.part.protocol != "slices"]
        bins = [row for one in measured for row in one.by_position] if self.positions else []
        tables = {"extrapolation": [one.row() for one in shown], "extrapolation_positions": bins}
        metrics = {
            f"extrapolation/{_METRIC[one.part.protocol]}@{one.part.windows.length}": one.ppl
            for one in shown
            if not one.failed
        }
        found = body(shown, failures, bins, subject)
        return Findings("Extrapolation", metrics, {name: rows for name, rows in tables.items() if rows}, found)

    def parts(self, tokens: int, model: LanguageModel, memory: bool = False) -> list[Part]:
        """What there is to measure on a text of so many tokens, the shortest windows first.

        Raises ConfigError for a length that the text cannot fill once, that is beyond the encoding's table or, if that
        is asked for, beyond the memory.
        """
        lengths = given.parse(self.lengths, model.seq_len, f"{_OPTION}.lengths")
        moving = given.parse(self.sliding, model.seq_len, f"{_OPTION}.sliding")
        for length in moving:
            if self._stride(length) >= length:
                raise ConfigError(
                    f"{_OPTION}.stride must be smaller than the window of {length} tokens that moves by it, as in "
                    f"{_OPTION}.stride={length // 2}; got {self.stride}."
                )
        require(f"{_OPTION}.lengths", lengths, model, tokens, memory)
        room = tokens * 2 // 3 if self.stride is None else tokens - self.stride  # for a window and a stride
        require(f"{_OPTION}.sliding", moving, model, room, memory)
        parts: list[Part] = []
        ends = layout.slices(tokens, lengths[-1], self.chunks).ends
        for length in lengths:
            if self.slices or self.positions:
                parts.append(Part("slices", layout.slices(tokens, length, self.chunks)))
            if self.tail is not None:
                parts.append(Part("tail", layout.tails(ends, length, min(self.tail, lengths[0] // 2))))
        for length in moving:
            end = min(tokens, (self.chunks + 1) * moving[-1])
            parts.append(Part("sliding", layout.sliding(moving[-1], end, length, self._stride(length))))
        return parts

    def _stride(self, length: int) -> int:
        return length // 2 if self.stride is None else self.stride
