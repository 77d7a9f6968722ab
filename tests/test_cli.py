"""The command line: its errors, its files, its batches."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from cogvx_jax.cli import main as cli
from cogvx_jax.cli.generate import _kept
from cogvx_jax.cli.inputs import Inputs
from cogvx_jax.cli.made import model_digest
from cogvx_jax.cli.prompts_file import OPTIONS
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.models.lora import LoRA
from cogvx_jax.pipelines import generate as pipeline
from cogvx_jax.pipelines import model as models
from cogvx_jax.pipelines import request as requests
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.saved_latents import SavedLatents, keep_latents, read_latents, save_latents

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


@pytest.mark.full
def test_generate_redraws_a_video(tmp_path, monkeypatch):
    first, again = tmp_path / "first.mp4", tmp_path / "again.mp4"
    run("generate", "a red circle moves right on a white background", "--out", first, *TINY, monkeypatch=monkeypatch)
    run("generate", "a blue star spins", "--video", first, "--out", again, *TINY, monkeypatch=monkeypatch)
    assert read_video(again)[0].shape == (17, 64, 64, 3)


def test_prompts_file(small, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    own = tmp_path / "own.gif"
    file.write_text(f"a red circle grows\n\n{json.dumps({'prompt': 'a star', 'frames': 17, 'out': str(own)})}\n")
    arguments = ["--prompts-file", file, "--model", small("5b")[0], "--out", tmp_path / "clip.mp4"]
    run("generate", *arguments, *TINY, monkeypatch=monkeypatch)
    assert len(read_video(tmp_path / "clip-0.mp4")[0]) == 9
    assert len(read_video(own)[0]) == 17


def test_bad_input_is_one_sentence_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    def err(*arguments):
        return fails("generate", *arguments, monkeypatch=monkeypatch, capsys=capsys)

    out = tmp_path / "out.mp4"
    assert "nearest: 96 or 112" in err("x", "--out", out, "--size", "100x64")
    assert "HEIGHTxWIDTH" in err("x", "--out", out, "--size", "64")
    assert "nearest: 9 or 17" in err("x", "--out", out, "--frames", 16)
    assert "known are tiny, tiny-inp, 2b" in err("x", "--out", out, "--model", "nothing")
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


def test_an_interrupted_decode_keeps_the_latents(small, tmp_path, monkeypatch, capsys):
    from cogvx_jax.pipelines import latents

    def broken(*args, **options):
        yield from ()
        raise KeyboardInterrupt

    out, model = tmp_path / "out.mp4", ("--model", small("5b")[0])
    with monkeypatch.context() as broken_decode:
        broken_decode.setattr(latents, "decode_frames", broken)
        with pytest.raises(SystemExit) as stopped:
            run("generate", "a red circle", *model, "--out", out, *TINY, monkeypatch=monkeypatch)
    assert stopped.value.code == 130
    kept = tmp_path / "out.mp4.latents.safetensors"
    assert list(tmp_path.iterdir()) == [kept] and f"cogvx decode {kept}" in capsys.readouterr().err
    run("decode", kept, "--out", out, monkeypatch=monkeypatch)
    whole = tmp_path / "whole.mp4"
    run("generate", "a red circle", *model, "--out", whole, *TINY, monkeypatch=monkeypatch)
    assert out.read_bytes() == whole.read_bytes()  # their records, too
    assert {*tmp_path.iterdir()} == {kept, out, whole}


def test_decode_refuses_what_is_not_latents(tmp_path, monkeypatch, capsys):
    file = tmp_path / "x.latents.safetensors"
    assert "there is no file" in fails("decode", file, monkeypatch=monkeypatch, capsys=capsys)
    file.write_bytes(b"nonsense" * 9)
    assert "is damaged" in fails("decode", file, monkeypatch=monkeypatch, capsys=capsys)


@pytest.mark.full
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


@pytest.mark.full
def test_info_needs_no_working_backend():
    environment = os.environ | {"JAX_PLATFORMS": "tpu"}
    done = subprocess.run([sys.executable, "-m", "cogvx_jax.cli", "info"], capture_output=True, env=environment)
    assert done.returncode == 0 and b"text to video" in done.stdout, done.stderr


def test_help_shows_defaults(monkeypatch, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("generate", "--help", monkeypatch=monkeypatch)
    assert not stopped.value.code
    shown = capsys.readouterr().out
    for part in ("--prompts-file", "--strength", "(default: 0.8)", "--size HxW", "(default: out.mp4)", "INT|random"):
        assert part in " ".join(shown.replace("│", " ").split())
    assert all(f"--{name.replace('_', '-')}" in shown for name in OPTIONS)


@pytest.mark.parametrize("words", [["--help"], ["nonsense"]])
def test_without_a_verb_all_are_told(words, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(*words, monkeypatch=monkeypatch)
    shown = "".join(capsys.readouterr())
    assert all(name in shown for name in cli.VERBS)


def test_only_the_verb_that_is_asked_is_imported():
    """Else every command would wait for what all of them import, jax among it."""
    code = "import sys; from cogvx_jax.cli.main import VERBS; VERBS['verify'].run; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.fixture
def generate(small, tmp_path, monkeypatch, capsys):
    """`generate(*arguments, code=0)` with the small 5B in a folder of its own; gives what was printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments, code=0, model=None):
        capsys.readouterr()
        arguments = ["generate", *arguments, "--model", model or small("5b")[0], "--no-progress"]
        if code:
            with pytest.raises(SystemExit) as stopped:
                run(*arguments, monkeypatch=monkeypatch)
            assert stopped.value.code == code
        else:
            run(*arguments, monkeypatch=monkeypatch)
        return "".join(capsys.readouterr())

    return call


