"""The accelerator workloads of `benchmark.py gpu`: a denoising step and a VAE decode of the published models.

Random weights in bfloat16, native sizes, beside diffusers eager and with torch.compile. Each side is alone in a process
of its own while it is measured, as two of them would not fit one device. What a row says of 50 steps is the
median step times 50. Results are not compared: the sides draw their own weights; `tests/parity` compares.

It runs on a CPU, too, at small sizes in float32, to see that everything works.
"""

import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jax

from cogvx_jax.configs import ModelSpec
from cogvx_jax.scripts.alone import alone
from cogvx_jax.scripts.device_workloads import Case, case, matmul_rate, ours, timed

MODELS = ("2b", "5b", "1.5-5b")
STEPS = 50
Side = Literal["ours", "eager", "compiled"]


def main(
    models: tuple[str, ...] = MODELS,
    parts: tuple[str, ...] = ("step", "decode"),
    sides: tuple[Side, ...] = ("ours", "eager", "compiled"),
    runs: int = 3,
    small: bool = False,
    json_file: Path | None = None,
) -> None:
    """Prints seconds, peak memory and the share of the device's measured matmul rate.

    Args:
      models: names of presets, at their native sizes.
      parts: "step" with guidance, one layer's "attention", the VAE's "decode" of a whole video, the "text" encoder.
      sides: ours, diffusers as it is, diffusers with torch.compile.
      runs: measured runs after the first; the median counts.
      small: few layers and small clips in float32, to try the script out; the figures then mean nothing.
      json_file: where to write the figures, too.
    """
    needed = {"ours": (), "eager": ("torch", "diffusers"), "compiled": ("torch", "diffusers")}
    missing = {package for side in sides for package in needed[side] if importlib.util.find_spec(package) is None}
    if missing:
        sides = tuple(side for side in sides if not missing & set(needed[side]))
        print(f"without {', '.join(sorted(missing))}, which diffusers' sides need")
    rows = list(measure([case(name, small=small) for name in models], parts, sides, runs))
    columns = list(dict.fromkeys(name for row in rows for name in row))
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        cells = (row.get(name, "") for name in columns)
        print("| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if json_file is not None:
        json_file.write_text(json.dumps(rows, indent=2) + "\n")


def measure(cases: list[Case], parts: tuple[str, ...], sides: tuple[Side, ...], runs: int) -> Iterator[dict[str, Any]]:
    """A row for each model and part, with the ratio of ours to each of theirs."""
    rate = None
    for one in cases:
        for part in parts:
            row: dict[str, Any] = {"model": one.name, "part": part}
            for side in sides:
                found = alone(serve, one, part, side, runs)
                rate = rate or found["rate"]
                row |= {f"{side} s": found["s"], f"{side} GiB": found["GiB"], f"{side} first s": found["first s"]}
                if rate and side == "ours":
                    row |= {"ours of matmul rate": 1e12 * found["TFLOP"] / found["s"] / rate}
            if part == "step":
                row |= {f"{side} s for {STEPS}": STEPS * row[f"{side} s"] for side in sides}
            row |= {f"ours/{side}": row["ours s"] / row[f"{side} s"] for side in sides if side != "ours" in sides}
            print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in row.items()), flush=True)
            yield row


def serve(one: Case, part: str, side: Side, runs: int) -> dict[str, Any]:
    """Times a side: `device_workloads.timed`, and for ours on an accelerator also the rate of a product."""
    if side == "ours":
        return ours(one, part, runs) | {"rate": matmul_rate("bfloat16") if jax.default_backend() != "cpu" else None}
    return theirs(one, part, runs, compiled=side == "compiled") | {"rate": None}


def theirs(one: Case, part: str, runs: int, *, compiled: bool = False) -> dict[str, Any]:
    """A part by diffusers, transformers or torch, with random weights; the figures are those of `ours`."""
    import torch

    torch.set_grad_enabled(False)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    call = THEIRS[part](one, device, dtype, torch.compile if compiled else lambda model: model)

    def run():
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    def gib() -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None

    return timed(run, runs) | {"GiB": gib()}


