"""How a video was made, in the video: options as text, where each kind of file holds it, and videos made again."""

import dataclasses
import fractions
import json
import shutil
import sys
import typing

import av
import numpy as np
import pytest
from flax import traverse_util
from PIL import Image

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.convert.fingerprints import PIECE, PIECES, fingerprint, part_fingerprints
from cogvx_jax.convert.sources import open_source
from cogvx_jax.data.comments import file_sha256, read_tags
from cogvx_jax.data.regions import Region
from cogvx_jax.data.video import Video, VideoWriter, check_writable, read_video
from cogvx_jax.diffusion.guiders import APG
from cogvx_jax.diffusion.travel import Travel
from cogvx_jax.diffusion.warped import WarpedNoise
from cogvx_jax.diffusion.windows import Windows
from cogvx_jax.models.lora import LoRA
from cogvx_jax.pipelines.input_sources import input_sources
from cogvx_jax.pipelines.option_files import SOURCES, sources_of, with_paths
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.record import MODEL, Record, differences, parse_record, read_record
from cogvx_jax.pipelines.saved_latents import SavedLatents, read_latents, save_latents

FRAMES = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), np.uint8)
TEXT = "quotes \" ' = ; # \\ \n 熊猫 🐼 " * 50
RECORD = Record(
    prompts=("a", "b"),
    index=1,
    options=as_json(Options(video="in.mp4")),
    model=dict.fromkeys(MODEL, "x")
    | dict.fromkeys(("exact", "one_program", "programs"), False)
    | dict(given={}, loras=[]),
    files={"vae": "0"},
    inputs=({"option": "video", "path": "in.mp4", "sha256": "0", "record": None},),
    versions={"jax": "1"},
    device={"platform": "cpu"},
)


CASES = [
    {},
    dict(size="480x720", frames=17, seed="random", negative_prompt=None, fps="30000/1001"),
    dict(reuse="teacache:0.1234567890123", guidance="interval:0.123456789-0.8", guider="apg:eta=0.1234567"),
    dict(reuse="steps:x.xx.x", guider=APG(eta=1 / 3), windows=Windows(48, overlap=8, policy="looped")),
    dict(keyframes="24=b.png,8=c.png", image="a.png", image_noise=0.1, guidance_scale=np.float32(0.3)),
    dict(controlnet=[("net", 0.1), "other:0.5", "a:b:1"], control="a.mp4,b.mp4", control_strength=(1, 0.5)),
    dict(video="in.mp4", strength=0.3, mask="m.png", mask_dilation=4, image_scale=1.5, tiling=True),
    dict(negative_prompt=["a", "b"], image=["a.png", "b.png"], fps=fractions.Fraction(25, 1003)),
    dict(steps=3, sampler="dpm", positions="riflex", enhance=1.5, calibration="own.json", use_dynamic_cfg=True),
    dict(edit="in.mp4", last_image="b.png", extend="c.mp4", control_start=0.1, control_end=0.5, strips=2),
    dict(travel={24: "a blue star", "48": "x=y"}, noises="n.npy", flow="a:b.npy:degradation=0.1,cell=8"),
    dict(travel={"50%": "a", "66.7%": "b"}, noises=WarpedNoise("a=b.npy", np.float32(0.3), frames="blend")),
    dict(travel=Travel("steps", (1e-300, 0.1 + 0.2, 1 / 3, 1.0), ("", "b", "c", "d")), tora="a:b:0.1"),
    dict(region=[((0, np.float64(0.1), 0.5, 1), "a=b"), ("left.png", "a sun"), ("0,0,1,1", "of a file")]),
    dict(tora=("a,b", 1), trajectory=["60,128 200,128", "points.txt", [(60.5, 128), (200, 128)]]),
    dict(tora="x:y", trajectory=[(60, 128), (200, 128)], finish="scale=2,fps=60000/1001,codec=hevc"),
    dict(finish={"upscaler": "a,b.pth", "audio": "c.wav", "fade": 0.1}, depth=2),
]


@pytest.mark.parametrize("given", CASES)
def test_options_are_the_same_after_json(given):
    options = Options(**given)
    text = json.dumps(as_json(options))
    again = Options(**json.loads(text))
    assert as_json(again) == json.loads(text) and json.loads(text).keys() == vars(options).keys()
    assert plain(vars(again)) == plain(vars(options))


