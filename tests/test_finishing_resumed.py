"""Finishing that is killed and goes on: the same frames, no whole fragment made twice, none of another wish taken."""

import itertools
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from test_delivery import tone, write_wav
from test_finishing import clip, weights  # noqa: F401 (a fixture)

from cogvx_jax import temporaries
from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.delivery import PRESETS
from cogvx_jax.data.sound import read_sound
from cogvx_jax.data.video import Video
from cogvx_jax.finishing.finish import finish_file
from cogvx_jax.finishing.fragments import Cutting
from cogvx_jax.finishing.options import Delivery

FRAMES = 37  # at 8 a second: two fragments of 16, and one of 5
KILLED = 20  # frames of the killed run


class Killed(Exception):
    pass


def run(source, out, stop=None, options=None, delivery=None):
    """Finishes a file; frames that an earlier run had made, and those that this one made. Stops after some of them."""
    before, made = [0], []

    def count():
        made.append(1)
        if len(made) == stop:
            raise Killed

    try:
        finish_file(source, out, options, delivery, on_resumed=before.append, on_frame=count)
    except Killed:
        pass
    return before[-1], len(made)


def frames_of(path):
    if path.is_dir():
        return sorted((file.name, file.read_bytes()) for file in path.iterdir())
    if path.suffix == ".webp":
        return path.read_bytes()
    with stream_video(path) as stream:
        return np.stack(list(stream.at(itertools.count())))


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(temporaries.PREFIX)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source") / "x.mp4"
    Video(clip(FRAMES)[None], 8).save(path)
    return path


@pytest.mark.parametrize(
    "name, codec, whole",
    [
        ("y.mp4", "h264", 16),
        ("pictures", None, KILLED),  # a fragment each
        *(
            pytest.param(f"y{preset.suffixes[0]}", codec, 16, marks=pytest.mark.full)
            for codec, preset in PRESETS.items()
            if codec != "h264"
        ),
        *(pytest.param(f"y{suffix}", None, KILLED, marks=pytest.mark.full) for suffix in (".gif", ".webp")),
    ],
)
def test_a_killed_run_goes_on_after_its_last_whole_fragment(name, codec, whole, source, tmp_path):
    sound = {} if codec is None else {"audio": str(write_wav(tmp_path / "tone.wav", tone(1))), "loop": True}
    delivery, out, other = Delivery(codec=codec, **sound), tmp_path / name, tmp_path / "other"
    other.mkdir()
    assert run(source, other / name, delivery=delivery) == (0, FRAMES)
    assert run(source, out, KILLED, delivery=delivery) == (0, KILLED)
    assert not out.exists() and len(hidden(tmp_path)) == 1
    assert run(source, out, 2, delivery=delivery) == (whole, 2)  # killed again before another fragment was whole
    whole += 2 * (codec is None)
    assert run(source, out, delivery=delivery) == (whole, FRAMES - whole)
    np.testing.assert_equal(frames_of(out), frames_of(other / name))
    assert not hidden(tmp_path)
    if codec is not None:
        heard, all_of_it = (sum(block.shape[1] for block in read_sound(path)) for path in (out, other / name))
        assert heard == all_of_it


def test_another_wish_takes_nothing_and_leaves_nothing(source, tmp_path):
    out = tmp_path / "y.mp4"
    assert run(source, out, KILLED) == (0, KILLED)
    [left] = hidden(tmp_path)
    assert run(source, tmp_path / "z.mp4", 1) == (0, 1)  # another name: both stay
    assert hidden(tmp_path) == [left]
    finish_file(source, tmp_path / "w.gif")
    assert hidden(tmp_path) == [left]
    assert run(source, out, KILLED, delivery=Delivery(crf=30)) == (0, KILLED)  # the same name, otherwise
    assert left not in hidden(tmp_path) and len(hidden(tmp_path)) == 1
    Video(clip(FRAMES, seed=1)[None], 8).save(tmp_path / "x.mp4")
    assert run(tmp_path / "x.mp4", out, delivery=Delivery(crf=30)) == (0, FRAMES)
    assert not hidden(tmp_path)


def test_parts_of_another_host_are_used_and_left(source, tmp_path, monkeypatch):
    out = tmp_path / "y.mp4"
    assert run(source, out, KILLED) == (0, KILLED)
    [left] = hidden(tmp_path)
    monkeypatch.setattr(temporaries, "_machine", lambda: b"another")
    assert run(source, out) == (16, FRAMES - 16)
    assert hidden(tmp_path) == [left]
    old = time.time() - 2 * temporaries.UNCHANGED
    for file in (left, *left.iterdir()):
        os.utime(file, (old, old))
    temporaries.remove_dead(tmp_path)
    assert not hidden(tmp_path)


def test_a_damaged_fragment_is_no_video(source, tmp_path):
    out = tmp_path / "y.mp4"
    run(source, out, KILLED)
    [file] = hidden(tmp_path)[0].glob("*.packets")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="is damaged; remove its folder"):
        run(source, out)
    assert not out.exists()


def test_fragments_begin_with_frames_of_the_source():
    cutting = Cutting(8, 60, 16)
    assert [cutting.first(i) for i in range(4)] == [0, 120, 240, 360]
    assert [Cutting(24, 60, 1).first(i) for i in range(5)] == [0, 3, 5, 8, 10]


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_goes_on(number, source, tmp_path, weights):  # noqa: F811
    """By the command, with networks: killed three times, it comes to the frames of one run."""
    flags = [f"--{name}={value}" for name, value in weights.items()]
    command = [sys.executable, "-m", "cogvx_jax.cli", "finish", str(source), "--scale=3", "--fps=30", *flags]
    subprocess.run([*command, f"--out={tmp_path}/whole.mp4"], check=True, capture_output=True)
    out, told = tmp_path / "y.mp4", []
    for there in (0, 1, 2, None):  # fragments that are whole when the signal comes
        process = subprocess.Popen([*command, f"--out={out}"], stderr=subprocess.PIPE, text=True)
        with process:
            if there is not None:
                while len(list(tmp_path.glob(f"{temporaries.PREFIX}*/*.packets"))) < there or not hidden(tmp_path):
                    assert process.poll() is None
                    time.sleep(0.005)
                process.send_signal(number)
            said = process.stderr.read()
        assert process.returncode in ((0,) if there is None else (-number, 128 + number)), said
        told.append("an earlier run made" in said)
        assert out.exists() == (there is None)
    assert told[-1]
    np.testing.assert_array_equal(frames_of(out), frames_of(tmp_path / "whole.mp4"))
    assert not hidden(tmp_path)