def test_a_rerun_makes_only_what_is_missing_or_other(generate, tmp_path, monkeypatch):
    file = tmp_path / "prompts.txt"
    lines = [{"prompt": "a red circle"}, {"prompt": "a star", "seed": "random", "out": "star.gif"}]
    made = [tmp_path / name for name in ("out-0.mp4", "star.gif")]

    def again(*more):
        """Which are made by another run."""
        times = [path.stat().st_mtime_ns if path.exists() else 0 for path in made]
        file.write_text("\n".join(map(json.dumps, lines)))
        said = generate("--prompts-file", file, *more)
        return [path.stat().st_mtime_ns != time for path, time in zip(made, times, strict=True)], said

    new, said = again()
    assert new == [True, True] and "star.gif: --seed " in said
    with monkeypatch.context() as nothing_loaded:
        nothing_loaded.setattr(models, "load", None)
        assert again() == ([False, False], "cogvx: 2 of 2 videos are whole already; --again makes them anew\n")
    lines[0]["seed"] = 1
    assert again()[0] == [True, False]
    made[1].write_bytes(made[1].read_bytes()[:-1])  # no longer whole
    assert again()[0] == [False, True]
    (tmp_path / "cogvx-made.jsonl").write_text("nonsense\n[1]\n")
    assert again()[0] == [True, True]
    assert again("--again")[0] == [True, True]


def test_another_model_lora_or_dtype_is_another_request(small, tmp_path):
    def found(folder, adapters=(), dtype=None):
        return model_digest(str(folder), adapters, {"dtype": dtype})

    folder = tmp_path / "model"
    shutil.copytree(small("5b")[0], folder)
    lora = LoRA(adapters={"q": {"a": np.ones(3), "b": np.ones(3)}}, rank=1, alpha=1.0)
    names = [found(folder), found(folder, dtype="bfloat16"), *(found(folder, [(lora, weight)]) for weight in (1, 0.5))]
    assert found(folder) == names[0]
    config = folder / "transformer" / "config.json"
    config.write_text(config.read_text() + " ")
    assert len({*names, found(folder), found("tiny")}) == 6


def test_the_seed_that_is_printed_makes_the_video_again(generate, tmp_path):
    said = generate("a red circle", "--seed", "random", "--out", "a.gif", "--fps", "12.5")
    seed = said.split("a.gif: --seed ")[1].split()[0]
    generate("a red circle", "--seed", seed, "--out", "b.gif", "--fps", "25/2")
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    assert "at 12.5 fps" in said and read_video(tmp_path / "a.gif")[1] == 12.5
    assert "seed must be from -2^63" in generate("x", "--seed", 10**20, code=2)
    assert "guidance_scale must be from -1000 to 1000" in generate("x", "--guidance-scale", 3e38, code=2)


def test_an_input_is_read_once_and_may_be_gone_afterwards(generate, tmp_path, monkeypatch):
    with VideoWriter(tmp_path / "in.mp4", fps=12.5) as writer:
        writer.write(np.full((12, 32, 48, 3), 90, np.uint8))
    read, sample = [], pipeline.sample
    monkeypatch.setattr(requests, "read_video", lambda *a: read.append(a) or read_video(*a))

    def sample_and_lose(*arguments, **options):
        (tmp_path / "in.mp4").unlink()
        return sample(*arguments, **options)

    monkeypatch.setattr(pipeline, "sample", sample_and_lose)
    assert "9 frames of 32x48 at 12.5 fps" in generate("x", "--video", "in.mp4", "--out", "out.webm")
    assert len(read) == 1 and [path.name for path in tmp_path.iterdir()] == ["out.webm"]


def test_equal_inputs_are_held_once_and_many_lie_in_files():
    spec, clip = models.load_spec("tiny"), np.arange(17 * 3, dtype=np.uint8).reshape(17, 1, 1, 3)
    inputs = Inputs(in_memory=clip.nbytes)
    asked = [requests.check_request(spec, "x", Options(video=pixels)) for pixels in (clip, clip.copy(), clip + 1)]
    first, equal, other = map(inputs.hold, asked)
    assert first.video is equal.video and isinstance(other.video, np.memmap)
    np.testing.assert_array_equal(other.video, clip + 1)
    assert [request.digest() for request in asked] == [request.digest() for request in (first, equal, other)]


