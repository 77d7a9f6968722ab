"""CogVideo (2022) on the command line: videos, records, integers, what is refused, and what files are."""

import json
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from chat_server import chat_server
from cogvideo2022_small import PROMPT, STAGES, write_folder

from cogvx_jax.cli import main as cli
from cogvx_jax.convert import ConversionError
from cogvx_jax.convert import cogvideo2022_folder as folders
from cogvx_jax.convert.cogvideo2022_quantized import write_quantized_parts
from cogvx_jax.data.video import Video, read_video
from cogvx_jax.nn.quantized import Kernel, dequantize
from cogvx_jax.pipelines.cogvideo2022.generate import Settings
from cogvx_jax.pipelines.cogvideo2022.load import load_cogvideo2022, make_video
from cogvx_jax.pipelines.cogvideo2022.request import check_video
from cogvx_jax.pipelines.cogvideo2022.stream import frames_of
from cogvx_jax.pipelines.cogvideo2022.text import TextTokenizer
from cogvx_jax.pipelines.model import resolve
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.quantization import find_quantization


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "cogvideo")


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a verb and gives what it printed; of one that fails, its sentence."""

    def call(*words, fails=False):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, words)])
        if not fails:
            cli.main()
            return capsys.readouterr().out
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    return call


@pytest.mark.parametrize(
    "flags, said",
    [
        (("--steps", "3"), "steps means nothing for CogVideo"),
        (("--video", "a.mp4"), "video means nothing for CogVideo"),
        (("--finish", "scale=2"), "finish means nothing for CogVideo"),
        (("--memory", "rows"), "--memory means nothing for CogVideo"),
        (("--exact",), "--exact means nothing for CogVideo"),
        (("--no-keep-steps",), "--keep-steps means nothing for CogVideo"),
        (("--mesh", "auto"), "says which meshes fit"),
        (("--vae", "x"), "whose files tell everything; leave out vae"),
        (("--quantize", "w8a8"), "quantised to int8 or int4"),
        (("--quantize", "int4"), "groups of 128 do not divide 16 inputs"),
        (("--frames", "7"), "makes 5, 9, 17, 33 frames, not 7"),
        (("--frames", "17", "--depth", "1"), "depth 1 is not of 17 frames"),
        (("--depth", "9"), "depth 9 is not from 0 to 3"),
        (("--size", "64x64"), "makes frames of 32x32 and 96x96"),
        (("--image", "none.png"), "none.png"),
        (("--enhance-prompt",), "no language model is named"),
    ],
)
def test_flags_that_mean_nothing_are_refused(flags, said, folder, run, tmp_path):
    out = tmp_path / "out.mp4"
    assert said in run("generate", PROMPT, "--model", folder, "--out", out, *flags, fails=True)
    assert not out.exists()


def test_other_models_have_no_depth(run, tmp_path):
    said = run("generate", "a star", "--depth", "1", "--out", tmp_path / "out.mp4", fails=True)
    assert "depth is of CogVideo (2022); tiny makes as many frames" in said


def test_other_verbs_say_what_the_folder_is(folder, run):
    said = run("train-vae", "--model", folder, "--data", "nowhere", "--out", "run", fails=True)
    assert "it is CogVideo (2022), for `cogvx generate`" in said


def test_the_one_that_ships_goes_by_its_name(run):
    assert re.search("licence +Apache-2.0", run("info", "tiny2022"))
    assert "cogvx generate" in run("inspect", "tiny2022")
    with pytest.raises(ValueError, match=r"tiny2022 is CogVideo \(2022\), for `cogvx generate`"):
        resolve("tiny2022")
    assert sum(file.stat().st_size for file in (folders.ASSETS / "tiny2022").iterdir()) < 10e6


def checked(folder, prompt=PROMPT, **options):
    parts = folders.open_parts(folder)
    return check_video(parts, TextTokenizer.read(parts.text_model), (prompt,), Options(**options))


def test_a_request_is_completed(folder):
    found = checked(folder)
    assert (found.settings.depth, found.settings.guidance, found.large, found.fps) == (3, 3.0, True, 8)
    assert found.asked.size == (96, 96) and found.asked.frames == 33 and found.asked.depth == 3
    found = checked(folder, frames=9, size="32x32", guidance_scale=1.0, fps=3)
    assert (found.settings.depth, found.settings.guidance, found.large, found.fps) == (1, None, False, 3)
    assert checked(folder).digest() != checked(folder, seed=1).digest()
    assert checked(folder).digest(seed=False) == checked(folder, seed=1).digest(seed=False)


def test_a_model_without_further_stages_makes_small_key_frames(tmp_path):
    place = write_folder(tmp_path / "first", {"sequential": STAGES["sequential"]})
    found = checked(place)
    assert found.settings.depth == 0 and not found.large and found.asked.frames == 5
    with pytest.raises(ValueError, match="no stage that makes frames in between; give depth 0, for 5 frames"):
        checked(place, depth=1)


def test_prompts_become_chinese_where_an_endpoint_is_set(folder, run, monkeypatch):
    pytest.importorskip("openai")
    answers = iter(["猫" * 100, PROMPT])
    with chat_server(lambda asked: next(answers)) as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        assert run("enhance", "a cat plays the guitar", "--model", folder).strip() == PROMPT
    talk = stub.requests[-1]["messages"]
    assert "Simplified Chinese" in talk[0]["content"] and "Chinese characters" in talk[-1]["content"]


def test_a_long_chinese_answer_is_cut_between_its_letters(folder, run, monkeypatch):
    pytest.importorskip("openai")
    with chat_server(lambda asked: "猫狗" * 100) as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        made = run("enhance", "a cat", "--model", folder).strip()
    assert set(made) == {"猫", "狗"} and checked(folder, made).prompts == (made,)


@pytest.mark.filterwarnings("ignore:the prompt")
def test_inspect_knows_the_parts(folder, run, tmp_path):
    whole = run("inspect", folder)
    assert "by `cogvx convert`" in whole and "cogvx generate" in whole and "lacks" not in whole
    assert "the text tokenizer" in run("inspect", folder / "ice_text.model")
    assert "500 clusters of at most 40 codes" in run("inspect", folder / "cluster_label2.npy")
    assert "the image tokenizer" in run("inspect", folder / "image_tokenizer.safetensors")
    theirs = tmp_path / "theirs"
    run("convert", folder, theirs, "--to", "sat")
    assert "tensors of interpolation" in run("inspect", theirs / "cogvideo-stage2")
    assert "tensors of super_resolution" in run("inspect", theirs / "cogview2-dsr")


@pytest.fixture(scope="module")
def integers(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("integers") / "cogvideo"
    write_quantized_parts(folders.open_parts(folder), place, find_quantization("int8"))
    return place


def test_a_quantised_folder_is_that_of_a_model_that_is_quantised_as_it_is_read(folder, integers):
    stored = load_cogvideo2022(integers).params
    read = load_cogvideo2022(folder, quantize="int8").params
    exact = load_cogvideo2022(folder).params
    assert (
        stored["sequential"]["blocks"]["base"]["up"]["kernel"]
        is stored["interpolation"]["blocks"]["base"]["up"]["kernel"]
    )
    for stage, part, name in (("sequential", "base", "up"), ("super_resolution", "channel", "q")):
        ours, theirs, wide = (tree[stage]["blocks"][part][name] for tree in (stored, read, exact))
        assert ours["kernel"].dtype == "int8"
        np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])
        np.testing.assert_allclose(ours["kernel_scale"], theirs["kernel_scale"], rtol=1e-6)
        error = np.abs(dequantize(Kernel(ours["kernel"], ours["kernel_scale"]), "float32") - wide["kernel"])
        assert error.max() <= 0.51 * np.asarray(ours["kernel_scale"]).max()


def test_what_is_quantised_stays_so(integers, run, tmp_path):
    assert "quantised" in run("info", integers) and "int8" in run("info", integers)
    assert "is quantised already, to int8" in run("quantize", integers, tmp_path / "more", fails=True)
    assert "which SAT cannot read" in run("convert", integers, tmp_path / "theirs", "--to", "sat", fails=True)
    run("convert", integers, tmp_path / "copy")
    assert folders.open_parts(tmp_path / "copy").how.name == "int8"


def test_damaged_integers_are_named(integers, tmp_path):
    place = tmp_path / "cogvideo"
    place.mkdir()
    for file in integers.iterdir():
        if file.name != "quantization.json":
            (place / file.name).symlink_to(file)
    with pytest.raises(ConversionError, match="of another type|spare"):
        folders.open_parts(place)


@pytest.mark.full
def test_a_video_its_record_and_its_replay(folder, run, tmp_path):
    out = tmp_path / "cat.mp4"
    said = run("generate", PROMPT, "--model", folder, "--depth", "1", "--out", out, "--seed", "7", "--no-progress")
    assert "9 frames of 96x96 at 2 fps" in said
    frames, fps = read_video(out)
    assert frames.shape == (9, 96, 96, 3) and fps == 2
    record = read_record(out)
    assert record.prompt == PROMPT and record.options["depth"] == 1 and record.files.keys() >= {"base", "clusters"}
    assert "depth 1" in run("show", out)
    run("replay", out, "--no-progress")
    assert (tmp_path / "cat-replay.mp4").read_bytes() == out.read_bytes()
    made = list(frames_of(load_cogvideo2022(folder), checked(folder, depth=1, seed=7)))
    again = make_video(load_cogvideo2022(folder), [PROMPT], Settings(depth=1), seed=7)
    np.testing.assert_array_equal(np.concatenate(made), again.frames[0])


@pytest.mark.full
def test_a_prompts_file_makes_what_is_missing(folder, run, tmp_path):
    PIL.Image.new("RGB", (40, 64), "red").save(tmp_path / "first.png")
    lines = [{"prompt": PROMPT}, {"prompt": "狗在跑步", "image": str(tmp_path / "first.png"), "seed": 3}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = ("--model", folder, "--depth", "0", "--size", "32x32", "--out", tmp_path / "v.mp4", "--no-progress")
    said = run("generate", "--prompts-file", tmp_path / "prompts.jsonl", *words)
    assert said.count("5 frames of 32x32") == 2
    (tmp_path / "v-1.mp4").unlink()
    assert run("generate", "--prompts-file", tmp_path / "prompts.jsonl", *words).count("5 frames") == 1
    first = read_video(tmp_path / "v-1.mp4")[0][0]
    assert first.shape == (32, 32, 3) and read_record(tmp_path / "v-1.mp4").inputs[0]["option"] == "image"


PAGE = (Path(__file__).parents[1] / "docs" / "cogvideo2022.md").read_text()
COMMANDS = [
    shlex.split(line)[1:] for block in re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S) for line in block.splitlines()
]


@pytest.mark.full
def test_the_commands_of_its_page_run(folder, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folders.write_theirs(folders.open_parts(folder), Path("cogvideo-sat"))
    Path("cogvideo-sat", "ice_image.pt").unlink()  # its sizes, which are small ones, are in no file of theirs
    (tmp_path / "ice_text.model").write_bytes((folder / "ice_text.model").read_bytes())
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n")
    PIL.Image.new("RGB", (40, 40), "blue").save("first.png")
    Video(np.random.default_rng(0).integers(0, 255, (1, 33, 32, 32, 3), np.uint8), 8).save("clip.mp4")
    Path("clips.jsonl").write_text(json.dumps({"video": "clip.mp4", "prompt": PROMPT}))
    verbs = {"generate", "convert", "quantize", "info", "inspect", "show", "replay", "train", "export"}
    assert {words[0] for words in COMMANDS} >= verbs
    for words in COMMANDS:
        if words[0] == "train":
            words = ["1" if word == "20000" else word for word in words] + ["--batch-size", "1", "--warmup", "0"]
        if words[0] == "generate":
            words = [*words, "--no-progress", "--size", "32x32", "--depth", "0"]
            for name in ("image_tokenizer.safetensors", "cogvideo2022.json"):
                Path("cogvideo", name).write_bytes((folder / name).read_bytes())
        run(*words)
    assert read_video("cat.mp4")[0].shape == (5, 32, 32, 3)
