"""Networks that finish videos, of few channels, and files of them; `tests/parity/test_finishing.py` has torch's."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch_file
from flax import traverse_util
from ncnn_files import kinds, write_ncnn
from safetensors.numpy import save_file

from cogvx_jax.convert import ConversionError
from cogvx_jax.convert.finishing import DENSE_TABLE, FLOW_TABLE, compact_table, read_rife, read_upscaler
from cogvx_jax.convert.tables import resolve
from cogvx_jax.models.rife import RIFE, warp
from cogvx_jax.models.upscalers import CompactUpscaler, DenseUpscaler

PICTURE = jnp.zeros((1, 32, 32, 3))
NETWORKS = {
    "compact": (CompactUpscaler(6, 2, 3), 1, compact_table(2)),
    "dense": (DenseUpscaler(5, 2, 2), 1, DENSE_TABLE),
    "rife": (RIFE(6), 2, FLOW_TABLE),
}


def published(rows, params):
    """Parameters under their published names, in the order of a file of the authors."""
    flat = traverse_util.flatten_dict(params, sep="/")
    found = {}
    for parameter in resolve(rows, {path: leaf.shape for path, leaf in flat.items()}):
        leaf = np.asarray(flat[parameter.path])
        for key, one in zip(parameter.keys, leaf if parameter.stacked else [leaf], strict=True):
            found[key] = np.ascontiguousarray(parameter.change.write(one))
    order = ["conv_first", "body", "conv_body", "conv_up1", "conv_up2", "conv_hr", "conv_last"]

    def place(name):
        first, *rest = name.split(".")
        return order.index(first) if first in order else 0, [int(x) if x.isdigit() else x for x in rest[:-1]]

    return {key: found[key] for key in sorted(sorted(found, reverse=True), key=place)}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request, random_params):
    module, inputs, rows = NETWORKS[request.param]
    params = random_params(module, *[PICTURE] * inputs)
    return request.param, module, params, published(rows, params)


def same(found, params, half=()):
    ours, theirs = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, found))
    assert ours.keys() == theirs.keys()
    for path, leaf in ours.items():
        rounded = leaf.astype(np.float16) if "kernel" in path and half else leaf
        np.testing.assert_array_equal(theirs[path], np.float32(rounded), err_msg=path)


@pytest.mark.parametrize("form", ["safetensors", "torch", "ncnn", "ncnn of float16"])
def test_files_of_every_kind(network, form, tmp_path):
    kind, module, params, tensors = network
    if kind == "rife" and form.startswith("ncnn"):
        return  # the authors have no such files of version 3
    read = read_rife if kind == "rife" else read_upscaler
    if form == "safetensors":
        save_file(tensors, path := tmp_path / "x.safetensors")
    elif form == "torch":
        before = "module." if kind == "rife" else ""
        held = {f"{before}{key}": array for key, array in tensors.items()}
        path = torch_file.save(tmp_path / "x.pth", held if before else {"params_ema": held})
    else:
        path = write_ncnn(tmp_path / "x.param", tensors, half=form.endswith("16"))
    found, leaves = read(path)
    assert found == module
    same(leaves, params, half=form.endswith("16"))


def test_the_teacher_of_rife_is_left_out(tmp_path, random_params):
    module, inputs, rows = NETWORKS["rife"]
    params = random_params(module, *[PICTURE] * inputs)
    tensors = published(rows, params) | {"block_tea.conv0.0.0.weight": np.zeros((3, 14, 3, 3), np.float32)}
    save_file(tensors, tmp_path / "x.safetensors")
    same(read_rife(tmp_path / "x.safetensors")[1], params)


def test_files_that_do_not_fit_are_refused(network, tmp_path):
    kind, _, _, tensors = network
    read = read_rife if kind == "rife" else read_upscaler
    last = list(tensors)[-1]

    def said(changed):
        save_file(changed, tmp_path / "x.safetensors")
        with pytest.raises(ValueError, match="x.safetensors") as raised:
            read(tmp_path / "x.safetensors")
        return str(raised.value)

    assert f"missing: {last}" in said({key: tensors[key] for key in tensors if key != last})
    assert "spare: conv_other.weight" in said(tensors | {"conv_other.weight": np.zeros(1, np.float32)})
    assert f"misshapen: {last}" in said(tensors | {last: np.zeros((1, 2, 3), np.float32)})
    assert "its tensors are called transformer.a" in said({"transformer.a": np.zeros(1, np.float32)})
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none.pth")


def test_upscalers_of_other_scales_are_refused(tmp_path, random_params):
    tensors = published(DENSE_TABLE, random_params(NETWORKS["dense"][0], PICTURE))
    save_file(tensors | {"conv_first.weight": np.zeros((5, 12, 3, 3), np.float32)}, tmp_path / "x2.safetensors")
    with pytest.raises(ValueError, match="takes 12 channels, as networks of x2 and x1 do; give one of x4"):
        read_upscaler(tmp_path / "x2.safetensors")
    tensors = published(compact_table(2), random_params(NETWORKS["compact"][0], PICTURE))
    save_file({key: tensors[key] for key in tensors if not key.startswith("body.6")}, tmp_path / "x.safetensors")
    with pytest.raises(ConversionError, match="misshapen: body.5.weight"):
        read_upscaler(tmp_path / "x.safetensors")


def test_what_is_wrong_with_files_of_ncnn(tmp_path, random_params):
    tensors = published(compact_table(2), random_params(NETWORKS["compact"][0], PICTURE))
    path = write_ncnn(tmp_path / "x.param", tensors)
    weights, text = path.with_suffix(".bin"), path.read_text()
    whole = weights.read_bytes()

    def said():
        with pytest.raises(ValueError, match="x.param") as raised:
            read_upscaler(path)
        return str(raised.value)

    weights.write_bytes(whole[:-4])
    assert "x.bin is too short: the numbers of layer_8 end at byte" in said()
    weights.write_bytes(whole + bytes(8))
    assert "it belongs to another network" in said()
    weights.write_bytes(b"\1" * 4 + whole[4:])
    assert "x.bin has the mark 0x1010101 at byte 0, where the weights of layer_2 begin" in said()
    weights.write_bytes(whole)
    path.write_text(text.replace("PixelShuffle", "Deconvolution"))
    assert "is of the kind 'Deconvolution', which is not read" in said()
    path.write_text(text.replace("BinaryOp", "Eltwise"))
    assert "holds another network than Real-ESRGAN's: Input Convolution" in said()
    path.write_text(text.replace("6=162", "6=163"))
    assert "has 163 weights, which are none of 6x3x3" in said()
    path.write_text(text.replace("6=162", "6=-5"))
    assert "field 6 of its layer layer_2 is '-5', not a number" in said()
    path.write_text(text.replace("Convolution", "Convolution x", 1))
    assert "is no layer" in said()
    path.write_text("7767517\n")
    assert "it is no list of layers of ncnn" in said()
    path.write_text("7767517\n3 3\n")
    assert "and lists 0" in said()
    path.write_text(text)
    weights.unlink()
    with pytest.raises(FileNotFoundError):
        read_upscaler(path)


def test_what_the_authors_put_after_the_network_is_left_out(tmp_path, random_params):
    module, _, rows = NETWORKS["compact"]
    params = random_params(module, PICTURE)
    tensors = published(rows, params)
    path = write_ncnn(tmp_path / "x2.param", tensors, layers=[*kinds(tensors), "Interp"])
    found, leaves = read_upscaler(path)
    assert found == module
    same(leaves, params)


def test_multiplications_and_halo():
    assert CompactUpscaler().multiplications == 619_200 and CompactUpscaler().halo == 18
    assert DenseUpscaler().multiplications == 17_926_848


def test_what_is_looked_up_lies_between_pixels_and_on_the_border():
    picture = jnp.arange(12.0).reshape(1, 3, 4, 1)
    flow = np.zeros((1, 3, 4, 2), np.float32)
    flow[0, 1, 1] = 0.5, 0.25  # of x and y
    flow[0, 0, 0] = -9, -9
    flow[0, 2, 2] = 9, 0.5
    found = warp(picture, jnp.asarray(flow))[0, ..., 0]
    expected = np.arange(12.0).reshape(3, 4)
    expected[1, 1], expected[2, 2] = 5 + 0.5 + 0.25 * 4, 11
    np.testing.assert_allclose(found, expected, atol=1e-6)
