"""Moments, proportions and colours of videos as phones, screen recorders and editors write them."""

import fractions
import struct
import tracemalloc

import av
import numpy as np
import pytest

from cogvx_jax.data import decode, video
from cogvx_jax.data.clips import TooShort, read_clip
from cogvx_jax.data.random_clips import random_clip
from cogvx_jax.data.video import VideoWriter, read_video

SHAPE = {"frames": 17, "fps": 8, "height": 32, "width": 32}
GREY = 50 * 255 / 219  # levels a second of the ramp
RAMP = [n for n in range(120) if n < 30 or n % 6 == 0]  # of 4 s at 30 fps: after 1 s every sixth frame is left


def timed(path, ticks, levels, unit=30, size=(32, 48), last=None, codec="libx264", tag=None, **facts):
    """A video whose frame i comes after `ticks[i]` units of 1/`unit` seconds and has the grey level `levels[i]`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=unit, options={"crf": "4"} if codec == "libx264" else {})
        context = stream.codec_context
        context.height, context.width, context.pix_fmt = *size, "yuv420p"
        context.time_base = fractions.Fraction(1, unit)
        for name, value in facts.items():
            setattr(context, name, value)
        for tick, level in zip(ticks, levels, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), level, np.uint8), "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = tick, fractions.Fraction(1, unit)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def ramp(path, **options):
    """Grows from black by 58.2 levels a second, for 4 s."""
    return timed(path, RAMP, [round(GREY * n / 30) for n in RAMP], **options)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov"])
def test_clips_of_variable_rate_show_the_right_moments(tmp_path, name):
    clip = read_clip(ramp(tmp_path / name), **SHAPE).mean((1, 2, 3))
    moments = np.array([max(n for n in RAMP if n <= round(30 * i / 8)) for i in range(17)])
    np.testing.assert_allclose(clip, GREY * moments / 30, atol=2.5)
    assert abs(clip[-1] - 116) < 2.5  # 2.0 s


def test_the_shown_frame_lasts_until_the_next_one(tmp_path):
    """A screen recording: nothing for 2 s, then all at once."""
    timed(tmp_path / "a.mp4", [0, 1, 2, 60, 61, 62], [10, 10, 10, 200, 210, 220])
    clip = read_clip(tmp_path / "a.mp4", **SHAPE).mean((1, 2, 3))
    assert clip[:16].max() < 14 and abs(clip[16] - 200) < 4
    with pytest.raises(TooShort, match="63 frames at 30 fps are too short for 18 at 8 fps"):
        read_clip(tmp_path / "a.mp4", **SHAPE | {"frames": 18})


def test_videos_of_variable_rate_are_read_at_the_rate_of_their_grid(tmp_path):
    frames, fps = read_video(ramp(tmp_path / "a.mp4"), frames=61)
    assert fps == 30 and len(frames) == 61
    np.testing.assert_allclose(frames.mean((1, 2, 3))[[15, 30, 35, 36, 60]] / GREY, [0.5, 1, 1, 1.2, 2], atol=0.05)


def test_random_clips_of_variable_rate_show_the_right_moments(tmp_path):
    ramp(tmp_path / "a.mp4")
    for seed in range(4):
        rng = np.random.default_rng(seed)
        clip = random_clip(tmp_path / "a.mp4", rng, frames=9, fps=5, size=(32, 32)).mean((1, 2, 3))
        start = clip[0] / GREY
        moments = [max(n for n in RAMP if n <= 30 * start + 6 * i + 0.5) / 30 for i in range(9)]
        np.testing.assert_allclose(clip / GREY, moments, atol=0.21)  # the start is known to a fifth of a second
        assert clip[-1] - clip[0] > 1.3 * GREY


@pytest.mark.parametrize("own", [6, 8, 12, 12.5, 24, fractions.Fraction(30000, 1001), 60])
def test_frames_of_constant_rate_are_chosen_by_number(tmp_path, own):
    """Number i is the nearest to i / fps, ties to the even one; the same pixels as they are stored."""
    with VideoWriter(tmp_path / "a.mp4", own) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (70, 32, 32, 3), np.uint8))
    stored, fps = read_video(tmp_path / "a.mp4")
    assert fps == own and len(stored) == 70
    chosen = np.round(np.arange(8) * max(float(own) / 8, 1.0)).astype(int)
    np.testing.assert_array_equal(read_clip(tmp_path / "a.mp4", **SHAPE | {"frames": 8}), stored[chosen])


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("fps", [8, 12.5, 15, fractions.Fraction(30000, 1001)])
def test_rates_are_exact(tmp_path, suffix, fps):
    with VideoWriter(tmp_path / f"a{suffix}", fps) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (20, 32, 32, 3), np.uint8))
    frames, rate = read_video(tmp_path / f"a{suffix}")
    assert isinstance(rate, fractions.Fraction) and len(frames) == 20
    assert rate == fps or (suffix == ".gif" and abs(rate - fps) < 0.04)  # a GIF's delays are whole 1/100 s


def test_rates_are_fractions():
    frames = np.zeros((1, 25, 16, 16, 3), np.uint8)
    for given, kept in ((8, 8), (12.5, fractions.Fraction(25, 2)), (30000 / 1001, fractions.Fraction(30000, 1001))):
        assert video.Video(frames, given).fps == kept
    assert repr(video.Video(frames, 12.5)) == "Video(1 x 25 frames of 16x16, 12.5 fps, 2.0 s)"
    for wrong in (0, -8, float("nan"), float("inf"), 1e9, 1e-9):
        with pytest.raises(ValueError, match="fps must be positive and at most 100000, got"):
            video.Video(frames, wrong)


def test_no_more_is_read_than_asked_for(tmp_path, monkeypatch):
    with VideoWriter(tmp_path / "a.mp4", 30) as writer:
        for _ in range(10):
            writer.write(np.zeros((10, 128, 128, 3), np.uint8))
    decoded = []
    original = decode._decode
    monkeypatch.setattr(decode, "_decode", lambda *given: (decoded.append(1) or frame for frame in original(*given)))
    tracemalloc.start()
    frames, _ = read_video(tmp_path / "a.mp4", frames=9)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(frames) == len(decoded) == 9
    assert held < 3 * frames.nbytes
    assert len(read_video(tmp_path / "a.mp4", frames=101)[0]) == 100  # all that there are


def test_a_still_of_a_century_takes_no_memory(tmp_path, monkeypatch):
    """A few bytes of time stamps ask for terabytes of frames."""
    timed(tmp_path / "a.mkv", [0, 1, 2, 3_000_000_000], [10, 20, 30, 40])
    assert len(read_video(tmp_path / "a.mkv", frames=50)[0]) == 50
    monkeypatch.setattr(video, "MAX_BYTES", 10**8)
    with pytest.raises(ValueError, match="more frames than can be held; read fewer"):
        read_video(tmp_path / "a.mkv")


def test_pixels_that_are_not_square_come_out_in_proportion(tmp_path):
    ratio = fractions.Fraction(4, 3)
    timed(tmp_path / "a.mp4", range(9), [90] * 9, sample_aspect_ratio=ratio)
    assert read_video(tmp_path / "a.mp4")[0].shape == (9, 32, 64, 3)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "turned.mp4").write_bytes(turned(data))
    assert read_video(tmp_path / "turned.mp4")[0].shape == (9, 64, 32, 3)


def test_huge_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    timed(tmp_path / "a.mp4", range(9), [90] * 9)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    converted = []
    monkeypatch.setattr(decode._Converter, "_check", lambda self, frame: converted.append(frame))
    with pytest.raises(ValueError, match="a.mp4' is too large: a frame of 32x48; at most 1000 pixels"):
        read_video(tmp_path / "a.mp4")
    assert not converted  # the decoder gave none
    monkeypatch.setattr(decode, "MAX_PIXELS", 4000)
    timed(tmp_path / "b.mp4", range(9), [90] * 9, sample_aspect_ratio=fractions.Fraction(10))
    with pytest.raises(ValueError, match="b.mp4' is too large: a frame of 32x480"):
        read_video(tmp_path / "b.mp4")


def turned(data):
    """An .mp4 with a tag that turns it left, as a phone writes it."""
    matrix = data.index(b"tkhd") + 44
    return data[:matrix] + struct.pack(">9i", 0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30) + data[matrix + 36 :]


@pytest.mark.parametrize("transfer, name", [(16, "PQ"), (18, "HLG"), (14, r"BT\.2020")])
def test_hdr_is_refused_with_how_to_convert_it(tmp_path, transfer, name):
    timed(tmp_path / "a.mp4", range(9), [90] * 9, color_trc=transfer, color_primaries=9, colorspace=9)
    for read in (read_video, lambda path: read_clip(path, **SHAPE)):
        with pytest.raises(ValueError, match=rf"a\.mp4' has HDR or wide-gamut colours \({name}\).*convert it first"):
            read(tmp_path / "a.mp4")


def test_cover_pictures_and_sound_are_no_videos(tmp_path):
    with av.open(str(tmp_path / "a.mp3"), "w", format="mp3") as container:
        sound = container.add_stream("mp3", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), "s16", "mono")
        frame.rate = 44100
        for packet in (*sound.encode(frame), *sound.encode(None)):
            container.mux(packet)
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(tmp_path / "a.mp3")


def test_playlists_open_nothing_else(tmp_path):
    timed(tmp_path / "secret.mp4", range(9), [90] * 9)
    (tmp_path / "a.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/secret.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_video(tmp_path / "a.mp4")
