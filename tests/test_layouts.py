"""The layouts of captioned videos, what is wrong with them, and clips read from their files."""

import json
import subprocess
import tarfile

import imageio_ffmpeg
import numpy as np
import PIL.Image
import pytest

from cogvx_jax.data import video
from cogvx_jax.data.clips import TooShort, read_clip
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.data.video import VideoWriter


def write(folder, **files):
    """Files by name, `__` for a folder and `_` for a dot; None makes an empty one."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or "")
    return folder


def write_tar(path, *files):
    with tarfile.open(path, "w") as tar:
        for file in files:
            tar.add(file, file.name)
    return path


def listed(path):
    """What a layout lists, with names in place of files."""
    return [(s.video.name, s.prompt, s.image and s.image.name) for s in read_sources(path)]


@pytest.fixture
def files(tmp_path):
    return write(tmp_path, a_mp4="A", b_mp4="B", a_png="a", b_png="b")


def test_every_layout_lists_the_same(files, tmp_path):
    plain, images = [("a.mp4", "one", None), ("b.mp4", "two, “2”", None)], ["a.png", "b.png"]
    given = [(*row[:2], image) for row, image in zip(plain, images, strict=True)]
    rows = [{"video": v, "prompt": p} for v, p, _ in plain]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    assert listed(tmp_path / "l.jsonl") == plain
    full = [row | {"image": image} for row, image in zip(rows, images, strict=True)]
    (tmp_path / "i.jsonl").write_text("\n".join(map(json.dumps, full)))
    assert listed(tmp_path / "i.jsonl") == given
    (tmp_path / "l.csv").write_bytes('\ufeffid,prompt,video\r\n1,one,a.mp4\r\n2,"two, “2”",b.mp4\r\n'.encode())
    assert listed(tmp_path / "l.csv") == plain
    (tmp_path / "i.csv").write_text('video,image,prompt\na.mp4,a.png,one\nb.mp4,b.png,"two, “2”"\n')
    assert listed(tmp_path / "i.csv") == given
    write(tmp_path / "lists", prompt_txt="one\ntwo, “2”\n\n", videos_txt="../a.mp4\r\n../b.mp4\r\n")
    assert listed(tmp_path / "lists") == plain
    write(tmp_path / "lists", images_txt="../a.png\n../b.png\n")
    assert listed(tmp_path / "lists") == given
    sat = write(tmp_path / "sat", videos__a_mp4="A", videos__x__b_mp4="B")
    write(sat, labels__a_txt="one\nnot read", labels__x__b_txt="two, “2”")
    assert listed(sat) == plain

    tars = write(tmp_path / "tars", a_txt="one", b_json=json.dumps({"caption": "two, “2”"}))
    write_tar(tars / "d-00.tar", files / "a.mp4", tars / "a.txt")
    write_tar(tars / "d-01.tar", tars / "b.json", files / "b.mp4")
    for path in (tars, tars / "d-*.tar", tars / "d-{00..01}.tar"):
        assert listed(path) == plain
    assert listed(tars / "d-01.tar") == plain[1:]
    write_tar(tars / "i.tar", files / "a.png", tars / "a.txt", files / "b.mp4", tars / "b.json", files / "b.png")
    assert listed(tars / "i.tar") == [("a.png", "one", None), ("b.mp4", "two, “2”", "b.png")]


def test_what_is_missing_is_said_in_one_sentence(files, tmp_path):
    def said(path):
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            read_sources(path)
        return str(refused.value)

    folder = tmp_path / "f"
    folder.mkdir()
    assert "has none of the layouts known" in said(folder) and "videos/NAME.mp4" in said(folder)
    assert "there is no" in said(tmp_path / "none") and "data-{000..009}.tar" in said(tmp_path / "none")
    assert "is none of the layouts known" in said(files / "a.mp4")
    write(folder, prompts_txt="a\nb\n")
    assert "has no videos.txt" in said(folder)
    write(folder, videos_txt="../a.mp4\n../c.mp4\n")
    assert "1 of 2 videos are not there, the first is" in said(folder) and said(folder).endswith("c.mp4")
    write(folder, images_txt="../a.png\n")
    assert "has 2 prompts, 2 videos, 1 images; their lines belong together" in said(folder)
    write(folder, prompts_txt="a\n\nc\n")
    assert "prompts.txt: 1 of 3 lines are empty, the first is line 2" in said(folder)
    write(folder, labels__a_txt="x")
    assert "has lists of lines and labels/; keep one of" in said(folder)

    sat = write(tmp_path / "sat", videos__a_mp4="", videos__b_mp4="", videos__b_webm="", labels__c_txt="")
    assert "1 of 3 files share their name with another, the first is" in said(sat)
    (sat / "videos" / "b.webm").unlink()
    assert "2 of 2 videos have no file of their name in labels/, the first is a" in said(sat)
    write(sat, labels__a_txt="x", labels__b_txt="\n\n")
    assert "1 of 3 labels have no file of their name in videos/, the first is c" in said(sat)
    (sat / "labels" / "c.txt").unlink()
    assert "1 of 2 labels are empty" in said(sat) and said(sat).endswith("b.txt")

    (tmp_path / "x.csv").write_text("file,prompt\na.mp4,x\n")
    assert "has no column video, but file, prompt" in said(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("video,prompt\na.mp4,x\nb.mp4\nb.mp4,\n")
    assert "2 of 3 lines have no prompt, the first is line 3" in said(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_text("video,prompt,image\na.mp4,x,a.png\nb.mp4,y,\n")
    assert "1 of 2 lines have no image, though others do, the first is line 3" in said(tmp_path / "x.csv")
    (tmp_path / "x.csv").write_bytes("video,prompt\na.mp4,é\n".encode("latin-1"))
    assert "is not UTF-8 text" in said(tmp_path / "x.csv")
    (tmp_path / "x.jsonl").write_text('{"video": "a.mp4", "prompt": "x"}\n[]\n')
    assert "1 of 2 lines are no JSON objects, the first is line 2" in said(tmp_path / "x.jsonl")

    tars = write(tmp_path / "t", a_txt="one", c_json='{"caption": null}')
    write_tar(tars / "0.tar", files / "a.mp4", files / "b.mp4", tars / "a.txt")
    assert "1 of 2 samples have no caption" in said(tars / "0.tar") and said(tars / "0.tar").endswith("0.tar/b")
    write_tar(tars / "1.tar", files / "a.mp4", tars / "a.txt", tars / "c.json")
    assert "1 of 2 samples have no video, the first is" in said(tars / "1.tar")
    assert "1 of 4 samples have no video" in said(tars)
    assert "1 of 3 tars are not there, the first is" in said(tars / "{0..2}.tar")
    write_tar(tars / "2.tar", files / "a.mp4", files / "a.mp4", tars / "a.txt")
    assert "holds 1 of 3 files twice, the first is a.mp4" in said(tars / "2.tar")
    (tars / "2.tar").write_bytes((tars / "2.tar").read_bytes()[:700])
    assert "is no whole uncompressed tar" in said(tars / "2.tar")


def numbered(path, frames=48, fps=24, height=32, width=48, **options):
    """A video whose frame i has the grey level 4 i + 20."""
    grey = 4 * np.arange(frames, dtype=np.uint8)[:, None, None, None] + 20
    with VideoWriter(path, fps) as writer:
        writer.write(np.broadcast_to(grey, (frames, height, width, 3)).copy())
    return path


SHAPE = {"frames": 9, "fps": 8, "height": 32, "width": 32}


def test_members_of_tars_are_read_in_place(tmp_path):
    numbered(tmp_path / "a.mp4")
    write(tmp_path, a_txt="one", b_txt="two")
    PIL.Image.new("RGB", (50, 40), (10, 20, 30)).save(tmp_path / "b.webp")
    tar = write_tar(tmp_path / "o'd: %d {d}.tar", *(tmp_path / name for name in ("b.txt", "a.mp4", "a.txt", "b.webp")))
    picture, clip = read_sources(tar)
    np.testing.assert_array_equal(read_clip(clip.video, **SHAPE), read_clip(tmp_path / "a.mp4", **SHAPE))
    pixels = read_clip(picture.video, **SHAPE | {"frames": 1})
    assert pixels.shape == (1, 32, 32, 3) and np.abs(pixels.astype(int) - (10, 20, 30)).max() < 9
    with pytest.raises(TooShort, match="a picture is one frame, too short for 9"):
        read_clip(picture.video, **SHAPE)


def test_no_more_is_decoded_than_is_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(video.np, "frombuffer", lambda *a, f=np.frombuffer: asked.append(1) or f(*a))
    numbered(tmp_path / "a.mp4")
    clip = read_clip(tmp_path / "a.mp4", **SHAPE)
    np.testing.assert_allclose(clip.mean((1, 2, 3)), 12 * np.arange(9) + 20, atol=3)
    assert len(asked) == 25  # of 48


def test_broken_videos_are_told_from_short_ones(tmp_path):
    """Damage shows, even where ffmpeg would make frames up."""
    noise = np.random.default_rng(0).integers(0, 255, (48, 32, 48, 3), np.uint8)
    with VideoWriter(tmp_path / "whole.mp4", 24) as writer:
        writer.write(noise)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 3])
    half = len(data) // 4
    (tmp_path / "hurt.mp4").write_bytes(
        data[:half] + bytes(b ^ 85 for b in data[half : half + 3000]) + data[half + 3000 :]
    )
    for name in ("cut", "hurt"):
        with pytest.raises(ValueError, match="breaks off after .* of about 48 frames"):
            read_clip(tmp_path / f"{name}.mp4", **SHAPE)
    assert len(read_clip(tmp_path / "cut.mp4", **SHAPE | {"frames": 2})) == 2
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(ValueError, match="the file is empty"):
        read_clip(tmp_path / "empty.mp4", **SHAPE)
    with pytest.raises(TooShort, match="48 frames at 24 fps are too short for 17 at 8 fps"):
        read_clip(tmp_path / "whole.mp4", **SHAPE | {"frames": 17})
    (tmp_path / "text.mp4").write_text("not a video")
    with pytest.raises(ValueError, match="cannot be read as a video"):
        read_clip(tmp_path / "text.mp4", **SHAPE)


def test_turned_and_tall_videos_are_cropped_upright(tmp_path, capfd):
    """A phone's video is stored lying, with a tag that turns it: its middle is what is kept."""
    frames = np.zeros((9, 32, 64, 3), np.uint8)
    frames[:, :, 24:40] = 200  # a bar that stands upright
    with VideoWriter(tmp_path / "wide.mp4", 8) as writer:
        writer.write(frames)
    turn = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-display_rotation", "90", "-i", tmp_path / "wide.mp4"]
    subprocess.run([*turn, "-c", "copy", tmp_path / "tall.mp4"], check=True)
    wide, tall = (read_clip(tmp_path / f"{name}.mp4", **SHAPE)[4].mean(-1) for name in ("wide", "tall"))
    np.testing.assert_allclose(tall, np.rot90(wide), atol=3)
    assert wide[:, 10:22].min() > 190 and wide[:, :6].max() < 10
    assert capfd.readouterr().err == ""
