"""Finishing onto a disk without room, of the command and of `generate`: a sentence, and nothing that is not whole.

A limit on the size of any file stands for the disk.
"""

import contextlib
import resource
from pathlib import Path

import numpy as np
import pytest
from test_cli import fails, run
from test_finishing import weights  # noqa: F401 (a fixture)
from test_finishing_resumed import frames_of, hidden

from cogvx_jax.data.video import Video, read_video
from cogvx_jax.finishing.finish import finish_file

SHORT = ["--steps", "1", "--size", "32x48", "--frames", "9", "--no-progress"]


@contextlib.contextmanager
def room(size):
    """No file of this process has more bytes than `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """20 frames of noise at 8 a second: two fragments."""
    path = tmp_path_factory.mktemp("source") / "x.mp4"
    Video(np.random.default_rng(0).integers(0, 256, (1, 20, 32, 48, 3), np.uint8), 8).save(path)
    return path


@pytest.mark.parametrize("name", ["y.mp4", "y.mkv"])
def test_what_is_whole_stays_and_the_same_command_goes_on(source, tmp_path, name):
    other, out = tmp_path / "other", tmp_path / name
    other.mkdir()
    finish_file(source, other / name)
    whole = other / name
    for size in (500, whole.stat().st_size - 1):  # the first fragment has no room; then what all of them become
        with room(size), pytest.raises(OSError, match=rf"^'{out}' could not be written: File too large") as failed:
            finish_file(source, out)
        assert not out.exists()
        assert ("the same command goes on after it" in str(failed.value)) == bool(hidden(tmp_path)) == (size > 500)
    resumed = []
    finish_file(source, out, on_resumed=resumed.append)
    assert resumed and resumed[0] > 0
    np.testing.assert_equal(frames_of(out), frames_of(whole))
    assert not hidden(tmp_path)


@pytest.mark.parametrize("name", ["pictures", "y.gif"])
def test_pictures_without_room_leave_nothing(source, tmp_path, name):
    with room(500), pytest.raises(OSError, match=f"^'{tmp_path / name}' could not be written: File too large$"):
        finish_file(source, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_the_command_says_so(source, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("y.mp4").write_text("before")
    with room(500):
        said = fails("finish", source, "--out", "y.mp4", "--no-progress", monkeypatch=monkeypatch, capsys=capsys)
    assert "cogvx: 'y.mp4' could not be written: File too large" in said and "Traceback" not in said
    assert Path("y.mp4").read_text() == "before" and [path.name for path in tmp_path.iterdir()] == ["y.mp4"]


@pytest.mark.full
def test_generate_keeps_the_video_as_it_was_where_that_has_room(weights, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    finish = f"scale=3,codec=ffv1,upscaler={weights['upscaler']}"  # without loss, so much larger
    asked = ["generate", "a star", "--out", "a.mkv", "--finish", finish, *SHORT]
    run(*asked, monkeypatch=monkeypatch)
    size = Path("a.mkv").stat().st_size
    Path("a.mkv").unlink()
    with room(size // 2):
        said = fails(*asked, monkeypatch=monkeypatch, capsys=capsys)
    assert "finishing failed, and the video as it was before finishing is a-unfinished" in said
    assert "'a.mkv' could not be written: File too large" in said and "Traceback" not in said
    [spare] = tmp_path.iterdir()
    assert spare.stem == "a-unfinished" and read_video(spare)[0].shape == (9, 32, 48, 3)
    spare.unlink()
    with room(100):
        said = fails(*asked, monkeypatch=monkeypatch, capsys=capsys)
    assert "File too large" in said and "Traceback" not in said and not Path("a.mkv").exists()
    assert not list(tmp_path.glob("*unfinished*"))
