"""`cogvx generate`: makes videos."""

import contextlib
import dataclasses
import shlex
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import tyro

from cogvx_jax.cli.attempts import Attempts, Plan
from cogvx_jax.cli.enhance import language_note, prompt_enhancer
from cogvx_jax.cli.families import family_of
from cogvx_jax.cli.finished import Written, check_finished, with_sound, write_finished
from cogvx_jax.cli.frames import write_frames
from cogvx_jax.cli.kept_steps import Keeper, earlier_steps
from cogvx_jax.cli.options import (
    GenerateFlags,
    GivenFlags,
    ModelFlags,
    VideoFlags,
    check_maker,
    check_memory,
    parse_lora,
    report,
)
from cogvx_jax.cli.preview_file import PreviewFile, check_preview
from cogvx_jax.cli.prompts_file import Job, read_jobs
from cogvx_jax.given import Given
from cogvx_jax.pipelines.memory_modes import AUTO, BY_NAME, find_mode
from cogvx_jax.pipelines.options import RANDOM, Sampling
from cogvx_jax.prompting.chat import Endpoint
from cogvx_jax.quantization import find_quantization

if TYPE_CHECKING:
    from cogvx_jax.configs import ModelSpec
    from cogvx_jax.pipelines.model import Model
    from cogvx_jax.pipelines.record import Record
    from cogvx_jax.pipelines.request import Request
    from cogvx_jax.pipelines.saved_latents import SavedLatents
    from cogvx_jax.pipelines.saved_steps import SavedSteps
    from cogvx_jax.prompting.enhance import Enhancer

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

TEXTS = 64  # videos whose texts are encoded together where components take turns: 250 MB of published models