def their_step(one: Case, device: str, dtype: Any, compiled: Callable[[Any], Any]) -> Callable[[], Any]:
    import torch
    from diffusers import CogVideoXTransformer3DModel

    cfg, (_, frames, height, width, _) = one.spec.transformer, one.shape
    model = compiled(their_module(CogVideoXTransformer3DModel, one.spec, "transformer", device, dtype))
    x = torch.randn(2, frames, cfg.in_channels, height, width, device=device, dtype=dtype)
    text = torch.randn(2, cfg.text_length, cfg.text_dim, device=device, dtype=dtype)
    t, rope = torch.full((2,), 500, device=device), their_rope(one, device)
    return lambda: model(x, text, t, image_rotary_emb=rope, return_dict=False)


def their_attention(one: Case, device: str, dtype: Any, compiled: Callable[[Any], Any]) -> Callable[[], Any]:
    import torch

    cfg = one.spec.transformer
    q, k, v = (torch.randn(2, cfg.heads, one.tokens, cfg.head_dim, device=device, dtype=dtype) for _ in range(3))
    attend = compiled(torch.nn.functional.scaled_dot_product_attention)
    return lambda: attend(q, k, v)


def their_decode(one: Case, device: str, dtype: Any, compiled: Callable[[Any], Any]) -> Callable[[], Any]:
    import torch
    from diffusers import AutoencoderKLCogVideoX

    model = their_module(AutoencoderKLCogVideoX, one.spec, "vae", device, dtype)
    run = compiled(model.decode)  # of a model that is compiled its `forward` alone would be
    _, _, height, width, channels = one.shape
    z = torch.randn(1, channels, one.kept, height, width, device=device, dtype=dtype)
    return lambda: run(z, return_dict=False)


def their_text(one: Case, device: str, dtype: Any, compiled: Callable[[Any], Any]) -> Callable[[], Any]:
    import torch
    from transformers import T5EncoderModel

    model = compiled(their_module(T5EncoderModel, one.spec, "text_encoder", device, dtype))
    ids = torch.arange(2 * one.spec.transformer.text_length, device=device).reshape(2, -1)
    ids = ids % one.spec.text_encoder.vocab
    return lambda: model(ids)


THEIRS = {"step": their_step, "attention": their_attention, "decode": their_decode, "text": their_text}


def their_module(kind: Any, spec: ModelSpec, component: str, device: str, dtype: Any) -> Any:
    """One of their modules with random weights, from the configuration that our exporter writes."""
    import tempfile

    import torch

    from cogvx_jax.convert.config import write_configs

    with tempfile.TemporaryDirectory() as folder:
        write_configs(spec, Path(folder))
        at = Path(folder) / component
        config = kind.load_config(at) if hasattr(kind, "load_config") else kind.config_class.from_pretrained(at)
    with torch.device(device):
        make = kind.from_config if hasattr(kind, "load_config") else kind
        return make(config).to(dtype).eval()


def their_rope(one: Case, device: str):
    """The rotary tables as CogVideoXPipeline makes them; None for 2B."""
    from diffusers.models.embeddings import get_3d_rotary_pos_embed
    from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

    cfg, (_, frames, height, width, _) = one.spec.transformer, one.shape
    if cfg.position == "sincos":
        return None
    grid = (height // cfg.patch, width // cfg.patch)
    if cfg.patch_t is None:
        crops = get_resize_crop_region_for_grid(grid, cfg.sample_width // cfg.patch, cfg.sample_height // cfg.patch)
        return get_3d_rotary_pos_embed(cfg.head_dim, crops, grid, frames, device=device)
    most = (cfg.sample_height // cfg.patch, cfg.sample_width // cfg.patch)
    frames = (frames + cfg.patch_t - 1) // cfg.patch_t
    return get_3d_rotary_pos_embed(cfg.head_dim, None, grid, frames, grid_type="slice", max_size=most, device=device)
