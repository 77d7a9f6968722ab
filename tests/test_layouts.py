"""The layouts of captioned videos, what is wrong with them, and clips read from their files."""

import json
import os
import re
import subprocess
import sys
import tarfile
import time
import unicodedata

import numpy as np
import PIL.Image
import pytest
from test_time_stamps import turned

from cogvx_jax.data import decode
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


def test_tables_of_other_trainers(files, tmp_path):
    wanted = [("a.mp4", "one", None), ("b.mp4", "two, “2”", None)]
    hub, fun, synth, old = (tmp_path / name for name in ("hub", "fun", "synth", "old"))
    for folder in (hub, fun, synth, old / "train"):
        write(folder, a_mp4="A", b_mp4="B")
    (hub / "metadata.csv").write_text('file_name,label,text\na.mp4,7,one\nb.mp4,8,"two, “2”"\n')
    assert listed(hub) == listed(hub / "metadata.csv") == wanted
    (hub / "metadata.csv").unlink()
    rows = [{"file_name": v, "caption": p, "label": 7} for v, p, _ in wanted]
    (hub / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert listed(hub) == wanted
    rows = [{"file_path": v, "text": p, "type": "video"} for v, p, _ in wanted]
    (fun / "metadata.json").write_text(json.dumps(rows))
    assert listed(fun) == listed(fun / "metadata.json") == wanted
    (synth / "metadata.csv").write_text('video,prompt\na.mp4,one\nb.mp4,"two, “2”"\n')
    assert listed(synth) == wanted
    (old / "metadata.csv").write_text('file_name,text\na.mp4,one\nb.mp4,"two, “2”"\n')
    (old / "metadata.jsonl").write_text("")
    assert "has metadata.jsonl and metadata.csv; keep one of" in said(old)
    (old / "metadata.jsonl").unlink()
    assert listed(old) == wanted and read_sources(old)[0].video == old / "train" / "a.mp4"


def test_captions_beside_their_videos(files, tmp_path):
    write(files, a_txt="one\nnot read", b_json=json.dumps({"caption": "two"}), README_md="not a caption")
    (files / "b.png").unlink()
    assert listed(files) == [("a.mp4", "one", "a.png"), ("b.mp4", "two", None)]
    write(files, c_jpg="C", c_txt="three")
    assert listed(files)[2] == ("c.jpg", "three", None)
    assert "1 of 4 samples have no caption" in said(write(files, d_webm="D"))
    write(files, d_txt="four", e_txt="five")
    assert "1 of 5 samples have no video, the first is" in said(files)
    (files / "e.txt").unlink()
    assert "1 of 4 samples have several videos or several pictures" in said(write(files, d_mp4="D"))


def test_accents_are_found_composed_or_not(tmp_path):
    for stored, named in (
        (unicodedata.normalize(form, "é") for form in forms) for forms in (("NFC", "NFD"), ("NFD", "NFC"))
    ):
        folder = tmp_path / stored.encode().hex()
        folder.mkdir()
        (folder / f"{stored}.mp4").touch()
        (folder / "l.jsonl").write_text(json.dumps({"video": f"{named}.mp4", "prompt": "x"}), "utf-8")
        (folder / "videos.txt").write_text(f"{named}.mp4", "utf-8")
        (folder / "prompts.txt").write_text("x")
        for path in (folder / "l.jsonl", folder):
            assert [s.video for s in read_sources(path)] == [folder / f"{stored}.mp4"]
        sat = folder / "sat"
        for file in (sat / "videos" / f"{stored}.mp4", sat / "labels" / f"{named}.txt"):
            file.parent.mkdir(parents=True)
            file.write_text("x")
        assert len(read_sources(sat)) == 1


def test_lines_end_where_editors_end_them(tmp_path):
    prompts = ["one\u2028still one", "two\x0cstill two", "three\x85still", "four\x1cstill", "five\rstill"]
    for i in range(5):
        (tmp_path / f"{i}.mp4").touch()
    for end in ("\n", "\r\n"):
        for mark in ("", "\ufeff"):
            (tmp_path / "prompts.txt").write_bytes((mark + end.join(prompts) + end).encode())
            (tmp_path / "videos.txt").write_bytes((mark + end.join(f"{i}.mp4" for i in range(5)) + end * 3).encode())
            assert [s.prompt for s in read_sources(tmp_path)] == prompts
    rows = [json.dumps({"video": "0.mp4", "prompt": prompt}, ensure_ascii=False) for prompt in prompts[:3]]
    (tmp_path / "l.jsonl").write_bytes("\n\n".join(rows).encode())
    assert [s.prompt for s in read_sources(tmp_path / "l.jsonl")] == prompts[:3]
    table = "video,prompt\n" + "".join(f"0.mp4,{prompt}\n" for prompt in prompts[:4])
    (tmp_path / "l.csv").write_bytes(table.encode())
    assert [s.prompt for s in read_sources(tmp_path / "l.csv")] == prompts[:4]


@pytest.mark.full
def test_text_is_utf_8_whatever_the_locale(files):
    row = json.dumps({"video": "a.mp4", "prompt": "é “2”"}, ensure_ascii=False)
    (files / "l.jsonl").write_bytes(row.encode())
    code = f"from pathlib import Path; from cogvx_jax.data.layouts import read_sources as r; p = Path({str(files)!r})"
    code += "; assert ascii(r(p / 'l.jsonl')[0].prompt) == ascii('\\xe9 \\u201c2\\u201d')"
    plain = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | plain)


