"""The command `cogvx`: its verbs are the functions below, their options the functions' arguments."""

import contextlib
import dataclasses
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from cogvx_jax import presets
from cogvx_jax.configs import ModelSpec
from cogvx_jax.pipelines.commands import convert, verify
from cogvx_jax.pipelines.compile_command import compile_
from cogvx_jax.pipelines.plan_command import plan
from cogvx_jax.pipelines.progress import report
from cogvx_jax.train.commands import encode, export, train
from cogvx_jax.train.vae_command import train_vae

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
    sampler: Literal["ddim", "dpm"] | None = None,
    seed: int = 0,
    tiling: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")] = None,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One video to make: a line of a prompts file, or the command line itself."""

    prompt: str
    out: Path
    negative_prompt: str = ""
    image: Path | None = None
    video: Path | None = None
    strength: float = 0.8
    size: str | None = None
    frames: int | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    use_dynamic_cfg: bool = False
    sampler: str | None = None
    seed: int = 0
    tiling: bool = False

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `cogvx_jax.generate`."""
        height, width = parse_size(self.size)
        return {
            "negative_prompt": self.negative_prompt,
            "image": self.image,
            "video": self.video,
            "strength": self.strength,
            "height": height,
            "width": width,
            "num_frames": self.frames,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "use_dynamic_cfg": self.use_dynamic_cfg,
            "sampler": self.sampler,
            "seed": self.seed,
            "tiling": self.tiling,
        }


def read_jobs(prompt: str | None, file: Path | None, out: Path, options: dict[str, Any]) -> list[Job]:
    """The videos to make: one for `prompt`, or one per line of `file`.

    Raises: ValueError naming the line for what cannot be read.
    """
    if (prompt is None) == (file is None):
        raise ValueError("give either a prompt or --prompts-file")
    if prompt is not None or file is None:
        assert prompt is not None
        return [Job(prompt=prompt, out=out, **options)]
    lines = [line.strip() for line in file.read_text().splitlines()]
    jobs: list[Job] = []
    known = {field.name for field in dataclasses.fields(Job)}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        own: dict[str, Any] = {"prompt": line}
        if line.startswith("{"):
            try:
                own = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file}, line {number} is not JSON: {error}") from None
            if "prompt" not in own or not own.keys() <= known:
                spare = ", ".join(sorted(own.keys() - known)) or "no prompt"
                raise ValueError(
                    f"{file}, line {number}: {spare}; a line has a prompt and any of {', '.join(sorted(known))}"
                )
        target = out.with_stem(f"{out.stem}-{len(jobs)}")
        paths = {k: Path(own[k]) for k in ("out", "image", "video") if own.get(k)}
        jobs.append(Job(**({"out": target} | options | own | paths)))
    if not jobs:
        raise ValueError(f"{file} holds no prompt")
    return jobs


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """Height and width of "480x720"."""
    if size is None:
        return None, None
    parts = size.lower().split("x")
    if len(parts) != 2 or not all(p.isdecimal() for p in parts):
        raise ValueError(f"size must be HEIGHTxWIDTH in pixels, such as 480x720, got {size!r}")
    return int(parts[0]), int(parts[1])


def parse_lora(text: str) -> tuple[str, float]:
    """Path and weight of "PATH:WEIGHT" or "PATH"; a colon without a number after it belongs to the path."""
    path, _, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if path else (text, 1.0)
    except ValueError:
        return text, 1.0


def _auto_mesh(source: str, requests: list[Any], dtype: str | None):
    """The mesh that suits the checked request with the most pixels."""
    from cogvx_jax.pipelines.plan import auto_mesh

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
    from cogvx_jax.pipelines.saved import SavedLatents, save_latents
    from cogvx_jax.sharding import first_process

    began = time.monotonic()
    arguments = job.arguments()
    latents = sample(model, job.prompt, **arguments, output="latents", progress=progress, one_program=one_program)
    del arguments["seed"], arguments["tiling"]
    fps: float = model.spec.defaults.fps
    if job.video is not None:
        arguments["video"], source_fps = read_video(job.video)
        fps = float(source_fps) if source_fps else fps
    request = check_request(model.spec, job.prompt, **arguments)
    padding = latents.shape[1] - latent_frames(model.spec, request.frames)
    source = str(Path(source).absolute()) if Path(source).is_dir() else source
    saved = SavedLatents(latents=latents, padding=padding, fps=fps, model=source, prompt=job.prompt)
    kept = job.out.with_suffix(".latents.safetensors")
    if first_process():
        save_latents(kept, saved)
    try:
        count, height, width = _decode(model, saved, job.out, job.tiling)
    except BaseException:
        print(f"cogvx: the sampled latents are kept: `cogvx decode {kept}` makes the video", file=sys.stderr)
        raise
    if first_process():
        kept.unlink()
        print(f"{job.out}: {count} frames of {height}x{width} at {fps:g} fps in {time.monotonic() - began:.1f} s")


def _decode(model, saved, out: Path, tiling: bool) -> tuple[int, int, int]:
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


def decode(
    latents: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="LATENTS")],
    /,
    *,
    out: Path = Path("out.mp4"),
    model: str | None = None,
    tiling: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] | None = None,
    mesh: Annotated[str | None, tyro.conf.arg(metavar="AXIS=N,...")] = None,
    programs: Path | None = None,
) -> None:
    """Makes the video of latents that `cogvx generate` sampled and could not decode.

    Args:
      latents: the file that it kept, NAME.latents.safetensors.
      out: an .mp4 or .gif file.
      model: as for `generate`; None is the one that sampled them. Only its VAE is loaded.
      tiling: run the VAE in tiles, to save memory; lossy, the result differs.
      dtype: to compute in.
      mesh, programs: as for `generate`.
    """
    from cogvx_jax.data.video import check_writable
    from cogvx_jax.pipelines.model import load
    from cogvx_jax.pipelines.saved import read_latents
    from cogvx_jax.sharding import parse_mesh

    began, saved = time.monotonic(), read_latents(latents)
    check_writable(out)
    devices = None if mesh is None else parse_mesh(mesh)
    loaded = load(model or saved.model, dtype=dtype, mesh=devices, components=("vae",), programs=programs)
    count, height, width = _decode(loaded, saved, out, tiling)
    print(f"{out}: {count} frames of {height}x{width} at {saved.fps:g} fps in {time.monotonic() - began:.1f} s")


def info(
    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = "tiny",
    /,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Prints a model's kind, sizes, parameters, memory and native shapes, without loading weights.

    Args:
      model: as for `generate`.
      as_json: print JSON.
    """
    from cogvx_jax.pipelines.model import load_spec

    facts = describe(load_spec(model))
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")


