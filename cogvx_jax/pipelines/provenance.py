"""The record of a video that is about to be made: what of model, request and machine decides about it."""

import functools
import importlib.metadata
import os
import platform
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from cogvx_jax.convert.fingerprints import CALIBRATION, fingerprint, is_there
from cogvx_jax.data.comments import MAX_BYTES
from cogvx_jax.data.writer import encoder_version
from cogvx_jax.json_files import Json
from cogvx_jax.pipelines.model import Model, source_text
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.record import Record
from cogvx_jax.pipelines.request import Request
from cogvx_jax.sharding import format_mesh
from cogvx_jax.storage import below

PACKAGES = ("cogvx_jax", "jax", "jaxlib", "numpy", "av", "pillow", "transformers")


def record_of(
    model: Model, request: Request, index: int = 0, *, one_program: bool = False, own_noise: bool = False
) -> Record:
    """How video `index` of a request is made by a model.

    Args:
      own_noise: the random numbers are the caller's, of which nothing is known.
    Raises: ValueError for a request that `check_request` did not make; OSError where the model's files are gone.
    """
    if request.asked is None:
        raise ValueError("a record is of a request that `check_request` gave")
    noise = [{"option": "noise", "path": None, "sha256": "", "record": None}] if own_noise else []
    nets = [
        {"option": "controlnet", "path": use.net.name, "sha256": use.net.digest, "record": None}
        for use in request.controls or ()
    ]
    if request.motion is not None:
        files = request.motion.files
        nets += [{"option": "tora", "path": files.name, "sha256": files.digest, "record": None}]
    return Record(
        prompts=request.prompts,
        index=index,
        options=as_json(request.asked),
        model=_model(model, one_program),
        files=_files(model, request),
        inputs=tuple([source._asdict() for source in request.sources] + nets + noise),
        versions=versions(),
        device=device(1 if model.mesh is None else model.mesh.size),
    )


def record_texts(model: Model, request: Request, **how: Any) -> tuple[str | None, ...]:
    """The text of each video's record; arguments and result as for `record_text`."""
    return tuple(record_text(model, request, index, **how) for index in range(len(request.prompts)))


def record_text(
    model: Model, request: Request, index: int = 0, change: Callable[[Record], Record] | None = None, **how: bool
) -> str | None:
    """The text of a video's record; None where there can be none, which is warned of.

    Args:
      change: what to make of the record first; what it raises is raised.
      how: as for `record_of`.
    """
    return told_text(functools.partial(record_of, model, request, index, **how), change)


def told_text(make: Callable[[], Record], change: Callable[[Record], Record] | None = None) -> str | None:
    """The text of the record that `make` gives; None where there can be none, which is warned of."""
    try:
        found = make()
    except (OSError, ValueError) as error:  # a video is worth more than its record
        warnings.warn(f"the video carries no record, as the model's files cannot be read now: {error}", stacklevel=4)
        return None
    text = (found if change is None else change(found)).text
    if len(text) <= MAX_BYTES:
        return text
    warnings.warn(f"a record of {len(text):,} characters is left out; it may have {MAX_BYTES:,}", stacklevel=4)
    return None


@functools.cache
def versions() -> dict[str, str]:
    """Of the packages that decide about numbers and bytes, and of FFmpeg's encoders."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return found | {"libavcodec": encoder_version()}


def device(count: int = 1) -> Json:
    """What is computed on. On CPUs the processor and the number of threads decide about the last bits."""
    first = jax.local_devices()[0]
    found: Json = {"platform": first.platform, "kind": first.device_kind, "count": count}
    if first.platform == "cpu":
        found |= {"kind": _processor(), "threads": threads()}
    return found


def _model(model: Model, one_program: bool) -> Json:
    origin = model.known_origin
    given = {} if origin is None else {name: value for name, value in vars(origin.given).items() if value}
    return {
        "source": None if origin is None else origin.source,
        "name": model.spec.name,
        "given": given,
        "dtype": model.compute.dtype,
        "quantize": None if origin is None else origin.quantize,
        "memory": model.memory.name,
        "mesh": "one device" if model.mesh is None else format_mesh(model.mesh.shape),
        "exact": model.exact,
        "one_program": one_program,
        "programs": model.programs is not None,
        "loras": [lora._asdict() for lora in (() if origin is None else origin.loras)],
    }


def _files(model: Model, request: Request) -> dict[str, str]:
    """Fingerprints; nothing where parameters are not of files, as after training in memory."""
    origin = model.known_origin
    if origin is None:
        return {}
    found = dict(origin.fingerprints)
    if request.reuse is not None:
        own = None if model.folder is None else below(model.folder, CALIBRATION)
        place = own if request.calibration is None else source_text(request.calibration)
        if place is not None and is_there(place):
            found["calibration"] = fingerprint(place)
    return found


def threads() -> int:
    """How many threads XLA computes in on a CPU."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def _processor() -> str:
    """Its name, such as "AMD EPYC 7B12"; where the system does not tell it, the architecture."""
    cpuinfo, lines = Path("/proc/cpuinfo"), list[str]()
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
    names: list[Any] = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()
