"""`cogvx generate`: makes videos."""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from cogvx_jax.cli.options import DType, MeshText, VideoFlags, parse_lora, report
from cogvx_jax.cli.prompts_file import Job, read_jobs
from cogvx_jax.pipelines.options import RANDOM, Sampling

if TYPE_CHECKING:
    from cogvx_jax.configs import ModelSpec
    from cogvx_jax.pipelines.model import Model
    from cogvx_jax.pipelines.request import Request
    from cogvx_jax.pipelines.saved_latents import SavedLatents

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.


def generate(
    prompt: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None,
    /,
    *,
    out: Path = Path("out.mp4"),
    model: str = "tiny",
    lora: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH[:WEIGHT]")] = (),
    prompts_file: Path | None = None,
    again: bool = False,
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    dtype: DType | None = None,
    mesh: MeshText = None,
    distributed: bool = False,
    one_program: bool = False,
    programs: Path | None = None,
    exact: bool = False,
    progress: bool = True,
) -> None:
    """Makes a video from a prompt, an image or a video. What is None is the model's own.

    The sampled latents are kept beside the video until it is whole, so that `cogvx decode` can finish a
    run whose decoding failed.

    Args:
      prompt: what the video shows.
      out: an .mp4, .webm, .gif or .webp file, or a name without a suffix, for a folder of PNGs; with --prompts-file,
        its stem gets the line's number.
      model: "tiny", a folder in the published layout, a hub id, or one of 2b, 5b, 5b-i2v, 1.5-5b, 1.5-5b-i2v.
      lora: a LoRA to use, a file, folder or run of `cogvx train`, and its weight if not 1; several add up.
      prompts_file: one prompt per line, or one JSON object per line with "prompt" and any of the options of a video
        ("out" too); the model is loaded once. Videos that an earlier run made of the same requests are left as they
        are; cogvx-made.jsonl beside them says which those are.
      again: make all videos of a prompts file anew, also those that are there and whole.
      dtype: to compute in.
      mesh: the devices to use and how, such as cfg=2,sp=4; see `cogvx_jax.make_mesh`. "auto" is what `cogvx plan`
        chooses for the devices that are here; None is one device.
      distributed: this is one of several processes, one a host, that run the same command. TPU pods, GKE and Slurm
        connect them; elsewhere set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
      one_program: run all steps as one compiled program, for TPU7x; there is no progress bar then.
      programs: a folder of `cogvx compile` to run instead of compiling. It is code: trust who wrote it.
      exact: the same bits on one device and on any mesh of data and cfg; slower.
      progress: show a progress bar.
    """
    # What jax and flax need seconds to import comes after the arguments are known to be sound.
    jobs = read_jobs(prompt, prompts_file, out, video.checked())
    weighted = [parse_lora(text) for text in lora]
    from cogvx_jax.data.video import check_writable
    from cogvx_jax.pipelines.exact import check_exact
    from cogvx_jax.pipelines.lora import find_lora, load_lora
    from cogvx_jax.pipelines.model import load, load_spec, resolve
    from cogvx_jax.pipelines.short_schedule import check_asked, check_short, lossy_note
    from cogvx_jax.sharding import first_process, initialize, parse_mesh

    if distributed:
        initialize()
    spec, devices = load_spec(model), None if mesh in (None, "auto") else parse_mesh(mesh)
    adapters = [(find_lora(path, spec), weight) for path, weight in weighted]
    work = _check(spec, jobs)  # all of them, before the first is begun
    if prompts_file is not None:
        work = _left(work, model, adapters, {"dtype": dtype, "exact": exact}, again)
    for one in work:
        with one.job.named():
            check_writable(one.job.out)
            check_asked(one.request, spec.name, resolve(model) if one.request.reuse else None, devices, exact=exact)
    if not work:
        return
    if mesh == "auto":
        devices = _auto_mesh(model, [request for _, request, _ in work], dtype)
    if exact:
        check_exact(devices, one_program=one_program)
    for note in dict.fromkeys(lossy_note(one.request) for one in work):  # once each
        if note is not None and first_process():
            report(note)
    loaded = load(model, dtype=dtype, mesh=devices, programs=programs)
    if exact:
        loaded = dataclasses.replace(loaded, exact=True)
    for adapter, weight in adapters:
        loaded = load_lora(loaded, adapter, weight)
    for one in work:
        with one.job.named():
            check_short(loaded, one.request)
    for one in work:
        with one.job.named():
            _run(loaded, model, one, progress and first_process(), one_program)


class Work(NamedTuple):
    """A job with its request; `digest` names what is asked for, where that is noted."""

    job: Job
    request: "Request"
    digest: str = ""


