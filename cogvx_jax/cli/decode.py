"""`cogvx decode`: makes the video of sampled latents."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from cogvx_jax.cli.generate import write_video
from cogvx_jax.cli.options import DType, GivenFlags, MeshText, ModelFlags

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def decode(
    latents: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LATENTS")],
    /,
    *,
    out: Path = Path("out.mp4"),
    model: str | None = None,
    strips: int | None = None,
    tiling: bool = False,
    dtype: DType | None = None,
    mesh: MeshText = None,
    programs: Path | None = None,
    record: bool = True,
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes the video of latents that `cogvx generate` sampled and could not decode.

    Args:
      latents: the file that it kept, VIDEO.latents.safetensors.
      out: as for `generate`.
      model: as for `generate`; None is the one that sampled them. Only its VAE is loaded.
      strips: as for `generate`.
      tiling: run the VAE in tiles, to save memory; lossy, the result differs.
      dtype: to compute in.
      mesh: as for `generate`.
      programs: as for `generate`.
      record: as for `generate`; what the latents know is written.
    """
    from cogvx_jax.data.video import check_writable
    from cogvx_jax.pipelines.memory import check_decode
    from cogvx_jax.pipelines.model import load, load_spec
    from cogvx_jax.pipelines.options import check_strips
    from cogvx_jax.pipelines.saved_latents import read_latents
    from cogvx_jax.sharding import parse_mesh

    began, saved, about = time.monotonic(), read_latents(latents), given.checked()
    others = {"model": model, "dtype": dtype, "mesh": mesh, "tiling": tiling, **vars(about)}
    saved = dataclasses.replace(saved, record=_record(latents, saved.record, others) if record else None)
    check_writable(out, commented=saved.record is not None)
    channels = load_spec(model or saved.model, about).vae.latent_channels
    if saved.latents.shape[-1] != channels:
        raise ValueError(f"{latents} has {saved.latents.shape[-1]} channels, the VAE decodes {channels}")
    devices = None if mesh is None else parse_mesh(mesh)
    loaded = load(
        model or saved.model, dtype=dtype, mesh=devices, components=("vae",), programs=programs, **vars(about)
    )
    count = check_strips("strips", strips)
    loaded = check_decode(loaded, saved.latents.shape, saved.padding, count, tiling=tiling)
    count, height, width = write_video(loaded, saved, out, tiling)
    print(f"{out}: {count} frames of {height}x{width} at {saved.fps:g} fps in {time.monotonic() - began:.1f} s")


def _record(latents: Path, text: str | None, flags: Mapping[str, Any]) -> str | None:
    """The record for the video, which tells of flags that decode it otherwise. Raises: ValueError for a damaged one."""
    from cogvx_jax.pipelines.record import parse_record

    if text is None:
        return None
    try:
        found = parse_record(text)
    except ValueError as error:
        raise ValueError(f"{latents} is damaged: its record: {error}") from None
    options = {name: None if name == "finish" else value for name, value in found.options.items()}  # not done here
    decoded = {name: value for name, value in flags.items() if value}
    return dataclasses.replace(found, options=options, decoded=decoded).text
