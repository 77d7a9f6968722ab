"""`cogvx compile`: what it stores makes the same video in a process that compiles none of it, and fits nothing else."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import warnings
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.diffusion.update import SamplerState
from cogvx_jax.pipelines import memory, program_pickle
from cogvx_jax.pipelines import stored_programs as stored
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.program_cost import Cost
from cogvx_jax.planning import compile as compile_
from cogvx_jax.sharding.topologies import has_libtpu

HEAVY = {"jit(encode)", "jit(step)", "jit(run)"}  # text encoder, denoising step, a frame batch of the VAE
# Prints what was compiled for a video whose programs are stored, then for a longer one.
FRESH = """
import json, logging, sys, warnings
import jax, numpy as np
import cogvx_jax as cx
folder, programs, out = sys.argv[1:]
said, found = [], []
class Listener(logging.Handler):
    def emit(self, record):
        words = record.getMessage().split()
        if words[:4] == ["Finished", "XLA", "compilation", "of"]:
            said.append(words[4])
jax.config.update("jax_log_compiles", True)
logger = logging.getLogger("jax")
logger.handlers, logger.propagate = [Listener()], False
model = cx.load(folder, programs=programs)
for frames in (9, 17):
    with warnings.catch_warnings(record=True) as caught:
        video = cx.generate(model, "a red circle", num_frames=frames, num_inference_steps=2, progress=False)
    np.save(f"{out}/{frames}.npy", video.frames)
    found.append([said.copy(), [str(warning.message) for warning in caught]])
    said.clear()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def programs(small, tmp_path_factory):
    """Those of the small 5B on one device; copy the folder before changing it."""
    folder = tmp_path_factory.mktemp("programs") / "5b"
    cx.compile_programs(small("5b")[0], folder)
    return folder


@pytest.mark.full
def test_a_fresh_process_compiles_only_what_is_not_there(small, programs, tmp_path):
    folder, model = small("5b")
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(folder), str(programs), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    (there, quiet), (longer, noted) = json.loads(done.stdout)
    assert there and not HEAVY & set(there) and not quiet
    assert {"jit(step)", "jit(run)"} <= set(longer) and "jit(encode)" not in longer
    assert [line.split(" has no program ")[1].split()[0] for line in noted] == ["'step'", "'decode'"]
    for frames in (9, 17):
        video = cx.generate(model, "a red circle", num_frames=frames, num_inference_steps=2, progress=False)
        np.testing.assert_array_equal(np.load(tmp_path / f"{frames}.npy"), video.frames)


@pytest.mark.full
@pytest.mark.parametrize(
    "kind, sizes, one_program",
    [
        ("1.5-5b-i2v", dict(cfg=2, context=2), True),
        ("2b", dict(data=2, sp=4), False),
        ("5b-i2v", {}, False),
        ("control", dict(cfg=2), True),
        ("inpaint", {}, False),
    ],
)
def test_every_program_of_a_video_is_there(small, tmp_path, kind, sizes, one_program):
    folder, _ = small(kind)
    mesh = cx.make_mesh(**sizes, devices=jax.devices()[: int(np.prod(list(sizes.values())))]) if sizes else None
    videos, clip = sizes.get("data", 1), np.full((9, 32, 48, 3), 90, np.uint8)
    image = {"image": clip[0]}
    inputs = {"5b-i2v": [image], "1.5-5b-i2v": [image], "control": [{"control": clip}], "inpaint": [{}, image]}
    inputs = inputs.get(kind, [{}, {"video": clip}])
    options = dict(num_inference_steps=3, sampler="dpm")
    cx.compile_programs(
        folder,
        tmp_path / "programs",
        mesh=mesh,
        videos=videos,
        one_program=one_program,
        from_video=kind == "2b",
        **options,
    )
    options |= dict(one_program=one_program, progress=False)
    for given in inputs:
        own = options | given | ({"strength": 1.0} if "video" in given else {})
        made = []
        for kept in (None, tmp_path / "programs"):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                model = cx.load(folder, mesh=mesh, programs=kept)
                made.append(cx.generate(model, ["a red circle"] * videos, **own).frames)
        np.testing.assert_array_equal(*made)