def plain(value):
    """With lists for tuples, and regions that are equal where they say the same."""
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, Region):
        return plain((value.place, value.prompt))
    return [plain(one) for one in value] if isinstance(value, tuple | list) else value


def test_every_option_is_written_and_read():
    """A new one has a case above, and text that is read back: else no video of it is made again."""
    names = {field.name for field in dataclasses.fields(Options)}
    assert set().union(*CASES) == names - {"latents"}  # which are numbers in memory alone


def test_points_of_an_array_are_text():
    points = np.array([[60, 128], [200.5, 128]])
    found = json.loads(json.dumps(as_json(Options(trajectory=[points, "1,2 3,4"]))))["trajectory"]
    assert found == [points.tolist(), "1,2 3,4"] and Options(trajectory=found).trajectory == tuple(found)


def test_every_option_that_is_a_path_is_known_as_one():
    """Else its bytes would not be hashed, nor be looked for by a replay."""
    found = set()
    for name, hint in typing.get_type_hints(Options, include_extras=True).items():
        if any("PATH" in str(getattr(one, "metavar", "")) for one in getattr(hint, "__metadata__", ())):
            found.add(name)
    assert found == set(SOURCES)


def test_pixels_have_no_text():
    found = as_json(Options(image=FRAMES[0], keyframes={8: Image.fromarray(FRAMES[0])}, latents=np.zeros(1)))
    assert found["image"] is None and found["keyframes"] == {"8": None} and found["latents"] is None
    found = as_json(Options(region=[(FRAMES[0, ..., 0], "x")], noises=np.zeros(1), flow=WarpedNoise(np.zeros(1), 0.1)))
    assert found["region"] == [[None, "x"]] and found["noises"] is None and found["flow"] is None


def files_asked(*numbers):
    """Options of every file there can be, x0, x1 and so on in the order of the options; and how many they are."""
    x = [f"x{n}" for n in numbers]
    asked = Options(
        **dict(image=x[0], last_image=x[1], keyframes={8: x[2], 16: x[3]}, video=x[4], mask=x[5]),
        **dict(control=f"{x[6]},{x[7]}", edit=x[8], extend=[x[9], x[10]]),
        **dict(trajectory=["1,2 3,4", x[11], [[1, 2], [3, 4]]], region=[((0, 0, 1, 1), "a"), (x[12], "b")]),
        **dict(noises=x[13], flow=f"{x[14]}:cell=8", calibration=x[17], controlnet=[f"{x[18]}:0.5", x[19]]),
        finish={"scale": 2, "upscaler": x[15], "codec": "h264", "audio": x[16]},
        tora=f"{x[20]}:0.5",
    )
    assert {name for name in SOURCES if sources_of(asked, name)} == set(SOURCES)
    return asked


def test_files_of_all_options_are_listed_and_named_anew():
    asked = files_asked(*range(21))
    assert [one for name in SOURCES for one in sources_of(asked, name)] == [f"x{n}" for n in range(21)]
    moved = with_paths(asked, lambda path: f"x{int(path[1:]) + 100}")
    wanted = vars(files_asked(*range(100, 121))) | {"control": ["x106", "x107"]}
    assert plain(vars(moved)) == plain(wanted)
    clip = np.zeros((1, 2, 2))
    assert with_paths(Options(mask=clip, noises=clip), lambda path: "moved").mask is clip
    assert sources_of(Options(controlnet=["a", "b"], control="c.mp4"), "control") == ["c.mp4"]


def test_all_files_that_are_read_are_hashed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in range(21):
        (tmp_path / f"x{n}").write_bytes(b"%d" % n)
    with VideoWriter("x8.mp4", 8, comment=RECORD.text) as writer:
        writer.write(FRAMES)
    (tmp_path / "x8.mp4").rename("x8")
    found = input_sources(files_asked(*range(21)))
    assert [one.path for one in found] == [f"x{n}" for n in range(17)]  # those behind are fingerprinted
    assert [one.sha256 for one in found] == [file_sha256(tmp_path / f"x{n}") for n in range(17)]
    assert {one.option: one.record for one in found if one.record} == {"edit": RECORD.id}
    arrays = input_sources(Options(region=[(FRAMES[0, ..., 0], "x")], flow=FRAMES[0, ..., :2].astype("float32")))
    assert [(one.option, one.path) for one in arrays] == [("region", None), ("flow", None)]


