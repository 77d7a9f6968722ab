"""GGUF files: what the package `gguf` writes is read here, with the numbers that it gives itself."""

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

from cogvx_jax.convert.containers import open_tensors  # noqa: E402

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]  # that the package can write


@pytest.mark.parametrize("alignment", [32, 128])
def test_what_the_package_writes_is_read(tmp_path, alignment):
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5encoder")
    writer.add_custom_alignment(alignment)
    writer.add_block_count(24)
    writer.add_token_list(["a", "b"])
    writer.add_token_scores([0.0, -1.5])
    weight, wanted = np.random.default_rng(0).standard_normal((3, 64), np.float32), {}
    for name in KINDS:
        kind = gguf.GGMLQuantizationType[name]
        data = weight if name == "F32" else gguf.quants.quantize(weight, kind)
        writer.add_tensor(name, data, raw_dtype=None if name in ("F32", "F16") else kind)
        wanted[name] = weight if name == "F32" else gguf.quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_tensors(tmp_path / "x.gguf")
    assert found.keys() == wanted.keys() and found.metadata["t5encoder.block_count"] == "24"
    for name, array in wanted.items():
        assert found[name].shape == (3, 64), name
        np.testing.assert_array_equal(np.float32(found.read(name)), array, err_msg=name)
        np.testing.assert_array_equal(np.float32(found[name].rows(1, 3).read(found.files)), array[1:], err_msg=name)


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"])
def test_blocks_that_only_the_package_knows(tmp_path, name):
    """It reads these and cannot write them: any bytes are some numbers."""
    kind = gguf.GGMLQuantizationType[name]
    weights, size = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 60, (2, 3 * size), np.uint8)  # as float16, all are finite
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "t5encoder")
    writer.add_tensor("a", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = open_tensors(tmp_path / "x.gguf")
    assert found["a"].shape == (2, 3 * weights)
    np.testing.assert_array_equal(found.read("a"), gguf.quants.dequantize(data, kind))