def changed(programs, target, *path, value):
    """A copy of the programs whose manifest says something else."""
    shutil.copytree(programs, target)
    manifest = json.loads((target / "programs.json").read_text())
    inner = manifest
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (target / "programs.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize(
    "key, value, said",
    [
        ("jaxlib", "0.1", r"are for jaxlib 0\.1 \(here "),
        ("platform", "tpu", r"are for platform tpu \(here cpu\); `cogvx compile`"),
        ("devices", "8 x TPU v5 lite", r"devices 8 x TPU v5 lite \(here 1 x cpu\)"),
        ("code of cogvx_jax", "0", r"code of cogvx_jax 0 \(here "),
        ("processor", "another", "processor another"),
        ("order of devices", ",".join(map(str, range(4096))), r"order of devices 0,1,2,\S{91,95} \(here 0\)"),
    ],
)
def test_programs_for_something_else_are_refused(small, programs, tmp_path, key, value, said):
    other = changed(programs, tmp_path / "other", "made_for", key, value=value)
    with pytest.raises(ValueError, match=said):
        cx.load(small("5b")[0], programs=other)


@pytest.mark.full
def test_another_model_type_or_mesh_is_refused(small, programs):
    folder, _ = small("5b")
    with pytest.raises(ValueError, match=r"model small-5b in float32, \w+ \(here small-5b in bfloat16, "):
        cx.load(folder, dtype="bfloat16", programs=programs)
    with pytest.raises(ValueError, match=r"model small-5b .*\(here small-2b "):
        cx.load(small("2b")[0], programs=programs)
    with pytest.raises(ValueError, match=r"mesh one device \(here cfg=2,sp=4\)"):
        cx.load(folder, mesh=cx.make_mesh(cfg=2, sp=4), programs=programs)


@pytest.mark.full
@pytest.mark.skipif(not has_libtpu(), reason="compiling for a TPU that is not here needs libtpu")
def test_programs_for_a_tpu_are_stored_and_refused_elsewhere(small, tmp_path):
    folder, out = small("5b")[0], tmp_path / "programs"
    options = ["--model", folder, "--topology", "v5e:2x2", "--mesh", "cfg=2,sp=2", "--out", out]
    subprocess.run([sys.executable, "-m", "cogvx_jax.cli", "compile", *map(str, options)], check=True)
    manifest = json.loads((out / "programs.json").read_text())
    assert manifest["made_for"]["devices"] == "4 x TPU v5 lite"
    assert [entry["name"] for entry in manifest["programs"]] == ["text", "step", "decode"]
    with pytest.raises(ValueError, match=r"are for platform tpu \(here cpu\), and of other devices, .*libtpu"):
        cx.load(folder, mesh=cx.make_mesh(cfg=2, sp=2, devices=jax.devices()[:4]), programs=out)


def test_damage_is_found(small, programs, tmp_path):
    folder, _ = small("5b")
    with pytest.raises(FileNotFoundError, match="has no programs.json: it is not a folder of `cogvx compile`"):
        cx.load(folder, programs=tmp_path)
    with pytest.raises(ValueError, match="is not of format 2"):
        cx.load(folder, programs=changed(programs, tmp_path / "format", "format", value=1))
    shutil.copytree(programs, tmp_path / "damaged")
    file = tmp_path / "damaged" / "1-step.pickle"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="1-step.pickle is not what `cogvx compile` wrote"):
        cx.load(folder, programs=tmp_path / "damaged")


