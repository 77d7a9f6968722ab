"""`cogvx generate`: makes videos."""

import contextlib
import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import tyro

from cogvx_jax.cli.options import DType, MeshText, SamplerName, parse_lora, report
from cogvx_jax.cli.prompts_file import Job, read_jobs

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

Size = Annotated[str | None, tyro.conf.arg(metavar="HxW", help_behavior_hint="(default: the model's own)")]


def generate(
    prompt: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="PROMPT")] = None,
    /,
    *,
    out: Path = Path("out.mp4"),
    model: str = "tiny",
    lora: Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(metavar="PATH[:WEIGHT]")] = (),
    prompts_file: Path | None = None,
    negative_prompt: str = "",
    image: Path | None = None,
    video: Path | None = None,
    strength: float = 0.8,
    size: Size = None,
    frames: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    use_dynamic_cfg: bool = False,
    sampler: SamplerName | None = None,
    seed: int = 0,
    tiling: bool = False,
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
      out: an .mp4 or .gif file; with --prompts-file, its stem gets the line's number.
      model: "tiny", a folder in the published layout, a hub id, or one of 2b, 5b, 5b-i2v, 1.5-5b, 1.5-5b-i2v.
      lora: a LoRA to use, a file, folder or run of `cogvx train`, and its weight if not 1; several add up.
      prompts_file: one prompt per line, or one JSON object per line with "prompt" and any of these
        options ("out" too); the model is loaded once.
      negative_prompt: what to steer away from.
      image: the first frame, for image-to-video models.
      video: what to start from, for video-to-video.
      strength: how much of the video is redrawn, above 0 and at most 1.
      size: height and width in pixels, such as 480x720.
      frames: 8N+1, for 1.5 models 16N+1.
      steps: sampling steps.
      guidance_scale: weight of the prompt; at most 1 turns guidance off.
      use_dynamic_cfg: vary that weight over the steps, as the authors' demo does.
      sampler: ddim, or the stochastic dpm.
      seed: the same seed gives the same video.
      tiling: run the VAE in tiles, to save memory; lossy, the result differs.
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
    options = {
        "negative_prompt": negative_prompt,
        "image": image,
        "video": video,
        "strength": strength,
        "size": size,
        "frames": frames,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "use_dynamic_cfg": use_dynamic_cfg,
        "sampler": sampler,
        "seed": seed,
        "tiling": tiling,
    }
    # What jax and flax need seconds to import comes after the arguments are known to be sound.
    jobs = read_jobs(prompt, prompts_file, out, options)
    from cogvx_jax.data.video import check_writable, read_image, read_video
    from cogvx_jax.pipelines.exact import check_exact
    from cogvx_jax.pipelines.lora import find_lora, load_lora
    from cogvx_jax.pipelines.model import load, load_spec
    from cogvx_jax.pipelines.request import check_request
    from cogvx_jax.sharding import first_process, initialize, parse_mesh

    if distributed:
        initialize()
    spec, devices = load_spec(model), None if mesh in (None, "auto") else parse_mesh(mesh)
    adapters = [(find_lora(path, spec), weight) for path, weight in map(parse_lora, lora)]
    requests = []
    for job in jobs:  # all of them, before the first is begun
        check_writable(job.out)
        arguments = job.arguments()
        del arguments["seed"], arguments["tiling"]
        if job.image is not None:
            arguments["image"] = read_image(job.image)
        if job.video is not None:
            arguments["video"] = read_video(job.video)[0]
        requests.append(check_request(spec, job.prompt, **arguments))
    if mesh == "auto":
        devices = _auto_mesh(model, requests, dtype)
    if exact:
        check_exact(devices, one_program=one_program)
    loaded = load(model, dtype=dtype, mesh=devices, programs=programs)
    if exact:
        loaded = dataclasses.replace(loaded, exact=True)
    for adapter, weight in adapters:
        loaded = load_lora(loaded, adapter, weight)
    for job in jobs:
        _run(loaded, model, job, progress and first_process(), one_program)


def _auto_mesh(source: str, requests: list[Any], dtype: str | None):
    """The mesh that suits the checked request with the most pixels."""
    from cogvx_jax.planning.plan import auto_mesh

    most = max(requests, key=lambda request: request.height * request.width * request.frames)

    return auto_mesh(
        source,
        height=most.height,
        width=most.width,
        num_frames=most.frames,
        guidance_scale=most.guidance,
        dtype=dtype,
        report=report,
    )


def _run(model, source: str, job: Job, progress: bool, one_program: bool) -> None:
    """Samples one video, then writes its frames to the file as they are decoded."""
    from cogvx_jax.data.video import read_video
    from cogvx_jax.pipelines.generate import generate as sample
    from cogvx_jax.pipelines.request import check_request, latent_frames
    from cogvx_jax.pipelines.saved_latents import SavedLatents, save_latents
    from cogvx_jax.sharding import first_process

    began = time.monotonic()
    arguments = job.arguments()
    latents = sample(model, job.prompt, **arguments, output="latents", progress=progress, one_program=one_program)
    del arguments["seed"], arguments["tiling"]
    fps: float = model.spec.defaults.fps
    if job.video is not None:
        arguments["video"], source_fps = read_video(job.video)
        fps = source_fps or fps
    request = check_request(model.spec, job.prompt, **arguments)
    padding = latents.shape[1] - latent_frames(model.spec, request.frames)
    source = str(Path(source).absolute()) if Path(source).is_dir() else source
    saved = SavedLatents(latents=latents, padding=padding, fps=fps, model=source, prompt=job.prompt)
    kept = job.out.with_suffix(".latents.safetensors")
    if first_process():
        save_latents(kept, saved)
    try:
        count, height, width = write_video(model, saved, job.out, job.tiling)
    except BaseException:
        print(f"cogvx: the sampled latents are kept: `cogvx decode {kept}` makes the video", file=sys.stderr)
        raise
    if first_process():
        kept.unlink()
        print(f"{job.out}: {count} frames of {height}x{width} at {fps:g} fps in {time.monotonic() - began:.1f} s")


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
