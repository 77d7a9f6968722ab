"""The verb `cogvx sign`."""

from pathlib import Path
from typing import Annotated

import tyro


def sign(
    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="VIDEO")],
    /,
    *,
    certificate: Path,
    key: Path,
    out: Path | None = None,
    algorithm: str = "es256",
    time_url: str | None = None,
) -> None:
    """Signs a video by C2PA as made by a model; whoever reads it sees who signed, and whether it was changed since.

    Args:
      file: an .mp4, .gif or .webp file. Sign it last: what changes a file breaks its signature.
      certificate: a PEM file of your chain of certificates, the leaf first.
      key: a PEM file of the leaf's private key.
      out: the signed file; None replaces the video.
      algorithm: of the key.
      time_url: of an authority that vouches for the time; None asks nobody.
    """
    from cogvx_jax.data.signing import read_signature, sign_video

    target = sign_video(file, certificate, key, out=out, algorithm=algorithm, time_url=time_url)
    print(f"{out or file}: signed, {read_signature(target)}")
