"""Quantised weights: what bitsandbytes, torchao and quanto store is read here, with the numbers that they give back."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
bnb = pytest.importorskip("bitsandbytes")
pytest.importorskip("optimum.quanto")
pytest.importorskip("torchao")

from bitsandbytes import functional  # noqa: E402
from optimum import quanto  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict  # noqa: E402
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig, quantize_  # noqa: E402

from cogvx_jax.convert.dialects import open_whole  # noqa: E402

OUT, IN = 96, 192


@pytest.fixture
def linear():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(IN, OUT)).to(torch.bfloat16)


def read(path, state, metadata=None):
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    found = open_whole(path)
    assert {key for key in found} == {"0.weight", "0.bias"}, list(found)
    assert found["0.weight"].shape == (OUT, IN) and found["0.weight"].dtype == np.float32
    return found.read("0.weight")


@pytest.mark.parametrize("nested", [False, True])
def test_nf4_of_bitsandbytes(linear, tmp_path, nested):
    layer = bnb.nn.Linear4bit(IN, OUT, quant_type="nf4", compress_statistics=nested, compute_dtype=torch.float32)
    layer.load_state_dict(linear[0].float().state_dict())
    model = torch.nn.Sequential(layer).to("cpu")
    if layer.weight.quant_state is None:  # this release quantises on its first pass
        model(torch.zeros(1, IN))
    wanted = functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    found = read(tmp_path / "x.safetensors", model.state_dict())
    np.testing.assert_allclose(found, wanted.float().numpy(), rtol=1e-6, atol=0)


def test_int8_of_bitsandbytes(linear, tmp_path):
    weight = linear[0].weight.detach().float()
    numbers, largest, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    state = {"0.weight": numbers, "0.SCB": largest, "0.weight_format": torch.tensor(0, dtype=torch.uint8)}
    state["0.bias"] = linear[0].bias.detach()
    wanted = functional.int8_vectorwise_dequant(numbers, largest)
    np.testing.assert_allclose(read(tmp_path / "x.safetensors", state), wanted.float().numpy(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig(version=2), Float8WeightOnlyConfig()], ids=["int8", "float8"])
def test_torchao(linear, tmp_path, config):
    linear = linear.float()
    quantize_(linear, config)
    wanted = linear[0].weight.dequantize().float().detach().numpy()
    state, metadata = flatten_tensor_state_dict(linear.state_dict())
    assert "_type" in json.loads(metadata["0.weight"])
    np.testing.assert_allclose(read(tmp_path / "x.safetensors", state, metadata), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", [quanto.qint8, quanto.qfloat8], ids=["int8", "float8"])
def test_quanto(linear, tmp_path, kind):
    linear = linear.float()
    quanto.quantize(linear, weights=kind)
    quanto.freeze(linear)
    wanted = linear[0].weight.dequantize().float().detach().numpy()
    np.testing.assert_allclose(read(tmp_path / "x.safetensors", linear.state_dict()), wanted, rtol=1e-6, atol=0)
