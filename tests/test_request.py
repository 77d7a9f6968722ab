"""The options of a video: their kinds, the lines of prompts files, and what of them is refused before any work."""

import fractions
import inspect
import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cogvx_jax as cx
from cogvx_jax.cli.prompts_file import OPTIONS, read_jobs
from cogvx_jax.diffusion.travel import Travel
from cogvx_jax.diffusion.warped import WarpedNoise
from cogvx_jax.pipelines import request as requests
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.options import CHECKS, PYTHON_ONLY, RANDOM, Options, Sampling
from cogvx_jax.pipelines.request import check_request, check_sampling

SPEC = load_spec("2b")
CLIP = np.zeros((20, 32, 48, 3), np.uint8)
OUT = Path("clip.mp4")

WRONG = [  # of a line of a prompts file; (field, value, what is said)
    ("prompt", 5, "prompt must be text, got 5"),
    ("prompt", ["a", "b"], "prompt must be text"),
    ("prompt", None, "prompt must be text, got null"),
    ("out", 5, "out must be a path, got 5"),
    ("out", "", "out must be a path"),
    ("out", "a\0b.mp4", "out holds a NUL"),
    ("negative_prompt", 5, "negative_prompt must be text, got 5"),
    ("negative_prompt", ["a"], "negative_prompt must be text, got a list"),
    ("image", 5, "image must be a path, got 5"),
    ("image", True, "image must be a path"),
    ("video", {}, "video must be a path"),
    ("video", "a\0.mp4", "video holds a NUL"),
    ("last_image", 5, "last_image must be a path, got 5"),
    ("keyframes", 5, "keyframes must be frames and their pictures, such as 24=b.png,48=c.png, got 5"),
    ("keyframes", {}, "keyframes must be frames and their pictures"),
    ("keyframes", ["a.png"], "keyframes must be text, got a list"),
    ("keyframes", {"a": "b.png"}, "keyframes must be frames and their pictures, .* got {'a': 'b.png'}"),
    ("keyframes", {"8": 5}, "the picture of keyframe 8 must be a path, got 5"),
    ("keyframes", "8=", "the picture of keyframe 8 must be a path, got ''"),
    ("keyframes", "8=a.png,08=b.png", "keyframes have two pictures for frame 8; give one"),
    ("mask", 5, "mask must be a path, got 5"),
    ("mask_dilation", 0.5, "mask_dilation must be a whole number, got 0.5"),
    ("mask_dilation", -1, "mask_dilation must be from 0 to 1024 pixels, got -1"),
    ("control", True, "control must be a path"),
    ("control_strength", -1, "control_strength must be from 0 to 100, got -1"),
    ("control_end", 1.5, "control_end must be from 0 to 1, got 1.5"),
    ("image_noise", 9, "image_noise must be from 0 to 2, got 9"),
    ("strength", "0.5", "strength must be a number, got '0.5'"),
    ("strength", 0, "strength must be above 0 and at most 1, got 0"),
    ("strength", True, "strength must be a number"),
    ("size", 64, "size must be HEIGHTxWIDTH in pixels, such as 480x720, got 64"),
    ("size", "64", "size must be HEIGHTxWIDTH"),
    ("size", "²x64", "size must be HEIGHTxWIDTH"),
    ("size", ["64", 64], "height must be a whole number, got '64'"),
    ("frames", "17", "frames must be a whole number, got '17'"),
    ("frames", 17.0, "frames must be a whole number"),
    ("steps", "2", "steps must be a whole number, got '2'"),
    ("steps", {}, "steps must be a whole number, got {}"),
    ("steps", True, "steps must be a whole number, got True"),
    ("guidance_scale", "6", "guidance_scale must be a number, got '6'"),
    ("guidance_scale", 3e38, "guidance_scale must be from -1000 to 1000, got 3e.38"),
    ("use_dynamic_cfg", "yes", "use_dynamic_cfg must be true or false, got 'yes'"),
    ("sampler", 1, "sampler must be text, got 1"),
    ("seed", "7", "seed must be a whole number or 'random', got '7'"),
    ("seed", None, "seed must be a whole number or 'random', got None"),
    ("seed", 10**20, r"seed must be from -2\^63 to 2\^63 - 1, got 1000"),
    ("seed", 0.5, "seed must be a whole number"),
    ("strips", 0, "strips must be from 1, for whole frames, to 1024, got 0"),
    ("strips", 2.5, "strips must be a whole number, got 2.5"),
    ("tiling", "no", "tiling must be true or false, got 'no'"),
    ("tiling", 1, "tiling must be true or false, got 1"),
    ("fps", "8", "fps must be a number, got '8'"),
    ("fps", 0, "fps must be positive and at most 100000, got 0"),
    ("colour", 1, "colour; a line has a prompt and any of calibration, control, control_end, control_start, "),
    ("latents", [1], "latents; a line has"),
    ("num_inference_stepz", 1, "num_inference_stepz; a line has"),
    ("stepz", 1, r"stepz \(meant is perhaps steps\); a line has a prompt"),
    ("height", 64, r"height \(meant is perhaps size\); a line has"),
]


