"""`cogvx encode`: encodes videos and captions for training."""

import sys
from pathlib import Path
from typing import Any

from cogvx_jax.cli.options import DType, FolderText, MeshText, Size

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def encode(
    *,
    data: Path,
    out: FolderText,
    model: str = "tiny",
    size: Size = None,
    frames: int | None = None,
    mesh: MeshText = None,
    distributed: bool = False,
    dtype: DType | None = None,
) -> None:
    """Encodes videos and captions once, for training; what is there already is kept.

    Args:
      data: a .jsonl, .json or .csv file with video and prompt (image, if an image-to-video model is to be given another
        than the first frame; control, a video for a ControlNet), or a folder with such a metadata file; a folder with
        prompts.txt and videos.txt (images.txt, controls.txt), with videos/ and labels/ (controls/), or with NAME.mp4
        beside NAME.txt or NAME.json (NAME.control.mp4); .tar files of such, their folder, or a pattern such as
        'data-{000..009}.tar'.
      out: the folder to fill, or the URL of one in a bucket, such as gs://bucket/cache.
      model: as for `generate`.
      size: height and width in pixels, such as 480x720; None is the model's own.
      frames: of each clip, 8N+1, for 1.5 models 16N+1; None is the model's own. 1 takes pictures, too.
      mesh: the devices of this process to use and how, such as sp=4: each clip's height and width are split over them,
        and the text encoder's weights. None is the first one.
      distributed: this is one of several processes that run the same command, as for `generate`: each encodes a part of
        the videos on devices of its own. They share the folder.
      dtype: to compute in.
    """
    import jax

    from cogvx_jax.pipelines.model import load
    from cogvx_jax.sharding import parse_mesh
    from cogvx_jax.storage import check_folder_writable, storage_path

    folder, process, processes = storage_path(out), 0, 1
    check_folder_writable(folder)
    if distributed:
        process, processes = _join()
    devices = None if mesh is None else parse_mesh(mesh, jax.local_devices())
    clips = find_clips(model, size, frames, data)
    loaded = load(model, dtype=dtype, mesh=devices, components=("vae", "text_encoder"))
    encode_clips(loaded, clips, folder, process, processes)


def find_clips(model: str, size: str | None, frames: int | None, data: Path):
    """The videos that are to be encoded, and the shape of their clips: all that needs no weights, checked."""
    from cogvx_jax.data.layouts import read_sources
    from cogvx_jax.pipelines.model import load_spec

    return read_sources(data), clip_shape(load_spec(model), size, frames)


def clip_shape(spec, size: str | None, frames: int | None):
    """Size and length of the clips, which must be such as the model generates."""
    from cogvx_jax.pipelines.options import Sampling
    from cogvx_jax.pipelines.request import check_sampling
    from cogvx_jax.train.clips.cache import Shape

    checked = check_sampling(spec, Sampling(size=size, frames=frames))
    return Shape(checked.height, checked.width, checked.frames, float(spec.defaults.fps))


def _join() -> tuple[int, int]:
    """Joins the other processes; the number of this one, and how many there are."""
    import jax

    from cogvx_jax.sharding import initialize

    initialize()
    return jax.process_index(), jax.process_count()


def encode_clips(loaded, clips: tuple[Any, Any], out: Any, process: int = 0, processes: int = 1):
    """Encodes what `find_clips` found."""
    from cogvx_jax.train.clips import encode as latents

    def report(line: str) -> None:
        print(f"cogvx: {line}" if line.startswith("skipped") else line, file=sys.stderr, flush=True)

    sources, shape = clips
    return latents.encode(loaded, sources, out, shape, report, process=process, processes=processes)
