"""The record of a video of CogVideo (2022); see `pipelines.provenance`."""

from cogvx_jax.convert.cogvideo2022_folder import Parts
from cogvx_jax.convert.fingerprints import fingerprint, is_there
from cogvx_jax.pipelines.cogvideo2022.request import NAME, VideoRequest
from cogvx_jax.pipelines.cogvideo2022.system import System
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.provenance import device, versions
from cogvx_jax.pipelines.record import Record
from cogvx_jax.sharding import format_mesh


def record_of(
    system: System, request: VideoRequest, files: dict[str, str], source: str, quantize: str | None, index: int = 0
) -> Record:
    """How video `index` of a request is made by a model.

    Args:
      files: of `part_fingerprints`.
      source: of the model, as `cogvx generate` takes it; `quantize` is how it was quantised while it was read.
    """
    mesh = system.mesh
    return Record(
        prompts=request.prompts,
        index=index,
        options=as_json(request.asked),
        model={
            "source": source,
            "name": NAME,
            "given": {},
            "dtype": system.dtype,
            "quantize": quantize,
            "memory": "resident",
            "mesh": "one device" if mesh is None else format_mesh(mesh.shape),
            "exact": False,
            "one_program": False,
            "programs": False,
            "loras": [],
        },
        files=files,
        inputs=tuple(source._asdict() for source in request.sources),
        versions=versions(),
        device=device(1 if mesh is None else mesh.size),
    )


def part_fingerprints(parts: Parts) -> dict[str, str]:
    """Of each part of a model by its name, as `convert.fingerprints` makes them. Raises: OSError."""
    return {name: fingerprint(place) for name, place in parts.places() if is_there(place)}
