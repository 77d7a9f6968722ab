"""Text states on disk, in the user's cache folder: a second run with the same prompts needs no text encoder.

Kept where components take turns. A file is of one prompt as it stood in its batch, so that what comes from the cache
has the bits that the encoder would give again. Its name is a hash of all that decides them; it holds no words.
"""

import contextlib
import dataclasses
import hashlib
from pathlib import Path

import jax
import numpy as np

from cogvx_jax import cache
from cogvx_jax.convert.orbax import is_orbax, read_digests
from cogvx_jax.convert.safetensors import Tensor, read_header, write_file
from cogvx_jax.convert.sources import Source
from cogvx_jax.pipelines.turns import Component
from cogvx_jax.sharding import format_mesh, of_all
from cogvx_jax.storage import is_bucket, open_files
from cogvx_jax.temporaries import temporary_beside

MAX_TEXTS = 2 * 2**30  # bytes: a prompt of a published model takes 1.9 MB
NAME = "states"


@dataclasses.dataclass(frozen=True)
class TextCache:
    """States of prompts by their token ids; `made_by` is a hash of the encoder and how it computes."""

    made_by: str

    @classmethod
    def of(cls, component: Component, exact: bool) -> "TextCache | None":
        """Of an encoder in a checkpoint; None where nothing tells its numbers from those of another."""
        encoder = encoder_digest(component.files)
        if encoder is None:
            return None
        compute, device = component.compute.of("text_encoder"), jax.devices()[0]
        on = format_mesh({} if component.mesh is None else component.mesh.shape)
        decides = encoder, component.spec.text_encoder, compute, device.device_kind, on, exact, cache.versions()
        return cls(hashlib.sha256(repr(decides).encode()).hexdigest())

    def read(self, ids: np.ndarray, width: int) -> np.ndarray | None:
        """States (B, L, width) of ids (B, L); None where those of one are not there, on any host."""
        shape = ids.shape[1], width
        found = [_read(self._file(ids, row), shape) for row in range(len(ids))]
        kept = [one for one in found if one is not None]
        return np.stack(kept) if of_all(len(kept) == len(ids)) else None

    def write(self, ids: np.ndarray, states: np.ndarray) -> None:
        """Keeps states (B, L, width) of ids (B, L). Where that fails they are encoded again."""
        with contextlib.suppress(OSError):
            for row, one in enumerate(states):
                file = self._file(ids, row)
                file.parent.mkdir(parents=True, exist_ok=True)
                with temporary_beside(file) as partial:
                    write_file(partial, [Tensor.of(NAME, one)], {})
            cache.trim(self._file(ids, 0).parent, MAX_TEXTS)

    def _file(self, ids: np.ndarray, row: int) -> Path:
        decides = f"{self.made_by} row {row} of {ids.shape}".encode() + np.ascontiguousarray(ids[row]).tobytes()
        return cache.folder() / "texts" / f"{hashlib.sha256(decides).hexdigest()[:32]}.safetensors"


def encoder_digest(source: Source) -> str | None:
    """A hash of a model's text encoder: of its numbers' digests, or of its files by name, size and time.

    None for files in a bucket without digests: another encoder of the same sizes would look the same.
    """
    places = source.places()
    if "given text_encoder" not in places and is_orbax(source.place):
        arrays = {path: entry for path, entry in read_digests(source.place).items() if path.startswith("text_encoder/")}
        return hashlib.sha256(repr(sorted(arrays.items())).encode()).hexdigest()
    place = places.get("given text_encoder", places.get("text_encoder"))
    if place is None or is_bucket(place):
        return None
    found, where = hashlib.sha256(), Path(place)
    for file in sorted(where.iterdir()) if where.is_dir() else [where]:
        about = file.stat()
        found.update(f"{file.name} {about.st_size} {about.st_mtime_ns}\n".encode())
    return found.hexdigest()


def _read(file: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The states in a file; None if there is none, or it is damaged."""
    try:
        files = open_files(file.parent)
        stored = read_header(files, file.name)[NAME]
        states = files.read(stored.span).view(stored.dtype).reshape(stored.shape)
    except (OSError, ValueError, KeyError):
        return None
    if states.shape != shape or not np.isfinite(states.astype(np.float32)).all():
        return None
    return states
