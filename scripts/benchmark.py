"""Measures this package beside diffusers on a CPU: the same weights and inputs, float32, two threads.

    python -m cogvx_jax.scripts.benchmark --json benchmark.json
    python -m cogvx_jax.scripts.benchmark --only b --formulations
    python -m cogvx_jax.scripts.benchmark train
    python -m cogvx_jax.scripts.benchmark gpu

Each side lives in a process of its own, and the two take turns, so that whatever else the machine
does slows both. Without torch and diffusers ours is measured alone.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from cogvx_jax.allocator import keep_freed_memory
from cogvx_jax.configs import ModelSpec, ScheduleConfig, T5Config, TransformerConfig, VAEConfig
from cogvx_jax.convert import export, load_params, read_spec
from cogvx_jax.convert.checkpoint import expected_shapes
from cogvx_jax.models import vae as vaes
from cogvx_jax.models.t5 import T5Encoder
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.backend import Formulations, formulations, using
from cogvx_jax.pipelines.model import TINY

THREADS = 2
PROMPT = "a red circle moves right on a white background"

Run = Callable[[], np.ndarray]  # one measured run; what it gives is compared between the sides
Name = tuple[str, str]  # what is benchmarked, and the workload's letter
Formulation = tuple[str, str]  # a field of Formulations and its value


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """The models and inputs of the synthetic workloads; latents and clips are T or F, height, width."""

    spec: ModelSpec
    tokens: tuple[int, int, int]  # latents of workload a
    latents: tuple[int, int, int]  # of workload b
    clip: tuple[int, int, int]  # pixels of workload c


FULL = Sizes(
    spec=ModelSpec(
        name="benchmark",
        transformer=TransformerConfig(layers=6, heads=12, text_dim=1024, position="rope"),
        vae=VAEConfig(),
        text_encoder=T5Config(layers=8, width=1024, heads=16, mlp=2816, vocab=4096),
        schedule=ScheduleConfig(snr_shift=1.0),
    ),
    tokens=(5, 48, 64),  # 3840 tokens, and 226 of text
    latents=(5, 16, 24),
    clip=(17, 128, 192),
)
SMALL = Sizes(  # to try the script out
    spec=dataclasses.replace(
        FULL.spec,
        transformer=TransformerConfig(layers=2, heads=2, text_dim=128, position="rope"),
        vae=VAEConfig(channels=(32, 32, 32, 64), layers=1),
        text_encoder=T5Config(layers=2, width=128, heads=2, mlp=256, vocab=256),
    ),
    tokens=(3, 8, 12),
    latents=(3, 4, 6),
    clip=(9, 32, 48),
)


@dataclasses.dataclass(frozen=True)
class Side:
    """Who computes: "ours" with these formulations (None: those of the platform), or "theirs"."""

    name: Literal["ours", "theirs"]
    choice: Formulations | None = None


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of every run, those of the first call, the peak memory in MiB, and the result."""

    seconds: list[float]
    first: float
    mib: float | None
    result: np.ndarray

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def main(
    what: Annotated[
        tyro.conf.Positional[Literal["generate", "train", "gpu"]], tyro.conf.arg(metavar="WHAT")
    ] = "generate",
    /,
    *,
    only: str | None = None,
    runs: int = 3,
    formulations: bool = False,
    small: bool = False,
    json: Path | None = None,
    folder: Path | None = None,
) -> None:
    """Prints a table of seconds, memory and differences.

    Args:
      what: "generate", what making a video takes, or "train", one LoRA and one full update, or
        "gpu", a step and a decode of the published models in bfloat16 on an accelerator.
      only: the workloads, e.g. "a,d" of the first, "lora" of the second, "5b" of the third; None is all of them.
      runs: measured runs of each side; the median counts.
      formulations: compare ours with ours: every formulation of an operation with the chosen one.
      small: tiny sizes, to see that everything works; the figures then mean nothing.
      json: where to write the figures, too.
      folder: where to keep the weights, so that a later run finds them; else they are temporary.
    """
    if what == "gpu":
        from cogvx_jax.scripts import benchmark_gpu

        models = tuple(only.split(",")) if only else benchmark_gpu.MODELS
        return benchmark_gpu.main(models, runs=runs, small=small, json_file=json)
    known = workloads(what)
    letters = list(known) if only is None else only.split(",")
    if unknown := set(letters) - known.keys():
        raise ValueError(f"unknown workloads {', '.join(sorted(unknown))}; the known ones are {', '.join(known)}")
    sizes = sizes_of(what, small=small)
    about = environment()
    print(", ".join(f"{k} {v}" for k, v in about.items()))
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "weights"
        if not folder.exists():
            export(folder, sizes.spec, {c: random_params(sizes.spec, c) for c in COMPONENTS})
        measure = by_formulation if formulations else side_by_side
        rows = [row for letter in letters for row in measure((what, letter), sizes, folder, runs)]
    print_table(rows)
    if json is not None:
        write_json(json, about, rows)


