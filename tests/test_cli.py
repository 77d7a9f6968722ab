"""The command line: its errors, its files, its batches."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cogvx_jax.cli import main as cli
from cogvx_jax.data.video import read_video

TINY = ["--steps", "2", "--no-progress"]


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


def fails(*arguments, monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, monkeypatch=monkeypatch)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def test_generate_writes_a_video(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.mp4"
    run("generate", "a red circle moves right on a white background", "--out", out, *TINY, monkeypatch=monkeypatch)
    frames, fps = read_video(out)
    assert frames.shape == (17, 64, 64, 3) and fps == 8
    assert "17 frames of 64x64 at 8 fps" in capsys.readouterr().out
    again = tmp_path / "again.mp4"
    run("generate", "a blue star spins", "--video", out, "--out", again, *TINY, monkeypatch=monkeypatch)
    assert read_video(again)[0].shape == (17, 64, 64, 3)


def test_prompts_file(tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    own = tmp_path / "own.gif"
    file.write_text(f"a red circle grows\n\n{json.dumps({'prompt': 'a star', 'frames': 9, 'out': str(own)})}\n")
    run("generate", "--prompts-file", file, "--out", tmp_path / "clip.mp4", *TINY, monkeypatch=monkeypatch)
    assert len(read_video(tmp_path / "clip-0.mp4")[0]) == 17
    assert len(read_video(own)[0]) == 9


def test_bad_input_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    def err(*arguments):
        return fails("generate", *arguments, monkeypatch=monkeypatch, capsys=capsys)

    out = tmp_path / "out.mp4"
    assert "nearest: 96 or 112" in err("x", "--out", out, "--size", "100x64")
    assert "HEIGHTxWIDTH" in err("x", "--out", out, "--size", "64")
    assert "nearest: 9 or 17" in err("x", "--out", out, "--frames", 16)
    assert "known are tiny, 2b" in err("x", "--out", out, "--model", "nothing")
    assert "takes no image" in err("x", "--out", out, "--image", _picture(tmp_path))
    assert "either a prompt or --prompts-file" in err("--out", out)
    assert "gif" in err("x", "--out", tmp_path / "out.txt")
    assert str(tmp_path / "none") in err("x", "--out", tmp_path / "none" / "out.mp4")
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "x"}\n{"prompt": "x", "size": "64x64", "colour": 1}\n')
    assert "line 2: colour" in err("--prompts-file", file, "--out", out)
    file.write_text('{"prompt": "x"\n')
    assert "line 1: this is not JSON" in err("--prompts-file", file, "--out", out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["picture.png", "prompts.jsonl"]


def test_an_interrupted_decode_keeps_the_latents(tmp_path, monkeypatch, capsys):
    from cogvx_jax.pipelines import latents

    def broken(*args, **options):
        yield from ()
        raise KeyboardInterrupt

    out = tmp_path / "out.mp4"
    with monkeypatch.context() as broken_decode:
        broken_decode.setattr(latents, "decode_frames", broken)
        with pytest.raises(SystemExit) as stopped:
            run("generate", "a red circle", "--out", out, *TINY, monkeypatch=monkeypatch)
    assert stopped.value.code == 130
    kept = tmp_path / "out.mp4.latents.safetensors"
    assert list(tmp_path.iterdir()) == [kept] and f"cogvx decode {kept}" in capsys.readouterr().err
    run("decode", kept, "--out", out, monkeypatch=monkeypatch)
    whole = tmp_path / "whole.mp4"
    run("generate", "a red circle", "--out", whole, *TINY, monkeypatch=monkeypatch)
    assert (read_video(out)[0] == read_video(whole)[0]).all()
    assert sorted(tmp_path.iterdir()) == [kept, out, whole]


def test_decode_refuses_what_is_not_latents(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.latents.safetensors"
    assert "there is no file" in fails("decode", file, monkeypatch=monkeypatch, capsys=capsys)
    file.write_bytes(b"nonsense" * 9)
    assert "is damaged" in fails("decode", file, monkeypatch=monkeypatch, capsys=capsys)


def test_generate_on_a_mesh(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.mp4"
    run("generate", "a red circle", "--mesh", "cfg=2,context=4", "--out", out, *TINY, monkeypatch=monkeypatch)
    assert len(read_video(out)[0]) == 17
    for mesh, said in (("cfg=2", "is for 2 devices, there are 8"), ("rows=8", "not a mesh such as")):
        assert said in fails("generate", "x", "--mesh", mesh, "--out", out, monkeypatch=monkeypatch, capsys=capsys)


def test_info_needs_no_weights(monkeypatch, capsys):
    run("info", "1.5-5b-i2v", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    for part in ("image to video", "5,571,594,880", "768x1360, 81 frames at 16 fps", "44,880 video + 226 text"):
        assert part in said
    run("info", "tiny", "--json", monkeypatch=monkeypatch)
    assert json.loads(capsys.readouterr().out)["native size"] == "64x64, 17 frames at 8 fps"


def test_help_shows_defaults():
    shown = subprocess.run(
        [sys.executable, "-m", "cogvx_jax.cli", "generate", "--help"], capture_output=True, text=True, check=True
    ).stdout
    for part in ("--prompts-file", "--strength", "(default: 0.8)", "--size HxW", "(default: out.mp4)"):
        assert part in " ".join(shown.split())


def _picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(folder / "picture.png")
    return folder / "picture.png"
