import base64
import os
import re
import resource

import av
import numpy as np
import PIL.Image
import pytest

from cogvx_jax.data import video
from cogvx_jax.data import writer as writers


def clip(frames=9, height=48, width=64, seed=0):
    """A moving colour gradient, (F, H, W, 3) uint8: smooth, as codecs like it."""
    f, y, x = np.mgrid[:frames, :height, :width].astype(np.float32)
    waves = [np.sin((x + 2 * f) / 9 + seed), np.cos((y - f) / 8), np.sin((x + y + f) / 11)]
    return video.to_uint8(np.stack(waves, -1) * 0.9)


@pytest.mark.parametrize("fps", [8, 16, 29.97])
def test_mp4_round_trip(tmp_path, fps):
    frames = clip()
    with video.VideoWriter(tmp_path / "out.mp4", fps) as writer:
        for chunk in np.split(frames, [1, 5]):  # chunks of different lengths
            writer.write(chunk)
            assert not (tmp_path / "out.mp4").exists()
    back, rate = video.read_video(str(tmp_path / "out.mp4"))
    assert back.shape == frames.shape and back.dtype == np.uint8 and float(rate) == fps
    assert np.abs(back.astype(int) - frames).mean() < 2.5
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_mp4_keeps_flat_colours(tmp_path):
    """Catches a matrix that is written but not tagged, which shifts saturated colours by tens."""
    for colour in [(215, 35, 40), (35, 165, 70), (40, 75, 220), (248, 248, 248)]:
        frames = np.broadcast_to(np.uint8(colour), (1, 3, 32, 32, 3))
        [path] = video.Video(frames, 8).save(tmp_path / "flat.mp4")
        back, _ = video.read_video(path)
        assert np.abs(back.astype(int) - colour).max() <= 3


def test_mp4_starts_fast(tmp_path):
    [path] = video.Video(clip()[None], 8).save(tmp_path / "out.mp4")
    data = path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_gif_round_trip(tmp_path):
    frames = clip(frames=16, height=33, width=47)
    [path] = video.Video(frames[None], 10).save(tmp_path / "out.gif")
    back, rate = video.read_video(path)
    assert back.shape == frames.shape and rate == 10
    assert np.abs(back.astype(int) - frames).mean() < 8


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_writer_leaves_what_was_there(tmp_path, error):
    (tmp_path / "out.mp4").write_text("before")
    with pytest.raises(error), video.VideoWriter(tmp_path / "out.mp4", 8) as writer:
        writer.write(clip())
        raise error
    assert os.listdir(tmp_path) == ["out.mp4"]
    assert (tmp_path / "out.mp4").read_text() == "before"


def test_writer_errors_leave_nothing(tmp_path, monkeypatch):
    target = tmp_path / "out.mp4"
    with pytest.raises(ValueError, match="no frames"), video.VideoWriter(target, 8):
        pass
    with pytest.raises(ValueError, match="even height and width, got 33x64"), video.VideoWriter(target, 8) as writer:
        writer.write(clip(height=33))
    with pytest.raises(ValueError, match="must be 48x64, got 48x32"), video.VideoWriter(target, 8) as writer:
        writer.write(clip())
        writer.write(clip(width=32))
    with pytest.raises(ValueError, match="uint8"), video.VideoWriter(target, 8) as writer:
        writer.write(clip() / 255)
    with pytest.raises(ValueError, match="fps"):
        video.VideoWriter(target, 0)
    monkeypatch.setitem(writers.FORMATS, ".mp4", writers.FORMATS[".mp4"]._replace(encoder="no_such_encoder"))
    with pytest.raises(OSError, match="no_such_encoder"):
        video.VideoWriter(target, 8)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.webm", "out.gif", "out.webp", "out"])
def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, name):
    noise = np.random.default_rng(0).integers(0, 255, (30, 96, 96, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))  # bytes of any one file
    try:
        with pytest.raises(OSError, match=rf"{name}' could not be written: File too large"):
            with video.VideoWriter(tmp_path / name, 8) as writer:
                writer.write(noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_colours_are_right_by_the_standard(tmp_path, suffix):
    """Flat patches, from the planes as they are stored, by BT.709's own formula: within two levels, and tagged."""
    for colour in [(215, 35, 40), (35, 165, 70), (40, 75, 220), (248, 248, 248), (0, 0, 0)]:
        [path] = video.Video(np.broadcast_to(np.uint8(colour), (1, 3, 32, 32, 3)), 8).save(tmp_path / f"a{suffix}")
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)
        assert frame.format.name == "yuv420p" and tags == (1, 1, 1, 1)
        y, cb, cr = (np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[4, 4] for plane in frame.planes)
        luma, blue, red = (float(y) - 16) / 219, (float(cb) - 128) / 224, (float(cr) - 128) / 224
        r, b = luma + 1.5748 * red, luma + 1.8556 * blue
        g = (luma - 0.2126 * r - 0.0722 * b) / 0.7152
        assert np.abs(255 * np.array([r, g, b]) - colour).max() <= 2


