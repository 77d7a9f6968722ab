"""Quantised weights of other makers: every packing, in single files and in folders, and GGUF files."""

import dataclasses
import json
import random
import resource
import shutil
import struct
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from gguf_file import gguf_bytes, plain, setting
from packings import (
    BF16,
    E4M3,
    E5M2,
    bitsandbytes,
    blocks,
    fp8_scaled,
    nf4,
    q4_0,
    q8_0,
    quanto,
    save,
    t5_of_llama_cpp,
    torchao,
)
from small_files import read_all, small_spec, write_small

import cogvx_jax as cx
from cogvx_jax.configs import T5Config
from cogvx_jax.convert import ConversionError, load_params
from cogvx_jax.convert.checkpoint import published_tensors
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.dialects import open_component, open_whole
from cogvx_jax.convert.packed import NF4, PACKINGS, unpacked
from cogvx_jax.convert.sources import open_source, read_spec
from cogvx_jax.convert.targets import write_model
from cogvx_jax.convert.tensors import Unreadable
from cogvx_jax.given import Given


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parent / "golden" / "gguf_blocks.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A model whose rows are of whole blocks of 32."""
    spec = small_spec("5b")
    spec = dataclasses.replace(
        spec,
        transformer=dataclasses.replace(spec.transformer, heads=2, text_dim=32),
        text_encoder=T5Config(layers=2, width=32, heads=2, head_dim=16, mlp=64, vocab=128),
    )
    return write_small(tmp_path_factory.mktemp("published") / "model", spec)


@pytest.fixture(scope="module")
def arrays(published):
    """component -> its published arrays."""
    spec, source = read_spec(published), open_source(published)
    return {
        part: {t.key: t.make() for t in published_tensors(source, spec, part)}
        for part in ("transformer", "text_encoder")
    }


WAYS = {
    "fp8 with scales": fp8_scaled,
    "fp8 with scales, new": lambda w: fp8_scaled(w, ".weight_scale"),
    "Q4_0": lambda w: blocks(w, "Q4_0", q4_0),
    "Q8_0": lambda w: blocks(w, "Q8_0", q8_0),
    "quanto int8": lambda w: quanto(w, np.int8, 127),
    "quanto float8": lambda w: quanto(w, E4M3, 448),
    "torchao int8": lambda w: torchao(w, np.int8, 127, 0),
    "torchao int8 with zero point": lambda w: torchao(w, np.int8, 127, 3),
    "torchao float8": lambda w: torchao(w, E4M3, 448),
    "bitsandbytes int8": bitsandbytes,
    "bitsandbytes nf4": nf4,
    "bitsandbytes nf4, nested": lambda w: nf4(w, nested=True),
}


def packed(arrays, way):
    """The arrays with the layers of blocks packed, and what they stand for."""
    out, value = {}, {}
    for key, array in arrays.items():
        if array.ndim == 2 and key.endswith(".weight") and array.shape[1] % 32 == 0 and "block" in key:
            parts, value[key] = WAYS[way](np.float32(array))
            layer = key.removesuffix(".weight")
            out |= {f"{layer}{end}": part for end, part in parts.items()}
        else:
            out[key] = value[key] = array
    return out, value


def assert_equal(found, wanted, rtol=0.0):
    assert found.keys() == wanted.keys()
    for key, array in wanted.items():
        np.testing.assert_allclose(np.float32(found[key]), np.float32(array), rtol=rtol, atol=0, err_msg=key)


@pytest.mark.parametrize("way", WAYS)
def test_every_packing_is_what_it_stands_for(arrays, published, tmp_path, way):
    """As one file, with the transformer's names after a prefix, and as a folder of diffusers."""
    theirs, value = packed(arrays["transformer"], way)
    assert len(theirs) > len(value) or "Q" in way
    prefixed = {f"model.diffusion_model.{key}": array for key, array in theirs.items()}
    file = save(tmp_path / "x.safetensors", prefixed | ({"scaled_fp8": np.zeros(2, E4M3)} if "fp8" in way else {}))
    tensors = open_component(file, "transformer")
    assert_equal(read_all(tensors), value, 1e-6)
    packed_key = "transformer_blocks.0.attn1.to_q.weight"
    assert tensors[packed_key].dtype == np.float32 and tensors[packed_key].shape == (32, 32)
    np.testing.assert_array_equal(tensors[packed_key].rows(8, 24).read(tensors.files), tensors.read(packed_key)[8:24])

    folder = tmp_path / "folder"
    shutil.copytree(published, folder)
    save(folder / "transformer" / "diffusion_pytorch_model.safetensors", theirs)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": way.split()[0]}
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    source = open_source(folder)
    params = load_params(source, source.spec(), "transformer", "bfloat16")
    kernel = params["blocks"]["attention"]["q"]["kernel"][0]
    np.testing.assert_array_equal(kernel, value[packed_key].T.astype(BF16))


