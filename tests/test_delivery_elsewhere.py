"""Files of every preset in programs that are not ours: ffprobe's words, and colours and sound by the ffmpeg command."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from test_delivery import chart, write, write_wav

from cogvx_jax.data.delivery import PRESETS
from cogvx_jax.data.sound import RATE, Track

FPS, COUNT = 16, 20
CODECS = {"h264": "h264", "hevc": "hevc", "av1": "av1", "prores": "prores", "ffv1": "ffv1"}
SOUNDS = {"h264": "aac", "hevc": "aac", "av1": "opus", "prores": "pcm_s24le", "ffv1": "flac"}
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")), reason="needs `apt-get install ffmpeg`"
)
pytestmark = [pytest.mark.full, needs_ffmpeg]


@pytest.fixture(scope="module", params=PRESETS)
def written(request, tmp_path_factory):
    """A codec and its file: the chart, white from the frame at 1.000 s on; a click at the same moment."""
    folder = tmp_path_factory.mktemp("elsewhere")
    clicks = np.zeros(2 * RATE)
    clicks[RATE : RATE + 48] = 0.9
    track = Track(path=write_wav(folder / "click.wav", clicks, RATE))
    pictures = [chart()] * FPS + [np.ones_like(chart())] * (COUNT - FPS)
    path = folder / f"x{PRESETS[request.param].suffixes[0]}"
    return request.param, write(path, pictures, request.param, fps=FPS, track=track)


def ffmpeg(path, *arguments):
    command = ["ffmpeg", "-v", "error", "-i", str(path), *arguments, "-"]
    return subprocess.run(command, capture_output=True, check=True).stdout


def test_ffprobe(written):
    codec, path = written
    command = ["ffprobe", "-v", "error", "-count_frames", "-show_streams", "-of", "json", str(path)]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"]
    video, audio = said
    assert (video["codec_name"], audio["codec_name"]) == (CODECS[codec], SOUNDS[codec])
    assert video["pix_fmt"] == PRESETS[codec].pixels and (video["width"], video["height"]) == (128, 64)
    colours = [video[f"color_{name}"] for name in ("range", "space", "primaries", "transfer")]
    assert colours == ["tv", "bt709", "bt709", "bt709"]
    assert video["r_frame_rate"] == "16/1" and video["nb_read_frames"] == str(COUNT)
    assert (audio["sample_rate"], audio["channels"]) == (str(RATE), 2)
    assert abs(float(video.get("start_time", 0))) < 1e-6
    assert codec != "hevc" or video["codec_tag_string"] == "hvc1"


def test_colours_of_another_decoder(written):
    """The mean of each patch, without the pixels at its border that halved chroma mixes."""
    codec, path = written
    scaling = "scale=flags=accurate_rnd+full_chroma_int+bicubic"
    data = ffmpeg(path, "-vf", scaling, "-pix_fmt", "rgb24", "-f", "rawvideo")
    frames = np.frombuffer(data, np.uint8).reshape(COUNT, 64, 128, 3)
    patches = frames[FPS // 2].reshape(2, 32, 4, 32, 3)[:, 8:24, :, 8:24].mean(axis=(1, 3))
    assert np.abs(patches - 255 * chart()[::32, ::32]).max() < 2
    bright = frames.mean(axis=(1, 2, 3)) > 250
    assert list(np.flatnonzero(bright)) == list(range(FPS, COUNT))  # 1.000 s


def test_a_click_at_one_second(written):
    codec, path = written
    heard = np.frombuffer(ffmpeg(path, "-ac", "1", "-ar", str(RATE), "-f", "f32le"), np.float32)
    assert abs(np.abs(heard).argmax() / RATE - 1) < 1 / 60  # a frame of the fastest videos
    assert abs(len(heard) / RATE - COUNT / FPS) <= 1024 / RATE  # a block of AAC
