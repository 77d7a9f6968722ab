"""Bounds of the numbers in configurations, checked before anything is made of them.

The upper ones leave room for models ten times the published ones and more; a file beyond them is damaged or malicious,
and would take hours, gigabytes or pages to find out about.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from cogvx_jax.configs import ModelSpec


@dataclasses.dataclass(frozen=True)
class Bound:
    """Numbers from `low` to `high`; a `positive` one is above 0, whatever `low` says."""

    low: float
    high: float
    positive: bool = False

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high and not (self.positive and value <= 0)

    def __str__(self) -> str:
        return f"above 0 to {self.high:g}" if self.positive else f"{self.low} to {self.high}"


WIDTH = Bound(1, 2**16)  # 10240 is the largest published
PIXELS = Bound(1, 2**16)
FRAMES = Bound(1, 2**16)
STEPS = Bound(1, 2**16)
SCALE = Bound(0, 1000, positive=True)
EPSILON = Bound(0, 1, positive=True)
FEW = Bound(1, 2**10)  # of heads and their width, layers of a stack

# Part of ModelSpec, or a configuration beside it -> field -> bound; of a list, of each entry.
BOUNDS: Mapping[str, Mapping[str, Bound]] = {
    "transformer": {
        "layers": FEW,
        "heads": FEW,
        "head_dim": FEW,
        "in_channels": Bound(1, 2**12),
        "out_channels": Bound(1, 2**12),
        "patch": Bound(1, 64),
        "patch_t": Bound(1, 64),
        "text_dim": WIDTH,
        "text_length": Bound(1, 2**13),
        "time_dim": WIDTH,
        "ofs_dim": WIDTH,
        "sample_height": Bound(1, 2**13),
        "sample_width": Bound(1, 2**13),
        "sample_frames": FRAMES,
        "temporal_compression": Bound(1, 64),
        "spatial_interpolation": SCALE,
        "temporal_interpolation": SCALE,
        "norm_eps": EPSILON,
    },
    "controlnet": {
        "layers": FEW,
        "heads": FEW,
        "head_dim": FEW,
        "latent_channels": Bound(1, 2**12),
        "downscale": Bound(2, 64),
        "patch": Bound(1, 64),
        "text_dim": WIDTH,
        "time_dim": WIDTH,
        "out_dim": WIDTH,
        "spatial_interpolation": SCALE,
        "temporal_interpolation": SCALE,
        "norm_eps": EPSILON,
    },
    "vae": {
        "channels": Bound(1, 2**13),
        "layers": Bound(1, 32),  # each level is traced on its own
        "latent_channels": Bound(1, 2**12),
        "groups": Bound(1, 2**13),
        "norm_eps": EPSILON,
        "temporal_compression": Bound(1, 64),
        "scaling_factor": SCALE,
        "sample_height": PIXELS,
        "sample_width": PIXELS,
    },
    "text_encoder": {
        "layers": FEW,
        "width": WIDTH,
        "heads": FEW,
        "head_dim": FEW,
        "mlp": Bound(1, 2**18),
        "vocab": Bound(1, 2**22),
        "buckets": Bound(4, 2**12),  # two directions, near and far
        "max_distance": Bound(2, 2**20),
        "norm_eps": EPSILON,
    },
    "schedule": {
        "steps": STEPS,
        "beta_start": EPSILON,
        "beta_end": EPSILON,
        "snr_shift": SCALE,
    },
    "defaults": {
        "height": PIXELS,
        "width": PIXELS,
        "num_frames": FRAMES,
        "fps": Bound(1, 1000),
        "num_inference_steps": STEPS,
        "guidance_scale": Bound(0, 1000),
        "image_noise": Bound(0, 2),
    },
}
MAX_LEVELS = 8  # of a VAE, which has four
MAX_TOKENS = 2**22  # of learned positions; 5B-I2V has 17,776


def wrong_size(part: str, field: str, value: Any) -> str | None:
    """Which values would be right, where this one is out of bounds."""
    bound = BOUNDS[part].get(field)
    if bound is None or value is None:
        return None
    if isinstance(value, tuple):
        if not 1 <= len(value) <= MAX_LEVELS:
            return f"1 to {MAX_LEVELS} numbers"
        return None if all(map(bound.holds, value)) else f"numbers of {bound}"
    return None if bound.holds(value) else str(bound)


def misfits(spec: ModelSpec) -> list[str]:
    """A line for each pair of sizes of one part that cannot be together."""
    return [*_transformer_misfits(spec), *_vae_misfits(spec), *_other_misfits(spec)]


def _transformer_misfits(spec: ModelSpec) -> list[str]:
    cfg, where, problems = spec.transformer, "transformer/config.json", []
    if cfg.width > WIDTH.high:
        problems.append(f"{where}: {cfg.heads} heads of {cfg.head_dim} are wider than {WIDTH.high}")
    features = cfg.width if cfg.position == "sincos" else cfg.head_dim
    if features % 16:  # a quarter for time, three eighths each for row and column, all in pairs
        name = "num_attention_heads x attention_head_dim" if cfg.position == "sincos" else "attention_head_dim"
        problems.append(f"{where}: {name} {features} is not supported, only multiples of 16 are")
    for name, value in (("ofs_embed_dim", cfg.ofs_dim), ("attention width", cfg.width)):
        if value is not None and value % 2:
            problems.append(f"{where}: {name} {value} is not supported, only even numbers are")
    if cfg.position == "rope+learned":
        rows, columns = cfg.sample_height / cfg.patch, cfg.sample_width / cfg.patch
        size = f"sample_height {cfg.sample_height} and sample_width {cfg.sample_width}"
        if not (rows.is_integer() and columns.is_integer()):
            problems.append(f"{where}: patch_size {cfg.patch} does not divide {size}")
        if rows * columns * cfg.sample_latent_frames > MAX_TOKENS:
            problems.append(f"{where}: {size} with {cfg.sample_frames} frames have more than {MAX_TOKENS} tokens")
    return problems


def _vae_misfits(spec: ModelSpec) -> list[str]:
    cfg, where, problems = spec.vae, "vae/config.json", []
    if any(channels % cfg.groups for channels in cfg.channels):
        problems.append(f"{where}: norm_num_groups {cfg.groups} does not divide block_out_channels {cfg.channels}")
    times = [2**level for level in range(len(cfg.channels))]
    if cfg.temporal_compression not in times:
        only = ", ".join(map(str, times))
        problems.append(
            f"{where}: temporal_compression_ratio {cfg.temporal_compression} is not supported "
            f"with {len(times)} levels, only {only} is"
        )
    return problems


def _other_misfits(spec: ModelSpec) -> list[str]:
    text, schedule, problems = spec.text_encoder, spec.schedule, []
    if text.heads * text.head_dim > WIDTH.high:
        problems.append(f"text_encoder/config.json: {text.heads} heads of {text.head_dim} are wider than {WIDTH.high}")
    if text.max_distance <= text.buckets // 4:
        problems.append(
            f"text_encoder/config.json: relative_attention_max_distance {text.max_distance} is not supported, "
            f"only numbers above {text.buckets // 4} are"
        )
    if not schedule.beta_start <= schedule.beta_end < 1:
        problems.append(
            f"scheduler/scheduler_config.json: beta_start {schedule.beta_start} and beta_end {schedule.beta_end} "
            "are not supported, only 0 < beta_start <= beta_end < 1 are"
        )
    return problems
