"""Videos that are finished while they are decoded: by flag, prompts file, keyword and record; where it fails."""

import json
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_cli import fails, run
from test_finishing import weights  # noqa: F401

import cogvx_jax as cx
from cogvx_jax.cli import finished
from cogvx_jax.data.comments import read_tags
from cogvx_jax.data.decode import stream_video
from cogvx_jax.data.sound import has_sound
from cogvx_jax.data.video import read_video
from cogvx_jax.finishing import finish as finishing
from cogvx_jax.finishing.asked import Finishing, parse_finishing
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.packaged import INTERPOLATORS, UPSCALERS
from cogvx_jax.finishing.spare import Spared, spare_place, with_spare
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.pipelines.request import check_request

SHORT = ["--steps", "1", "--size", "32x48", "--frames", "9", "--no-progress"]


@pytest.mark.parametrize(
    "asked", ["scale=2,fps=32", {"scale": 3, "audio": "a,b.wav", "fade": 1}, "hold,fps=60000/1001,codec=hevc,crf=20"]
)
def test_what_is_asked_is_read_back(asked):
    found = parse_finishing(asked)
    assert parse_finishing(json.loads(json.dumps(found.as_json))) == found
    options = Options(finish=asked)
    assert options.finish == found and Options(**as_json(options)).finish == found


@pytest.mark.parametrize(
    "asked, said",
    [
        ("scle=2", r"finish knows no 'scle' \(meant is perhaps scale\); it takes scale, size"),
        ("", "finish is empty"),
        ("scale=two", "scale of finish must be a whole number, got 'two'"),
        ("scale=7", "scale must be one of 1, 2, 3, 4, got 7"),
        ("scale=2,scale=3", "finish says scale twice"),
        ("hold=perhaps", "hold of finish must be true or false"),
        ({"scale": 2.5}, "scale of finish must be a whole number, got 2.5"),
        ({"keep_sound": True}, "finish knows no 'keep_sound'"),
        ("fade=1", "loop, fade and loudness are about sound; give audio"),
        (7, "finish must be text such as scale=2,fps=32, or a mapping, got 7"),
    ],
)
def test_what_cannot_be_asked(asked, said):
    with pytest.raises(ValueError, match=said):
        Options(finish=asked)


def test_files_that_finishing_names_are_moved_by_replays():
    found = parse_finishing({"scale": 2, "upscaler": "a.pth", "audio": "b.wav"}).with_paths(lambda path: f"new/{path}")
    assert (found.pictures.upscaler, found.pictures.interpolator) == ("new/a.pth", "rife")
    assert found.file.audio == "new/b.wav"


def test_a_request_is_checked_before_any_work(weights, monkeypatch):  # noqa: F811
    spec = cx.load_spec("tiny")

    def check(**asked):
        return check_request(spec, "a star", Options(finish=asked))

    with pytest.raises(ValueError, match="fps must be at least the video's own 8, got 4"):
        check(fps=4)
    with pytest.raises(ValueError, match="sides of 1 to 16384"):
        check(size="3x16384", fit="crop", scale=1, fps=8.0) and check(size="99999x99999")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.pth"):
        check(scale=2, upscaler="nowhere.pth")
    with pytest.raises(FileNotFoundError, match=r"no file nowhere\.wav, which finish names as audio"):
        check(codec="hevc", audio="nowhere.wav")
    known = Finishing(pictures=Finish(scale=2, fps=32))
    monkeypatch.setitem(UPSCALERS, "animevideov3", UPSCALERS["x4plus"]._replace(places=()))
    monkeypatch.setitem(INTERPOLATORS, "rife", INTERPOLATORS["rife"]._replace(places=()))
    with pytest.raises(FileNotFoundError, match=r"pip install 'cogvx_jax\[finish\]'"):
        known.check(64, 64, Fraction(8))


