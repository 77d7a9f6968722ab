"""Every command and Python block of docs/tasks.md, with small random models of the same names."""

import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tyro
from flax import traverse_util
from PIL import Image
from small_files import small_spec, write_small

from cogvx_jax.cli.main import VERBS
from cogvx_jax.configs import ControlNetConfig, ToraConfig
from cogvx_jax.convert.controlnet import write_controlnet
from cogvx_jax.convert.tora import write_tora
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.models.abstract import abstract_params

PAGE = (Path(__file__).parents[1] / "docs" / "tasks.md").read_text()
COMMANDS = re.findall(r"`(cogvx (?:generate|edit|extend|loop) [^`]+ --out [^`]+)`", PAGE)
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with a small file for each name of the page."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, kind, changes in (
        ("CogVideoX-5b", "5b", {}),
        ("CogVideoX-5b-I2V", "5b-i2v", {}),
        ("CogVideoX-Fun-V1.1-5b-InP", "5b", dict(in_channels=9)),
        ("CogVideoX-Fun-V1.1-5b-Control", "5b", dict(in_channels=8, control=True)),
    ):
        spec = small_spec(kind)
        transformer = dataclasses.replace(spec.transformer, **changes)
        defaults = dataclasses.replace(spec.defaults, height=32, width=48, num_frames=9, num_inference_steps=2)
        write_small(folder / name, dataclasses.replace(spec, transformer=transformer, defaults=defaults))
    cfg = ControlNetConfig(layers=1, heads=3, head_dim=16, latent_channels=4, text_dim=16, time_dim=16)
    params = {path: np.full(p.shape, 0.01, np.float32) for path, p in abstract_params(cfg).items()}
    for name in ("canny", "hed"):
        folder_of = folder / f"cogvideox-5b-controlnet-{name}"
        write_controlnet(folder_of, cfg, traverse_util.unflatten_dict(params, sep="/"))
    tora = ToraConfig(layers=1, width=48, channels=8, latent_channels=4)
    params = {path: np.full(p.shape, 0.01, np.float32) for path, p in abstract_params(tora).items()}
    write_tora(folder / "Tora", tora, traverse_util.unflatten_dict(params, sep="/"))
    rng = np.random.default_rng(0)
    mask = np.zeros((9, 32, 48, 3), np.uint8)
    mask[:, :, :24] = 255
    clips = {"mask": mask, "pose": 255 - mask, "canny": mask, "hed": 255 - mask}
    for name, frames in ({"in": rng.integers(0, 256, mask.shape, np.uint8)} | clips).items():
        with VideoWriter(folder / f"{name}.mp4", 8) as writer:
            writer.write(frames)
    Image.fromarray(mask[0]).save(folder / "mask.png")
    np.save(folder / "flow.npy", rng.normal(size=(8, 16, 24, 2)))
    np.save(folder / "noises.npy", rng.normal(size=(9, 4, 6, 4)))
    for name in ("first", "middle", "last"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(folder / f"{name}.png")
    return folder


def run(command):
    words = [*shlex.split(command)[1:], "--no-progress"]
    if "--model" not in words or "tiny-inp" in words:  # a model of the package
        words += ["--steps", "4", "--size", "32x48", *([] if "--frames" in words else ["--frames", "9"])]
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)


@pytest.mark.full  # videos are compiled
def test_the_commands_run(files, monkeypatch):
    monkeypatch.chdir(files)
    assert len(COMMANDS) >= 10
    for command in COMMANDS:
        run(command)
        words = shlex.split(command)
        frames = int(words[words.index("--frames") + 1]) if "--frames" in words else 9
        assert read_video(files / words[words.index("--out") + 1])[0].shape == (frames, 32, 48, 3), command


@pytest.mark.full  # the tiny model at its own size
def test_the_python_runs():
    for code in PYTHON:
        exec(compile(code, "docs/tasks.md", "exec"), {})
