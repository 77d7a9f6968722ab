"""Pictures as arrays of RGB pixels."""

import os
import struct

import numpy as np
import PIL.Image
import PIL.ImageOps

from cogvx_jax.data.files import existing
from cogvx_jax.data.tars import Member, open_file

# What PIL raises for broken files, of which kind depends on where they are broken.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, EOFError, ArithmeticError, LookupError, struct.error)


def read_image(source) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB.

    Args:
      source: a path, a member of a tar, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        Files and PIL images are turned upright by their EXIF tag. An alpha channel is dropped, not blended. Grey of
        16 bits is scaled to 8.
    Raises: FileNotFoundError for a path that does not exist; ValueError for anything that is not a picture, for one of
      more pixels than PIL allows, and for pixels of 32 bits, whose white is not known.
    """
    if isinstance(source, str | os.PathLike | Member):
        return _rgb(_load(source), repr(str(source)))
    if isinstance(source, PIL.Image.Image):
        return _rgb(PIL.ImageOps.exif_transpose(source), "the picture")
    pixels = np.asarray(source)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise ValueError(
            f"a picture must be a path, a PIL image or a uint8 array (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return pixels[..., :3].copy() if pixels.shape[-1] > 1 else pixels.repeat(3, axis=-1)


def _load(source: str | os.PathLike | Member) -> PIL.Image.Image:
    """The picture of a file, upright."""
    file = existing(source)
    try:
        with PIL.Image.open(open_file(file) if isinstance(file, Member) else file) as image:
            return PIL.ImageOps.exif_transpose(image)
    except PIL.Image.DecompressionBombError as e:
        limit = 2 * (PIL.Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"{str(source)!r} is too large a picture; it may have {limit:,} pixels at most") from e
    except BROKEN as e:
        raise ValueError(f"{str(source)!r} cannot be read as a picture; give a PNG, JPEG or WebP file") from e


def _rgb(image: PIL.Image.Image, where: str) -> np.ndarray:
    if image.mode in ("I", "F"):  # PIL would clip them at 0 and 255, to black and white
        raise ValueError(f"{where} has pixels of 32 bits, of which white is not known; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # PIL would clip these at 255, a white picture
        image = PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.array(image.convert("RGB"))