@pytest.fixture
def lines(tmp_path):
    """Reads a prompts file of these lines; an object stands for its JSON."""

    def read(*lines, out=OUT, options=None):
        file = tmp_path / "prompts.txt"
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        file.write_bytes(text.encode())
        return read_jobs(None, file, out, options or Options())

    return read


def test_a_line_may_have_diffusers_names(lines):
    theirs, ours = lines(
        {"prompt": "x", "num_frames": 9, "num_inference_steps": 3}, {"prompt": "x", "frames": 9, "steps": 3}
    )
    assert (theirs.options.frames, theirs.options.steps) == (9, 3) and theirs.options == ours.options
    with pytest.raises(ValueError, match="line 1: num_frames says the same as frames; give one"):
        lines({"prompt": "x", "num_frames": 9, "frames": 9})


@pytest.mark.parametrize("field, value, said", WRONG)
def test_a_wrong_field_of_a_line_is_named_with_file_and_line(lines, field, value, said):
    with pytest.raises(ValueError, match=rf"prompts.txt, line 2: {said}") as refused:
        lines("a red circle", {"prompt": "x"} | {field: value})
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "text, said",
    [
        ('{"prompt": "x"', "this is not JSON, Expecting"),
        ('{"prompt": "x", "strength": NaN}', "the number NaN in it is not finite"),
        ('{"prompt": "x", "strength": 1e999}', "the number 1e999 in it is not finite"),
        ('{"prompt": "x", "seed": 1, "seed": 2}', "'seed' stands in it twice"),
        ('{"prompt": ' + "[" * 10**5, "nested too deep"),
        ('{"seed": 1}', "no prompt; a line has"),
    ],
)
def test_a_line_that_is_no_object_of_a_video_is_named(lines, text, said):
    with pytest.raises(ValueError, match=f"line 3: .*{said}"):
        lines("x", "", text)


def test_all_fields_of_a_line_are_read(lines):
    line = {
        "prompt": "a star",
        "out": "own.gif",
        "negative_prompt": "a circle",
        "video": "in.mp4",
        "image": None,
        "last_image": "last.png",
        "keyframes": {"8": "b.png"},
        "image_noise": 0.1,
        "mask": "mask.png",
        "mask_dilation": 8,
        "control": "pose.mp4",
        "controlnet": ["canny", "hed:0.5"],
        "control_strength": 0.5,
        "control_start": 0.25,
        "control_end": 0.75,
        "edit": "clip.mp4",
        "extend": "before.mp4",
        "strength": 1,
        "size": "32x48",
        "frames": 9,
        "steps": 2,
        "guidance_scale": 1,
        "use_dynamic_cfg": True,
        "sampler": "dpm",
        "seed": -1,
        "strips": None,
        "tiling": False,
        "fps": 12.5,
        "reuse": "taylor:2,1",
        "guidance": "interval:0.2-0.8",
        "calibration": "own.json",
        "guider": "apg:rescale=0,eta=0.5,limit=2,momentum=0",
        "enhance": 1.5,
        "windows": "48:8,policy=uniform,strides=1,noise=free",
        "positions": "riflex",
        "travel": {"50%": "a square"},
        "trajectory": ["60,128 200,128", [[1, 2], [3, 4]]],
        "tora": "Tora:0.5",
        "region": [[[0, 0, 0.5, 1], "a moon"], ["left.png", "a sun"]],
        "noises": "noises.npy:degradation=0.2",
        "flow": "flow.npy:cell=16",
        "finish": "fps=16",
        "depth": 2,
    }
    assert line.keys() == {"prompt", "out", *OPTIONS}
    plain, own = lines("a red circle\u2028\x0cgrows ", line, options=Options(seed=3, tiling=True))
    assert plain.prompt == "a red circle\u2028\x0cgrows" and plain.out == Path("clip-0.mp4")
    assert plain.options.seed == 3 and plain.options.tiling and plain.options.size == (None, None)
    assert own.prompt == "a star" and own.out == Path("own.gif")
    assert own.options.size == (32, 48) and own.options.fps == 12.5 and not own.options.tiling
    values = {"reuse", "guidance", "guider", "windows"}
    assert {name: str(getattr(own.options, name)) for name in values} == {name: line[name] for name in values}
    assert own.options.keyframes == {8: "b.png"}
    assert own.options.controlnet == (("canny", 1.0), ("hed", 0.5))
    assert own.options.travel == Travel("steps", (0.5,), ("a square",))
    assert own.options.trajectory == ("60,128 200,128", [[1, 2], [3, 4]]) and own.options.tora == ("Tora", 0.5)
    assert [(one.place, one.prompt) for one in own.options.region] == [tuple(one) for one in line["region"]]
    assert (own.options.noises, own.options.flow) == (WarpedNoise("noises.npy", 0.2), WarpedNoise("flow.npy", cell=16))
    assert own.options.finish.rate(Fraction(8)) == 16
    made = {"size", "keyframes", "controlnet", "travel", "trajectory", "tora", "region", "noises", "flow", "finish"}
    others = set(OPTIONS) - made - values
    assert {name: getattr(own.options, name) for name in others} == {name: line[name] for name in others}


