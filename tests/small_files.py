"""Small models of random numbers in files of many makers. Nothing is compiled for them."""

import dataclasses

import numpy as np
from flax import traverse_util
from torch_file import call, name, save

from cogvx_jax.configs import T5Config, VAEConfig
from cogvx_jax.convert import expected_shapes, export
from cogvx_jax.convert.checkpoint import published_tensors
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sat import PREFIXES
from cogvx_jax.convert.sources import open_source, read_spec
from cogvx_jax.convert.tables import COMPONENTS
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.presets import PRESETS
from cogvx_jax.tiny.tokenizer import build_tokenizer

STATES = "mp_rank_00_model_states.pt"


def small_spec(kind):
    """A model of a preset's kind."""
    cfg = PRESETS[kind].transformer
    transformer = dataclasses.replace(
        cfg,
        layers=1,
        heads=3,
        head_dim=16,
        in_channels=cfg.in_channels // 4,
        out_channels=4,
        text_dim=16,
        text_length=24,
        time_dim=16,
        ofs_dim=cfg.ofs_dim and 16,
        sample_height=4,
        sample_width=6,
        sample_frames=9,
    )
    return dataclasses.replace(
        PRESETS[kind],
        name=f"small-{kind}",
        transformer=transformer,
        vae=VAEConfig(channels=(4, 4, 8, 8), layers=1, groups=2, latent_channels=4, scaling_factor=0.7),
        text_encoder=T5Config(layers=1, width=16, heads=2, head_dim=8, mlp=32, vocab=128),
        trained_dtype="bfloat16",
    )


def write_small(folder, spec, seed=0):
    """Writes a model in the published layout; returns the folder."""
    rng, params = np.random.default_rng(seed), {}
    for component in COMPONENTS:
        shapes = expected_shapes(spec, component)
        flat = {path: rng.standard_normal(shape, np.float32) for path, shape in shapes.items()}
        params[component] = traverse_util.unflatten_dict(flat, sep="/")
    export(folder, spec, params)
    build_tokenizer(folder / "tokenizer", 24)
    return folder


def read_all(tensors):
    return {key: np.array(tensors.read(key)) for key in tensors}


def fine_tuned_file(published, sat, folder):
    """Writes transformer, VAE and T5 in one file, as SAT does after training; returns its arrays."""
    tensors = {f"{PREFIXES['vae']}{k}": v for k, v in read_all(open_tensors(sat / "vae" / "3d-vae.pt")).items()}
    tensors |= read_all(open_tensors(sat / "transformer" / "1" / STATES))
    for tensor in published_tensors(open_source(published), read_spec(published), "text_encoder"):
        tensors[f"conditioner.embedders.0.transformer.{tensor.key}"] = tensor.make()
    tensors[f"{PREFIXES['transformer']}mixins.pos_embed.freqs_sin"] = np.zeros(3, np.float32)
    (folder / "500").mkdir(parents=True)
    (folder / "latest").write_text("500")
    write_torch(folder / "500" / STATES, [Tensor.of(key, array) for key, array in tensors.items()], "module")
    return tensors


def with_lora(arrays, rank=4, seed=0):
    """Arrays of SAT's with a LoRA beside every weight of attention, as SAT trains one."""
    rng, out = np.random.default_rng(seed), {}
    for key, array in arrays.items():
        layer, _, kind = key.rpartition(".")
        if not layer.endswith(("attention.query_key_value", "attention.dense")):
            out[key] = array
            continue
        out[f"{layer}.original.{kind}"] = array
        if kind == "weight":
            for place in range(array.shape[0] // array.shape[1]):
                out[f"{layer}.matrix_A.{place}"] = rng.standard_normal((rank, array.shape[1]), np.float32)
                out[f"{layer}.matrix_B.{place}"] = rng.standard_normal((array.shape[1], rank), np.float32)
    return out


def deepspeed(folder, arrays, ranks, groups, *, dtype=np.float16, stage=2, prefix="", count=None):
    """What DeepSpeed writes of these arrays: 16 bit for all, and each rank's part of the masters of `groups`."""
    states = {"module": {k: a.astype(dtype) for k, a in arrays.items()}, "dp_world_size": ranks, "ds_version": "0.15"}
    states["param_shapes"] = [{key: tuple(arrays[key].shape) for key in group} for group in groups]
    save(folder / STATES, states)
    stages = call(name("deepspeed.runtime.zero.config", "ZeroStageEnum"), stage)
    for rank in range(ranks):
        parts = []
        for group in groups:
            flat = np.concatenate([arrays[key].reshape(-1) for key in group])
            flat = np.pad(flat, (0, -len(flat) % (2 * ranks)))  # to a multiple of twice the ranks
            parts.append(np.ascontiguousarray(np.split(flat, ranks)[rank]))
        state = {"zero_stage": stages, "partition_count": [count or ranks] * len(groups), "loss_scaler": None}
        state["single_partition_of_fp32_groups" if stage < 3 else "fp32_flat_groups"] = parts
        shard = f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        save(folder / shard, {"optimizer_state_dict": state, "ds_config": {}})


def weights(shapes, seed):
    """The numbers of the recorded checkpoints, drawn from the names; see golden/sat.md, fun.md and tora.md."""
    rng, out = np.random.default_rng(seed), {}
    for key in sorted(shapes):
        z = rng.standard_normal(shapes[key], dtype=np.float32)
        if z.ndim > 1:
            out[key] = z / np.float32(np.sqrt(np.prod(z.shape[1:])))
        elif key.endswith("running_var"):
            out[key] = 1 + np.float32(0.1) * np.abs(z)
        else:
            out[key] = np.float32(key.endswith("weight")) + np.float32(0.1) * z
    return out