def test_other_encodings_are_refused(files):
    for encoding in ("utf-16", "utf-16-le", "latin-1", "cp1252"):
        (files / "l.jsonl").write_bytes(
            json.dumps({"video": "a.mp4", "prompt": "é"}, ensure_ascii=False).encode(encoding)
        )
        assert re.search(r"l\.jsonl is (UTF-16|not UTF-8|no) text.*; save it as UTF-8", said(files / "l.jsonl"))


@pytest.mark.parametrize(
    "line, problem",
    [
        (
            '{"video": "a.mp4", "prompt": 5}',
            "1 of 2 lines have no text as prompt, the first is line 2",
        ),
        (
            '{"video": ["a.mp4"], "prompt": "x"}',
            "1 of 2 lines have no text as video, the first is line 2",
        ),
        (
            '{"video": "a.mp4", "prompt": "x", "image": 5}',
            "lines have no text as image, the first is line 2",
        ),
        ('{"video": "a.mp4", "prompt": "x", "image": false}', "lines have no text as image"),
        ('{"video": "a.mp4", "prompt": null}', "1 of 2 lines have no prompt, the first is line 2"),
        ('{"video": "a.mp4", "prompt": "x", "score": NaN}', "line 2 is not JSON, the number NaN in it is not finite"),
        (
            '{"video": "a.mp4", "prompt": "x", "score": -Infinity}',
            "the number -Infinity in it is not finite",
        ),
        (
            '{"video": "a.mp4", "prompt": "x", "score": 1e999}',
            "the number 1e999 in it is not finite",
        ),
        ('{"video": "a.mp4", "prompt": "x", "prompt": "y"}', "line 2 is not JSON, the key 'prompt' stands in it twice"),
        ('{"video": "a.mp4", "prompt": "\\ud800"}', "line 2 is not JSON, it holds half of a character"),
        (
            '{"video": "a.mp4", "prompt": "x", "a": ' + "[" * 10**5,
            "it is nested too deep",
        ),
        ('{"video": "a.mp4", "prompt": "x", "a": ' + "9" * 5000 + "}", "line 2 is not JSON"),
        ('{"video": "a.mp4" "prompt": "x"}', "line 2 is not JSON, Expecting ',' delimiter: line 1 column 19"),
        ('"a.mp4"', "1 of 2 lines are no JSON objects, the first is line 2"),
    ],
)
def test_wrong_json_names_file_and_line(files, line, problem):
    (files / "l.jsonl").write_text('{"video": "a.mp4", "prompt": "x"}\n' + line)
    assert problem in said(files / "l.jsonl") and "l.jsonl" in said(files / "l.jsonl")
    assert len(said(files / "l.jsonl")) < 500