@pytest.mark.parametrize("name", ["x.mp4", "x.webm", "x.gif", "x.webp", "x"])
def test_a_video_carries_a_text(tmp_path, name):
    made = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        with VideoWriter(tmp_path / folder / name, 8, comment=TEXT) as writer:
            writer.write(FRAMES)
        assert read_tags(tmp_path / folder / name).comment == TEXT
        made.append({path.name: path.read_bytes() for path in (tmp_path / folder).rglob("*") if path.is_file()})
    assert made[0] == made[1]
    if name != "x":
        assert name == "x.webp" or len(read_video(tmp_path / "one" / name)[0]) == 4
        with VideoWriter(tmp_path / "one" / name, 8) as writer:  # in its place, one that carries nothing
            writer.write(FRAMES)
        assert read_tags(tmp_path / "one" / name).comment is None
        assert [path.name for path in (tmp_path / "one").iterdir()] == [name]


def test_a_text_outlives_a_remux(tmp_path):
    with VideoWriter(tmp_path / "x.mp4", 8, comment=TEXT) as writer:
        writer.write(FRAMES)
    with av.open(tmp_path / "x.mp4") as old, av.open(tmp_path / "y.webm.mkv", "w") as new:
        new.metadata.update(old.metadata)
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                new.mux(packet)
    assert read_tags(tmp_path / "y.webm.mkv").comment == TEXT


def test_a_sidecar_is_of_its_file_alone(tmp_path):
    file, beside = tmp_path / "x.gif", tmp_path / "x.gif.json"
    beside.write_text('{"mine": 1}')
    check_writable(file)
    with pytest.raises(ValueError, match="x.gif.json' would be replaced by the record of x.gif; move it"):
        check_writable(file, commented=True)
    with pytest.raises(OSError, match="is too long for .json after it; give a shorter one"):
        check_writable(tmp_path / f"{'x' * 247}.gif", commented=True)
    beside.unlink()
    for name in ("x.gif", "y.gif"):
        with VideoWriter(tmp_path / name, 8, comment=name) as writer:
            writer.write(FRAMES[: 3 if name == "x.gif" else 4])
    assert read_tags(file).comment == "x.gif"
    shutil.copy(tmp_path / "y.gif", file)
    with pytest.raises(ValueError, match="tells of other bytes than x.gif has"):
        read_tags(file)


def test_what_is_no_video_is_refused(tmp_path):
    for name, data in {"x.mp4": b"nonsense", "x.png": b"\x89PNG\r\n\x1a\nnonsense", "y.txt": b""}.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name}' (is no video|cannot be read as a picture)"):
            read_tags(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_tags(tmp_path / "none.mp4")
    with VideoWriter(tmp_path / "long.mp4", 8, comment="x" * (2**20 + 1)) as writer:
        writer.write(FRAMES)
    with pytest.raises(ValueError, match="has a comment of 1,048,577 characters; 1,048,576 are read at most"):
        read_record(tmp_path / "long.mp4")
    with VideoWriter(tmp_path / "other.mp4", 8, comment="hello") as writer:
        writer.write(FRAMES)
    with pytest.raises(ValueError, match="other.mp4' carries no record that can be read: not JSON"):
        read_record(tmp_path / "other.mp4")


def test_a_record_is_read_as_it_was_written():
    again = parse_record(RECORD.text)
    assert again == RECORD and again.text == RECORD.text and again.prompt == "b"
    assert again.id != dataclasses.replace(RECORD, index=0).id


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(format="cogvx record 3"), "of a version that is not known here"),
        (dict(format="other"), "no record of cogvx_jax"),
        (dict(format=["x"]), "no record of cogvx_jax"),
        (dict(more=1), "a record has decoded, device, enhanced, files"),
        (dict(prompts="text"), "prompts must be texts"),
        (dict(prompts=[]), "prompts must be texts"),
        (dict(prompts=[1]), "prompts must be texts"),
        (dict(index=2), "index must be from 0 to 1, got 2"),
        (dict(index=True), "index must be"),
        (dict(options=[]), "options must be an object"),
        (dict(files={"vae": 1}), "files has 'vae' of another kind: 1"),
        (dict(versions=None), "versions must be an object"),
        (dict(inputs={}), "inputs must be a list"),
        (dict(inputs=["x"]), "an input must have option, path, sha256, record"),
        (dict(model=dict(RECORD.model, loras=[1])), "a LoRA must have source, weight, digest"),
        (dict(model=dict(RECORD.model, exact=1)), "exact of model is of another kind: 1"),
        (dict(model=dict(RECORD.model, given={"vae": []})), "given has 'vae' of another kind"),
        (dict(model={}), "model must have source, name"),
    ],
)
def test_damaged_records_are_named(changes, said):
    with pytest.raises(ValueError, match=said):
        parse_record(json.dumps(json.loads(RECORD.text) | changes))