def test_prompts_are_utf8_whatever_the_locale(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("ein grüner Kreis\n".encode())
    code = "import sys; from cogvx_jax.cli.prompts_file import *; from cogvx_jax.pipelines.options import Options\n"
    code += "print(ascii(read_jobs(None, Path(sys.argv[1]), Path('x.mp4'), Options())[0].prompt), 'jax' in sys.modules)"
    env = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code, file], capture_output=True, text=True, env=env)
    assert done.stdout.strip() == r"'ein gr\xfcner Kreis' False", done.stderr
    for data, said in ((b"\xff\xfea\0", "UTF-16"), ("grün".encode("latin-1"), "not UTF-8")):
        file.write_bytes(data)
        with pytest.raises(ValueError, match=f"prompts.txt is {said}"):
            read_jobs(None, file, OUT, Options())


def test_videos_that_would_replace_each_other_are_refused(lines, tmp_path):
    def err(*given, out=OUT):
        with pytest.raises(ValueError) as refused:
            lines(*given, out=out)
        return str(refused.value)

    assert "line 2: clip-0.mp4 is the video of line 1, too" in err("x", {"prompt": "y", "out": "clip-0.mp4"})
    assert "line 2: a.mp4 is the" in err({"prompt": "x", "out": "a.mp4"}, {"prompt": "y", "out": "./a.mp4"})
    (tmp_path / "link.mp4").symlink_to(tmp_path / "a.mp4")
    outs = [{"prompt": "x", "out": str(tmp_path / name)} for name in ("link.mp4", "a.mp4")]
    assert "is the video of line 1, too" in err(*outs)
    folder = {"prompt": "x", "out": "pictures"}, {"prompt": "y", "out": "pictures/y.mp4"}
    assert "line 2: pictures/y.mp4 lies in the folder that line 1 writes" in err(*folder)
    assert "line 2: pictures is the folder in which the video of line 1 lies" in err(*folder[::-1])
    chain = {"prompt": "x", "out": "a.mp4"}, {"prompt": "y", "video": "a.mp4"}
    assert "line 2: line 1 writes a.mp4; make that video in a run before this one" in err(*chain)
    several = {"mask": "a.mp4"}, {"keyframes": {"8": "a.mp4"}}, {"region": ["a.mp4=a star"]}, {"trajectory": "a.mp4"}
    for source in (*several, {"control": "b.mp4,a.mp4", "controlnet": ["c", "d"]}, {"flow": "a.mp4:cell=8"}):
        chain = {"prompt": "x", "out": "a.mp4"}, {"prompt": "y"} | source
        assert "line 2: line 1 writes a.mp4" in err(*chain)
        assert "line 2: it writes a.mp4, of which line 1 is made; make it in a run before" in err(*chain[::-1])
    # Of one line it is what the user asks for: the input is read before it is replaced.
    assert len(lines({"prompt": "x", "out": "a.mp4", "video": "a.mp4"}, {"prompt": "y", "out": "a.gif"})) == 2