def workloads(what: str) -> dict[str, "Workload"]:
    if what == "generate":
        return WORKLOADS
    from cogvx_jax.scripts import benchmark_training

    return benchmark_training.WORKLOADS


def sizes_of(what: str, *, small: bool) -> Sizes:
    if what == "generate":
        return SMALL if small else FULL
    from cogvx_jax.scripts import benchmark_training

    return benchmark_training.TRAIN_SMALL if small else benchmark_training.TRAIN_FULL


def side_by_side(name: Name, sizes: Sizes, folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """One row: ours and theirs."""
    workload = workloads(name[0])[name[1]]
    row = {"workload": f"{name[1]}: {workload.title}"}
    if workload.shipped and not (TINY / "model_index.json").exists():
        yield row | {"note": f"skipped, there is no {TINY}"}
        return
    needed = ("torch", "diffusers", "transformers", *workload.needs)
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    ours, *theirs = take_turns(name, sizes, folder, runs, [Side("ours")] + [Side("theirs")] * (not missing))
    row |= {"ours s": ours.median, "compile s": ours.first - ours.median, "ours MiB": ours.mib, "runs": ours.seconds}
    if not theirs:
        yield row | {"note": f"ours alone: {', '.join(missing)} not installed"}
        return
    (theirs,) = theirs
    row |= {"theirs s": theirs.median, "theirs MiB": theirs.mib, "their runs": theirs.seconds}
    if ours.mib and theirs.mib:
        row |= {"MiB ratio": ours.mib / theirs.mib}
    yield row | {"ours/theirs": ours.median / theirs.median, "max diff": difference(ours, theirs)}


def by_formulation(name: Name, sizes: Sizes, folder: Path, runs: int) -> Iterator[dict[str, Any]]:
    """A row for every formulation that this platform does not use, with the time relative to the one it does."""
    chosen = formulations()
    for field, value in workloads(name[0])[name[1]].alternatives:
        if getattr(chosen, field) == value:
            continue
        other = dataclasses.replace(chosen, **{field: value})
        ours, theirs = take_turns(name, sizes, folder, runs, [Side("ours", chosen), Side("ours", other)])
        yield {
            "workload": f"{name[1]}: {field} {value} instead of {getattr(chosen, field)}",
            "chosen s": ours.median,
            "chosen MiB": ours.mib,
            "other s": theirs.median,
            "other MiB": theirs.mib,
            "other/chosen": theirs.median / ours.median,
            "max diff": difference(ours, theirs),
        }


def take_turns(name: Name, sizes: Sizes, folder: Path, runs: int, sides: list[Side]) -> list[Timing]:
    """Runs the sides in alternation, each in its own process."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    try:
        for side in sides:
            pipe, end = context.Pipe()
            process = context.Process(target=serve, args=(end, name, sizes, folder, side), daemon=True)
            process.start()
            end.close()  # so that a process that dies is noticed
            pipes.append(pipe)
            processes.append(process)
            pipe.recv()  # ready
        times, ends = [[] for _ in sides], []
        for _ in range(1 + runs):
            for pipe, seconds in zip(pipes, times, strict=True):
                pipe.send("run")
                seconds.append(pipe.recv())
        for pipe in pipes:
            pipe.send("stop")
            ends.append(pipe.recv())
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [Timing(seconds[1:], seconds[0], *end) for seconds, end in zip(times, ends, strict=True)]


def serve(pipe: Any, name: Name, sizes: Sizes, folder: Path, side: Side) -> None:
    """A side's process: says when it is ready, times one run per request, in the end sends memory and result."""
    if hasattr(os, "sched_setaffinity"):  # what XLA counts its threads by
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    jax.config.update("jax_enable_compilation_cache", False)
    if side.name == "theirs":
        import torch

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
    else:
        keep_freed_memory()  # as `load` does
    before = resident("VmRSS")
    with using(side.choice) if side.choice else contextlib.nullcontext():
        run = getattr(workloads(name[0])[name[1]], side.name)(sizes, folder)
        pipe.send("ready")
        while pipe.recv() == "run":
            start = time.perf_counter()
            result = run()
            pipe.send(time.perf_counter() - start)
    peak = resident("VmHWM")
    pipe.send((None if before is None or peak is None else (peak - before) / 2**10, result))


def resident(field: Literal["VmRSS", "VmHWM"]) -> int | None:
    """KiB of this process in memory, now or at the peak; None where the system is not Linux."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


# The workloads. Inputs come from a seeded generator, so both sides draw the same.


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).standard_normal(shape, np.float32)


def our_params(sizes: Sizes, folder: Path, component: str) -> Any:
    return jax.device_put(load_params(folder, sizes.spec, component))


def our_transformer(sizes: Sizes, folder: Path) -> Run:
    cfg = sizes.spec.transformer
    params = our_params(sizes, folder, "transformer")
    run = jax.jit(lambda params, *inputs: Transformer(cfg).apply({"params": params}, *inputs))
    inputs = jax.device_put((*transformer_inputs(sizes), np.float32([500])))
    return lambda: np.asarray(run(params, *inputs))


def their_transformer(sizes: Sizes, folder: Path) -> Run:
    import torch
    from diffusers import CogVideoXTransformer3DModel
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    cfg = sizes.spec.transformer
    model = CogVideoXTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    latents, text = map(torch.from_numpy, transformer_inputs(sizes))
    frames, *grid = sizes.tokens[0], sizes.tokens[1] // cfg.patch, sizes.tokens[2] // cfg.patch
    crops = get_resize_crop_region_for_grid(grid, cfg.sample_width // cfg.patch, cfg.sample_height // cfg.patch)
    rope = get_3d_rotary_pos_embed(cfg.head_dim, crops, grid, frames)
    latents = latents.permute(0, 1, 4, 2, 3).contiguous()  # (B, T, C, h, w)
    t = torch.tensor([500])

    def run():
        v = model(latents, text, t, image_rotary_emb=rope, return_dict=False)[0]
        return v.permute(0, 1, 3, 4, 2).numpy()

    return run


def transformer_inputs(sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
    cfg = sizes.spec.transformer
    return normal(1, *sizes.tokens, cfg.in_channels), normal(1, cfg.text_length, cfg.text_dim)


def our_decode(sizes: Sizes, folder: Path) -> Run:
    vae = vaes.VAE(sizes.spec.vae)
    params = our_params(sizes, folder, "vae")
    batch = jax.jit(lambda p, z, cache: vae.apply({"params": p}, z, cache, method="decode_batch"), donate_argnums=2)
    latents = jnp.asarray(normal(1, *sizes.latents, vae.cfg.latent_channels))
    return lambda: np.asarray(vaes.decode(vae, params, latents, decode_batch=batch))


def their_decode(sizes: Sizes, folder: Path) -> Run:
    vae, latents = their_vae(folder, normal(1, *sizes.latents, sizes.spec.vae.latent_channels))
    return lambda: vae.decode(latents, return_dict=False)[0].permute(0, 2, 3, 4, 1).numpy()


def our_encode(sizes: Sizes, folder: Path) -> Run:
    vae = vaes.VAE(sizes.spec.vae)
    params = our_params(sizes, folder, "vae")
    batch = jax.jit(lambda p, x, cache: vae.apply({"params": p}, x, cache, method="encode_batch"), donate_argnums=2)
    clip = jnp.asarray(normal(1, *sizes.clip, 3) / 2)
    return lambda: np.asarray(vaes.encode(vae, params, clip, encode_batch=batch))


def their_encode(sizes: Sizes, folder: Path) -> Run:
    vae, clip = their_vae(folder, normal(1, *sizes.clip, 3) / 2)
    return lambda: vae.encode(clip, return_dict=False)[0].parameters.permute(0, 2, 3, 4, 1).numpy()


def their_vae(folder: Path, video: np.ndarray) -> tuple[Any, Any]:
    import torch
    from diffusers import AutoencoderKLCogVideoX

    vae = AutoencoderKLCogVideoX.from_pretrained(folder, subfolder="vae")
    return vae, torch.from_numpy(video).permute(0, 4, 1, 2, 3).contiguous()  # (B, C, F, H, W)


def our_text(sizes: Sizes, folder: Path) -> Run:
    cfg = sizes.spec.text_encoder
    params = our_params(sizes, folder, "text_encoder")
    run = jax.jit(lambda params, ids: T5Encoder(cfg).apply({"params": params}, ids))
    ids = jnp.asarray(token_ids(sizes), jnp.int32)
    return lambda: np.asarray(run(params, ids))


def their_text(sizes: Sizes, folder: Path) -> Run:
    import torch
    from transformers import T5EncoderModel

    model = T5EncoderModel.from_pretrained(folder, subfolder="text_encoder")
    ids = torch.from_numpy(token_ids(sizes))
    return lambda: model(ids)[0].numpy()


def token_ids(sizes: Sizes) -> np.ndarray:
    shape = (2, sizes.spec.transformer.text_length)
    return np.random.default_rng(7).integers(sizes.spec.text_encoder.vocab, size=shape)


def our_generate(sizes: Sizes, folder: Path) -> Run:
    import cogvx_jax as cx

    model = cx.load(TINY)
    jax.config.update("jax_enable_compilation_cache", False)  # `load` has turned it on
    latents = tiny_latents(model.spec)
    run = functools.partial(cx.generate, model, PROMPT, latents=latents, num_inference_steps=20, progress=False)
    return lambda: np.float32(run().frames) / 255


def their_generate(sizes: Sizes, folder: Path) -> Run:
    import torch
    from diffusers import CogVideoXPipeline

    spec = read_spec(TINY)
    pipe = CogVideoXPipeline.from_pretrained(TINY)
    pipe.set_progress_bar_config(disable=True)
    latents = torch.from_numpy(tiny_latents(spec)).permute(0, 1, 4, 2, 3)
    size = {"height": spec.defaults.height, "width": spec.defaults.width, "num_frames": spec.defaults.num_frames}
    guidance = spec.defaults.guidance_scale
    options = size | {"num_inference_steps": 20, "guidance_scale": guidance, "output_type": "np"}
    return lambda: pipe(PROMPT, negative_prompt="", latents=latents, **options).frames


def tiny_latents(spec: ModelSpec) -> np.ndarray:
    size, vae = spec.defaults, spec.vae
    frames = (size.num_frames - 1) // vae.temporal_compression + 1
    pixels = vae.spatial_compression
    return normal(1, frames, size.height // pixels, size.width // pixels, vae.latent_channels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    title: str
    ours: Callable[[Sizes, Path], Run]
    theirs: Callable[[Sizes, Path], Run]
    alternatives: tuple[Formulation, ...] = ()  # that matter here
    shipped: bool = False  # runs the model that ships with the package
    needs: tuple[str, ...] = ()  # packages of the other side, besides diffusers


WORKLOADS = {
    "a": Workload(
        title="transformer",
        ours=our_transformer,
        theirs=their_transformer,
        alternatives=(("attention", "plain"), ("attention", "chunked"), ("attention", "by_head")),
    ),
    "b": Workload(
        title="VAE decode",
        ours=our_decode,
        theirs=their_decode,
        alternatives=(
            ("causal_conv", "conv3d"),
            ("causal_conv", "conv2d"),
            ("upsample_conv", "repeat"),
            ("upsample_conv", "phase"),
            ("upsample_conv", "dilated"),
            ("spatial_norm", "full"),
            ("spatial_norm", "latent"),
        ),
    ),
    "c": Workload(
        title="VAE encode",
        ours=our_encode,
        theirs=their_encode,
        alternatives=(("causal_conv", "conv3d"), ("causal_conv", "conv2d")),
    ),
    "d": Workload(title="text encoder", ours=our_text, theirs=their_text),
    "e": Workload(title="tiny, 20 steps", ours=our_generate, theirs=their_generate, shipped=True),
}
COMPONENTS = ("transformer", "vae", "text_encoder")


def random_params(spec: ModelSpec, component: str) -> dict[str, Any]:
    """Weights that keep activations near 1 in size, none of them zero, so that a difference would show."""
    rng, tree = np.random.default_rng(11), {}
    for path, shape in expected_shapes(spec, component).items():
        *parents, name = path.split("/")
        values = rng.standard_normal(shape, np.float32)
        if name == "kernel":
            inputs = np.prod(shape[1:-1] if parents[0] == "blocks" else shape[:-1])
            if component == "text_encoder" and parents[-1] == "q":
                inputs *= spec.text_encoder.head_dim  # T5 does not scale its logits, its weights do
            values /= np.sqrt(inputs)
        elif name == "scale":
            values = 1 + values / 10
        elif name == "bias":
            values /= 10
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = values
    return tree


def difference(one: Timing, other: Timing) -> float:
    return float(np.max(np.abs(one.result - other.result)))


def environment() -> dict[str, str]:
    """What the figures depend on. A load above 0 means that something else was running."""
    about = {"machine": platform.machine(), "threads": str(THREADS), "load": f"{os.getloadavg()[0]:.1f}"}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        about |= {"machine": names[0]} if names else {}
    for package in ("jax", "flax", "torch", "diffusers", "transformers"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            about[package] = importlib.metadata.version(package)
    return about


def print_table(rows: list[dict[str, Any]]) -> None:
    """Markdown; single runs are left to the JSON."""
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("runs", "their runs")))
    print("\n| " + " | ".join(names) + " |\n|" + " --- |" * len(names))
    for row in rows:
        cells = (row.get(name, "") for name in names)
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")


def write_json(path: Path, about: dict[str, str], rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps({"environment": about, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
