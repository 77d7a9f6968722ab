"""Every command and the Python block of docs/finishing.md, with small random networks."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from test_delivery import tone, write_wav
from test_finishing import clip
from test_finishing_networks import NETWORKS, PICTURE, published

from cogvx_jax.cli.main import main
from cogvx_jax.data.delivery import PRESETS
from cogvx_jax.data.sound import has_sound
from cogvx_jax.data.video import Video
from cogvx_jax.finishing import asked, stream
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS

PAGE = (Path(__file__).parents[1] / "docs" / "finishing.md").read_text()
COMMANDS = re.findall(r"^\|[^|]+\| `(cogvx [^`]+)` \|$", PAGE, flags=re.M)
COMMANDS += re.findall(r"^    (cogvx .*)$", PAGE, flags=re.M)
[PYTHON] = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def test_the_tables_are_those_of_the_code():
    rows = dict(re.findall(r"^\| (\w+) \| (\.[^|]+) \| yuv", PAGE, flags=re.M))
    assert rows == {name: ", ".join(preset.suffixes) for name, preset in PRESETS.items()}
    assert set(re.findall(r"^\| `([\w-]+)`", PAGE, flags=re.M)) == {*UPSCALERS, *INTERPOLATORS}


@pytest.mark.full
def test_the_page(tmp_path, monkeypatch, random_params):
    monkeypatch.chdir(tmp_path)
    for name, file in (("compact", "weights.safetensors"), ("rife", "rife.safetensors")):
        module, inputs, rows = NETWORKS[name]
        save_file(published(rows, random_params(module, *[PICTURE] * inputs)), file)
    files = {name: Path("weights.safetensors").absolute() for name in UPSCALERS}
    files |= {name: Path("rife.safetensors").absolute() for name in INTERPOLATORS}
    for module in (stream, asked):
        monkeypatch.setattr(module, "find_weights", lambda name, known: files.get(name, Path(name)))
    Video(clip(3)[None], 8).save("out.mp4")
    write_wav(tmp_path / "track.wav", np.stack([tone(0.2)] * 2))
    assert len(COMMANDS) == 12
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        words = ["108x192" if word == "2160x3840" else word for word in words]
        if "--refine" in words:
            words = ["tiny" if word == "5b" else word for word in [*words, "--steps", "4"]]
        words += ["--steps", "2"] if words[0] == "generate" else []
        monkeypatch.setattr(sys, "argv", ["cogvx", *words, "--no-progress"])
        main()
        assert Path(words[words.index("--out") + 1]).exists()
    assert has_sound("4k.mp4") and has_sound("small.webm")
    exec(compile(PYTHON, "docs/finishing.md", "exec"), {})