@pytest.mark.parametrize(
    "path, value, words",
    [
        (["programs", 0, "file"], "../other/0-text.pickle", "its programs is"),
        (["programs", 0, "file"], "/etc/passwd", "its programs is"),
        (["programs", 0, "file"], "sub/0-text.pickle", "its programs is"),
        (["programs", 0, "file"], "none.pickle", "No such file"),
        (["programs", 0, "file"], 5, "its programs is"),
        (["programs", 0, "name"], "other", "its programs is"),
        (["programs", 0], "x" * 10**6, "its programs is"),
        (["programs"], {"a": 1}, "its programs is {'a': 1}"),
        (["decode"], None, "its decode is None"),
        (["decode", "bytes"], "5", "its decode is"),
        (["decode", "latents"], 5, "its decode is"),
        (["decode", "strips"], None, "its decode is"),
        (["made_for"], [], r"its made_for is \[\]"),
        (["made_for", "platform"], "x" * 10**6, "its made_for is"),
        (["made_for", "x\n"], "x", "its made_for is"),
        (["made_for"], {str(i): "x" for i in range(1000)}, "its made_for is"),
        (["more"], float("nan"), "the number NaN in it is not finite"),
    ],
)
def test_a_manifest_that_is_wrong_is_one_sentence(small, programs, tmp_path, path, value, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        cx.load(small("5b")[0], programs=changed(programs, tmp_path / "other", *path, value=value))
    assert str(tmp_path / "other") in str(raised.value) and len(str(raised.value)) < 700


@pytest.mark.parametrize("name", ["", "programs.json", "1-step.pickle"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_folders_and_files_that_others_can_write_to_are_refused(small, programs, tmp_path, name, mode):
    folder = tmp_path / "programs"
    shutil.copytree(programs, folder)
    path = folder / name
    kept = path.stat().st_mode
    path.chmod(kept | mode)
    with pytest.raises(ValueError, match=f"others can write to {path}, .* forbid it by `chmod -R go-w`"):
        cx.load(small("5b")[0], programs=folder)


@pytest.mark.parametrize("name", ["programs.json", "1-step.pickle"])
def test_links_out_of_the_folder_are_refused(small, programs, tmp_path, name):
    folder = tmp_path / "programs"
    shutil.copytree(programs, folder)
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(ValueError, match=f"{folder / name} is a link, and may lead out of the folder"):
        cx.load(small("5b")[0], programs=folder)


def test_what_belongs_to_another_user_is_refused(programs, monkeypatch):
    found = os.stat_result([*programs.stat()][:4] + [4321] + [*programs.stat()][5:])
    with pytest.raises(ValueError, match="is another user's, and programs are code; copy the folder if you trust"):
        stored._check_own(programs, found)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    stored._check_own(programs, found)


def test_others_cannot_write_to_new_folders(small, tmp_path):
    before = os.umask(0)
    try:
        stored.write_programs(tmp_path / "programs", [], {}, {}, dict)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "programs", *tmp_path.rglob("*.json"))}
    assert modes == {"programs": 0o755, "programs.json": 0o644}


EVIL = """
from pathlib import Path
Path(__file__).with_suffix(".imported").touch()
class Thing:
    pass
def call(path):
    Path(path).touch()
"""


@pytest.mark.parametrize("inner", [False, True])
@pytest.mark.parametrize("how", ["call", "import", "builtin", "attribute"])
def test_a_pickle_runs_nothing(small, programs, tmp_path, monkeypatch, inner, how):
    """Neither what jax's file is wrapped in nor the file itself may name what programs do not need."""
    (tmp_path / "evil.py").write_text(EVIL)
    called = tmp_path / "called"
    dotted = b"ndarray.__class__.__subclasses__"  # newer protocols follow the dots
    head = {
        "call": b"cevil\ncall\n",
        "import": b"cevil\nThing\n",
        "builtin": b"cbuiltins\neval\n",
        "attribute": b"\x80\x04\x8c\x05numpy\x8c" + bytes([len(dotted)]) + dotted + b"\x93",
    }[how]
    path = str(called).encode()
    evil = head + b"(X" + len(path).to_bytes(4, "little") + path + b"tR."
    if inner:
        kept = pickle.loads((programs / "1-step.pickle").read_bytes())
        evil = pickle.dumps((evil, *kept[1:]))
    folder = shutil.copytree(programs, tmp_path / "programs")
    (folder / "1-step.pickle").write_bytes(evil)
    manifest = json.loads((folder / "programs.json").read_text())
    entry = next(entry for entry in manifest["programs"] if entry["name"] == "step")
    entry["sha256"] = hashlib.sha256(evil).hexdigest()
    (folder / "programs.json").write_text(json.dumps(manifest))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        ValueError, match=r"1-step.pickle cannot be loaded: UnpicklingError: it names .* no program needs"
    ):
        cx.load(small("5b")[0], programs=folder)
    assert not called.exists() and not (tmp_path / "evil.imported").exists() and "evil" not in sys.modules


def test_trees_of_what_programs_take_are_read():
    state = SamplerState(latents=1, history=(2,))
    tree = jax.tree.structure(({"params": {"a": 1}}, state, [SeededNoise.abstract(), None, (1, 2)]))
    assert program_pickle._Trees(io.BytesIO(pickle.dumps(tree))).load() == tree


def test_pickles_that_are_damaged_are_one_sentence(small, programs, tmp_path):
    good = (programs / "0-text.pickle").read_bytes()
    for bad in (b"", b"x", good[:1000], pickle.dumps(5), pickle.dumps((b"x", 1, 2)), b"(" * 10**6):
        with pytest.raises(ValueError) as raised:
            program_pickle.load_program(bad, jax.devices()[:1])
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 300


def test_the_digest_of_the_code_follows_subfolders_and_names(tmp_path, monkeypatch):
    (tmp_path / "pipelines" / "tasks").mkdir(parents=True)
    file = tmp_path / "pipelines" / "stored_programs.py"
    monkeypatch.setattr(stored, "SOURCES", ("axes.py", "pipelines"))
    monkeypatch.setattr(stored, "__file__", str(file))
    (tmp_path / "axes.py").write_text("a")
    file.write_text("b")
    seen = [stored._code()]
    (tmp_path / "pipelines" / "tasks" / "one.py").write_text("c")
    seen.append(stored._code())
    (tmp_path / "pipelines" / "tasks" / "one.py").rename(tmp_path / "pipelines" / "one.py")
    seen.append(stored._code())
    file.write_text("bc")
    (tmp_path / "pipelines" / "one.py").write_text("")
    seen.append(stored._code())
    assert len(set(seen)) == 4 and stored._code() == seen[-1]


