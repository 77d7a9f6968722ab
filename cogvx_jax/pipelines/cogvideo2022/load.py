"""CogVideo (2022) from a folder, and a video of a prompt: what people come for."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import PIL.Image
from jax.sharding import Mesh

from cogvx_jax.configs import DTYPES
from cogvx_jax.convert.cogvideo2022_folder import IMAGES, SIZES, Parts, open_parts, read_images
from cogvx_jax.convert.cogvideo2022_quantized import check_quantization
from cogvx_jax.data.pictures import read_image
from cogvx_jax.data.video import Video
from cogvx_jax.json_files import quoted
from cogvx_jax.models.cogvideo2022.cached import applied
from cogvx_jax.models.cogvideo2022.configs import ImageTokenizerConfig
from cogvx_jax.pipelines.cogvideo2022.clusters import Clusters, Draw, read_clusters
from cogvx_jax.pipelines.cogvideo2022.generate import Settings, enlarge, make_codes, to_pixels
from cogvx_jax.pipelines.cogvideo2022.kinds import check_whole
from cogvx_jax.pipelines.cogvideo2022.system import INTERPOLATION, SEQUENTIAL, SUPER_RESOLUTION, System
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer, check_prompts
from cogvx_jax.pipelines.cogvideo2022.weights import check_axes, load_stages
from cogvx_jax.pipelines.options import MAX_SEED, check_text
from cogvx_jax.quantization import find_quantization
from cogvx_jax.sharding import replicate
from cogvx_jax.storage import below

Table = TypeVar("Table", Settings, Draw)


def load_cogvideo2022(
    place: str | Path,
    *,
    dtype: str | None = None,
    images: ImageTokenizerConfig | None = None,
    mesh: Mesh | None = None,
    quantize: str | None = None,
) -> System:
    """A system of a folder as its makers left it, or as `cogvx convert` or `cogvx quantize` writes it.

    Small files are looked at before the weights are read. The base is read, and lies on the devices, once.

    Args:
      dtype: of the transformers; None is float32 on CPUs, else bfloat16. The image tokenizer computes in float32.
      images: sizes of the image tokenizer; None are those that the folder says, or the published ones.
      mesh: devices to spread over: "tensor" splits heads and MLPs, "data" sequences, "fsdp" weights as they are stored.
      quantize: keep kernels as integers, "int8" or "int4"; lossy. None is as they are stored.
    Raises: FileNotFoundError; ConversionError; ValueError, one sentence, for files that do not go together.
    """
    return load_parts(open_parts(place, images), dtype=dtype, mesh=mesh, quantize=quantize)


def load_parts(
    parts: Parts, *, dtype: str | None = None, mesh: Mesh | None = None, quantize: str | None = None
) -> System:
    """As `load_cogvideo2022`, of a folder whose headers are read."""
    check_axes(mesh)
    dtype = choose_dtype(dtype)
    how = None if quantize is None else find_quantization(quantize)
    check_quantization(parts, how)
    tokenizer, clusters = read_small(parts)
    image_params = jax.tree.map(lambda x: replicate(x, mesh), read_images(parts, parts.image_sizes))
    return System(
        stages=parts.stages,
        params=load_stages(parts, dtype, mesh, how),
        tokenizer=tokenizer,
        clusters=Clusters(*(replicate(x, mesh) for x in clusters)),
        image_tokenizer=parts.image_sizes,
        image_params=image_params,
        settings=parts.beside.settings,
        dtype=dtype,
        mesh=mesh,
    )


def choose_dtype(dtype: str | None) -> str:
    """What the transformers compute in: the one that is asked for, or that of the platform. Raises: ValueError."""
    if dtype is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    return dtype


def read_small(parts: Parts) -> tuple[TextTokenizer, Clusters]:
    """What can be read before any weights. Raises: FileNotFoundError; ValueError."""
    if SEQUENTIAL not in parts.stages:
        raise ValueError(f"{parts.place} has no {SEQUENTIAL} stage, which every video begins with")
    if parts.images is None:
        raise FileNotFoundError(f"{parts.place} has no {IMAGES[0]}, the image tokenizer; icetk brings it")
    settings_of(parts.beside.settings, str(below(parts.place, SIZES)))
    codes = parts.stages[SEQUENTIAL].codes
    tokenizer = TextTokenizer.read(parts.text_model, offset=codes, language=parts.beside.language)
    return tokenizer, read_clusters(parts.clusters, codes)


def make_video(
    system: System,
    prompts: str | Sequence[str],
    settings: Settings | None = None,
    *,
    seed: int = 0,
    image: Any = None,
    large: bool | None = None,
    stretch: bool = False,
) -> Video:
    """Videos of a prompt or several, in Chinese, of 5, 9, 17 or 33 frames by `settings.depth`.

    Args:
      settings: None is the model's own, without frames in between where no stage makes them.
      image: the first frame of all: a path, or pixels (H, W, 3) uint8; its middle square is taken.
      large: whether frames go through super-resolution; None is where the system has it.
      stretch: see `to_pixels`.
    Raises: as `make_codes`; ValueError for what the system cannot do, and for a picture that cannot be read.
    """
    prompts = _several(prompts)
    check_prompts(system.tokenizer, prompts)
    how = _how(system, settings)
    check_whole("seed", seed, -MAX_SEED, MAX_SEED - 1)
    large = SUPER_RESOLUTION in system.stages if large is None else large
    if large and SUPER_RESOLUTION not in system.stages:
        raise ValueError("this CogVideo (2022) has no super-resolution; leave out large")
    first = None if image is None else np.repeat(picture_codes(system, image), len(prompts), axis=0)
    codes = make_codes(system, prompts, how, seed=seed, first=first)
    if large:
        codes = enlarge(system, prompts, codes, how, seed=seed)
    # Five frames take 4 seconds, and so do all that are put between them.
    return Video(to_pixels(system, codes, stretch=stretch), fps=2**how.depth)


def _several(prompts: Any) -> tuple[str, ...]:
    """As `generate` takes them: a string is one prompt. Raises: ValueError."""
    several = tuple(prompts) if isinstance(prompts, list | tuple) else (prompts,)
    if not several or not all(isinstance(one, str) for one in several):
        raise ValueError("prompts must be a string or a list of at least one string")
    return tuple(check_text("prompts", one) for one in several)


def _how(system: System, settings: Settings | None) -> Settings:
    """Those that are given, or the model's own. Raises: ValueError where a stage of them is not there."""
    if settings is None:
        own = settings_of(system.settings, "this CogVideo (2022)")
        return own if INTERPOLATION in system.stages else dataclasses.replace(own, depth=0)
    if settings.depth and INTERPOLATION not in system.stages:
        raise ValueError("this CogVideo (2022) has no stage that makes frames in between; give Settings(depth=0)")
    return settings


