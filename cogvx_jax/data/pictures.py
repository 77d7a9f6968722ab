"""Pictures as arrays of RGB pixels."""

import os
import pathlib

import numpy as np
import PIL.Image
import PIL.ImageOps

from cogvx_jax.data.tars import Member, open_file


def read_image(source) -> np.ndarray:
    """Reads a picture as (H, W, 3) uint8 RGB.

    Args:
      source: a path, a member of a tar, a PIL image, or a uint8 array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4).
        Files and PIL images are turned upright by their EXIF tag; an alpha channel is dropped, not blended.
    Raises: FileNotFoundError for a path that does not exist; ValueError for anything that is not a picture.
    """
    if isinstance(source, str | os.PathLike | Member):
        try:
            with PIL.Image.open(open_file(source) if isinstance(source, Member) else existing(source)) as image:
                return _rgb(image)
        except (OSError, SyntaxError, PIL.Image.DecompressionBombError) as e:  # of PIL: broken files, files too large
            if isinstance(e, FileNotFoundError | PermissionError):
                raise
            raise ValueError(f"{str(source)!r} cannot be read as a picture; give a PNG, JPEG or WebP file") from e
    if isinstance(source, PIL.Image.Image):
        return _rgb(source)
    pixels = np.asarray(source)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise ValueError(
            f"a picture must be a path, a PIL image or a uint8 array (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return pixels[..., :3].copy() if pixels.shape[-1] > 1 else pixels.repeat(3, axis=-1)


def _rgb(image: PIL.Image.Image) -> np.ndarray:
    image = PIL.ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # PIL would clip 16-bit grey at 255, a white picture
        image = PIL.Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.array(image.convert("RGB"))


def existing(source) -> pathlib.Path:
    path = pathlib.Path(source)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(source)!r}; check the path")
    if not path.is_file():
        raise ValueError(f"{str(source)!r} is not a file; give the path of one")
    return path