def test_a_row_is_tested_for_every_packing(arrays, tmp_path):
    found = set()
    for way in WAYS:
        found |= packed(arrays["transformer"], way)[0].keys()
    for packing in PACKINGS:
        assert any(key.endswith(packing.mark) for key in found), packing


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_plain_float8_is_read_as_bfloat16(arrays, tmp_path, dtype):
    theirs = {k: a.astype(dtype) if a.ndim == 2 else a.astype(np.float16) for k, a in arrays["transformer"].items()}
    tensors = open_component(save(tmp_path / "x.safetensors", theirs), "transformer")
    assert_equal(read_all(tensors), theirs)
    assert {str(tensors[key].dtype) for key in tensors} == {"bfloat16", "float16"}


def test_blocks_are_those_of_the_gguf_package(golden, tmp_path):
    file = save(tmp_path / "x.safetensors", {f"a.{name}_qweight": golden[name] for name in ("Q4_0", "Q8_0")})
    tensors = open_tensors(file)
    for name in ("Q4_0", "Q8_0"):
        one = unpacked(tensors.of({f"a.{name}_qweight": tensors[f"a.{name}_qweight"]}))
        np.testing.assert_array_equal(one.read("a.weight"), golden[f"{name}_dequantized"])
        np.testing.assert_array_equal(one["a.weight"].rows(1, 3).read(one.files), golden[f"{name}_dequantized"][1:3])


def test_single_files_are_a_model(published, arrays, tmp_path, capsys):
    """A transformer, a T5 and a VAE of ComfyUI's; the model is converted, and opens again with the same numbers."""
    transformer, value = packed(arrays["transformer"], "Q8_0")
    file = save(tmp_path / "x_Q8_0.safetensors", transformer)
    text = save(tmp_path / "t5xxl_fp8.safetensors", {k: a.astype(E4M3) for k, a in arrays["text_encoder"].items()})
    vae = published / "vae" / "diffusion_pytorch_model.safetensors"
    given = dict(
        text_encoder=text, vae=vae, tokenizer=published / "tokenizer", position="rope", groups=2, sample_height=4
    )
    given |= dict(sample_width=6, sample_frames=9, text_length=24)
    model = cx.load(file, **given)
    kernel = np.asarray(model.params["transformer"]["blocks"]["mlp"]["up"]["kernel"][0])
    np.testing.assert_allclose(kernel.T, value["transformer_blocks.0.ff.net.0.proj.weight"], rtol=1e-6)
    t5 = arrays["text_encoder"]["shared.weight"].astype(E4M3).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(model.params["text_encoder"]["embedding"]), t5)
    write_model(open_source(file, Given.of(given)), tmp_path / "out", "diffusers", dtype="bfloat16")
    again = load_params(tmp_path / "out", read_spec(tmp_path / "out"), "transformer")
    np.testing.assert_array_equal(again["blocks"]["mlp"]["up"]["kernel"][0], kernel.astype(BF16).astype(np.float32))
    assert "x_Q8_0.safetensors: transformer:" in capsys.readouterr().err


def nf4_with(state):
    parts, _ = nf4(np.ones((4, 32), np.float32))
    said = json.loads(parts[NF4].tobytes()) | state
    return parts | {NF4: np.frombuffer(json.dumps(said).encode(), np.uint8)}


