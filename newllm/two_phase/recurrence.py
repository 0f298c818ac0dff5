"""Recurrences: a context is carried from token to token. Step by step, and fast over one long stream."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

Inputs = Callable[[int, int], Tensor]  # start, stop -> the inputs [stop - start, I] of these tokens
Piece = tuple[tuple[int, int], Tensor]  # (start, stop), and the states [stop - start, layers, C] of these tokens

_SEGMENTS = 64  # rows at which a CPU's matrix products come near their speed for large matrices
_BLOCK = 2048  # tokens whose inputs and states are in memory at a time
_PROBES = 4  # places of the stream where forgetting is measured
_PATIENCE = 16  # the recurrence must forget within 1 / _PATIENCE of the stream
# Largest differences by rounding alone were 3.5e-6 and 0.043 in blocks of 3 x 1536.
_TOLERANCES = {torch.float32: 8e-6, torch.bfloat16: 1 / 16}


class Recurrence(nn.Module):
    """``c_t = f(c_{t-1}, u_t)`` through `layers` layers of width C; the last one's state is carried to the next token.

    What the inputs u_t add in each layer (their share) does not depend on the contexts, so it is computed for many
    tokens at once: a subclass has `project` and `step`.
    """

    layers: int
    width: int  # C

    def project(self, inputs: Tensor) -> Tensor:
        """The share [.., layers, C] of the inputs [.., I] in each layer."""
        raise NotImplementedError

    def step(self, context: Tensor, share: Tensor) -> Tensor:
        """States [N, layers, C] of all layers from the previous contexts [N, C] and the shares [N, layers, C]."""
        raise NotImplementedError

    def forward(self, context: Tensor, inputs: Tensor) -> Tensor:
        """One token each: contexts [N, C] and inputs [N, I] -> the states [N, layers, C] of all layers."""
        return self.step(context, self.project(inputs))


def scan(recurrence: Recurrence, inputs: Tensor, start: Tensor) -> Tensor:
    """The states [B, T, layers, C] of rows of inputs [B, T, I] from the contexts `start` [B, C], token by token.

    Differentiable through time. The share of the inputs is computed for all T tokens at once.
    """
    states, context = [], start
    for share in recurrence.project(inputs).unbind(1):  # [B, layers, C] each
        states.append(recurrence.step(context, share))
        context = states[-1][:, -1]
    return torch.stack(states, dim=1)


@torch.no_grad()
def sequential(recurrence: Recurrence, inputs: Inputs, count: int, start: Tensor) -> Iterator[Piece]:
    """The true recurrence over one long stream of `count` tokens from the context `start` [C].

    Gives what `scan` of the whole stream would, many times as fast if the recurrence forgets. The stream is cut into
    segments that run side by side (multiple shooting, Bock & Plitt 1984). Each starts from the context that some tokens
    before it give when run from zeros. Then the start of every segment is compared with the end of the previous one.
    Segments whose starts differ from it are run again from that end, until all agree: up to twice the difference that
    rounding alone makes between two passes from the same start, 8e-6 in fp32 and 1/16 under bf16 autocast. If the
    recurrence does not forget, or most starts are wrong, it runs token by token.

    With S segments of T tokens that start w tokens early, and a product of r rows that costs 9 + r (its weights are
    read, then used), the minimum of (T + w)(9 + S) is at T = sqrt(S T w) / 3.

    Pieces come in any order, and a corrected piece may follow for the same tokens. inputs: called by range, so that the
    whole stream need not be in memory.
    """
    device = start.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else start.dtype
    tolerance = _TOLERANCES.get(dtype, 128 * torch.finfo(dtype).eps)  # of contexts of variance 1
    # Twice as many tokens as forgetting takes, so that most starts agree at once.
    warm_up = 2 * _tokens_to_forget(recurrence, inputs, count, start, tolerance)
    length = max(-(-count // _SEGMENTS), math.isqrt(count * warm_up) // 3, warm_up, 1)
    begins = list(range(0, count, length))
    if warm_up == 0 or len(begins) < 2:
        yield from _run_spans(recurrence, inputs, [(0, count)], start[None].clone())
        return
    starts = start.new_zeros(len(begins), len(start))
    for _ in _run_spans(recurrence, inputs, [(begin - warm_up, begin) for begin in begins[1:]], starts[1:]):
        pass
    starts[0] = start
    spans = [(begin, min(begin + length, count)) for begin in begins]
    ends = starts.clone()
    wrong = torch.ones(len(spans), dtype=torch.bool)
    while wrong.any():
        rows = wrong.nonzero()[:, 0]
        contexts = starts[rows]
        yield from _run_spans(recurrence, inputs, [spans[row] for row in rows], contexts)
        ends[rows] = contexts
        wrong = torch.cat([torch.zeros(1), (starts[1:] - ends[:-1]).abs().amax(dim=1).cpu()]) > tolerance
        if 2 * int(wrong.sum()) > len(spans):  # it remembers more than was measured
            first = int(wrong.nonzero()[0, 0])
            yield from _run_spans(recurrence, inputs, [(begins[first], count)], ends[first - 1 : first].clone())
            return
        starts[1:][wrong[1:]] = ends[:-1][wrong[1:]]


def _run_spans(
    recurrence: Recurrence, inputs: Inputs, spans: Sequence[tuple[int, int]], contexts: Tensor
) -> Iterator[Piece]:
    """Run spans [begin, end) of the stream side by side from `contexts` [S, C], which become the contexts at the ends.

    All spans but the last have the same length, and the last is not longer.
    """
    done = 0
    while running := [begin + done for begin, end in spans if begin + done < end]:
        shortest = min(end - begin for begin, end in spans[: len(running)]) - done
        size = min(shortest, max(1, _BLOCK // len(running)))
        windows = torch.stack([inputs(at, at + size) for at in running])
        states = scan(recurrence, windows, contexts[: len(running)])  # [S, size, layers, C]
        contexts[: len(running)] = states[:, -1, -1]
        for at, row in zip(running, states, strict=True):
            yield (at, at + size), row
        done += size


def _tokens_to_forget(recurrence: Recurrence, inputs: Inputs, count: int, start: Tensor, tolerance: float) -> int:
    """Tokens after which zeros and a state of norm sqrt(C) have led to the same context; 0 if they do not.

    Measured from several places of the stream at once.
    """
    limit = count // _PATIENCE
    signs = torch.ones_like(start)
    signs[1::2] = -1
    places = [number * (count - limit) // _PROBES for number in range(_PROBES)]
    contexts = torch.stack([torch.zeros_like(start), signs]).repeat_interleave(_PROBES, dim=0)  # [2 P, C]
    for done in range(0, limit, 32):
        stop = min(done + 32, limit)
        windows = torch.stack([inputs(place + done, place + stop) for place in places]).repeat(2, 1, 1)
        states = scan(recurrence, windows, contexts)[:, :, -1]  # [2 P, stop - done, C]
        contexts = states[:, -1]
        equal = (states[:_PROBES] - states[_PROBES:]).abs().amax(dim=(0, 2)) <= tolerance
        if equal.any():
            return done + int(equal.int().argmax()) + 1
    return 0