def settings_of(said: Mapping[str, Any], where: str) -> Settings:
    """The settings of a folder's table, the reference's where it says nothing. Raises: ValueError for another table."""
    try:
        return _changed(Settings(), said)
    except ValueError as error:
        raise ValueError(f"{where} has settings that no video has: {error}") from None


def _changed(usual: Table, said: Mapping[str, Any]) -> Table:
    """The same with what a table says of its fields. Raises: ValueError."""
    known, made = [field.name for field in dataclasses.fields(usual)], dict(said)
    for name, value in said.items():
        if name not in known:
            raise ValueError(f"there is no {quoted(name)} among them, but {', '.join(known)}")
        if isinstance(own := getattr(usual, name), Draw) and isinstance(value, dict):
            try:
                made[name] = _changed(own, value)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    return dataclasses.replace(usual, **made)


def picture_codes(system: System, image: Any) -> np.ndarray:
    """The codes of a picture's middle square, at the size of a small frame: (1, n)."""
    side = system.stages[SEQUENTIAL].grid * system.image_tokenizer.rate
    picture = PIL.Image.fromarray(read_image(image))
    scale = side / min(picture.size)
    width, height = (max(round(n * scale), side) for n in picture.size)
    left, top = (width - side) // 2, (height - side) // 2
    resized = picture.resize((width, height), PIL.Image.Resampling.BILINEAR).crop((left, top, left + side, top + side))
    pixels = np.asarray(resized, np.float32)[None] / 255
    rate = system.image_tokenizer.rate
    codes = applied(system.images, system.image_params, replicate(pixels, system.mesh), rate, method="encode")
    return np.asarray(codes).reshape(1, -1)