ONES = np.ones((4, 32), np.int8)
BAD = {
    "lacks its scale": ({"._weight_qdata": ONES}, r"stored as torchao, and a._weight_scale is missing"),
    "scale of another shape": (
        {".weight": ONES, ".SCB": np.ones(3, np.float32)},
        r"stored as bitsandbytes int8, but its numbers are \(4, 32\), its scale \(3,\)",
    ),
    "numbers of another type": (
        {".weight._data": ONES.astype(np.uint8), ".weight._scale": np.ones((4, 1), np.float32)},
        "its numbers are uint8, where quanto has int8 or",
    ),
    "half a block": ({".Q4_0_qweight": np.zeros((4, 20), np.uint8)}, r"rows of whole blocks of 18"),
    "a huge shape": (nf4_with({"shape": [2**31, 2**31]}), "its parts have"),
    "a shape that is none": (nf4_with({"shape": [4, -32]}), "its shape is"),
    "another code": (nf4_with({"quant_type": "fp4"}), "its quant_type is 'fp4', where nf4 is read"),
    "blocks of nothing": (nf4_with({"blocksize": 0}), "its blocksize is 0"),
    "an offset that is none": (nf4_with({"nested_offset": "x"}), "its nested_offset is 'x'"),
    "no JSON": (nf4_with({}) | {NF4: np.zeros(9, np.uint8)}, "JSON"),
    "packed and plain": (
        {".weight": np.ones((4, 32), np.float16), ".Q8_0_qweight": np.zeros((4, 34), np.uint8)},
        r"it is stored twice, as a\.weight and as a\.Q8_0_qweight",
    ),
    "packed in two ways": (
        {".Q4_0_qweight": np.zeros((4, 18), np.uint8), ".Q8_0_qweight": np.zeros((4, 34), np.uint8)},
        r"it is stored twice, as a\.Q4_0_qweight and as a\.Q8_0_qweight",
    ),
    "with two scales": (
        fp8_scaled(np.ones((4, 32), np.float32))[0] | {".weight_scale": np.ones((), np.float32)},
        r"it is stored twice, as a\.scale_weight and as a\.weight_scale",
    ),
    "no parts": (nf4_with({"nested_blocksize": 256}), "it has 0 of two tensors for quantised scales"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(tmp_path, case):
    parts, words = BAD[case]
    tensors = open_whole(save(tmp_path / "x.safetensors", {f"a{end}": part for end, part in parts.items()}))
    assert isinstance(tensors["a.weight"], Unreadable)
    with pytest.raises(ValueError, match=words) as raised:
        tensors.read("a.weight")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


@pytest.mark.parametrize(
    "component, mark, first, second",
    [
        ("vae", "x.encoder.down_blocks.0.resnets.0.conv1.conv.weight", "x.decoder.a", "decoder.a"),
        ("text_encoder", "enc.blk.0.attn_q.weight", "token_embd.weight", "shared.weight"),
        (
            "transformer",
            "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight",
            "model.diffusion_model.time_embed.0.bias",
            "time_embed.0.bias",
        ),
        (
            "transformer",
            "transformer.layers.0.attention.query_key_value.weight",
            "time_embed.0.bias",
            "time_embedding.linear_1.bias",
        ),
    ],
)
def test_two_tensors_of_one_name_are_both_named(tmp_path, component, mark, first, second):
    arrays = {mark: np.ones((3, 4), np.float32), first: np.ones(4, np.float32), second: np.zeros(4, np.float32)}
    found = open_component(save(tmp_path / "x.safetensors", arrays), component)
    said = [entry.problem for entry in found.values() if isinstance(entry, Unreadable)]
    either = [f"it is stored twice, as {a} and as {b}" for a, b in ((first, second), (second, first))]
    assert len(said) == 1 and said[0] in either


def test_a_model_with_such_a_weight_is_refused_before_it_is_read(arrays, published, tmp_path):
    theirs, _ = packed(arrays["transformer"], "torchao int8")
    file = save(
        tmp_path / "x.safetensors",
        theirs,
        {"transformer_blocks.0.attn1.to_q.weight": json.dumps({"_type": "Int4Tensor"})},
    )
    with pytest.raises(ConversionError) as raised:
        cx.load(file, position="rope", components=("transformer",))
    assert list(raised.value.problems) == [
        "unreadable: transformer_blocks.0.attn1.to_q.weight: it is stored as torchao, but it is of the type "
        "'Int4Tensor', not Int8Tensor or Float8Tensor"
    ]


# GGUF files.


@pytest.mark.parametrize("make", [None, ("Q4_0", q4_0), ("Q8_0", q8_0)], ids=["plain", "Q4_0", "Q8_0"])
def test_a_t5_of_llama_cpp(published, arrays, tmp_path, make):
    tensors, value = t5_of_llama_cpp(arrays["text_encoder"], make)
    (tmp_path / "t5.gguf").write_bytes(gguf_bytes(tensors | {"output.weight": plain(np.ones((2, 4), np.float32))}))
    assert_equal(read_all(open_component(tmp_path / "t5.gguf", "text_encoder")), value)
    assert open_tensors(tmp_path / "t5.gguf").metadata["general.architecture"] == "t5encoder"
    model = cx.load(published, text_encoder=tmp_path / "t5.gguf", components=("text_encoder",))
    assert model.spec.text_encoder.layers == 2
    found = np.asarray(model.params["text_encoder"]["blocks"]["down"]["kernel"][1])
    np.testing.assert_array_equal(found.T, np.float32(value["encoder.block.1.layer.1.DenseReluDense.wo.weight"]))


def test_rows_of_blocks_without_another_axis(tmp_path):
    packed, wanted = q8_0(np.linspace(-1, 1, 64, dtype=np.float32)[None])
    (tmp_path / "x.gguf").write_bytes(gguf_bytes({"a": ((64,), 8, packed.tobytes())}))
    found = open_tensors(tmp_path / "x.gguf")
    np.testing.assert_array_equal(found.read("a"), wanted[0])
    np.testing.assert_array_equal(found["a"].rows(3, 9).read(found.files), wanted[0, 3:9])


@pytest.mark.parametrize("sizes", [(0, 2**40, 2**40, 1), (2**40, 0, 1, 2**20)])
def test_sizes_beside_a_zero_have_a_bound(tmp_path, sizes):
    """No array has them, though they hold no numbers."""
    (tmp_path / "x.gguf").write_bytes(gguf_bytes({"a": (sizes, 0, b"")}))
    said = {"a": {"dtype": "F32", "shape": sizes, "data_offsets": [0, 0]}}
    head = json.dumps(said).encode()
    (tmp_path / "x.safetensors").write_bytes(len(head).to_bytes(8, "little") + head)
    for name in ("x.gguf", "x.safetensors"):
        with pytest.raises(ValueError, match=f"{name} cannot be read: corrupt.* a has the shape"):
            open_tensors(tmp_path / name)


def test_a_number_of_tensors_is_no_other_format(tmp_path):
    """123 of them make the ninth byte that of a safetensors file."""
    tensors = {f"a{i}": plain(np.full(3, i, np.float32)) for i in range(123)}
    (tmp_path / "x").write_bytes(gguf_bytes(tensors))
    found = open_tensors(tmp_path / "x")
    assert len(found) == 123 and found.read("a7").tolist() == [7, 7, 7]


def test_types_of_the_package(golden, tmp_path, monkeypatch):
    """Where it is missing, it is named; what it does not know either is said."""
    row = golden["Q5_0"]
    tensors = {"a": ((4, 64), "Q5_0", row.tobytes()), "b": ((4, 64), 77, b""), "c": plain(np.ones(3, np.float32))}
    (tmp_path / "x.gguf").write_bytes(gguf_bytes(tensors))
    monkeypatch.setitem(sys.modules, "gguf", None)
    from cogvx_jax.convert import gguf_files

    gguf_files._other.cache_clear()
    found = open_tensors(tmp_path / "x.gguf")
    assert found.read("c").tolist() == [1, 1, 1] and found["a"].shape == (4, 64)
    with pytest.raises(
        ValueError, match=r"ggml's type 6, which the package gguf may read: pip install 'cogvx_jax\[gguf\]'"
    ):
        found.read("a")
    monkeypatch.undo()
    gguf_files._other.cache_clear()
    pytest.importorskip("gguf")
    found = open_tensors(tmp_path / "x.gguf")
    np.testing.assert_array_equal(found.read("a"), golden["Q5_0_dequantized"])
    with pytest.raises(ValueError, match="of ggml's type 77, which is not read"):
        found.read("b")


HUGE = struct.pack("<Q", 10**12)


@pytest.mark.parametrize(
    "data, words",
    [
        (b"GGUF" + struct.pack("<I", 3) + HUGE + HUGE, "truncated or corrupt: of 2000000000000 bytes at 24"),
        (b"GGUF" + struct.pack("<I", 9) + bytes(16), "its version of GGUF is 9, where 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "its numbers are big-endian, which are not read"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + HUGE, "truncated or corrupt"),
        (gguf_bytes({}, [setting("x", 9, struct.pack("<IQ", 6, 10**12))]), "truncated or corrupt: of 4000000000000"),
        (gguf_bytes({}, [setting("x", 9, struct.pack("<IQ", 8, 10**12))]), "truncated or corrupt: of 8000000000000"),
        (gguf_bytes({}, [setting("x", 9, struct.pack("<IQ", 9, 1))]), "a setting of the type 9"),
        (gguf_bytes({}, [setting("x", 99, b"")]), "a setting of the type 99"),
        (gguf_bytes({}, [setting("general.alignment", 4, bytes(4))]), "its general.alignment is 0"),
        (gguf_bytes({"a": ((10**12,), "float32", b"")}), r"a \(1000000000000,\) float32 at byte \d+ lies beyond"),
        (gguf_bytes({"a": ((10**12, 10**12), "float32", b"")}), "a has the shape"),
        (gguf_bytes({"a": ((10**12, 32), "Q4_0", b"")}), "lies beyond"),
        (gguf_bytes({"a": ((4, 33), "Q4_0", b"")}), "not in rows of whole blocks of 32"),
        (gguf_bytes({"a": ((2,) * 5, "float32", b"")}), "a has 5 axes"),
        (gguf_bytes({"": plain(np.ones(3, np.float32))}), "'' is no name of a tensor"),
    ],
)
def test_damaged_gguf_files_are_a_sentence(tmp_path, data, words):
    (tmp_path / "x.gguf").write_bytes(data)
    with pytest.raises(ValueError, match=f"x.gguf cannot be read: .*{words}") as raised:
        open_tensors(tmp_path / "x.gguf")
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 300 + len(str(tmp_path))


def mutate(data, header, rng):
    """Damage at random, mostly in the header; at times a number becomes 10^12."""
    data, kind = bytearray(data), rng.randrange(5)
    at = rng.randrange(header if rng.randrange(4) else len(data))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(header)] = rng.randrange(256)
    elif kind == 2:
        data[at : at + 8] = HUGE
    elif kind == 3:
        digits = [i for i in range(header) if chr(data[i]).isdigit()] or [at]
        data[rng.choice(digits)] = ord("9")
    else:
        data[at : at + 8] = rng.randbytes(8)
    return bytes(data)


def whole_files(arrays, tmp_path):
    small = {key: array for key, array in arrays["text_encoder"].items() if "block.1" not in key}
    tensors, _ = t5_of_llama_cpp(small, ("Q4_0", q4_0))
    gguf = gguf_bytes(tensors)
    theirs, _ = packed(
        {k: a for k, a in arrays["transformer"].items() if "norm_" in k or "attn1" in k}, "bitsandbytes nf4"
    )
    packed_file = save(tmp_path / "whole", theirs).read_bytes()
    header = 8 + int.from_bytes(packed_file[:8], "little")
    return {
        ".gguf": (gguf, len(gguf) - sum(len(t[2]) for t in tensors.values())),
        ".safetensors": (packed_file, header),
    }


@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_a_thousand_damaged_files_are_sentences(arrays, tmp_path, suffix):
    rng, refused = random.Random(0), 0
    whole, header = whole_files(arrays, tmp_path)[suffix]
    path, began = tmp_path / f"x{suffix}", time.process_time()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(1000):
        path.write_bytes(mutate(whole, header, rng))
        try:
            found = open_whole(path)
            for key in found:
                if not isinstance(found[key], Unreadable):
                    assert np.prod(found[key].shape, dtype=float) <= 8 * len(whole)
                    found.read(key)
        except ValueError as error:
            refused += 1
            assert not isinstance(error, ConversionError) and "\n" not in str(error), (number, str(error))
            assert str(path) in str(error) and len(str(error)) < 400 + len(str(path)), (number, str(error))
        except BaseException:
            pytest.fail(f"mutation {number}: {traceback.format_exc()[-2000:]}")
    assert refused > 300
    assert time.process_time() - began < 60
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000
