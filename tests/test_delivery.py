"""Files to deliver: colours, bits, sound and tags of every preset, read back by PyAV."""

import fractions
import io
import itertools

import av
import jax.numpy as jnp
import numpy as np
import pytest

from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.delivery import (
    LARGE,
    PRESETS,
    DeliveryWriter,
    check_deliverable,
    check_even,
    encoder_stream,
    frame_of,
    preset_of,
)
from cogvx_jax.data.sound import RATE, Player, Track, check_sound, has_sound, loudness, read_sound
from cogvx_jax.finishing.colour import planes_program, to_bytes

FIELDS = ("color_range", "colorspace", "color_primaries", "color_trc")


def write_wav(path, samples, rate=44_100):
    """A wav file of 16 bits; samples (N,) or (2, N)."""
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=rate, layout="mono" if len(samples) == 1 else "stereo")
        pcm = np.int16(np.clip(samples, -1, 1) * 32767).T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, "s16", "mono" if len(samples) == 1 else "stereo")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def tone(seconds, rate=44_100, volume=0.1):
    return volume * np.sin(2 * np.pi * 1000 * np.arange(round(seconds * rate)) / rate)


def write(path, pictures, codec=None, fps=24, **options):
    preset = preset_of(path, codec)
    program = planes_program(preset.bits, preset.shrink)
    with DeliveryWriter(path, preset, fps, pictures[0].shape[:2], **options) as writer:
        for picture in pictures:
            writer.write([np.asarray(plane) for plane in program(jnp.asarray(picture))])
    return path


def chart():
    """Patches of 32 pixels, (64, 128, 3)."""
    colours = [(1, 1, 1), (0.5, 0.5, 0.5), (0.8, 0.1, 0.1), (0.1, 0.7, 0.2), (0.1, 0.2, 0.8), (0.9, 0.8, 0.1)]
    colours += [(0.7, 0.5, 0.4), (0, 0, 0)]
    return np.kron(np.float32(colours).reshape(2, 4, 3), np.ones((32, 32, 1), np.float32))


@pytest.mark.parametrize("codec", PRESETS)
def test_every_preset(codec, tmp_path):
    suffix = PRESETS[codec].suffixes[0]
    track = Track(path=write_wav(tmp_path / "tone.wav", tone(0.3)), loop=True)
    path = write(tmp_path / f"x{suffix}", [chart()] * 12, codec, fps=60, track=track, comment="made here")
    with stream_video(path) as stream:
        frames = list(stream.at(itertools.count()))
    assert stream.fps == 60 and len(frames) == 12
    inner = frames[6].reshape(2, 32, 4, 32, 3)[:, 8:24, :, 8:24].mean(axis=(1, 3))
    assert np.abs(inner - 255 * chart()[::32, ::32]).max() < 2
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert [int(getattr(video.codec_context, field)) for field in FIELDS] == [1] * 4
        assert container.metadata.get("comment", container.metadata.get("COMMENT")) == "made here"
        assert video.codec_context.pix_fmt == PRESETS[codec].pixels and audio.rate == RATE
        assert video.codec_context.codec_tag == "hvc1" or codec != "hevc"
    heard = sum(block.shape[1] for block in read_sound(path))
    assert abs(heard - RATE * 12 / 60) <= 1024  # of the decoder's last block
    if suffix == ".mp4":
        data = path.read_bytes()
        assert b"colrnclx\0\1\0\1\0\1" in data and data.index(b"moov") < data.index(b"mdat")


def test_ten_bits_have_more_than_256_levels():
    ramp = np.broadcast_to(np.linspace(0, 1, 1024, dtype=np.float32)[None, :, None], (16, 1024, 3))
    luma, blue, red = planes_program(10, (2, 2))(jnp.asarray(ramp))
    assert luma.dtype == jnp.uint16 and blue.shape == (8, 512)
    assert len(np.unique(luma)) > 800 and luma.min() == 64 and luma.max() == 940
    assert np.abs(np.float64(blue) - 512).max() <= 1 and np.abs(np.float64(red) - 512).max() <= 1
    means = np.asarray(luma, np.float64).mean(axis=0)  # dither's rows even out between steps
    assert np.abs(means - (64 + 876 * np.linspace(0, 1, 1024))).max() < 0.5


def test_bytes_stay_what_they_are_and_gradients_are_dithered():
    x = np.arange(256, dtype=np.uint8)[None, :, None].repeat(3, -1).repeat(16, 0)
    np.testing.assert_array_equal(to_bytes(jnp.asarray(x / np.float32(255))), x)
    flat = to_bytes(jnp.full((16, 16, 3), 100.25 / 255))
    assert set(np.unique(flat)) == {100, 101} and abs(np.asarray(flat).mean() - 100.25) < 0.05


def test_a_click_comes_when_it_should(tmp_path):
    clicks = np.zeros(3 * 44_100)
    clicks[44_100 : 44_100 + 40] = 0.9
    track = Track(path=write_wav(tmp_path / "click.wav", clicks))
    path = write(tmp_path / "x.mp4", [chart()] * 32, fps=16, track=track)
    heard = np.concatenate(list(read_sound(path)), axis=1)
    assert abs(np.abs(heard[0]).argmax() / RATE - 1) < 1 / 16
    assert abs(heard.shape[1] - 2 * RATE) <= 1024