def test_a_full_disk_keeps_the_latents_elsewhere(generate, tmp_path, monkeypatch):
    out, elsewhere = tmp_path / "full" / "out.mp4", tmp_path / "elsewhere"
    out.parent.mkdir()
    elsewhere.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(elsewhere))
    write = Path.write_bytes

    def full(path, data):
        if out.parent in path.parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    def no_room(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))

    monkeypatch.setattr(Path, "write_bytes", full)
    generate("a red circle", "--out", out)  # the video still fits
    assert not any(elsewhere.iterdir())
    out.unlink()
    monkeypatch.setattr(VideoWriter, "write", no_room)
    said = generate("a red circle", "--out", out, code=2)
    (kept,) = elsewhere.iterdir()
    assert f"`cogvx decode {kept} --out {out}` makes the video" in said and f"{out}: No space left on device" in said
    assert not any(out.parent.iterdir()) and read_latents(kept).prompt == "a red circle"
    monkeypatch.setattr("tempfile.tempdir", str(out.parent))
    assert f"{out}.latents.safetensors'); if decoding fails, they are lost" in generate("x", "--out", out, code=2)


LATENTS = SavedLatents(latents=np.ones((1, 3, 4, 6, 4), np.float32), padding=1, fps=12.5, model="tiny", prompt="x")


def test_runs_of_one_target_keep_latents_of_their_own(tmp_path):
    out = tmp_path / "x.mp4"
    with _kept(LATENTS, out):
        with _kept(LATENTS, out):
            assert sorted(p.name for p in tmp_path.iterdir()) == [
                "x.mp4.2.latents.safetensors",
                "x.mp4.latents.safetensors",
            ]
        assert [p.name for p in tmp_path.iterdir()] == ["x.mp4.latents.safetensors"]
    assert not any(tmp_path.iterdir())
    kept = [keep_latents(tmp_path / name, LATENTS) for name in ("x.mp4", "x.gif", "x.mp4")]
    assert len({*kept}) == 3 and all(read_latents(file).fps == 12.5 for file in kept)


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(latents=np.ones((2, 3, 4, 6, 4), np.float32)), r"must be those of one video.* got \(2, 3, 4, 6, 4\)"),
        (dict(latents=np.ones((3, 4, 6, 4), np.float32)), "must be those of one video"),
        (dict(latents=np.ones((1, 3, 4, 6, 4))), "got .* float64"),
        (
            dict(latents=np.full((1, 3, 4, 6, 4), np.nan, np.float32)),
            "of 288 numbers of the latents 288 are not finite",
        ),
        (dict(padding=-1), "padding must be from 0 to 2 latent frames, got -1"),
        (dict(padding="x"), "padding must be from 0 to 2 latent frames, got 'x'"),
        (dict(padding=3), "padding must be from 0 to 2"),
        (dict(fps=float("nan")), "the number NaN in it is not finite"),
        (dict(prompt=5), "prompt must be text, got 5"),
        (dict(colour=1), "its metadata must say fps, model, padding, prompt"),
    ],
)
def test_damaged_latents_are_named(tmp_path, changes, said):
    file = tmp_path / "x.latents.safetensors"
    facts = {name: value for name, value in (vars(LATENTS) | changes).items() if name not in ("latents", "record")}
    metadata = {"format": "cogvx latents 1", "run": json.dumps(facts)}
    save_file({"latents": changes.get("latents", LATENTS.latents)}, file, metadata)
    with pytest.raises(ValueError, match=rf"x.latents.safetensors is damaged: .*{said}"):
        read_latents(file)


def test_latents_of_another_vae_are_refused(tmp_path, monkeypatch, capsys):
    save_latents(tmp_path / "x.latents.safetensors", LATENTS)
    said = fails("decode", tmp_path / "x.latents.safetensors", monkeypatch=monkeypatch, capsys=capsys)
    assert "has 4 channels, the VAE decodes 16" in said


@pytest.mark.parametrize("component, latents_are_kept", [("vae", True), ("transformer", False)])
def test_a_weight_that_is_not_finite_makes_no_video(generate, small, tmp_path, component, latents_are_kept):
    folder = tmp_path / "model"
    shutil.copytree(small("5b")[0], folder)
    (file,) = (folder / component).glob("*.safetensors")
    tensors = load_file(file)
    key = {"vae": "decoder.conv_out.conv.weight", "transformer": "transformer_blocks.0.ff.net.0.proj.weight"}[component]
    tensors[key].flat[0] = np.nan
    save_file(tensors, file)
    said = generate("a red circle", "--out", "out.mp4", model=folder, code=2)
    assert "cogvx: " in said and f"the {component} of small-5b holds some in" in said
    assert [path.name for path in tmp_path.glob("out*")] == ["out.mp4.latents.safetensors"] * latents_are_kept


def _picture(folder: Path) -> Path:
    from PIL import Image

    Image.new("RGB", (64, 64), "red").save(folder / "picture.png")
    return folder / "picture.png"
