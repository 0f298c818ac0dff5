"""Named random streams: independent seeds for each use of randomness, derived from one seed."""

import hashlib


def stream(seed: int, *names: str | int) -> int:
    """Seed (63 bits) of the stream `names` of `seed`, e.g. ``stream(42, "order", epoch)``.

    Streams with different names are independent, so a model with more parameters does not change the order of
    the data, and two configurations with one seed see the same batches.
    """
    text = "/".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