@pytest.mark.full
def test_frames_go_on_into_the_file(weights, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    asked = {"scale": 2, "fps": 16, **weights}
    line = {"prompt": "a star", "out": "large.mkv", "seed": 3, "finish": asked}
    Path("lines.jsonl").write_text(json.dumps(line) + "\n")
    run("generate", "--prompts-file", "lines.jsonl", *SHORT, monkeypatch=monkeypatch)
    assert "large.mkv: 17 frames of 64x96 at 16 fps" in capsys.readouterr().out
    assert not list(Path().glob("*unfinished*")) and not list(Path().glob("*.latents.*"))
    record = read_record("large.mkv")
    assert record.options["finish"] == asked
    [step] = record.finished
    assert step["options"]["scale"] == 2 and set(step["weights"]) == {"upscaler", "interpolator"}
    frames, fps = read_video("large.mkv")
    # The same in Python, where the pictures are those before the encoder.
    model = cx.load("tiny")
    how = dict(height=32, width=48, num_frames=9, num_inference_steps=1, seed=3, progress=False)
    whole = cx.generate(model, "a star", finish=asked, **how)
    assert whole.frames.shape == (1, *frames.shape) and whole.fps == fps == 16
    assert np.abs(np.float32(whole.frames[0]) - frames).mean() < 1
    plain = cx.generate(model, "a star", **how)
    again = cx.finish(plain, scale=2, fps=16, **weights)
    np.testing.assert_array_equal(whole.frames, again.frames)
    with monkeypatch.context() as broken:
        broken.setattr(finishing, "finished_pictures", None)
        with pytest.raises(TypeError) as failed:
            cx.generate(model, "a star", finish=asked, **how)
    np.testing.assert_array_equal(failed.value.video.frames, plain.frames)
    with pytest.raises(ValueError, match="codec of finish is of a file"):
        cx.generate(model, "a star", finish="codec=hevc", **how)
    with pytest.raises(ValueError, match="finish is of frames, and output is 'latents'"):
        cx.generate(model, "a star", finish={"scale": 2, **weights}, output="latents", **how)


def test_what_a_file_cannot_be_is_said_first(weights, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)

    def said(finish, out):
        return fails(
            "generate", "a star", "--out", out, "--finish", finish, *SHORT, monkeypatch=monkeypatch, capsys=capsys
        )

    assert "must end in one of .mov for prores" in said("codec=prores", "a.mp4")
    assert "codec needs a file that ends in" in said("codec=h264", "a.gif")
    assert "codec must be one of h264" in said("codec=divx", "a.mp4")
    assert not list(Path().iterdir())


def test_who_makes_sound_is_no_option_of_a_line(tmp_path):
    """A prompts file may be a stranger's, and so may a record that is replayed."""
    for said in ("sound_from=os:abort", {"sound_from": "http://127.0.0.1/"}):
        with pytest.raises(ValueError, match="finish knows no 'sound_from'"):
            Options(finish=said)
    heard = parse_finishing("fps=16").heard("tones", "rain", 3)
    assert (heard.file.sound_from, heard.file.sound_prompt, heard.file.sound_seed) == ("tones", "rain", 3)
    with pytest.raises(ValueError, match=r"finish names a\.wav as audio, and sound_from makes another"):
        parse_finishing("audio=a.wav").heard("tones", "", 0)
    with pytest.raises(ValueError, match="sound_from must be tones"):
        parse_finishing("fps=16").heard("bell", "", 0)


@pytest.mark.full
def test_a_video_is_made_with_sound(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("makers.py").write_text("def fails(scene):\n    raise ValueError('no ideas')\n")
    sound = ["generate", "a star", "--out", "a.mp4", *SHORT, "--sound-from"]
    run(*sound, "tones", monkeypatch=monkeypatch)
    assert has_sound("a.mp4") and not list(Path().glob("*unfinished*"))
    record = read_record("a.mp4")
    assert record.options["finish"] is None and record.finished[0]["sound"]["prompt"] == "a star"
    capsys.readouterr()
    said = fails(*sound, "makers:fails", monkeypatch=monkeypatch, capsys=capsys)
    assert "'a.mp4' is whole but for its sound: the maker of sound makers:fails failed: ValueError: no ideas" in said
    assert not has_sound("a.mp4") and not list(Path().glob("*.latents.*"))
    said = fails(*sound, "bell", monkeypatch=monkeypatch, capsys=capsys)
    assert "sound_from must be tones, module:function, or an address" in said


@pytest.mark.full
def test_the_video_before_is_kept_where_finishing_fails(weights, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    real = finishing.finished_pictures

    def broken(job, *begin):
        yield next(real(job, *begin))
        raise MemoryError("no room on the device")

    monkeypatch.setattr(finishing, "finished_pictures", broken)
    finish = f"scale=2,upscaler={weights['upscaler']}"
    with pytest.raises(SystemExit):
        run("generate", "a star", "--out", "a.mp4", "--finish", finish, *SHORT, monkeypatch=monkeypatch)
    told = capsys.readouterr().err
    assert "finishing failed, and the video as it was before finishing is a-unfinished.mp4" in told
    assert sorted(path.name for path in Path().iterdir()) == ["a-unfinished.mp4"]
    assert read_video("a-unfinished.mp4")[0].shape == (9, 32, 48, 3)
    record = read_record("a-unfinished.mp4")
    assert record.options["finish"] is None and not record.finished
    monkeypatch.setattr(finishing, "finished_pictures", real)
    words = told[told.index("`cogvx finish ") + 1 : told.index("` finishes it")].split()[1:]
    monkeypatch.setattr("sys.argv", ["cogvx", *words, "--no-progress"])
    from cogvx_jax.cli.main import main

    main()
    assert read_video("a.mp4")[0].shape == (9, 64, 96, 3)


@pytest.mark.full
def test_replay_finishes_again(weights, tmp_path, monkeypatch):  # noqa: F811
    from cogvx_jax.cli.main import main

    monkeypatch.chdir(tmp_path)
    finish = f"scale=2,codec=h264,upscaler={weights['upscaler']}"
    run("generate", "a star", "--out", "a.mp4", "--finish", finish, *SHORT, monkeypatch=monkeypatch)
    monkeypatch.setattr("sys.argv", ["cogvx", "replay", "a.mp4", "--out", "b.mp4", "--no-progress"])
    main()
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()
    finishing.finish_file("a.mp4", "c.mp4", Finish(size="32x48"))
    monkeypatch.setattr("sys.argv", ["cogvx", "replay", "c.mp4", "--out", "d.mp4", "--no-progress"])
    with pytest.raises(SystemExit):
        main()


def clips(count=3, fail_at=None):
    for i in range(count):
        if i == fail_at:
            raise ValueError("the decoder fails")
        yield np.full((1, 16, 16, 3), 40 * i, np.uint8)


def take(count):
    def finish(frames):
        for _ in range(count):
            next(frames)
        raise OSError("no space")

    return finish


def test_what_is_spared(tmp_path):
    out, fps = tmp_path / "a.mov", Fraction(8)
    assert spare_place(out).name == "a-unfinished.mp4" and spare_place(Path("b.gif")).name == "b-unfinished.gif"
    assert with_spare(lambda frames: len(list(frames)), clips(), out, fps, None) == 3
    assert not list(tmp_path.iterdir())
    with pytest.raises(Spared) as spared:
        with_spare(take(1), clips(), out, fps, "a text")
    assert isinstance(spared.value.__cause__, OSError)
    with stream_video(spared.value.place) as stream:
        assert len(list(stream.at(iter(range(9))))) >= 1
    assert read_video(spared.value.place)[0].shape == (3, 16, 16, 3)
    assert read_tags(spared.value.place).comment == "a text"
    spared.value.place.unlink()
    with pytest.raises(OSError, match="no space"):  # not all frames could be made
        with_spare(take(1), clips(fail_at=2), out, fps, None)
    with pytest.raises(ValueError, match="the decoder fails"):
        with_spare(lambda frames: list(frames), clips(fail_at=2), out, fps, None)
    assert not list(tmp_path.iterdir())


def test_delivery_is_part_of_it():
    asked = parse_finishing("codec=av1,crf=30")
    assert asked.file == Delivery(codec="av1", crf=30) and asked.pictures == Finish()
    assert finished._flag("hold", "true") == ["--hold"] and finished._flag("cuts", "False") == ["--no-cuts"]
