"""`cogvx finish` on what people have: sound that begins late, files that break off, odd pictures, odd names."""

import dataclasses
import fractions
import itertools
import os
import signal
import subprocess
import sys
import warnings

import av
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_delivery import chart, tone, write, write_wav
from test_finishing import clip, weights  # noqa: F401

import cogvx_jax as cx
from cogvx_jax.convert.finishing import read_rife, read_upscaler
from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.sound import RATE, Track, read_sound, sound_lag
from cogvx_jax.data.video import Video
from cogvx_jax.finishing import stream
from cogvx_jax.finishing.finish import finish_file
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.source import Opened
from cogvx_jax.finishing.stream import open_job

KEEP = Delivery(codec="h264", keep_sound=True)


def put_off(path, out, seconds):
    """The same file with its sound, or where that is negative its pictures, so many seconds later."""
    with av.open(str(path)) as source, av.open(str(out), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            kind = "audio" if seconds > 0 else "video"
            later = int(abs(seconds) / packet.time_base) if packet.stream.type == kind else 0
            packet.dts, packet.pts = packet.dts + later, packet.pts + later
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return out


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
@pytest.mark.parametrize("seconds", [0.0, 0.5, -0.25])
def test_a_videos_own_sound_stays_where_it_is(seconds, suffix, tmp_path):
    clicks = np.zeros(2 * RATE)
    clicks[RATE : RATE + 48] = 0.9
    track = Track(path=write_wav(tmp_path / "x.wav", clicks, RATE))
    whole = write(tmp_path / f"x{suffix}", [chart()] * 30, fps=20, track=track)
    late = put_off(whole, tmp_path / f"late{suffix}", seconds) if seconds else whole
    assert abs(sound_lag(late) - seconds) < 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the sound may last longer than the pictures
        finish_file(late, tmp_path / "y.mp4", None, KEEP)
    heard = np.concatenate(list(read_sound(tmp_path / "y.mp4")), axis=1)
    wanted = 1 + seconds
    if wanted < 1.5:  # else it is after the end
        assert abs(np.abs(heard[0]).argmax() / RATE - wanted) < 1 / 60
    assert abs(heard.shape[1] / RATE - 1.5) <= 1024 / RATE


def test_sound_without_pictures_has_no_lag(tmp_path):
    assert sound_lag(write_wav(tmp_path / "x.wav", tone(0.1))) == 0


def test_a_file_that_breaks_off_is_warned_of(tmp_path):
    whole = write(tmp_path / "whole.mkv", [chart()] * 20, fps=10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert finish_file(whole, tmp_path / "y.mp4").frames == 20
    data = whole.read_bytes()
    (tmp_path / "short.mkv").write_bytes(data[: len(data) // 2])
    with pytest.warns(UserWarning, match=r"short.mkv' says that it lasts 2.00 s, and .* could be read: it is cut off"):
        made = finish_file(tmp_path / "short.mkv", tmp_path / "y.mp4")
    assert 1 <= made.frames < 20


def test_interlaced_videos_are_warned_of(tmp_path):
    with av.open(str(tmp_path / "x.mpg"), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25, options={"flags": "+ildct+ilme", "top": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with stream_video(tmp_path / "x.mpg") as opened:
        if not opened.interlaced:
            pytest.skip("this FFmpeg writes no interlaced MPEG-2")
    with pytest.warns(UserWarning, match="x.mpg' is interlaced, and its lines are taken as they are"):
        cx.finish(tmp_path / "x.mpg")


@pytest.mark.parametrize("option, read", [("upscaler", read_upscaler), ("interpolator", read_rife)])
def test_weights_that_are_not_finite(option, read, weights, tmp_path):  # noqa: F811
    tensors = load_file(weights[option])
    tensors[next(reversed(tensors))].flat[0] = np.nan
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="x.safetensors holds numbers that are not finite, in .*: it is damaged"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    "name", ["a b.mp4", "100%d.mp4", "ünï-日本.mp4", "-lead.mp4", "a:b.mp4", "q'\"x.mp4", "[x].mp4"]
)
def test_names_of_all_kinds(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Video(clip(2)[None], 8).save(name)
    assert finish_file(name, name)[:4] == (2, 32, 40, 8)  # in its own place
    assert os.listdir() == [name]


def test_folders_small_pictures_and_other_suffixes(tmp_path):
    Video(clip(2)[None], 8).save(tmp_path / "pictures")
    for source in (tmp_path / "pictures", tmp_path):
        with pytest.raises(ValueError, match="is a folder, not a file; give the path of one"):
            finish_file(source, tmp_path / "y.mp4")
        with pytest.raises(ValueError, match="is a folder, not a file"):
            cx.finish(source)
    with pytest.raises(ValueError, match="must end in one of .mp4, .mov, .mkv, .webm, .gif, .webp; without a suffix"):
        finish_file(tmp_path / "x.mp4", tmp_path / "y.avi")
    Video(clip(2)[None, :, :1, :1], fractions.Fraction(25, 2)).save(tmp_path / "one.gif")
    for suffix in (".mkv", ".gif", ".webp", ""):
        assert finish_file(tmp_path / "one.gif", tmp_path / f"two{suffix}")[1:3] == (1, 1)
    for suffix in (".mp4", ".mov", ".webm"):
        with pytest.raises(ValueError, match="an even height and width, got 1x1; write a .mkv by ffv1"):
            finish_file(tmp_path / "one.gif", tmp_path / f"two{suffix}")


def begin(source, out, *flags):
    command = [sys.executable, "-m", "cogvx_jax.cli", "finish", str(source), "--out", str(out), *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


@pytest.mark.full
def test_two_runs_at_once_and_one_that_is_stopped(tmp_path):
    Video(np.random.default_rng(0).integers(0, 256, (1, 12, 240, 360, 3), np.uint8), 8).save(tmp_path / "x.mp4")
    both = [begin(tmp_path / "x.mp4", tmp_path / "y.mp4", "--no-progress") for _ in range(2)]
    stopped = begin(tmp_path / "x.mp4", tmp_path / "z.mkv", "--size", "2160x3840", "--no-progress")
    assert "become 12" in stopped.stderr.readline()
    stopped.send_signal(signal.SIGINT)
    assert stopped.wait(300) == 130 and "interrupted; the finished video is not written" in stopped.stderr.read()
    assert [run.wait(300) for run in both] == [0, 0]
    for run in (*both, stopped):
        run.stderr.close()
    assert cx.finish(tmp_path / "y.mp4", size="48x72").frames.shape == (1, 12, 48, 72, 3)
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith(".cogvx-partial")} == {
        "x.mp4",
        "y.mp4",
    }


def test_a_frame_that_is_shown_for_longer_is_enlarged_once(weights, monkeypatch):  # noqa: F811
    frames = clip(3)
    calls, enlarge = [], stream._enlarge

    def counted(job):
        program = enlarge(job)
        return lambda frame: (calls.append(1), program(frame))[1]

    monkeypatch.setattr(stream, "_enlarge", counted)
    source = Opened(itertools.chain.from_iterable([frame] * 3 for frame in frames), fractions.Fraction(24), 32, 40, 9)
    with open_job(frames, Finish(fps=48, interpolator=weights["interpolator"]), 24) as job:
        made = list(stream.finished_pictures(dataclasses.replace(job, source=source)))
    assert len(made) == 17 and len(calls) == 3
    first = np.asarray(made[0])
    assert all((np.asarray(picture) == first).all() for picture in made[:5])