def describe(spec: ModelSpec) -> dict[str, Any]:
    """What `info` prints; sizes of arrays come from shapes alone."""
    import math

    from cogvx_jax.convert import expected_shapes
    from cogvx_jax.pipelines.request import padded_latent_frames

    own, cfg = spec.defaults, spec.transformer
    licences = {presets.PRESETS[preset].name: licence for preset, licence in presets.LICENCES.items()}
    counts = {}
    for component in ("transformer", "vae", "text_encoder"):
        counts[component] = sum(math.prod(shape) for shape in expected_shapes(spec, component).values())
    latent = (padded_latent_frames(spec, own.num_frames), own.height // 8, own.width // 8, cfg.out_channels)
    tokens = math.prod(latent[:3]) // (cfg.patch**2 * (cfg.patch_t or 1))
    half = counts["transformer"] * 2 + counts["text_encoder"] * 2 + counts["vae"] * 4
    return {
        "model": spec.name,
        "kind": {"t2v": "text to video (and video to video)", "i2v": "image to video"}[spec.kind],
        "native size": f"{own.height}x{own.width}, {own.num_frames} frames at {own.fps} fps",
        "sampling": f"{own.num_inference_steps} steps, {own.sampler}, guidance {own.guidance_scale:g}",
        "latents": "x".join(map(str, latent)),
        "tokens": f"{tokens:,} video + {cfg.text_length} text",
        "transformer": f"{cfg.layers} layers, {cfg.heads} heads of {cfg.head_dim}, width {cfg.width}, {cfg.position}",
        **{f"{name} parameters": f"{count:,}" for name, count in counts.items()},
        "weights in 16 bit": f"{half / 1e9:.2f} GB (VAE in 32 bit)",
        "weights in 32 bit": f"{sum(counts.values()) * 4 / 1e9:.2f} GB",
        "trained in": spec.trained_dtype,
        "licence": licences.get(spec.name, "Apache-2.0" if spec.name == "tiny" else "see the model's own"),
    }


def main() -> None:
    """Runs the command line; an error in the input is one sentence on stderr and exit status 2."""
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # of jax; the forks become ffmpeg at once
    warnings.showwarning = lambda message, *_: print(f"cogvx: warning: {message}", file=sys.stderr)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {
                "generate": generate,
                "decode": decode,
                "info": info,
                "plan": plan,
                "compile": compile_,
                "convert": convert,
                "verify": verify,
                "encode": encode,
                "train": train,
                "train-vae": train_vae,
                "export": export,
            },
            prog="cogvx",
            description="CogVideoX in JAX and Flax.",
        )
    except (ValueError, OSError) as error:
        print(f"cogvx: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("cogvx: interrupted; no video was written", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
