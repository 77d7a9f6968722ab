"""Torch files: what torch writes is read here without it, and what is written here torch opens, safely and mapped."""

import collections

import ml_dtypes
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from cogvx_jax.convert.containers import open_tensors  # noqa: E402
from cogvx_jax.convert.safetensors import Tensor  # noqa: E402
from cogvx_jax.convert.torch_writer import write_torch  # noqa: E402

DTYPES = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int64", "int8", "uint8", "bool"]


class Unknown:
    """Pickled by its name; torch's own safe reader refuses it."""

    def __init__(self):
        self.state = {"a": 1}


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_torch_writes_is_read(tmp_path, protocol):
    torch.manual_seed(0)
    whole = torch.randn(6, 4)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    weights = {f"of.{name}": torch.ones(3).to(getattr(torch, name)) for name in DTYPES}
    weights |= {
        "whole": whole,
        "transposed": whole.T,
        "part": whole[2:5, 1:3],
        "column": whole[:, 1],
        "none": whole[:0],
    }
    weights |= {"scalar": torch.tensor(3.0), "parameter": torch.nn.Parameter(whole)} | module.state_dict()
    value = {
        "module": collections.OrderedDict(weights),
        "optimizer": {"state": {0: {"step": torch.tensor(1)}}, "unknown": Unknown(), "groups": [{"lr": 0.1}, {1, 2}]},
        "param_shapes": [collections.OrderedDict(whole=whole.shape)],
        "random": np.random.default_rng(0).bit_generator.state,
        "numpy": np.arange(3),
        "device": torch.device("cpu"),
        "dtype": torch.bfloat16,
        "none": None,
    }
    torch.save(value, tmp_path / "x.pt", pickle_protocol=protocol)
    found = open_tensors(tmp_path / "x.pt")
    assert found.keys() == weights.keys()
    for name, tensor in weights.items():
        tensor = tensor.detach()
        assert found[name].shape == tuple(tensor.shape) and str(found[name].dtype) == str(tensor.dtype).split(".")[1]
        array = np.ascontiguousarray(found.read(name))
        if tensor.numel():
            wanted = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
            np.testing.assert_array_equal(array.reshape(-1).view(np.uint8), wanted)


def test_what_is_written_torch_opens(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "a.weight": rng.standard_normal((5, 7), np.float32),
        "half": rng.standard_normal((3, 2, 2), np.float32).astype(ml_dtypes.bfloat16),
        "scalar": np.float16(3).reshape(()),
        "none": np.zeros((0, 3), np.float32),
        "count": np.arange(4),
    }
    write_torch(tmp_path / "x.pt", [Tensor.of(key, array) for key, array in arrays.items()], "module")
    for mapped in (False, True):
        found = torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped)["module"]
        assert found.keys() == arrays.keys()
        for key, array in arrays.items():
            assert tuple(found[key].shape) == array.shape and str(found[key].dtype).split(".")[1] == str(array.dtype)
            assert found[key].is_contiguous()
            if array.size:
                wanted = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                np.testing.assert_array_equal(found[key].reshape(-1).view(torch.uint8).numpy(), wanted)


def test_the_format_before_the_zip(tmp_path):
    half = torch.arange(12, dtype=torch.float16).reshape(3, 4).T  # of strides unlike those of C
    torch.save({"a": torch.ones(3), "b": half}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    tensors = open_tensors(tmp_path / "x.pt")
    np.testing.assert_array_equal(tensors.read("a"), np.ones(3, np.float32))
    np.testing.assert_array_equal(tensors.read("b"), half.numpy())