@pytest.mark.parametrize(
    "table, problem",
    [
        (
            "video,prompt\nb.mp4,x\na.mp4,a dog, a cat\n",
            'more fields than the first one; put .*"quotes", the first is line 3',
        ),
        ("video,prompt,id\nb.mp4,x,1\na.mp4,x\n", "1 of 2 lines have fewer fields than the 3 .*, the first is line 3"),
        ('video,prompt\na.mp4,"x\ny"\nb.mp4,\n', "1 of 2 lines have no prompt, the first is line 4"),
        ('video,prompt\na.mp4,"x\nb.mp4,y\n', "line 2 is not CSV: unexpected end of data"),
        ('video,prompt\na.mp4,"x" y\n', "line 2 is not CSV: ',' expected after '\"'"),
        ("video,prompt,prompt\na.mp4,x,y\n", "1 of 3 columns have the same name as another, the first is prompt"),
        ("video;prompt\na.mp4;x\n", "has no column video and no column prompt, but video;prompt"),
        ("", "has no column video and no column prompt, but none"),
    ],
)
def test_no_part_of_a_table_vanishes(files, table, problem):
    (files / "l.csv").write_text(table)
    assert re.search(problem, said(files / "l.csv"))


def test_prompts_of_tables_count_whole(files):
    (files / "l.csv").write_text('video , prompt\n\na.mp4,"a ""dog"", a cat\n  and more"\n')
    assert listed(files / "l.csv") == [("a.mp4", 'a "dog", a cat\n  and more', None)]


@pytest.mark.parametrize(
    "pattern, problem",
    [
        ("d-{0..99999999}.tar", "names 100,000,000 files; 100,000 are the most"),
        ("d-{0..999}-{0..999}.tar", "names 1,000,000 files"),
        ("d-{9..0}.tar", "a range that counts down"),
        ("d-{0.." + "9" * 200 + "}.tar", "files; 100,000 are the most"),
    ],
)
def test_patterns_are_bounded(tmp_path, pattern, problem):
    began = time.monotonic()
    assert problem in said(tmp_path / pattern)
    assert time.monotonic() - began < 1


def test_what_is_no_file_is_said(files, tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    assert "pipe.jsonl is neither a file nor a folder" in said(tmp_path / "pipe.jsonl")
    (tmp_path / "f" / "prompts.txt").mkdir(parents=True)
    assert "prompts.txt' is a folder, not a file" in said(tmp_path / "f")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"
    for name in ("l.jsonl", "l.csv", "l.json", "l.tar"):
        (files / name).write_text(pointer)
        assert "is a git-lfs pointer" in said(files / name) and name in said(files / name)
        (files / name).unlink()
    (files / "a.mp4").write_text(pointer)
    tar = write_tar(tmp_path / "t.tar", files / "a.mp4", write(files, a_txt="one") / "a.txt")
    for source in (files / "a.mp4", read_sources(tar)[0].video):
        with pytest.raises(ValueError, match="a.mp4' is a git-lfs pointer"):
            read_clip(source, **SHAPE)


def said(path):
    """The sentence with which a layout is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as refused:
        read_sources(path)
    return str(refused.value)


def test_what_is_missing_is_said_in_one_sentence(files, tmp_path):
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
    decoded, shown = [], []
    original, convert = decode._decode, decode._Converter.__call__
    monkeypatch.setattr(decode, "_decode", lambda *a: (decoded.append(1) or frame for frame in original(*a)))
    monkeypatch.setattr(decode._Converter, "__call__", lambda *a: shown.append(1) or convert(*a))
    numbered(tmp_path / "a.mp4")
    clip = read_clip(tmp_path / "a.mp4", **SHAPE)
    np.testing.assert_allclose(clip.mean((1, 2, 3)), 12 * np.arange(9) + 20, atol=3)
    assert len(decoded) == 25 and len(shown) == 9  # of 48


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
    (tmp_path / "tall.mp4").write_bytes(turned((tmp_path / "wide.mp4").read_bytes()))
    wide, tall = (read_clip(tmp_path / f"{name}.mp4", **SHAPE)[4].mean(-1) for name in ("wide", "tall"))
    np.testing.assert_allclose(tall, np.rot90(wide), atol=3)
    assert wide[:, 10:22].min() > 190 and wide[:, :6].max() < 10
    assert capfd.readouterr().err == ""


def test_scores_of_lists_come_along(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    row = {"video": "a.mp4", "prompt": "a", "motion_mean": 2.5, "camera": "pan", "text_area": None, "boxes": [1]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    wanted = {"motion_mean": 2.5, "camera": "pan", "text_area": None}
    assert read_sources(tmp_path / "a.jsonl")[0].scores == wanted
    (tmp_path / "a.csv").write_text("video,prompt,motion_mean,camera,text_area\na.mp4,a,2.5,pan,\n")
    assert read_sources(tmp_path / "a.csv")[0].scores == wanted