def test_where_files_lie_does_not_count():
    moved = dict(RECORD.inputs[0], path="elsewhere.mp4")
    model, options = dict(RECORD.model, source="./there", name="there"), dict(RECORD.options, video="elsewhere.mp4")
    assert differences(RECORD, dataclasses.replace(RECORD, inputs=(moved,), model=model, options=options)) == []
    other = dataclasses.replace(
        RECORD,
        prompts=("a", "c"),
        options=dict(RECORD.options, seed=1),
        files={"vae": "1"},
        versions={"jax": "2"},
        inputs=(dict(moved, sha256="1"),),
    )
    assert differences(RECORD, other) == [
        "prompts: ('a', 'b') then, ('a', 'c') now",
        "options seed: 0 then, 1 now",
        "files vae: 0 then, 1 now",
        "versions jax: 1 then, 2 now",
        "inputs: other bytes now",
    ]


def test_what_is_said_beside_a_path_counts():
    def record(**asked):
        return dataclasses.replace(RECORD, options=as_json(Options(**asked)))

    assert differences(record(flow="a.npy:cell=8"), record(flow="b.npy:cell=8")) == []
    (said,) = differences(record(flow="a.npy:cell=8"), record(flow="b.npy:cell=16"))
    assert said.startswith("options flow: ") and "cell=8 then" in said and "cell=16 now" in said
    (said,) = differences(record(region=[("a.png", "a star")]), record(region=[("b.png", "a moon")]))
    assert "'a star'" in said and "'a moon'" in said