def test_bytes_that_are_no_text_are_refused():
    for ask in (lambda: check_request(SPEC, "a\udcff"), lambda: Options(negative_prompt=["x", "a\udcff"])):
        with pytest.raises(ValueError, match="prompt holds bytes that are no UTF-8 text, from character 1 on"):
            ask()


def test_every_option_has_a_check_and_a_flag():
    assert CHECKS.keys() == set(Options.__dataclass_fields__) and PYTHON_ONLY < CHECKS.keys()
    with pytest.raises(
        TypeError, match="unknown option 'colour'; the known ones are height, width, num_frames, num_inf"
    ):
        Options.from_keywords(colour=1)
    with pytest.raises(ValueError, match="num_inference_steps must be a whole number, got '2'"):
        Sampling.from_keywords(num_inference_steps="2")
    named = Options.from_keywords(height=32, num_frames=np.int64(9), num_inference_steps=2, strength=np.float32(0.5))
    assert named == Options(size=(32, None), frames=9, steps=2, strength=0.5)


def test_help_shows_the_options():
    shown = inspect.signature(cx.generate).parameters
    assert [shown[name].default for name in ("height", "num_frames", "strength", "seed")] == [None, None, None, 0]
    assert "options" not in shown and "size" not in shown


def test_python_takes_pixels_and_lists():
    picture = Image.new("RGB", (4, 4))
    options = Options(image=[picture, CLIP[0], "a.png"], negative_prompt=["a", "b"], seed=RANDOM)
    assert options.negative_prompt == ("a", "b") and options.image[0] is picture
    with pytest.raises(ValueError, match="latents hold numbers that are not finite: 1 of 4"):
        Options(latents=np.array([0, np.nan, 1, 2], np.float32))
    with pytest.raises(ValueError, match="latents must be float32 numbers"):
        Options(latents="noise.npy")
    with pytest.raises(ValueError, match="image must be a path, got 5"):
        Options(image=["a.png", 5])


def test_a_video_is_read_once_and_only_as_far_as_it_is_used(monkeypatch, tmp_path):
    asked = []
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.mp4").write_bytes(b"video")
    monkeypatch.setattr(requests, "read_video", lambda source, count: asked.append(count) or (CLIP[:count], None))
    request = check_request(SPEC, "x", Options(video="in.mp4"))
    assert asked == [49] and request.frames == 17 and len(request.video) == 17 and request.fps == 8
    request = check_request(SPEC, "x", Options(video="in.mp4", frames=9, fps=fractions.Fraction(25, 2)))
    assert asked == [49, 9] and len(request.video) == 9 and request.fps == 12.5
    with pytest.raises(ValueError, match="num_frames is 25 but the video has only 20 frames"):
        check_request(SPEC, "x", Options(video="in.mp4", frames=25))
    with pytest.raises(ValueError, match="height must be a positive multiple"):  # before anything is decoded
        check_request(SPEC, "x", Options(video="in.mp4", size=(5, 16)))
    assert len(asked) == 3


def test_a_request_is_for_models_of_one_kind():
    request = check_request(SPEC, "x")
    request.check_model(load_spec("5b"))  # another model of the same sizes
    with pytest.raises(
        ValueError, match="was checked for CogVideoX-2b, whose videos are not like those of CogVideoX1.5"
    ):
        request.check_model(load_spec("1.5-5b"))
    with pytest.raises(ValueError, match="not like those of CogVideoX-5b-I2V"):
        request.check_model(load_spec("5b-i2v"))
    assert (
        vars(check_sampling(SPEC, Sampling(frames=9))).items()
        <= vars(check_request(SPEC, "x", Options(frames=9))).items()
    )


def test_the_digest_tells_requests_apart():
    def digest(**options):
        return check_request(SPEC, "x", Options(**options)).digest()

    assert digest() == digest() == digest(size="480x720", steps=50, sampler="ddim")
    clips = [CLIP, CLIP + 1]
    different = [
        dict(seed=1),
        dict(steps=2),
        dict(negative_prompt=None),
        dict(fps=9),
        dict(reuse="every:2"),
        dict(guidance="delta:2"),
        *(dict(video=c) for c in clips),
    ]
    assert len({digest(), *(digest(**options) for options in different)}) == 1 + len(different)


def test_a_random_seed_is_drawn_anew():
    drawn = {check_request(SPEC, "x", Options(seed=RANDOM)).seed for _ in range(4)}
    assert len(drawn) > 1 and all(0 <= seed < 2**32 for seed in drawn)
