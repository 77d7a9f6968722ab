"""Every command and Python block of docs/sound.md, its maker behind an address included."""

import re
import shlex
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_delivery import tone, write_wav
from test_finishing import clip

from cogvx_jax.cli.main import main
from cogvx_jax.data.sound import has_sound
from cogvx_jax.data.video import Video
from cogvx_jax.finishing.maker_names import BUILT_IN, KEY
from cogvx_jax.finishing.scene import SIDE
from cogvx_jax.finishing.sound_makers import FUNCTIONS, MOST, SHORT, TIMEOUT

PAGE = (Path(__file__).parents[1] / "docs" / "sound.md").read_text()
COMMANDS = re.findall(r"^\|[^|]+\| `(cogvx [^`]+)` \|$", PAGE, flags=re.M)
COMMANDS += re.findall(r"^    (cogvx .*)$", PAGE, flags=re.M)
USE, FUNCTION, SERVER = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def test_the_numbers_are_those_of_the_code():
    assert tuple(FUNCTIONS) == BUILT_IN and all(f"`{name}`" in PAGE for name in BUILT_IN)
    assert f"{TIMEOUT:g} by default" in PAGE and f"at most {SIDE} pixels a side" in PAGE and f"`{KEY}`" in PAGE
    assert MOST == (32 * 2**20, 2 * 2**20) and "at most 32 MiB, and 2 MiB more" in PAGE
    assert SHORT == 0.25 and "more than a\nquarter of a second early" in PAGE


@pytest.mark.full
def test_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Video(clip()[None], 8).save("out.mp4")
    write_wav(tmp_path / "track.wav", np.stack([tone(0.2)] * 2))
    Path("noises.py").write_text(FUNCTION)
    held = {}
    *rest, last = SERVER.strip().splitlines()
    assert last == 'http.server.HTTPServer(("127.0.0.1", 8100), Maker).serve_forever()'
    served = last.replace("8100", "0").removesuffix(".serve_forever()")
    exec(compile("\n".join([*rest, f"server = {served}"]), "docs/sound.md", "exec"), held)
    threading.Thread(target=held["server"].serve_forever, daemon=True).start()
    assert len(COMMANDS) == 6
    for command in COMMANDS:
        words = shlex.split(command.replace("8100", str(held["server"].server_address[1])))[1:]
        words += ["--steps", "2"] if words[0] == "generate" else []
        monkeypatch.setattr(sys, "argv", ["cogvx", *words, "--no-progress"])
        main()
        assert has_sound(words[words.index("--out") + 1])
    held["server"].shutdown()
    exec(compile(USE, "docs/sound.md", "exec"), {})
    assert has_sound("tones.mov")