def test_fingerprints(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    (one / "sub").mkdir(parents=True)
    data = np.random.default_rng(0).integers(0, 256, 3 * PIECES * PIECE + 5, np.uint8)
    (one / "sub" / "weights").write_bytes(data.tobytes())
    (one / "small").write_bytes(b"x")
    (one / "empty").write_bytes(b"")
    shutil.copytree(one, two)
    (two / "README.md").write_text("notes")
    first = fingerprint(one)
    assert fingerprint(two) == first and fingerprint(two / "small") == fingerprint(
        shutil.copy(one / "small", one / "x")
    )
    found = set()
    for place in (0, PIECE - 1, len(data) - 1):
        changed = data.copy()
        changed[place] ^= 1
        (two / "sub" / "weights").write_bytes(changed.tobytes())
        found.add(fingerprint(two))
    (two / "sub" / "weights").write_bytes(data.tobytes())
    (two / "small").rename(two / "other")
    assert len(found | {first, fingerprint(two)}) == 5
    with pytest.raises(FileNotFoundError):
        fingerprint(tmp_path / "none")


def run(*arguments, monkeypatch, code=0):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    if not code:
        return cli.main()
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code


@pytest.fixture
def cogvx(small, tmp_path, monkeypatch, capsys):
    """`cogvx(*arguments, code=0)` in a folder of its own, where `model` is the small 5B; gives what was printed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small("5b")[0], "model")

    def call(*arguments, code=0):
        capsys.readouterr()
        run(*arguments, monkeypatch=monkeypatch, code=code)
        return "".join(capsys.readouterr())

    return call


def test_a_video_is_made_again(cogvx, tmp_path):
    with VideoWriter("in.mp4", fps=12.5) as writer:
        writer.write(np.full((9, 32, 48, 3), 90, np.uint8))
    asked = ["--video", "in.mp4", "--strength", "0.5", "--seed", "random", "--no-progress", "--model", "./model"]
    cogvx("generate", "a panda\x1b[2J", *asked, "--out", "out.mp4")
    record = read_record("out.mp4")
    assert record.options["strength"] == 0.5 and record.options["fps"] == "25/2" and record.options["frames"] == 9
    assert record.files == part_fingerprints(open_source("model"))
    assert record.inputs[0]["option"] == "video" and record.inputs[0]["record"] is None
    said = cogvx("show", "out.mp4")
    assert "a panda\\x1b[2J\n" in said and "\x1b" not in said and "cogvx replay out.mp4" in said
    assert json.loads(cogvx("show", "out.mp4", "--json")) == json.loads(record.text)
    cogvx("replay", "out.mp4", "--no-progress")
    assert (tmp_path / "out-replay.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()

    (tmp_path / "model").rename("moved")
    cogvx("replay", "out.mp4", "--model", "./moved", "--out", "moved.mp4", "--no-progress")
    assert (tmp_path / "moved.mp4").read_bytes() == (tmp_path / "out.mp4").read_bytes()
    (tmp_path / "moved").rename("model")
    file = tmp_path / "model" / "vae" / "config.json"
    file.write_text(file.read_text() + " ")
    assert "files vae: " in cogvx("replay", "out-replay.mp4", "--out", "y.mp4", code=2)


@pytest.fixture
def files(cogvx):
    """A clip and a mask to make videos of."""
    with VideoWriter("in.mp4", fps=12.5) as writer:
        writer.write(np.full((9, 32, 48, 3), 90, np.uint8))
    Image.fromarray(np.repeat(np.uint8([[0, 255]]), 24, axis=1)).resize((48, 32)).save("right.png")


@pytest.mark.full
def test_a_video_of_a_video_is_made_again(cogvx, files, tmp_path):
    """A child knows its parent; what it was made of may lie beside it."""
    cogvx("generate", "a panda", "--video", "in.mp4", "--no-progress", "--model", "./model", "--out", "out.mp4")
    record = read_record("out.mp4")
    (tmp_path / "there").mkdir()
    cogvx("generate", "x", "--video", "out.mp4", "--no-progress", "--model", "./model", "--out", "there/child.gif")
    child = read_record("there/child.gif")
    assert child.inputs[0]["record"] == record.id and f"made by record {record.id}" in cogvx("show", "there/child.gif")
    (tmp_path / "out.mp4").rename("there/out.mp4")
    cogvx("replay", "there/child.gif", "--out", "again.gif", "--no-progress")
    for name in ("", ".json"):
        assert (tmp_path / f"again.gif{name}").read_bytes() == (tmp_path / f"there/child.gif{name}").read_bytes()

    # Other bytes are refused, and so is what is gone.
    shutil.copy("in.mp4", "there/out.mp4")
    refused = ["replay", "there/child.gif", "--out", "x.gif", "--no-progress"]
    assert "there/out.mp4 has other bytes now; --anyway makes it" in cogvx(*refused, code=2)
    assert "has other bytes now" in cogvx(*refused, "--anyway") and (tmp_path / "x.gif").is_file()
    assert read_record("x.gif").inputs != child.inputs
    (tmp_path / "there/out.mp4").unlink()
    assert "the video of there/child.gif is gone: neither out.mp4" in cogvx(*refused, "--anyway", code=2)


def made_again(cogvx, words, out, place):
    """The record of a video that the command makes, which another name and another place give the same bytes of."""
    common = ["--no-progress", "--model", "./model"]
    cogvx(*words, "--steps", "2", *common, "--out", out)
    record = read_record(out)
    cogvx("replay", out, "--no-progress", "--out", f"again-{out}")
    assert (place / f"again-{out}").read_bytes() == (place / out).read_bytes()
    return record


@pytest.mark.full
def test_a_video_with_regions_is_made_again(cogvx, files, tmp_path):
    """Its mask may lie beside it meanwhile; other bytes of that are refused."""
    words = ["generate", "x", "--region", "right.png=a star", "--region", "0,0,0.5,1=a moon"]
    record = made_again(cogvx, words, "out.mp4", tmp_path)
    assert record.options["region"] == [["right.png", "a star"], [[0, 0, 0.5, 1], "a moon"]]
    assert [(one["option"], one["path"]) for one in record.inputs] == [("region", "right.png")]
    (tmp_path / "there").mkdir()
    for name in ("right.png", "out.mp4"):
        (tmp_path / name).rename(tmp_path / "there" / name)
    cogvx("replay", "there/out.mp4", "--out", "moved.mp4", "--no-progress")
    assert (tmp_path / "moved.mp4").read_bytes() == (tmp_path / "there/out.mp4").read_bytes()
    Image.new("L", (48, 32), 255).save("right.png")
    assert "right.png has other bytes now; --anyway" in cogvx("replay", "there/out.mp4", "--out", "x.mp4", code=2)


@pytest.mark.full
def test_videos_of_the_newest_options_are_made_again(cogvx, files, tmp_path):
    record = made_again(cogvx, ["generate", "x", "--travel", "50%=a blue star"], "travel.mp4", tmp_path)
    assert record.options["travel"] == {"50%": "a blue star"} and record.inputs == ()
    edit = ["edit", "travel.mp4", "a star", "--mask", "right.png", "--strength", "0.6"]
    child = made_again(cogvx, edit, "edit.mp4", tmp_path)
    assert [one["option"] for one in child.inputs] == ["mask", "edit"] and child.inputs[1]["record"] == record.id
    assert child.options["strength"] == 0.6 and f"made by record {record.id}" in cogvx("show", "edit.mp4")
    whole = made_again(cogvx, ["edit", "in.mp4", "a star"], "whole.mp4", tmp_path)
    assert whole.options["strength"] == 1 and whole.options["fps"] == "25/2"
    np.save("flow.npy", np.ones((8, 4, 6, 2), np.float32))
    flow = ["generate", "x", "--flow", "flow.npy:degradation=0.2,cell=4"]
    record = made_again(cogvx, flow, "flow.mp4", tmp_path)
    assert record.options["flow"] == "flow.npy:degradation=0.2,frames=nearest,cell=4"
    assert [(one["option"], one["path"]) for one in record.inputs] == [("flow", "flow.npy")]


def test_no_record_and_what_has_none(cogvx):
    cogvx("generate", "x", "--no-record", "--out", "out.mp4", "--model", "./model", "--no-progress")
    for verb in ("show", "replay"):
        assert "out.mp4' carries no record; it was made elsewhere, by --no-record" in cogvx(verb, "out.mp4", code=2)


def test_a_model_that_is_gone_meanwhile_costs_the_record_alone(cogvx, tmp_path):
    shutil.copytree("model", "gone")
    model = cx.load("./gone")
    shutil.rmtree("gone")
    with pytest.warns(UserWarning, match="carries no record, as the model's files cannot be read now"):
        video = cx.generate(model, "x", num_inference_steps=1, progress=False)
    assert video.records == (None,)


def test_graphs_of_comfyui_stand_beside_the_record(tmp_path, monkeypatch, capsys):
    theirs = {"workflow": TEXT, "prompt": "{}"}
    for name in ("out.mp4", "out.webm", "out.gif"):
        with VideoWriter(tmp_path / name, 8, RECORD.text, tags=theirs) as writer:
            writer.write(FRAMES)
        found = read_tags(tmp_path / name)
        assert found.comment == RECORD.text
        assert {key: found.get(key) for key in theirs} == (theirs if name != "out.gif" else dict.fromkeys(theirs))
    run("show", tmp_path / "out.mp4", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    assert f"ComfyUI's workflow, {len(TEXT):,} characters" in said and "ComfyUI's prompt, 2 characters" in said


@pytest.mark.full  # two videos more
def test_a_replay_keeps_the_graph_of_comfyui(cogvx):
    cogvx("generate", "x", "--steps", "1", "--no-progress", "--model", "./model", "--out", "plain.mp4")
    text, (frames, fps) = read_tags("plain.mp4").comment, read_video("plain.mp4")
    with VideoWriter("out.mp4", fps, text, tags={"workflow": TEXT}) as writer:
        writer.write(frames)
    cogvx("replay", "out.mp4", "--no-progress", "--out", "again.mp4")
    assert read_tags("again.mp4") == read_tags("out.mp4")
    cogvx("replay", "out.mp4", "--no-progress", "--out", "again.gif")  # which holds no texts
    assert read_record("again.gif").text == text


def test_other_versions_are_refused(cogvx):
    model = cx.load("./model")
    video = cx.generate(model, "x", num_inference_steps=1, progress=False)
    record = parse_record(video.records[0])
    other = dataclasses.replace(record, versions=dict(record.versions, jax="0.0.1"))
    Video(video.frames, video.fps, [other.text]).save("out.mp4")
    now = record.versions["jax"]
    assert f"versions jax: 0.0.1 then, {now} now; --anyway" in cogvx("replay", "out.mp4", code=2)
    changed = dataclasses.replace(record, decoded={"tiling": True})
    Video(video.frames, video.fps, [changed.text]).save("out.mp4")
    assert "it was decoded by `cogvx decode` with tiling; --anyway" in cogvx("replay", "out.mp4", code=2)
    spare = dataclasses.replace(record, options=dict(record.options, colour=1))
    Video(video.frames, video.fps, [spare.text]).save("out.mp4")
    assert "was made with 'colour', which is not known here" in cogvx("replay", "out.mp4", code=2)
    for given, said in (
        ({"colour": 1}, "was made with 'colour'"),
        ({"sample_height": "x"}, "sample_height 'x' is not supported"),
    ):
        spare = dataclasses.replace(record, model=dict(record.model, given=given))
        Video(video.frames, video.fps, [spare.text]).save("out.mp4")
        assert said in cogvx("replay", "out.mp4", code=2)


@pytest.mark.full
def test_videos_of_python_are_made_again(cogvx, tmp_path):
    """Two at once, with a LoRA of a file: each is made as one of both."""
    model = cx.load("./model", dtype="float32")
    shapes = traverse_util.flatten_dict(model.params["transformer"], sep="/")
    path = "blocks/attention/q/kernel" if "blocks/attention/q/kernel" in shapes else None
    path = path or next(p for p in shapes if p.startswith("blocks/attention") and shapes[p].ndim == 3)
    layers, features, out = shapes[path].shape
    adapters = {path: {"a": np.ones((layers, features, 2), np.float32), "b": np.ones((layers, 2, out), np.float32)}}
    lora = LoRA(adapters=adapters, rank=2, alpha=2.0)
    tuned = cx.load_lora(model, lora, 0.1)
    video = cx.generate(tuned, ["a star", "a circle"], num_inference_steps=1, progress=False)
    first, second = map(parse_record, video.records)
    assert (first.index, second.index, second.prompt) == (0, 1, "a circle") and first.prompts == second.prompts
    (used,) = first.model["loras"]
    assert used["source"] is None and used["weight"] == 0.1 and len(used["digest"]) == 16
    assert cx.Video(video.frames, 8).records == (None, None)
    video.save("x.mp4")
    assert "was made of what only the memory of its process held: 'a LoRA'" in cogvx("replay", "x-1.mp4", code=2)
    plain = cx.generate(model, ["a star", "a circle"], num_inference_steps=1, progress=False)
    plain.save("y.webm")
    cogvx("replay", "y-1.webm", "--out", "z.webm", "--no-progress")
    assert (tmp_path / "z.webm").read_bytes() == (tmp_path / "y-1.webm").read_bytes()
    plain.save("n.mp4", record=False)
    assert read_tags("n-0.mp4").comment is None
    # Parameters of no file: the record does not claim that they are the file's.
    params = model.params | {"transformer": dict(model.params["transformer"])}
    key = next(iter(params["transformer"]))
    params["transformer"][key] = traverse_util.unflatten_dict(
        {k: v + 0 for k, v in traverse_util.flatten_dict(params["transformer"][key]).items()}
    )
    trained = dataclasses.replace(model, params=params)
    assert trained.known_origin is None and cx.load_lora(trained, lora).known_origin is None
    cx.generate(trained, "x", num_inference_steps=1, progress=False).save("t.mp4")
    assert read_record("t.mp4").files == {}
    assert "was made by parameters that are of no file" in cogvx("replay", "t.mp4", code=2)


def test_kept_latents_keep_the_record(tmp_path, monkeypatch, capsys):
    saved = SavedLatents(latents=np.ones((1, 3, 4, 6, 4), np.float32), padding=1, fps=8.0, model="m", prompt="x")
    file = tmp_path / "x.latents.safetensors"
    save_latents(file, saved)
    assert read_latents(file).record is None
    save_latents(file, dataclasses.replace(saved, record=RECORD.text))
    assert parse_record(read_latents(file).record) == RECORD
    save_latents(file, dataclasses.replace(saved, record="nonsense"))
    run("decode", file, monkeypatch=monkeypatch, code=2)
    assert "x.latents.safetensors is damaged: its record: not JSON" in capsys.readouterr().err
