"""Step `duplicates`: clips that show the same as one before them, in another encoding or size.

Three frames of a clip are hashed to 64 bits each (the DCT hash of the package imagehash). Of two clips that are the
same, most of these 192 bits are. Only clips that have some 16 bits in common, chosen once for each of 24 tables, are
compared. Of 1,000 copies that differ in 4 bits of 64 all were found, of those that differ in 8, 952. Of other clips one
in 2,700 is looked at.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

FRAMES, BITS = 3, 64
TABLES, KEY = 24, 16  # tables, and bits that decide about a place in one
CHOSEN = np.random.default_rng(0).integers(0, FRAMES * BITS, (TABLES, KEY))
FLAT = 3.0  # levels, the deviation of a frame that shows nothing and is like any other such


def hashes(clip: Row, look: Look, settings: Settings) -> Row:
    """Returns: `phash`, of the first, the middle and the last large frame, 16 hexadecimal digits each; None where a
    frame shows nothing. Raises: ValueError where the package imagehash is missing."""
    try:
        import imagehash
    except ImportError:
        raise ValueError("this step needs the package imagehash: pip install 'cogvx_jax[prepare]'") from None
    import PIL.Image

    if not len(look.large):
        return {}
    chosen = [look.large[(len(look.large) - 1) * i // (FRAMES - 1)] for i in range(FRAMES)]
    if any(frame.std() < FLAT for frame in chosen):
        return {}
    return {"phash": [str(imagehash.phash(PIL.Image.fromarray(frame))) for frame in chosen]}


def duplicates(rows: Sequence[Row], settings: Settings) -> list[Row]:
    """Rows with `dup_of`, the `clip_id` of the first clip that a clip is a copy of; None where it is of none.

    Args:
      rows: in the order that says which of two copies is the first; with `clip_id`, `phash`, `start` and `end`.
    """
    most, index = settings.duplicates.distance * FRAMES, defaultdict[tuple[int, int], list[int]](list)
    known: list[tuple[str, list[int]]] = []
    found = []
    for row in rows:
        row = row | {"dup_of": None}
        found.append(row)
        if not row.get("phash"):
            continue
        own = [int(text, 16) for text in row["phash"]]
        places = _places(own)
        near = sorted({n for place in places for n in index.get(place, ())})
        match = next((n for n in near if _distance(own, known[n][1]) <= most), None)
        if match is not None:
            row["dup_of"] = known[match][0]
            continue
        for place in places:
            index[place].append(len(known))
        known.append((row["clip_id"], own))
    return found


def _places(hashes: Sequence[int]) -> list[tuple[int, int]]:
    """Where a clip stands in each table."""
    bits = np.unpackbits(np.frombuffer(b"".join(value.to_bytes(BITS // 8, "big") for value in hashes), np.uint8))
    keys = bits[CHOSEN].astype(np.int64) @ (1 << np.arange(KEY))
    return list(enumerate(keys.tolist()))


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))