def generate(
    prompt: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None,
    /,
    *,
    run: Annotated[GenerateFlags, tyro.conf.OmitArgPrefixes] = GenerateFlags(),  # noqa: B008
    video: Annotated[VideoFlags, tyro.conf.OmitArgPrefixes] = VideoFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes a video from a prompt, an image or a video. What is None is the model's own.

    The sampled latents are kept beside the video until it is whole, so that `cogvx decode` can finish a
    run whose decoding failed.

    Args:
      prompt: what the video shows.
    """
    # What jax and flax need seconds to import comes after the arguments are known to be sound.
    jobs = read_jobs(prompt, run.prompts_file, run.out, video.checked())
    make_videos(jobs, run, given.checked(), Plan(skip_made=run.prompts_file is not None))


def make_videos(jobs: Sequence[Job], run: GenerateFlags, about: Given, plan: Plan) -> list[Job]:
    """Makes the videos of jobs; gives those that it made.

    Raises: ValueError or OSError before the first is begun, and as `plan.attempts` has it.
    """
    if (family := family_of(run.model)) is not None:
        return family.make_videos(jobs, run, about, plan)
    weighted, attempts = [parse_lora(text) for text in run.lora], plan.attempts
    memory = run.memory
    check_memory(memory)
    check_maker(run.sound_from)
    if run.enhance_prompt and run.distributed:
        raise ValueError("several processes would get a prompt each of the language model; use `cogvx enhance` before")
    enhancer = prompt_enhancer(run.model, about, Endpoint(llm=run.llm)) if run.enhance_prompt else None
    if about and AUTO in (run.mesh, memory):
        raise ValueError("auto, for a mesh or memory mode, needs a model that its files tell whole; convert it first")
    how = None if run.quantize is None else find_quantization(run.quantize)
    check_preview(run, [job.out for job in jobs])
    from cogvx_jax.data.video import check_writable
    from cogvx_jax.models.lora import first_distilled
    from cogvx_jax.pipelines.duration import warn_of_hours
    from cogvx_jax.pipelines.exact import check_exact
    from cogvx_jax.pipelines.lora import find_lora, load_lora, stack_loras
    from cogvx_jax.pipelines.model import check_takes_lora, load, load_quantization, load_spec, resolve
    from cogvx_jax.pipelines.request import few_steps_note
    from cogvx_jax.pipelines.short_schedule import check_asked, check_in_mode, check_short, check_stored, lossy_note
    from cogvx_jax.sharding import first_process, initialize, parse_mesh

    if run.distributed:
        initialize()
    spec, devices = load_spec(run.model, about), None if run.mesh in (None, "auto") else parse_mesh(run.mesh)
    stored = load_quantization(run.model, run.quantize, about)  # refuses what cannot be quantised
    if weighted and how is None:
        check_takes_lora(run.model, stored)
    # What the user says of the model's own VAE is not about that of previews.
    decoding = dataclasses.replace(about, vae=run.preview_decoder, groups=None, scaling_factor=None)
    if run.preview_decoder is not None:
        load_spec(run.model, decoding)
    adapters = [(find_lora(path, spec), weight) for path, weight in weighted]
    for (path, weight), (adapter, _) in zip(weighted, adapters, strict=True):
        report(f"{path}: {adapter.told}, weight {weight:g}")
    spec = spec.distilled(first_distilled([(adapter.distilled, weight) for adapter, weight in adapters]))
    work = _check(spec, jobs, attempts)  # all of them, before the first is begun
    if plan.skip_made:
        asked = {"dtype": run.dtype, "exact": run.exact} | _lossy(memory)
        asked |= {} if how is None else {"quantize": how.name}
        asked |= {} if run.record else {"record": False}
        asked |= {} if run.sound_from is None else {"sound_from": run.sound_from}
        asked |= {"enhance_prompt": run.llm or ""} if run.enhance_prompt else {}
        work = _left(work, run.model, adapters, asked, run.again, about)
    folder = resolve(run.model) if any(one.request.reuse for one in work) else None
    if run.preview is not None:
        check_writable(run.preview)
    for one in work:
        with attempts.at(one.job):
            heard = with_sound(one.request, run.sound_from, one.job.prompt)
            if heard.finish is None:
                check_writable(one.job.out, commented=run.record)
            else:
                check_finished(one.job.out, heard)
            check_asked(one.request, spec.name, folder, devices, exact=run.exact)
            if run.programs is not None and not run.exact:
                check_stored(one.request)
    if not (work := attempts.left(work)):
        return []
    if enhancer is not None and not (work := _enhanced(work, enhancer, attempts)):
        return []
    if AUTO in (run.mesh, memory):
        requests = [one.request for one in work]
        devices, memory = _choose(run.model, requests, run.dtype, run.quantize, devices or run.mesh, memory)
    if not run.again:
        work = _going_on(work, spec, devices, run, attempts)
    if memory is not None:
        for one in work:
            with attempts.at(one.job):
                check_in_mode(find_mode(memory), one.request)
        if not (work := attempts.left(work)):
            return []
    if run.exact:
        check_exact(devices, one_program=run.one_program)
    if first_process():
        warn_of_hours(spec, [one.request for one in work], devices)
        notes = [None if how is None else f"--quantize {how.name} is lossy: {how.cost}"]
        for one in work:
            notes += [lossy_note(one.request, spec), few_steps_note(one.request, spec)]
            notes += [language_note(one.job.prompt)] if enhancer is None else []
        for note in dict.fromkeys(notes):  # once each
            if note is not None:
                report(note)
    first = None if how is None else stack_loras(adapters)  # to a quantised model's kernels nothing can be added later
    loaded = load(
        run.model,
        dtype=run.dtype,
        mesh=devices,
        programs=run.programs,
        quantize=run.quantize,
        lora=first,
        memory=memory,
        **vars(about),
    )
    if run.exact:
        loaded = dataclasses.replace(loaded, exact=True)
    decoder = None
    if run.preview_decoder is not None:
        decoder = load(run.model, dtype=run.dtype, mesh=devices, components=("vae",), **vars(decoding))
    for adapter, weight in adapters if how is None else ():
        loaded = load_lora(loaded, adapter, weight)
    for one in work:
        with attempts.at(one.job):
            check_short(loaded, one.request)
    work = attempts.left(work)
    for group in (work[i : i + TEXTS] for i in range(0, len(work), TEXTS)):
        for one, text in _texts(loaded, group, attempts):
            with attempts.at(one.job):
                _run(loaded, run, one, text, decoder, plan)
    return [one.job for one in attempts.left(work)]


class Work(NamedTuple):
    """A job with its request; `digest` names what is asked for, where that is noted."""

    job: Job
    request: "Request"
    digest: str = ""
    saved: "SavedSteps | None" = None  # steps that an earlier run took of it


def _keeps_steps(run: GenerateFlags, request: "Request") -> bool:
    """Whether the steps of a video are kept: not of several processes, nor of one program, nor of several segments."""
    return run.keep_steps and not run.one_program and not run.distributed and request.extend is None


def _going_on(work: list[Work], spec: "ModelSpec", mesh: Any, run: GenerateFlags, attempts: Attempts) -> list[Work]:
    """The work with what earlier runs kept of it; of one whose seed is to be drawn, with the seed that was.

    Raises: ValueError, one sentence, where steps of another request, or computed otherwise, lie beside a video.
    """
    from cogvx_jax.pipelines.generate import request_facts
    from cogvx_jax.pipelines.saved_steps import early_facts

    found = []
    for one in work:
        saved = None
        with attempts.at(one.job):
            if _keeps_steps(run, one.request):
                saved = earlier_steps(one.job.out)
            if saved is not None:
                if one.job.options.seed == RANDOM:
                    one = one._replace(request=one.request.with_seed(saved.seed))
                facts = early_facts(spec, mesh, exact=run.exact)
                saved.check(request_facts(one.request) | facts, anew="delete it, or give --again,")
                report(f"{one.job.out}: {saved.steps} of {saved.count} steps were kept, and are gone on with")
        found.append(one._replace(saved=saved))
    return attempts.left(found)


def _check(spec: "ModelSpec", jobs: Sequence[Job], attempts: Attempts) -> list[Work]:
    """The jobs and their requests, whose inputs are read and held: a file that is gone later costs nothing."""
    from cogvx_jax.cli.inputs import Inputs
    from cogvx_jax.pipelines.request import check_request

    inputs, work = Inputs(), []
    for job in jobs:
        with attempts.at(job):
            work.append(Work(job, inputs.hold(check_request(spec, job.together, job.options))))
    return work


def _enhanced(work: list[Work], enhancer: "Enhancer", attempts: Attempts) -> list[Work]:
    """The work with prompts that a language model wrote, which are printed. A digest stays that of what was asked."""
    found = []
    for one in work:
        with attempts.at(one.job):
            text = enhancer(one.job.prompt, one.job.options.image)
            report(f"{one.job.out}: {text}")
            job = dataclasses.replace(one.job, prompt=text, wish=one.job.prompt, llm=enhancer.llm)
            found.append(one._replace(job=job, request=dataclasses.replace(one.request, prompts=(text,))))
    return found


def _left(work: list[Work], model: str, adapters: list, how: dict[str, Any], again: bool, about: Given) -> list[Work]:
    """The work that no earlier run has done, its digests filled in; with `again`, all of it."""
    from cogvx_jax.cli.made import model_digest, not_made, request_digest

    made_with = model_digest(model, adapters, how, about)
    work = [one._replace(digest=request_digest(one.request, one.job.options, made_with)) for one in work]
    return not_made(work, again=again)


def _lossy(memory: str | None) -> dict[str, Any]:
    """What a memory mode adds to how videos are made: nothing where it is exact."""
    return {} if memory is None or memory != AUTO and BY_NAME[memory].exact else {"memory": memory}


def _choose(
    source: str,
    requests: Sequence["Request"],
    dtype: str | None,
    quantize: str | None,
    mesh: Any,
    memory: str | None,
):
    """The mesh and the memory mode that suit the request that shows the model the most; of each, one may be given."""
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.pipelines.request import seen_latents
    from cogvx_jax.planning.plan import choose

    edits = {request.task == "edit" for request in requests}
    if len(edits) > 1:
        raise ValueError("auto plans for videos to edit or for others; make them in two runs, or name mesh and mode")
    spec = load_spec(source)
    most = max(requests, key=lambda request: request.height * request.width * seen_latents(spec, request))
    beside = max((request.controls or () for request in requests), key=len)
    motion = next((one.motion for one in requests if one.motion is not None), None)
    regions = max(len(one.regions.prompts) if one.regions else 0 for one in requests)
    for some, others, words in (
        (motion, most.windows, "with trajectories or with windows"),
        (regions, beside, "with regions or with ControlNets"),
    ):
        if some and others:
            raise ValueError(f"auto plans for videos {words}; make them in two runs, or name mesh and mode")
    # These leave no block out, and take the most.
    plain = bool(beside or motion or regions) or most.windows is not None
    ways = [] if plain else [request.way for request in requests if request.way is not None]
    sampling = Sampling(
        size=(most.height, most.width),
        frames=most.frames,
        steps=most.steps,
        guidance_scale=most.guidance,
        sampler=most.sampler,
        guider=most.guider,
        enhance=most.enhance,
        windows=most.windows,
        # The same programs run whatever steps a pattern names.
        reuse=None if ways or plain else "every:2" if most.reuse and most.reuse.pattern else most.reuse,
        guidance=ways[0] if ways else None,
    )
    how: dict[str, Any] = dict(dtype=dtype, quantize=quantize, mesh=mesh, memory=memory)
    how |= {"controlnet": [use.net for use in beside], "task": most.task}
    how |= {"tora": None if motion is None else motion.files.name, "regions": regions}
    return choose(source, sampling=sampling, report=report, **how)


def _texts(model: "Model", group: Sequence[Work], attempts: Attempts) -> list[tuple[Work, Any]]:
    """States of the texts of several videos, on the host, where components take turns: encoded before any is made."""
    import jax
    import numpy as np

    from cogvx_jax.pipelines.generate import encode_texts

    if not model.memory.turns:
        return [(one, None) for one in group]
    states = []
    for one in group:
        with attempts.at(one.job):
            states.append((one, jax.tree.map(np.asarray, encode_texts(model, one.request))))
    return states


def _run(
    model: "Model",
    run: GenerateFlags,
    work: Work,
    text: Any,
    decoder: "Model | None",
    plan: Plan,
) -> None:
    """Samples one video, keeps its latents, then writes its frames to the file as they are decoded.

    One that goes on with another is written segment by segment, and no latents are kept. `decoder` makes previews.
    """
    import numpy as np

    from cogvx_jax.finishing.spare import spare_place
    from cogvx_jax.pipelines.generate import extended_frames, fitting, sample
    from cogvx_jax.pipelines.latents import decode_frames
    from cogvx_jax.pipelines.model import absolute_source
    from cogvx_jax.pipelines.on_step import in_turn
    from cogvx_jax.pipelines.provenance import record_text
    from cogvx_jax.pipelines.saved_latents import SavedLatents
    from cogvx_jax.sharding import first_process

    job, request, digest, earlier = work

    def told(found: "Record") -> "Record":
        enhanced = {"wish": job.wish, "llm": job.llm} if job.wish else {}
        return plan.record_as(dataclasses.replace(found, enhanced=enhanced))

    record = None
    if run.record:
        record = record_text(model, request, job.index, told, one_program=run.one_program)
    began = time.monotonic()
    if job.options.seed == RANDOM and first_process():
        print(f"{job.out}: --seed {request.seed}", flush=True)
    model = fitting(model, request)
    how: dict[str, Any] = dict(progress=run.progress and first_process(), one_program=run.one_program, text=text)
    shows = None if run.preview is None else PreviewFile(model, run.preview, float(request.fps), decoder)
    if request.extend is not None:
        frames = extended_frames(model, request, on_step=shows, **how)
        _ended(job.out, digest, _written(run, work, frames, record, plan.tags), began)
        return
    keeper = Keeper(job.out) if _keeps_steps(run, request) else None
    with keeper or contextlib.nullcontext():
        looks = in_turn(*(one for one in (shows, keeper) if one is not None))
        latents = np.asarray(sample(model, request, on_step=looks, resume=earlier, **how))[job.index : job.index + 1]
    saved = SavedLatents(
        latents=latents,
        padding=request.padding,
        fps=float(request.fps),
        model=absolute_source(run.model),
        prompt=job.prompt,
        record=record,
    )
    decoded = job.out if request.finish is None and run.sound_from is None else spare_place(job.out)
    with _kept(saved, job.out, keeper, decoded) if first_process() else contextlib.nullcontext():
        frames = decode_frames(model, latents, request.padding, tiling=request.tiling)
        written = _written(run, work, frames, record, plan.tags)
    _ended(job.out, digest, written, began)


def _written(
    run: GenerateFlags,
    work: Work,
    frames: Iterable[Any],
    record: str | None,
    tags: Mapping[str, str] | None,
) -> Written:
    """Writes a video's frames as they are decoded, finished where that is asked for."""
    job = work.job
    request = with_sound(work.request, run.sound_from, job.prompt)
    if request.finish is not None:
        return write_finished(request, frames, job.out, record, tags, progress=run.progress)
    return Written(*write_frames(frames, job.out, request.fps, record, tags), request.fps)


def _ended(out: Path, digest: str, written: Written, began: float) -> None:
    """Notes a video that is whole, and tells of it. Raises: what ended finishing, where that failed."""
    from cogvx_jax.cli.made import note_made
    from cogvx_jax.sharding import first_process

    count, height, width, fps, problem = written
    if problem is not None:
        raise problem
    if first_process():
        if digest:
            note_made(out, digest)
        print(f"{out}: {count} frames of {height}x{width} at {float(fps):g} fps in {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def _kept(saved: "SavedLatents", out: Path, steps: Keeper | None = None, decoded: Path | None = None):
    """Keeps the latents, in place of their steps, until the block has ended well, and else says where they are.

    `decoded` is what `cogvx decode` is to make of them, where that is not `out`.
    """
    from cogvx_jax.pipelines.saved_latents import keep_latents

    kept = None
    try:
        kept = keep_latents(out, saved)
        if steps is not None:
            steps.forget()
        if kept.parent != out.absolute().parent:
            report(f"no room beside {out}; until it is whole, the sampled latents are kept in {kept}")
    except OSError as error:  # the video may still fit
        report(f"the sampled latents of {out} could not be kept ({error}); if decoding fails, they are lost")
    try:
        yield
    except BaseException:
        if kept is not None:
            again = shlex.join(["cogvx", "decode", str(kept), "--out", str(decoded or out)])
            print(
                f"cogvx: the sampled latents are kept: `{again}` makes the video"
                + ", which is not finished then" * (decoded not in (None, out)),
                file=sys.stderr,
            )
        raise
    if kept is not None:
        kept.unlink(missing_ok=True)
    elif steps is not None:
        steps.forget()


def write_video(
    model, saved, out: Path, tiling: bool, fps: Fraction | None = None, tags: Mapping[str, str] | None = None
) -> tuple[int, int, int]:
    """Writes the video of sampled latents as it is decoded; gives its frames, height and width.

    Args:
      fps: None is what the latents know, which is a rounded number.
    """
    from cogvx_jax.pipelines.latents import decode_frames

    frames = decode_frames(model, saved.latents, saved.padding, tiling=tiling)
    return write_frames(frames, out, fps or saved.fps, saved.record, tags)