def played(track, counts):
    player, blocks = Player(track), []
    for count in counts:
        blocks += player.until(count)
    return np.concatenate([*blocks, player.end()], axis=1)


def test_tracks_are_cut_looped_padded_and_faded_to_the_sample(tmp_path):
    path = write_wav(tmp_path / "x.wav", np.full(44_100, 0.5))
    for loop, volume in ((True, 0.5), (False, 0.0)):
        sound = played(Track(path=path, loop=loop), [777, 9_000, 2 * RATE + 5])
        assert sound.shape == (2, 2 * RATE + 5) and sound.dtype == np.float32
        np.testing.assert_allclose(sound[:, RATE // 2], 0.5, atol=1e-3)
        np.testing.assert_allclose(sound[:, RATE + RATE // 2], volume, atol=1e-3)
    sound = played(Track(path=path, loop=True, fade=0.25), [100, RATE])[0]
    assert sound.shape == (RATE,)
    np.testing.assert_allclose(sound[[0, RATE // 8, RATE // 2, -RATE // 8, -1]], [0, 0.25, 0.5, 0.25, 0], atol=1e-2)
    short = played(Track(path=path, fade=10), [RATE // 10])[0]
    assert short.shape == (RATE // 10,) and np.abs(short).max() < 0.02


def test_loudness(tmp_path):
    path = write_wav(tmp_path / "x.wav", np.stack([tone(4)] * 2))
    assert abs(loudness(path) + 20) < 0.3
    for wanted in (-14.0, -30.0):
        louder = played(Track(path=path, loudness=wanted), [4 * RATE])
        assert abs(loudness(write_wav(tmp_path / "y.wav", louder, RATE)) - wanted) < 0.5
    silent = write_wav(tmp_path / "z.wav", np.zeros(44_100))
    assert loudness(silent) == -70 and not played(Track(path=silent, loudness=-14), [RATE]).any()


def test_what_is_no_sound(tmp_path):
    (tmp_path / "x.wav").write_bytes(b"no sound")
    with pytest.raises(ValueError, match="x.wav' cannot be read as sound"):
        check_sound(tmp_path / "x.wav")
    with pytest.raises(FileNotFoundError):
        check_sound(tmp_path / "none.wav")
    video = write(tmp_path / "x.mp4", [chart()])
    assert not has_sound(video)
    with pytest.raises(ValueError, match="x.mp4' has no sound"):
        check_sound(video)
    for wrong in ({"fade": -1}, {"fade": float("nan")}, {"loudness": 3}):
        with pytest.raises(ValueError, match="must be from"):
            Track(path="x.wav", **wrong)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="codec must be one of h264, hevc, av1, prores, ffv1, got 'xvid'"):
        preset_of("x.mp4", "xvid")
    with pytest.raises(ValueError, match="'x.mp4' must end in one of .mov for prores"):
        preset_of("x.mp4", "prores")
    with pytest.raises(ValueError, match="'x.avi' must end in one of .mp4, .mov, .mkv, .webm"):
        preset_of("x.avi", None)
    with pytest.raises(ValueError, match="crf has no effect on ffv1"):
        preset_of("x.mkv", "ffv1", 3)
    with pytest.raises(ValueError, match="crf must be from 0 to 51, got 60"):
        preset_of("x.mp4", "h264", 60)
    assert [preset_of(f"x{suffix}", None).encoder for suffix in (".mp4", ".MOV", ".mkv", ".webm")] == [
        "libx264",
        "prores_ks",
        "ffv1",
        "libsvtav1",
    ]
    with pytest.raises(FileNotFoundError):
        check_deliverable(tmp_path / "none" / "x.mp4", PRESETS["h264"])
    with pytest.raises(ValueError, match="needs an even height and width, got 3x4"):
        check_even((3, 4), PRESETS["h264"])
    check_even((3, 5), PRESETS["ffv1"])
    with (
        pytest.raises(ValueError, match="no frames were given"),
        DeliveryWriter(tmp_path / "x.mp4", PRESETS["h264"], fractions.Fraction(30000, 1001), (64, 64)),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", [(64, 2304), (64, 64)])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_large_frames_do_not_wait_for_later_ones(codec, size):
    """x265 and SVT-AV1 would hold more than 2 GB of them at 2160x3840."""
    preset, fps = PRESETS[codec], fractions.Fraction(60)
    with av.open(io.BytesIO(), "w", format="matroska") as container:
        stream, packets = encoder_stream(container, preset, fps, size), []
        for number in range(12):
            luma = np.full(size, 100 + 9 * number, np.uint8 if codec == "h264" else np.uint16)
            chroma = np.full((size[0] // 2, size[1] // 2), 128, luma.dtype)
            packets += stream.encode(frame_of([luma, chroma, chroma], preset, size, number, fps))
        at_once, times = len(packets), [packet.pts for packet in packets + stream.encode(None)]
        assert len(times) == 12
        if codec == "h264":  # how many wait depends on the number of threads
            assert (times == sorted(times)) == (max(size) > LARGE)
        else:
            assert at_once == (12 if max(size) > LARGE else 0)
