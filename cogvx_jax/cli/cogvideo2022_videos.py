"""Videos of CogVideo (2022) on the command line: what of the flags of `generate` means something, and making them."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from cogvx_jax.cli.attempts import Attempts, Plan
from cogvx_jax.cli.cogvideo2022 import check_nothing_given, enhancer
from cogvx_jax.cli.frames import write_frames
from cogvx_jax.cli.options import GenerateFlags, report
from cogvx_jax.cli.prompts_file import Job
from cogvx_jax.given import Given
from cogvx_jax.pipelines.options import RANDOM
from cogvx_jax.prompting.enhance import Endpoint, Enhancer

if TYPE_CHECKING:
    import numpy as np

    from cogvx_jax.convert.cogvideo2022_folder import Parts
    from cogvx_jax.pipelines.cogvideo2022.request import VideoRequest
    from cogvx_jax.pipelines.cogvideo2022.system import System
    from cogvx_jax.pipelines.record import Record

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

TAKES = (  # of the flags of a run; others mean nothing here
    *("out", "model", "dtype", "quantize", "mesh", "progress", "record", "prompts_file", "again"),
    *("enhance_prompt", "llm"),
)
RESIDENT = "resident"  # the memory mode that a record names; there is no other


class Work(NamedTuple):
    """A video to make; `digest` names what is asked for, where that is noted."""

    job: Job
    request: "VideoRequest"
    digest: str = ""


def make_videos(jobs: Sequence[Job], run: GenerateFlags, about: Given, plan: Plan) -> list[Job]:
    """As `cli.generate.make_videos`. All is checked by the headers of files, before weights are read."""
    check_flags(run)
    check_nothing_given(run.model, about)
    rewrites = enhancer(run.model, about, Endpoint(llm=run.llm)) if run.enhance_prompt else None
    from cogvx_jax.convert.cogvideo2022_folder import open_parts
    from cogvx_jax.convert.cogvideo2022_quantized import check_quantization
    from cogvx_jax.pipelines.cogvideo2022.load import choose_dtype, load_parts, read_small
    from cogvx_jax.pipelines.cogvideo2022.provenance import part_fingerprints
    from cogvx_jax.quantization import find_quantization
    from cogvx_jax.sharding import parse_mesh

    mesh = None if run.mesh is None else parse_mesh(run.mesh)
    how = None if run.quantize is None else find_quantization(run.quantize)
    parts = open_parts(run.model)
    check_quantization(parts, how)
    dtype = choose_dtype(run.dtype)
    files = part_fingerprints(parts) if run.record or plan.skip_made else {}
    work = _checked(parts, read_small(parts)[0], jobs, run, rewrites, plan.attempts)
    if plan.skip_made:
        asked: dict[str, Any] = {"dtype": dtype, "quantize": run.quantize, "record": run.record}
        work = _left(work, files, asked | {"enhance_prompt": run.llm or run.enhance_prompt}, run.again)
    if not work:
        return []
    if how is not None:
        report(f"--quantize {how.name} is lossy: see docs/cogvideo2022.md")
    system = load_parts(parts, dtype=dtype, mesh=mesh, quantize=run.quantize)
    for one in work:
        with plan.attempts.at(one.job):
            record = _record(system, one, files, run, plan) if run.record else None
            _make(system, one, run, record, plan)
    return [one.job for one in plan.attempts.left(work)]


def check_flags(run: GenerateFlags) -> None:
    """Raises ValueError for a flag of a run that means nothing here."""
    from cogvx_jax.pipelines.cogvideo2022.request import NAME

    for field in dataclasses.fields(run):
        value = getattr(run, field.name)
        if field.name in TAKES or value == field.default or (field.name, value) == ("memory", RESIDENT):
            continue
        raise ValueError(f"--{field.name.replace('_', '-')} means nothing for {NAME}; leave it out")
    if run.mesh == "auto":
        raise ValueError(f"--mesh auto is not for {NAME}; `cogvx plan {run.model}` says which meshes fit")


def _checked(
    parts: "Parts",
    tokenizer: Any,
    jobs: Sequence[Job],
    run: GenerateFlags,
    rewrites: Enhancer | None,
    attempts: Attempts,
) -> list[Work]:
    """The jobs with what they ask for, all of them before the first is begun."""
    from cogvx_jax.data.video import check_writable
    from cogvx_jax.pipelines.cogvideo2022.request import check_takes, check_video

    work = []
    for job in jobs:
        with attempts.at(job):
            check_writable(job.out, commented=run.record)
            check_takes(job.options)
            if rewrites is not None:
                text = rewrites(job.prompt, job.options.image)
                report(f"{job.out}: {text}")
                job = dataclasses.replace(job, prompt=text, wish=job.prompt, llm=rewrites.llm)
            work.append(Work(job, check_video(parts, tokenizer, tuple(job.together), job.options)))
    return work


def _left(work: list[Work], files: dict[str, str], how: dict[str, Any], again: bool) -> list[Work]:
    """The work that no earlier run has done, with digests."""
    from cogvx_jax.cli.made import digest_of, not_made, request_digest

    made_with = digest_of(files, how)
    digests = [request_digest(one.request, one.job.options, made_with) for one in work]
    return not_made([one._replace(digest=d) for one, d in zip(work, digests, strict=True)], again=again)


def _record(system: "System", work: Work, files: dict[str, str], run: GenerateFlags, plan: Plan) -> str | None:
    from cogvx_jax.pipelines.cogvideo2022.provenance import record_of
    from cogvx_jax.pipelines.model import absolute_source
    from cogvx_jax.pipelines.provenance import told_text

    job = work.job

    def made() -> "Record":
        return record_of(system, work.request, files, absolute_source(run.model), run.quantize, job.index)

    def told(found: "Record") -> "Record":
        enhanced = {"wish": job.wish, "llm": job.llm} if job.wish else {}
        return plan.record_as(dataclasses.replace(found, enhanced=enhanced))

    return told_text(made, told)


def _make(system: "System", work: Work, run: GenerateFlags, record: str | None, plan: Plan) -> None:
    from cogvx_jax.cli.made import note_made

    job, request, began = work.job, work.request, time.monotonic()
    if job.options.seed == RANDOM:
        print(f"{job.out}: --seed {request.seed}", flush=True)
    count, height, width = write_frames(_frames(system, work, run), job.out, request.fps, record, plan.tags)
    if work.digest:
        note_made(job.out, work.digest)
    took = time.monotonic() - began
    print(f"{job.out}: {count} frames of {height}x{width} at {float(request.fps):g} fps in {took:.1f} s")


def _frames(system: "System", work: Work, run: GenerateFlags) -> "Iterator[np.ndarray]":
    """Frames as they are made, with a progress bar."""
    from tqdm.auto import tqdm

    from cogvx_jax.pipelines.cogvideo2022.stream import frames_of, frames_to_make

    total = frames_to_make(work.request)
    with tqdm(total=total, disable=not run.progress, unit="frame", desc=work.job.out.name) as bar:
        yield from frames_of(system, work.request, work.job.index, told=bar.update)
