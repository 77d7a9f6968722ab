"""Step `duplicates`: clips that show the same as one before them, in another encoding or size.

Three frames of a clip are hashed to 64 bits each (the DCT hash of the package imagehash). Of two clips that are the
same, most bits are. Candidates share one of a hash's bands of 4 bits and its neighbour, so nobody compares all pairs.
"""

from collections import defaultdict
from collections.abc import Sequence

from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.rows import Row
from cogvx_jax.prepare.settings import Settings

FRAMES, BITS = 3, 64
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
        bands = _bands(own[FRAMES // 2])
        near = sorted({n for band in bands for n in index.get(band, ())})
        match = next((n for n in near if _distance(own, known[n][1]) <= most), None)
        if match is not None:
            row["dup_of"] = known[match][0]
            continue
        for band in bands:
            index[band].append(len(known))
        known.append((row["clip_id"], own))
    return found


def _bands(value: int) -> list[tuple[int, int]]:
    """All runs of 4 bits, so that hashes that differ in at most 15 bits share one."""
    return [(n, value >> 4 * n & 0xF) for n in range(BITS // 4)]


def _distance(one: Sequence[int], other: Sequence[int]) -> int:
    return sum((a ^ b).bit_count() for a, b in zip(one, other, strict=True))