@pytest.mark.full
def test_it_is_written_whole_or_not_at_all(small, tmp_path, monkeypatch, capsys):
    def broken(compiled):
        raise ValueError("this platform cannot")

    monkeypatch.setattr(program_pickle.serialize_executable, "serialize", broken)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    for out, said in (("out", "this platform cannot"), ("full", "is not an empty folder; nothing was written")):
        monkeypatch.setattr(
            sys, "argv", ["cogvx", "compile", "--model", str(small("5b")[0]), "--out", str(tmp_path / out)]
        )
        with pytest.raises(SystemExit):
            cli.main()
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["full", "something"]


def test_the_check_of_memory_compiles_nothing(small, programs, monkeypatch):
    model = cx.load(small("5b")[0], programs=programs)
    shape = (2, 3, 4, 6, 4)
    needed = memory.decode_bytes(small("5b")[1], shape)
    monkeypatch.setattr(memory, "lower_decode", None)
    assert memory.decode_bytes(model, shape) == needed
    monkeypatch.setattr(memory, "free_bytes", lambda: needed - 1)
    with pytest.raises(ValueError, match="decoding 32x48 takes"):
        memory.check_decode(model, shape, strips=1)


def test_strips_of_stored_programs_are_the_models(small, programs, tmp_path):
    folder = changed(programs, tmp_path / "strips", "decode", "strips", value=4)
    model = cx.load(small("5b")[0], programs=folder)
    shape = (1, 3, 4, 6, 4)
    assert model.compute.strips == 1 and memory.check_decode(model, shape).compute.strips == 4
    assert memory.check_decode(model, shape, strips=2).compute.strips == 2


@pytest.mark.parametrize("asked, compiled", [(None, [1, 16, 32]), (64, [64]), (16, [16])])
def test_the_decoder_is_compiled_in_the_fewest_strips_that_fit(small, tmp_path, monkeypatch, asked, compiled):
    """Scripted: the compiler refuses fewer than 32, and the encoder has as many as the decoder."""
    tried = []

    def lower(video, name):
        tried.append((name, video.compute.of(stored.COMPONENT[name]).strips))
        yield SimpleNamespace(args_info=((None,), {}), number=len(tried))

    def compile_fitting(lowered):
        name, strips = tried[lowered.number - 1]
        if name == "decode" and strips < 32:
            raise MemoryError("Ran out of memory")

    cost = Cost(arguments=1, temporaries=2, outputs=3, cycles=0, kernel_cycles=0, collectives={}, seconds=0)
    monkeypatch.setattr(compile_.programs.VideoPrograms, "lower", lower)
    monkeypatch.setattr(compile_, "compile_fitting", compile_fitting)
    monkeypatch.setattr(compile_, "read_cost", lambda program, chip: cost)
    monkeypatch.setattr(stored, "dump_program", lambda compiled: b"")
    out = tmp_path / "programs"
    if compiled[-1] < 32:
        with pytest.raises(ValueError, match="decoding does not fit such a device in 16 strips of rows: Ran out of"):
            cx.compile_programs(small("5b")[0], out, strips=asked)
        assert not out.exists()
    else:
        cx.compile_programs(small("5b")[0], out, strips=asked, from_video=True)
        manifest = json.loads((out / "programs.json").read_text())
        assert manifest["decode"]["strips"] == compiled[-1] and manifest["decode"]["bytes"] == 5
        assert [entry["name"] for entry in manifest["programs"]] == ["text", "encode", "step", "decode"]
        assert tried[-3:] == [("text", 1), ("encode", compiled[-1]), ("step", 1)]
    assert [strips for name, strips in tried if name == "decode"] == compiled


@pytest.mark.full
def test_programs_in_strips_make_the_same_video(small, tmp_path):
    folder, model = small("5b")
    cx.compile_programs(folder, tmp_path / "programs", strips=2)
    asked = dict(num_inference_steps=2, progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # as of a program that is not there
        there = cx.generate(cx.load(folder, programs=tmp_path / "programs"), "a red circle", **asked)
    whole = cx.generate(model, "a red circle", **asked)
    np.testing.assert_allclose(np.int32(there.frames), np.int32(whole.frames), rtol=0, atol=1)