@pytest.mark.parametrize("suffix, error", [(".webp", 2.5), (".gif", 9)])
def test_animations_are_right_in_another_decoder(tmp_path, suffix, error):
    frames = clip(frames=16, height=33, width=47)
    [path] = video.Video(frames[None], 12.5).save(tmp_path / f"a{suffix}")
    with PIL.Image.open(path) as image:
        assert image.n_frames == 16 and image.info["loop"] == 0
        back, durations = [], []
        for i in range(16):
            image.seek(i)
            back.append(np.asarray(image.convert("RGB")))
            durations.append(image.info["duration"])
    assert np.abs(np.stack(back).astype(int) - frames).mean() < error and set(durations) == {80}
    [path] = video.Video(np.full((1, 2, 32, 32, 3), (215, 35, 40), np.uint8), 8).save(tmp_path / f"b{suffix}")
    assert np.abs(np.asarray(PIL.Image.open(path).convert("RGB")).astype(int) - (215, 35, 40)).max() <= 2


def test_a_name_without_a_suffix_is_a_folder_of_pngs(tmp_path):
    frames = clip(frames=3, height=33, width=47)
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        with video.VideoWriter(tmp_path / name, 8) as writer:
            writer.write(frames[:2])
            assert not (tmp_path / name / "00000.png").exists()
            writer.write(frames[2:])
        assert sorted(os.listdir(tmp_path / name)) == ["00000.png", "00001.png", "00002.png"]
        for i, frame in enumerate(frames):
            np.testing.assert_array_equal(video.read_image(tmp_path / name / f"0000{i}.png"), frame)
    with pytest.raises(IsADirectoryError, match="not empty"):
        video.VideoWriter(tmp_path / "new", 8)
    with pytest.raises(RuntimeError), video.VideoWriter(tmp_path / "broken", 8) as writer:
        writer.write(frames)
        raise RuntimeError
    assert sorted(os.listdir(tmp_path)) == ["empty", "new"]
    assert [p.name for p in video.Video(np.stack([frames] * 2), 8).save(tmp_path / "two")] == ["two-0", "two-1"]


def test_what_is_not_whole_lies_in_a_hidden_folder(tmp_path):
    with video.VideoWriter(tmp_path / "out.mp4", 8) as writer:
        writer.write(clip(frames=120))
        [partial] = os.listdir(tmp_path)
        assert partial.startswith(".cogvx-partial-")
    assert os.listdir(tmp_path) == ["out.mp4"]


def test_what_a_link_names_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    for name, aim in (("new.mp4", "far/new.mp4"), ("old.gif", "far/old.gif"), ("frames", "far/pictures")):
        (tmp_path / name).symlink_to(aim)
    (tmp_path / "far" / "old.gif").write_bytes(b"old")
    for name in ("new.mp4", "old.gif", "frames"):
        with video.VideoWriter(tmp_path / name, 8) as writer:
            writer.write(clip(frames=2))
        assert (tmp_path / name).is_symlink()
    assert (tmp_path / "far" / "old.gif").stat().st_size > 3 and (tmp_path / "far" / "new.mp4").stat().st_size > 0
    assert sorted(os.listdir(tmp_path / "far" / "pictures")) == ["00000.png", "00001.png"]
    (tmp_path / "lost.mp4").symlink_to("nowhere/lost.mp4")
    with pytest.raises(FileNotFoundError, match="nowhere' does not exist"):
        video.check_writable(tmp_path / "lost.mp4")


def test_check_writable(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "full" / "one").mkdir(parents=True)
    for name, error, match in [
        ("out.avi", ValueError, r"\.mp4, \.gif"),
        ("file", NotADirectoryError, "is a file"),
        ("full", IsADirectoryError, "not empty"),
        ("a\0.mp4", ValueError, "holds a NUL"),
        ("missing/out.mp4", FileNotFoundError, "does not exist"),
        ("file/out.mp4", NotADirectoryError, "is a file"),
        ("file/deeper/out.mp4", OSError, "file/deeper"),
        ("folder.mp4", IsADirectoryError, "is a folder"),
        ("x" * 300 + ".mp4", OSError, "name"),
    ]:
        with pytest.raises(error, match=match):
            video.check_writable(tmp_path / name)
    video.check_writable(tmp_path / "OUT.MP4")
    video.check_writable(tmp_path / "frames")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.mp4", "full"]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder not even root can write to")
