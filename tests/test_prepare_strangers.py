"""Films as they come: cut off, without pictures, turned, interlaced, of variable rate, in HDR, with odd names."""

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from drawn_films import moving, save

from cogvx_jax.prepare.rows import read_rows
from cogvx_jax.prepare.run import prepare
from cogvx_jax.prepare.settings import read_settings

pytest.importorskip("cv2", reason="of the extra `prepare`")
pytestmark = pytest.mark.full
STEPS = ["probe", "shots", "borders", "motion", "write"]


def encode(path, frames, *, stamps=None, rate=10, prepared=lambda stream: None, sound=False, cover=None):
    """A file of frames, with time stamps in thousandths."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        prepared(stream)
        if sound:
            track = container.add_stream("aac", rate=16000)
        for n, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            frame.pts, frame.time_base = (n * 1000 // rate if stamps is None else stamps[n]), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if sound:
            for n in range(20):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                samples.sample_rate, samples.pts = 16000, 1024 * n
                container.mux(track.encode(samples))
            container.mux(track.encode())
    return path


def sound_alone(path):
    with av.open(str(path), "w") as container:
        track = container.add_stream("aac", rate=16000)
        for n in range(20):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            samples.sample_rate, samples.pts = 16000, 1024 * n
            container.mux(track.encode(samples))
        container.mux(track.encode())


def hdr(stream):
    stream.codec_context.color_trc, stream.codec_context.color_primaries = 16, 9


def interlaced(stream):
    stream.codec_context.options = {"flags": "+ildct+ilme", "x264-params": "tff=1"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The rows of films by their names, and those of their clips."""
    folder, frames = tmp_path_factory.mktemp("films"), moving(3, 40)
    save(folder / "-x %s ü.mp4", frames)
    (folder / "zero.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no film at all")
    encode(folder / "whole.ts", frames)
    data = (folder / "whole.ts").read_bytes()
    (folder / "cut.ts").write_bytes(data[: len(data) // 2])
    sound_alone(folder / "sound.m4v")
    save(folder / "one.mp4", frames[:1])
    uneven = [n * 100 + (300 if n > 20 else 0) + (37 if n % 3 else 0) for n in range(40)]
    encode(folder / "vfr.mkv", frames, stamps=uneven)
    encode(folder / "late.mkv", frames, stamps=[5000 + 100 * n for n in range(40)], sound=True)
    encode(folder / "hdr.mp4", frames, prepared=hdr)
    encode(folder / "lines.ts", frames, prepared=interlaced)
    save(folder / "loop.gif", frames)
    shutil.copytree(folder, folder / "deeper" / "copy")
    (folder / "deeper" / "round").symlink_to(folder)
    out, said = tmp_path_factory.mktemp("sets") / "set", []
    settings = read_settings(None, STEPS, shots={"shortest": 1.0, "trim": 0.1})
    prepare(folder, out, settings, said.append)
    films = {Path(row["source"]).name: row for row in read_rows(out / "films.jsonl") if row["same_as"] is None}
    clips = {}
    for row in read_rows(out / "clips.jsonl"):
        clips.setdefault(Path(row["source"]).name, []).append(row)
    return films, clips, out


@pytest.mark.parametrize(
    "name, said",
    [
        ("zero.mp4", "cannot be read as a video"),
        ("text.mp4", "cannot be read as a video"),
        ("sound.m4v", "cannot be read as a video"),
        ("hdr.mp4", "HDR"),
    ],
)
def test_what_is_no_film_is_one_sentence_of_its_row(rows, name, said):
    films, clips, _ = rows
    [(step, error)] = films[name]["errors"].items()
    assert said in error and "\n" not in error and name not in clips and films[name]["width"] is None


@pytest.mark.parametrize("name", ["-x %s ü.mp4", "whole.ts", "late.mkv", "loop.gif", "lines.ts", "vfr.mkv"])
def test_films_that_are_whole_become_clips(rows, name):
    films, clips, out = rows
    assert not films[name]["errors"] and clips[name]
    for clip in clips[name]:
        assert not clip["errors"] and clip["motion_mean"] > 5 and (out / clip["video"]).is_file()
    assert abs(clips[name][-1]["end"] - films[name]["duration"]) < 0.5


def test_films_are_told_apart(rows):
    films, clips, _ = rows
    assert films["vfr.mkv"]["vfr"] and not films["whole.ts"]["vfr"]
    assert films["lines.ts"]["interlaced"] and not films["whole.ts"]["interlaced"]
    assert films["late.mkv"]["audio"] == "aac" and films["late.mkv"]["duration"] < 5
    assert films["one.mp4"]["frames"] == 1 and "one.mp4" not in clips
    assert not films["cut.ts"]["errors"]
    assert all(clip["end_frame"] <= 21 for clip in clips.get("cut.ts", ()))


def test_a_turned_film_is_upright(tmp_path):
    data = save(tmp_path / "flat.mp4", moving(4, 30)).read_bytes()
    # The matrix in the header of the track: x and y are swapped, one of them with another sign.
    one, zero, minus = (1 << 16).to_bytes(4, "big"), bytes(4), (-1 << 16).to_bytes(4, "big", signed=True)
    flat, turned = one + zero * 3 + one + zero * 3, zero + one + zero + minus + zero * 4
    place = data.index(flat, data.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(data[:place] + turned + data[place + len(flat) :])
    prepare(tmp_path / "turned.mp4", tmp_path / "set", read_settings(None, STEPS), lambda line: None)
    [clip] = read_rows(tmp_path / "set" / "clips.jsonl")
    assert (clip["width"], clip["height"]) == (96, 128) and clip["rotation"] in (90, 270)
    assert (clip["video_width"], clip["video_height"]) == (96, 128)
