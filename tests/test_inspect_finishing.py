"""`cogvx inspect` tells networks that finish videos, of every kind of file, and prints a command that takes them."""

import shlex
import sys

import numpy as np
import pytest
from ncnn_files import write_ncnn
from safetensors.numpy import save_file
from test_finishing_networks import NETWORKS, PICTURE, published
from test_inspect import told

from cogvx_jax.cli.main import main
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.finishing import finish
from cogvx_jax.finishing.stream import open_job

HOLDS = {
    "compact": "Real-ESRGAN's compact network, 2 layers of width 6, which makes pictures 3 times as large",
    "dense": "Real-ESRGAN's network of 2 dense blocks of width 5, which makes pictures 4 times as large",
    "rife": "RIFE HDv3 of width 6, which finds frames in between",
}


@pytest.mark.parametrize(
    "kind, name",
    [
        ("compact", "an upscaler.safetensors"),
        ("dense", "x4.param"),
        ("rife", "flownet.pth"),
        *(pytest.param(*row, marks=pytest.mark.full) for row in (("compact", "x4.param"), ("dense", "x4.safetensors"))),
    ],
)
def test_what_it_is_and_the_command_takes_it(kind, name, tmp_path, monkeypatch, capsys, random_params):
    monkeypatch.chdir(tmp_path)
    module, inputs, rows = NETWORKS[kind]
    tensors = published(rows, random_params(module, *[PICTURE] * inputs))
    if name.endswith(".param"):
        write_ncnn(tmp_path / name, tensors)
    elif name.endswith(".pth"):
        write_torch(tmp_path / name, [Tensor.of(key, array) for key, array in tensors.items()], "module")
    else:
        save_file({f"params_ema.{key}": array for key, array in tensors.items()}, name)
    facts = told(capsys, name)
    assert facts["holds"] == HOLDS[kind] and facts["file"] == name
    [command] = facts["use"]
    asked = []
    monkeypatch.setattr(
        finish, "finish_file", lambda source, out, options, *rest, **how: asked.append(options) or stop()
    )
    words = [word.replace("VIDEO", "in.mp4") for word in shlex.split(command)]
    monkeypatch.setattr(sys, "argv", [*words, "--no-progress"])
    with pytest.raises(SystemExit):
        main()
    with open_job(np.zeros((2, 16, 16, 3), np.uint8), asked[0], 8) as job:  # it opens, and is asked for
        assert (job.upscaler is None) == (kind == "rife") and (job.interpolator is None) == (kind != "rife")


def stop():
    raise ValueError("enough")


def test_a_network_of_another_shape_is_told(tmp_path, monkeypatch, capsys, random_params):
    monkeypatch.chdir(tmp_path)
    tensors = published(NETWORKS["dense"][2], random_params(NETWORKS["dense"][0], PICTURE))
    save_file(tensors | {"conv_first.weight": np.zeros((5, 12, 3, 3), np.float32)}, "x2.safetensors")
    monkeypatch.setattr(sys, "argv", ["cogvx", "inspect", "x2.safetensors"])
    with pytest.raises(SystemExit):
        main()
    assert "takes 12 channels, as networks of x2 and x1 do; give one of x4" in capsys.readouterr().err