def _check(spec: "ModelSpec", jobs: Sequence[Job]) -> list[Work]:
    """The jobs and their requests, whose inputs are read and held: a file that is gone later costs nothing."""
    from cogvx_jax.cli.inputs import Inputs
    from cogvx_jax.pipelines.request import check_request

    inputs, work = Inputs(), []
    for job in jobs:
        with job.named():
            work.append(Work(job, inputs.hold(check_request(spec, job.prompt, job.options))))
    return work


def _left(work: list[Work], model: str, adapters: list, how: dict[str, Any], again: bool) -> list[Work]:
    """The work that no earlier run has done, its digests filled in; with `again`, all of it."""
    from cogvx_jax.cli.made import is_made, model_digest, request_digest
    from cogvx_jax.sharding import first_process, of_first_process

    made_with = model_digest(model, adapters, how)
    work = [one._replace(digest=request_digest(one.request, one.job.options, made_with)) for one in work]
    # The first process writes the files, and perhaps only it can see them.
    made = [not again and first_process() and is_made(one.job.out, one.digest) for one in work]
    made = [bool(found) for found in of_first_process(made)]
    if any(made) and first_process():
        report(f"{sum(made)} of {len(work)} videos are whole already; --again makes them anew")
    return [one for one, found in zip(work, made, strict=True) if not found]


def _auto_mesh(source: str, requests: Sequence["Request"], dtype: str | None):
    """The mesh that suits the checked request with the most pixels."""
    from cogvx_jax.planning.plan import auto_mesh

    most = max(requests, key=lambda request: request.height * request.width * request.frames)
    ways = [request.way for request in requests if request.way is not None]
    sampling = Sampling(
        size=(most.height, most.width),
        frames=most.frames,
        steps=most.steps,
        guidance_scale=most.guidance,
        # The same programs run whatever steps a pattern names.
        reuse=None if ways else "every:2" if most.reuse and most.reuse.pattern else most.reuse,
        guidance=ways[0] if ways else None,
    )
    return auto_mesh(source, sampling=sampling, dtype=dtype, report=report)


def _run(model: "Model", source: str, work: Work, progress: bool, one_program: bool) -> None:
    """Samples one video, keeps its latents, then writes its frames to the file as they are decoded."""
    import numpy as np

    from cogvx_jax.cli.made import note_made
    from cogvx_jax.pipelines.generate import sample
    from cogvx_jax.pipelines.saved_latents import SavedLatents
    from cogvx_jax.sharding import first_process

    job, request, digest = work
    began = time.monotonic()
    if job.options.seed == RANDOM and first_process():
        print(f"{job.out}: --seed {request.seed}", flush=True)
    latents = np.asarray(sample(model, request, progress=progress, one_program=one_program))
    source = str(Path(source).absolute()) if Path(source).is_dir() else source
    saved = SavedLatents(
        latents=latents, padding=request.padding, fps=float(request.fps), model=source, prompt=job.prompt
    )
    with _kept(saved, job.out) if first_process() else contextlib.nullcontext():
        count, height, width = write_video(model, saved, job.out, request.tiling)
    if first_process():
        if digest:
            note_made(job.out, digest)
        print(f"{job.out}: {count} frames of {height}x{width} at {saved.fps:g} fps in {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def _kept(saved: "SavedLatents", out: Path):
    """Keeps the latents until the block has ended well, and else says where they are."""
    from cogvx_jax.pipelines.saved_latents import keep_latents

    kept = None
    try:
        kept = keep_latents(out, saved)
        if kept.parent != out.absolute().parent:
            report(f"no room beside {out}; until it is whole, the sampled latents are kept in {kept}")
    except OSError as error:  # the video may still fit
        report(f"the sampled latents of {out} could not be kept ({error}); if decoding fails, they are lost")
    try:
        yield
    except BaseException:
        if kept is not None:
            again = shlex.join(["cogvx", "decode", str(kept), "--out", str(out)])
            print(f"cogvx: the sampled latents are kept: `{again}` makes the video", file=sys.stderr)
        raise
    if kept is not None:
        kept.unlink(missing_ok=True)


def write_video(model, saved, out: Path, tiling: bool) -> tuple[int, int, int]:
    """Writes the video of sampled latents as it is decoded; gives its frames, height and width."""
    from cogvx_jax.data.video import VideoWriter
    from cogvx_jax.pipelines.latents import decode_frames
    from cogvx_jax.sharding import first_process

    count, shape = 0, (0, 0, 0, 3)
    with VideoWriter(out, fps=saved.fps) if first_process() else contextlib.nullcontext() as writer:
        for pixels in decode_frames(model, saved.latents, saved.padding, tiling=tiling):
            if writer is not None:
                writer.write(pixels)
            count, shape = count + len(pixels), pixels.shape
    return count, shape[1], shape[2]
