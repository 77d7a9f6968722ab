"""How other makers store weights, by the book, for tests of what reads them."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from gguf_file import plain
from small_files import small_spec

from cogvx_jax.configs import VAEConfig
from cogvx_jax.convert.packed import NF4
from cogvx_jax.convert.safetensors import Tensor, write_file
from cogvx_jax.convert.taehv import TABLE
from cogvx_jax.models.abstract import abstract_params

E4M3, E5M2, BF16 = (np.dtype(kind) for kind in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, ml_dtypes.bfloat16))


def save(path, arrays, metadata=None):
    write_file(path, [Tensor.of(key, np.ascontiguousarray(array)) for key, array in arrays.items()], metadata or {})
    return path


# How each maker stores a weight (out, in): endings of names and arrays, and the numbers they stand for.


def scaled(numbers, scale):
    return numbers.astype(np.float32) * scale.astype(np.float32).reshape(-1, 1)


def per_output(w, largest, dtype):
    scale = np.abs(w).max(axis=1, keepdims=True) / largest
    numbers = w / scale
    return (np.round(numbers) if dtype == np.int8 else numbers).astype(dtype), np.float32(scale)


def fp8_scaled(w, end=".scale_weight"):
    scale = np.float32(np.abs(w).max() / 448)
    numbers = (w / scale).astype(E4M3)
    return {".weight": numbers, end: scale}, scaled(numbers, scale)


def quanto(w, dtype, largest):
    numbers, scale = per_output(w, largest, dtype)
    scale, one = scale.astype(BF16), np.ones((), BF16)
    parts = {".weight._data": numbers, ".weight._scale": scale, ".input_scale": one, ".output_scale": one}
    return parts, scaled(numbers, scale)


def torchao(w, dtype, largest, zero=None):
    numbers, scale = per_output(w, largest, dtype)
    parts = {"._weight_qdata": numbers, "._weight_scale": scale}
    if zero is not None:
        parts["._weight_zero_point"] = np.full((len(w), 1), zero, np.int8)
    return parts, scaled(numbers.astype(np.float32) - (zero or 0), scale)


def bitsandbytes(w):
    numbers, _ = per_output(w, 127, np.int8)
    largest = np.abs(w).max(axis=1)
    return {".weight": numbers, ".SCB": largest, ".weight_format": np.zeros((), np.uint8)}, (
        numbers.astype(np.float32) * (largest / np.float32(127))[:, None]
    )


MAP = np.float32(
    "-1 -.696193 -.525073 -.394917 -.284441 -.184773 -.091050 0 .079580 .160930 .246112 .337915 .440710 .562617 "
    ".722957 1".split()
)


def nf4(w, nested=False, block=64):
    """By the book, number by number."""
    flat = w.reshape(-1)
    count = -(-len(flat) // block)
    absmax = np.float32([np.abs(flat[i * block : (i + 1) * block]).max() for i in range(count)])
    state = {"quant_type": "nf4", "blocksize": block, "dtype": "bfloat16", "shape": list(w.shape)}
    parts = {}
    if nested:
        levels, offset = np.linspace(-1, 1, 256, dtype=np.float32), float(absmax.mean())
        outer = np.float32([np.abs(absmax[i : i + 256] - offset).max() for i in range(0, count, 256)])
        small = np.uint8([np.abs(levels - (absmax[i] - offset) / outer[i // 256]).argmin() for i in range(count)])
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        parts = {".weight.nested_absmax": outer, ".weight.nested_quant_map": levels}
        absmax = np.float32([levels[small[i]] * outer[i // 256] + np.float32(offset) for i in range(count)])
    codes = [int(np.abs(MAP - flat[i] / absmax[i // block]).argmin()) for i in range(len(flat))]
    value = np.float32([MAP[code] * absmax[i // block] for i, code in enumerate(codes)]).reshape(w.shape)
    codes += [0] * (len(codes) % 2)
    parts |= {
        ".weight": np.uint8([[16 * a + b] for a, b in zip(codes[::2], codes[1::2], strict=True)]),
        ".weight.absmax": small if nested else absmax,
        ".weight.quant_map": MAP,
        NF4: np.frombuffer(json.dumps(state).encode(), np.uint8),
    }
    return parts, value


def q8_0(w):
    rows, value = [], np.empty_like(w)
    for y, row in enumerate(w):
        data = b""
        for x in range(0, len(row), 32):
            d = np.float16(np.abs(row[x : x + 32]).max() / 127)
            q = np.round(row[x : x + 32] / np.float32(d)).clip(-127, 127).astype(np.int8)
            data += d.tobytes() + q.tobytes()
            value[y, x : x + 32] = q * np.float32(d)
        rows.append(np.frombuffer(data, np.uint8))
    return np.stack(rows), value


def q4_0(w):
    rows, value = [], np.empty_like(w)
    for y, row in enumerate(w):
        data = b""
        for x in range(0, len(row), 32):
            d = np.float16(np.abs(row[x : x + 32]).max() / 8)
            q = np.round(row[x : x + 32] / np.float32(d) + 8).clip(0, 15).astype(np.uint8)
            data += d.tobytes() + bytes(q[i] | q[i + 16] << 4 for i in range(16))
            value[y, x : x + 32] = (q.astype(np.float32) - 8) * np.float32(d)
        rows.append(np.frombuffer(data, np.uint8))
    return np.stack(rows), value


def blocks(w, name, make):
    packed, value = make(w)
    return {f".{name}_qweight": packed}, value


T5_NAMES = {
    "shared": "token_embd",
    "encoder.final_layer_norm": "enc.output_norm",
    "encoder.block.{i}.layer.0.layer_norm": "enc.blk.{i}.attn_norm",
    "encoder.block.{i}.layer.0.SelfAttention.q": "enc.blk.{i}.attn_q",
    "encoder.block.{i}.layer.0.SelfAttention.k": "enc.blk.{i}.attn_k",
    "encoder.block.{i}.layer.0.SelfAttention.v": "enc.blk.{i}.attn_v",
    "encoder.block.{i}.layer.0.SelfAttention.o": "enc.blk.{i}.attn_o",
    "encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias": "enc.blk.{i}.attn_rel_b",
    "encoder.block.{i}.layer.1.layer_norm": "enc.blk.{i}.ffn_norm",
    "encoder.block.{i}.layer.1.DenseReluDense.wi_0": "enc.blk.{i}.ffn_gate",
    "encoder.block.{i}.layer.1.DenseReluDense.wi_1": "enc.blk.{i}.ffn_up",
    "encoder.block.{i}.layer.1.DenseReluDense.wo": "enc.blk.{i}.ffn_down",
}


def t5_of_llama_cpp(arrays, make=None):
    """Tensors for `gguf_bytes`, and published arrays that they stand for."""
    names = {k.format(i=i): v.format(i=i) for i in range(9) for k, v in T5_NAMES.items()}
    tensors, value = {}, {}
    for key, array in arrays.items():
        theirs, array = names[key.removesuffix(".weight")] + ".weight", np.float32(array)
        if make and array.ndim == 2 and array.shape[1] % 32 == 0:
            packed, value[key] = make[1](array)
            tensors[theirs] = array.shape, make[0], packed.tobytes()
        else:
            kind = np.float32 if array.ndim == 1 else np.float16 if "k.weight" in theirs else BF16
            value[key] = array.astype(kind)
            tensors[theirs] = plain(value[key])
    return tensors, value


def write_taehv(path):
    """taehv's tiny autoencoder, its numbers drawn from names: 128 tensors, 11,315,539 numbers."""
    rows, shapes = {row.ours: row for row in TABLE}, {}
    for ours, parameter in abstract_params(VAEConfig(taehv=True)).items():
        row = rows[ours]
        shapes[row.theirs] = row.change.write(np.broadcast_to(np.int8(0), parameter.shape)).shape
    assert len(shapes) == 128 and sum(int(np.prod(shape)) for shape in shapes.values()) == 11_315_539
    rng, arrays = np.random.default_rng(600), {}
    for key in sorted(shapes):
        z = rng.standard_normal(shapes[key], dtype=np.float32)
        arrays[key] = z / np.float32(np.sqrt(np.prod(z.shape[1:]))) if z.ndim > 1 else np.float32(0.1) * z
        if z.ndim == 1 and key.endswith("weight"):
            arrays[key] += 1
    return save(path, arrays)


def spec_of_16():
    """A small model with as many channels of latents as the published ones."""
    spec = small_spec("5b")
    return dataclasses.replace(
        spec,
        transformer=dataclasses.replace(spec.transformer, in_channels=16, out_channels=16),
        vae=dataclasses.replace(spec.vae, latent_channels=16),
    )
