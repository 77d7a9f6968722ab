"""The verb `cogvx calibrate`."""

import time
from pathlib import Path
from typing import Annotated

import tyro

from cogvx_jax.cli.options import DType, MeshText, VideoFlags, report
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.temporaries import check_local

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def calibrate(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "tiny",
    /,
    *,
    out: Path | None = None,
    prompts_file: Path | None = None,
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    dtype: DType | None = None,
    mesh: MeshText = None,
) -> None:
    """Measures how a model's blocks change from step to step, for `generate --reuse magcache` and `teacache`.

    It makes the latents of a few videos and writes ratios and a polynomial to reuse.json in the model's folder, where
    `generate` finds them.

    Args:
      model: as for `generate`.
      out: the file to write in place of the model's own; give it to `generate` as --calibration.
      prompts_file: as for `generate`; models that need an image or a control video need one, with it in each line. None
        is a few prompts of this package.
      dtype: to compute in.
      mesh: as for `generate`, but for auto; None is one device.
    """
    options = video.checked()
    if out is not None:
        check_local(out, "--out")
    jobs = None if prompts_file is None else read_jobs(None, prompts_file, Path("out.mp4"), options)
    from cogvx_jax.pipelines import calibrate as calibrating
    from cogvx_jax.pipelines.calibration import calibration_path, write_calibration
    from cogvx_jax.pipelines.inputs import KINDS
    from cogvx_jax.pipelines.model import load, load_spec, resolve
    from cogvx_jax.pipelines.request import check_request
    from cogvx_jax.sharding import first_process, parse_mesh
    from cogvx_jax.storage import check_folder_writable

    began, spec = time.monotonic(), load_spec(model)
    takes = KINDS[spec.kind]
    if jobs is None and takes.needs:
        needs = [name for name in takes.needs if name != "extend"]  # of which several videos are made
        lines = f"with {' or '.join(needs)} in each line"
        raise ValueError(f"{spec.name} {takes.words}; give --prompts-file, {lines}")
    devices = None if mesh is None else parse_mesh(mesh)
    file = calibration_path(resolve(model)) if out is None else out
    check_folder_writable(file.parent)
    asked = [(job.prompt, job.options) for job in jobs or ()]
    asked = asked or [(prompt, options) for prompt in calibrating.default_prompts(spec.name)]
    requests = [check_request(spec, prompt, own) for prompt, own in asked]
    calibrating.check_requests(requests)
    found = calibrating.calibrate(load(model, dtype=dtype, mesh=devices), requests, report)
    if first_process():
        write_calibration(file, found)
        print(f"{file}: {len(found.ratios)} steps, {len(requests)} videos, in {time.monotonic() - began:.1f} s")