def test_check_writable_where_nobody_can_write():
    with pytest.raises(PermissionError, match="cannot be written"):
        video.check_writable("/proc/self/out.mp4")


def test_read_image_converts(tmp_path):
    rgb = clip()[0]
    PIL.Image.fromarray(rgb).save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(video.read_image(tmp_path / "rgb.png"), rgb)
    np.testing.assert_array_equal(video.read_image(rgb), rgb)
    rgba = np.concatenate([rgb, rgb[..., :1]], -1)
    for source in (rgba, PIL.Image.fromarray(rgba)):
        np.testing.assert_array_equal(video.read_image(source), rgb)
    grey = rgb[..., 0]
    for source in (grey, grey[..., None], PIL.Image.fromarray(grey), PIL.Image.fromarray(grey.astype(np.uint16) * 257)):
        np.testing.assert_array_equal(video.read_image(source), np.stack([grey] * 3, -1))


def test_read_image_turns_upright(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored on its left side
    PIL.Image.fromarray(clip()[0]).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(video.read_image(str(tmp_path / "turned.png")), np.rot90(clip()[0], -1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I;16B"])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp", None])
def test_read_image_of_every_mode(tmp_path, mode, suffix):
    """The grey levels come out, of every kind of file that keeps the mode."""
    grey = np.tile(np.uint8([0, 255, 0, 255] if mode == "1" else [0, 60, 120, 240]), (16, 4))
    image = PIL.Image.fromarray(grey)
    if mode == "I;16":
        image = PIL.Image.fromarray(grey.astype(np.uint16) * 257)
    elif mode == "I;16B":
        image = PIL.Image.frombytes(mode, (16, 16), (grey.astype(np.uint16) * 257).astype(">u2").tobytes())
    else:
        image = image.convert("RGB").quantize(16).convert(mode) if mode in ("P", "PA") else image.convert(mode)
    source = image
    if suffix is not None:
        source = tmp_path / f"a{suffix}"
        try:
            image.save(source, **({"transparency": 1} if mode == "P" and suffix == ".png" else {}))
        except (OSError, ValueError, KeyError):
            return  # such files are not written
        if mode == "YCbCr" and suffix == ".tif" and PIL.__version__.startswith("12."):
            return  # nor can that Pillow read what it wrote
        if mode.startswith("I") and suffix in (".jpg", ".webp"):
            return  # PIL clips them on writing
    loss = 0 if suffix in (".png", None) else 6
    np.testing.assert_allclose(video.read_image(source), np.stack([grey] * 3, -1), atol=max(loss, 1))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_pictures_of_unknown_white_are_refused(tmp_path, kind):
    image = PIL.Image.fromarray(np.arange(256, dtype=kind).reshape(16, 16) * 1000)
    image.save(tmp_path / "a.tif")
    for source, where in ((tmp_path / "a.tif", "a.tif'"), (image, "the picture")):
        with pytest.raises(ValueError, match=f"{where} has pixels of 32 bits.*save it with 8 or 16 bits"):
            video.read_image(source)


def test_too_large_a_picture_is_called_that(tmp_path, monkeypatch):
    PIL.Image.new("L", (300, 300)).save(tmp_path / "a.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 40_000)
    with pytest.raises(ValueError, match="a.png' is too large a picture; it may have 80,000 pixels at most"):
        video.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("read", [video.read_image, video.read_video])
def test_read_errors(tmp_path, read):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match="is a folder, not a file"):
        read(tmp_path)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(ValueError, match="pipe.mp4' is a FIFO, not a file"):
        read(tmp_path / "pipe.mp4")
    (tmp_path / "lfs.mp4").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n")
    with pytest.raises(ValueError, match="lfs.mp4' is a git-lfs pointer.*`git lfs pull`"):
        read(tmp_path / "lfs.mp4")
    for content in (b"", b"not a picture" * 50):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as a"):
            read(str(tmp_path / "bad.mp4"))
    for array in (clip() / 255, np.zeros((0, 8, 8, 3), np.uint8), np.zeros((8, 8, 2), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            read(array)


def test_read_image_cut_short(tmp_path):
    PIL.Image.fromarray(clip()[0]).save(tmp_path / "cut.png")
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="cannot be read as a picture"):
        video.read_image(tmp_path / "cut.png")


def test_read_video_takes_frames_and_odd_names(tmp_path, monkeypatch):
    frames, fps = video.read_video(list(clip()))
    np.testing.assert_array_equal(frames, clip())
    assert fps is None
    monkeypatch.chdir(tmp_path)
    [path] = video.Video(clip()[None], 8).save("-a:b %d é.mp4")
    assert video.read_video(path)[0].shape == clip().shape


def test_fit_keeps_leading_axes_and_range():
    frames = clip()
    assert video.to_model_pixels(frames[0], 16, 32).shape == (16, 32, 3)
    out = video.to_model_pixels(frames[None], 48, 64)
    assert out.shape == (1, *frames.shape) and out.dtype == np.float32 and np.abs(out).max() <= 1
    np.testing.assert_array_equal(video.to_uint8(out)[0], frames)


def test_to_uint8_rounds_and_clips():
    pixels = np.float32([-9, -1, -1 + 0.9 / 255, -1 + 1.1 / 255, 0, 1, 9])
    np.testing.assert_array_equal(video.to_uint8(pixels), np.uint8([0, 0, 0, 1, 128, 255, 255]))
    levels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(video.to_uint8(levels / np.float32(255) * 2 - 1), levels)


def test_video_saves_one_file_per_clip(tmp_path):
    frames = np.stack([clip(seed=i) for i in range(3)])
    paths = video.Video(frames, 8).save(str(tmp_path / "out.mp4"))
    assert [p.name for p in paths] == sorted(os.listdir(tmp_path)) == ["out-0.mp4", "out-1.mp4", "out-2.mp4"]
    for path, wanted in zip(paths, frames, strict=True):
        assert np.abs(video.read_video(path)[0].astype(int) - wanted).mean() < 2.5


def test_video_in_a_notebook(tmp_path):
    shown = video.Video(np.stack([clip(), clip(seed=1)]), 8)
    assert repr(shown) == "Video(2 x 9 frames of 48x64, 8 fps, 1.1 s)"
    encoded = re.findall(
        r'<video controls loop autoplay muted[^>]* src="data:video/mp4;base64,([^"]+)"', shown._repr_html_()
    )
    assert len(encoded) == 2
    for data, wanted in zip(encoded, shown.frames, strict=True):
        (tmp_path / "clip.mp4").write_bytes(base64.b64decode(data))
        back, fps = video.read_video(tmp_path / "clip.mp4")
        assert fps == 8 and np.abs(back.astype(int) - wanted).mean() < 6


def test_a_notebook_holds_small_copies(tmp_path):
    large = video.Video(np.random.default_rng(0).integers(0, 256, (1, 2, 961, 1203, 3), dtype=np.uint8), 8)
    (data,) = re.findall('base64,([^"]+)"', large._repr_html_())
    (tmp_path / "clip.mp4").write_bytes(base64.b64decode(data))
    assert video.read_video(tmp_path / "clip.mp4")[0].shape == (2, 480, 600, 3)


def test_contact_sheet():
    frames = np.stack([clip(), clip(seed=1)])
    sheet = np.asarray(video.Video(frames, 8).contact_sheet(columns=3))
    assert sheet.shape == (2 * 48, 3 * 64, 3)
    np.testing.assert_array_equal(sheet[48:, 64:128], frames[1, 4])
    assert video.Video(frames, 8).contact_sheet().size == (8 * 64, 2 * 48)
    with pytest.raises(ValueError, match="columns"):
        video.Video(frames, 8).contact_sheet(columns=10)


def test_video_checks_its_frames():
    with pytest.raises(ValueError, match=r"uint8 \(B, F, H, W, 3\)"):
        video.Video(clip(), 8)


def test_the_same_frames_are_the_same_file(tmp_path):
    """A noisy disc that moves: with x264's mbtree 14 files of it were of 11 kinds."""
    y, x = np.mgrid[:64, :64]
    disc = np.stack([(y - 32) ** 2 + (x - 16 - 2 * i) ** 2 < 100 for i in range(17)])[..., None]
    noise = np.random.default_rng(0).normal(0, 3, (17, 64, 64, 3))
    frames = np.clip(np.where(disc, [220, 40, 40], [250, 250, 250]) + noise, 0, 255).astype(np.uint8)
    files = [tmp_path / f"{i}.mp4" for i in range(8)]
    for file in files:
        with video.VideoWriter(file, fps=8) as writer:
            writer.write(frames)
    assert len({file.read_bytes() for file in files}) == 1
