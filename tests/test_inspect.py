"""`cogvx inspect` tells what a file is; every command that it prints runs as it is printed."""

import dataclasses
import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from flax import traverse_util
from gguf_file import gguf_bytes, plain
from packings import bitsandbytes, blocks, nf4, q4_0, q8_0, quanto, save, t5_of_llama_cpp, torchao
from PIL import Image
from small_files import STATES, fine_tuned_file, read_all, with_lora

import cogvx_jax as cx
from cogvx_jax.cli import generate as generates
from cogvx_jax.cli.main import VERBS
from cogvx_jax.configs import ControlNetConfig
from cogvx_jax.convert import commands, write_lora, write_quantized
from cogvx_jax.convert.checkpoint import published_tensors
from cogvx_jax.convert.commands import WORDS, lora_word, model_word, published_word
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.controlnet import write_controlnet
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.lora_file import shipped
from cogvx_jax.convert.runs import transformer_shapes
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sources import open_source
from cogvx_jax.convert.targets import TARGETS, write_model
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.models import lora as loras
from cogvx_jax.models.abstract import abstract_params
from cogvx_jax.models.lora import LoRA, LoRAConfig
from cogvx_jax.pipelines.model import TINY
from cogvx_jax.pipelines.provenance import record_of
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.saved_latents import SavedLatents, save_latents
from cogvx_jax.quantization import find_quantization
from cogvx_jax.sharding import params_digest
from cogvx_jax.train.checkpoint import Checkpoints
from cogvx_jax.train.clips.cache import Shape
from cogvx_jax.train.step import State

PACKED = "transformer_blocks.0.ff.net.2"
LATENTS = "a video.mp4.latents.safetensors"


def told(capsys, *words):
    """What the command prints, as JSON."""
    args = ["inspect", *map(str, words), "--json"]
    capsys.readouterr()
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=args)
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def files(small, random_cache, tmp_path_factory):
    """A folder with a file or folder of every kind, in names that a shell would cut."""
    folder, (published, model) = tmp_path_factory.mktemp("a folder"), small("5b")
    shutil.copytree(published, folder / "a model")
    shutil.copytree(small("5b-i2v")[0], folder / "of images")
    source = open_source(published)
    weights = {t.key: t.make() for t in published_tensors(source, source.spec(), "transformer")}
    for layout in ("sat", "single", "orbax"):
        write_model(source, folder / f"of {layout}", layout)
    write_quantized(published, folder / "of integers", find_quantization("int8"))
    parts_of(folder, published, weights)
    packed_files(folder, published, source, weights)
    of_sat(folder, published, weights)
    of_loras(folder, model)
    of_runs(folder, published, model)
    random_cache(folder / "a cache", model, Shape(32, 48, 9, 8.0), 2)
    latents = np.zeros((1, 3, 4, 6, 4), np.float32)
    saved = SavedLatents(latents=latents, padding=0, fps=8.0, model=str(folder / "a model"), prompt="a red circle")
    save_latents(folder / LATENTS, saved)
    save_latents(folder / "gone.safetensors", dataclasses.replace(saved, model="/nowhere/else"))
    Image.new("RGB", (48, 32)).save(folder / "image.png")
    of_controlnet(folder)
    record = record_of(model, check_request(model.spec, "a red circle"))
    with VideoWriter(folder / "a recorded.mp4", 8, comment=record.text) as writer:
        writer.write(np.zeros((9, 32, 48, 3), np.uint8))
    return folder


def of_controlnet(folder):
    """A ControlNet for the model, in its folder and as its file alone, and a video for it."""
    cfg = ControlNetConfig(layers=1, heads=2, head_dim=16, latent_channels=4, text_dim=16, time_dim=16, out_dim=48)
    params = {path: np.full(p.shape, 0.01, np.float32) for path, p in abstract_params(cfg).items()}
    write_controlnet(folder / "a net", cfg, traverse_util.unflatten_dict(params, sep="/"))
    shutil.copy(folder / "a net" / "diffusion_pytorch_model.safetensors", folder / "a net.safetensors")
    with VideoWriter(folder / "video.mp4", 8) as writer:
        writer.write(np.zeros((9, 32, 48, 3), np.uint8))


def parts_of(folder, published, weights):
    """Parts that lie alone, and a model that lacks one."""
    shutil.copytree(published / "transformer", folder / "alone" / "transformer")
    save(folder / "loose.safetensors", {f"model.diffusion_model.{key}": array for key, array in weights.items()})
    shutil.copy(published / "transformer" / "config.json", folder / "loose.json")
    for part in ("vae", "text_encoder", "tokenizer"):
        shutil.copytree(published / part, folder / f"the {part}")
    shutil.copy(published / "vae" / "diffusion_pytorch_model.safetensors", folder / "a vae.safetensors")
    shutil.copy(published / "vae" / "config.json", folder / "a vae.json")
    for layout in TARGETS:
        for name, part in (("transformer", "transformer"), ("vae", "vae"), ("T5", "text_encoder")):
            write_model(open_source(published), folder / f"{name} only of {layout}", layout, parts=(part,))
    shutil.copy(TINY / "reuse.json", folder / "a calibration.json")


def packed_files(folder, published, source, weights):
    """What other makers quantised: folders of diffusers, and T5 as GGUF."""
    w = np.float32(weights[f"{PACKED}.weight"])
    ways = {"nf4": nf4(w), "int8": bitsandbytes(w), "Q4_0": blocks(w, "Q4_0", q4_0)}
    ways |= {"quanto": quanto(w, np.int8, 127), "torchao": torchao(w, np.int8, 127)}
    for name, (parts, _) in ways.items():
        shutil.copytree(published, folder / f"of {name}")
        theirs = {key: array for key, array in weights.items() if key != f"{PACKED}.weight"}
        theirs |= {f"{PACKED}{end}": part for end, part in parts.items()}
        save(folder / f"of {name}" / "transformer" / "diffusion_pytorch_model.safetensors", theirs)
    text = {t.key: np.float32(t.make()) for t in published_tensors(source, source.spec(), "text_encoder")}
    gguf, _ = t5_of_llama_cpp(text, ("Q8_0", q8_0))
    (folder / "t5 Q8_0.gguf").write_bytes(gguf_bytes(gguf))


def of_sat(folder, published, weights):
    """What SAT saves while it trains: a whole model, one with a LoRA beside its weights, and tags without `latest`."""
    fine_tuned_file(published, folder / "of sat", folder / "tuned")
    arrays = with_lora(read_all(open_tensors(folder / "of sat" / "transformer" / "1" / STATES)))
    (folder / "with lora" / "1000").mkdir(parents=True)
    write_torch(folder / "with lora" / "1000" / STATES, [Tensor.of(k, a) for k, a in arrays.items()], "module")
    for name in ("tuned", "with lora"):
        for part in ("transformer", "vae"):
            (folder / name / part).mkdir()
            shutil.copy(published / part / "config.json", folder / name / part)
    shutil.copytree(folder / "with lora", folder / "tags")
    shutil.copytree(folder / "tags" / "1000", folder / "tags" / "1000-ema")


def of_loras(folder, model):
    shapes = transformer_shapes(model.spec)
    adapters = loras.init(jax.random.key(0), shapes, LoRAConfig(rank=2))
    lora = LoRA(adapters=adapters, rank=2, alpha=2.0)
    (folder / "peft").mkdir()
    write_lora(folder / "peft" / "pytorch_lora_weights.safetensors", lora, model.spec)
    write_lora(folder / "ko hya.safetensors", lora, model.spec, "kohya")
    shutil.copy(folder / "ko hya.safetensors", folder / "kohya:2")
    write_lora(folder / "lora of sat", lora, model.spec, "sat")


def of_runs(folder, published, model):
    """Runs as training leaves them: of a LoRA, the transformer and the VAE, and one without a checkpoint."""
    cfg, lora = model.spec.transformer, LoRAConfig(rank=2)
    said = dict(source=str(folder / "a model"), name=model.spec.name, dtype="float32", stages=[])
    said |= dict(width=cfg.width, layers=cfg.layers, transformer=params_digest(model.params["transformer"]))
    adapters = loras.init(jax.random.key(0), transformer_shapes(model.spec), lora)
    of_vae = dict(trains="vae", vae=params_digest(model.params["vae"]), decoder_only=False)
    for name, facts, params in (
        ("lora", dict(lora=dataclasses.asdict(lora)), adapters),
        ("full", dict(lora=None, parts=["*"]), model.params["transformer"]),
        ("vae", of_vae, {"vae": model.params["vae"]}),
        ("empty", dict(lora=None, parts=["*"]), None),
    ):
        run = folder / f"run of {name}"
        run.mkdir()
        (run / "run.json").write_text(json.dumps(said | facts))
        if params is not None:
            with Checkpoints(run / "checkpoints") as checkpoints:
                checkpoints.save(State(np.int32(3), params, None, {}))


# Name -> what is told of it, and what the first command does; the others are run, too.
KINDS = {
    "a model": ("format", "a model in the published layout", "generate"),
    "of images": ("kind", "image to video", "--image IMAGE"),
    "of sat": ("format", "a model in SAT's layout", "generate"),
    "of single": ("format", "a model in a file for each part", "generate"),
    "of orbax": ("format", "a model in Orbax checkpoints of `cogvx convert`", "generate"),
    "of integers": ("quantised", "int8, by `cogvx quantize`", "generate"),
    "of nf4": ("quantised", "transformer: 1 weight as bitsandbytes nf4", "generate"),
    "of int8": ("quantised", "transformer: 1 weight as bitsandbytes int8", "generate"),
    "of quanto": ("quantised", "transformer: 1 weight as quanto", "generate"),
    "of torchao": ("quantised", "transformer: 1 weight as torchao", "generate"),
    "of Q4_0": ("quantised", "transformer: 1 weight as Q4_0 blocks", "generate"),
    "transformer only of diffusers": ("lacks", "the vae, the text encoder", "--vae VAE --text-encoder T5 --tokenizer"),
    "transformer only of sat": ("lacks", "the vae, the text encoder", "--vae VAE --text-encoder T5 --tokenizer"),
    "transformer only of single": ("lacks", "the vae, the text encoder", "--vae VAE --text-encoder T5 --tokenizer"),
    "vae only of diffusers": ("lacks", "the transformer", "--model MODEL --vae 'vae only of diffusers/vae'"),
    "vae only of sat": ("format", "parts of a model, without its", "--vae 'vae only of sat/vae/3d-vae.pt'"),
    "vae only of single": ("format", "parts of a model, without its", "--vae 'vae only of single/vae.safetensors'"),
    "T5 only of diffusers": ("lacks", "the transformer", "--text-encoder 'T5 only of diffusers/text_encoder'"),
    "T5 only of sat": ("format", "parts of a model", "--text-encoder 'T5 only of sat/t5-v1_1-xxl'"),
    "T5 only of single": ("format", "parts of a model", "--text-encoder 'T5 only of single/text_encoder.safetensors'"),
    "alone/transformer": ("format", "a model in a transformer's folder", "--vae VAE --text-encoder T5"),
    "loose.safetensors": ("holds", "the transformer (published names)", "--tokenizer TOKENIZER"),
    "a model/transformer": ("part of", "the model a model", "--model 'a model'"),
    "a model/vae/diffusion_pytorch_model.safetensors": ("holds", "the vae (published names)", "--model 'a model'"),
    "a model/scheduler": ("holds", "a part of a model, a model", "inspect 'a model'"),
    "of orbax/vae/orbax": ("holds", "a part of of orbax, a model", "inspect 'of orbax'"),
    "the vae": ("holds", "the vae (published names)", "--vae 'the vae'"),
    "a vae.safetensors": ("holds", "the vae (published names)", "--vae 'a vae.safetensors'"),
    "the text_encoder": ("holds", "the text encoder (published names)", "--text-encoder 'the text_encoder'"),
    "of sat/t5-v1_1-xxl": ("format", "a folder of one part, with a tokenizer", "--text-encoder 'of sat/t5-v1_1-xxl'"),
    "t5 Q8_0.gguf": ("quantised", "1 weight as Q8_0 blocks", "--text-encoder 't5 Q8_0.gguf'"),
    "the tokenizer": ("holds", "a tokenizer", "--tokenizer 'the tokenizer'"),
    "tuned": ("format", "a model in SAT's layout", "--tokenizer TOKENIZER"),
    "with lora": ("a LoRA of SAT's", "SAT, 4 modules, rank 4, alpha 1", "--vae VAE --text-encoder T5"),
    "tags": ("tags", "1000", "inspect tags/1000"),
    "a net": ("sizes", "1 blocks of 2 heads of 16, for models of width 48", "--controlnet 'a net' --control VIDEO"),
    "a net.safetensors": ("holds", "a ControlNet of TheDenk's", "--controlnet 'a net.safetensors' --control VIDEO"),
    "peft": ("dialect", "PEFT", "--lora peft"),
    "ko hya.safetensors": ("dialect", "kohya", "--lora 'ko hya.safetensors'"),
    "kohya:2": ("dialect", "kohya", "--lora kohya:2:1"),
    "lora of sat": ("dialect", "SAT", "--lora 'lora of sat'"),
    "run of lora": ("holds", "a LoRA of small-5b", "--lora 'run of lora'"),
    "run of full": ("holds", "the transformer of small-5b", "export 'run of full'"),
    "run of vae": ("holds", "the VAE of small-5b", "export 'run of vae'"),
    "run of lora/checkpoints/3": ("holds", "a part of run of lora, a run", "inspect 'run of lora'"),
    f"{TINY.parent}/tiny2022/base.safetensors": ("holds", "tiny2022, CogVideo (2022)", "inspect /"),
    "a cache/arrays": ("holds", "a part of a cache, encoded clips", "inspect 'a cache'"),
    "a calibration.json": ("steps", "20", "--model tiny --reuse magcache --calibration 'a calibration.json'"),
    "tiny-fast": ("dialect", "diffusers and PEFT", "--model tiny --lora tiny-fast"),
    LATENTS: ("format", "latents that `cogvx generate` kept", "decode 'a video.mp4.latents.safetensors'"),
    "a recorded.mp4": ("format", "a video that tells how it was made", "show 'a recorded.mp4'"),
    "gone.safetensors": ("model", "/nowhere/else", "--model MODEL"),
}
REAL = {
    "MODEL": "a model",
    "VAE": "a model/vae",
    "T5": "a model/text_encoder",
    "TOKENIZER": "a model/tokenizer",
    "IMAGE": "image.png",
    "VIDEO": "video.mp4",
}


def run(command, *more):
    words = [REAL.get(word, word) for word in shlex.split(command)][1:]
    options = {"generate": ["--steps", "3", "--no-progress"]}.get(words[0], [])
    args = [*words, *options, *more]
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=args)


# Of the same code as others, for `pytest -m full`.
MORE = {f"{part} only of {layout}" for part in ("transformer", "vae", "T5") for layout in ("single", "diffusers")}
MORE |= {"of single", "of int8", "of quanto", "of torchao", "of Q4_0", "tuned", "lora of sat", "kohya:2", "run of vae"}
NAMES = [pytest.param(name, marks=pytest.mark.full if name in MORE else ()) for name in KINDS]


@pytest.mark.parametrize("name", NAMES)
def test_what_it_is_and_the_commands_run(files, monkeypatch, capsys, name):
    """Models are loaded, adapters added and requests checked; what is left out is to sample and to decode."""
    monkeypatch.chdir(files)
    monkeypatch.setattr(generates, "_run", lambda *_: None)
    monkeypatch.setattr(generates, "write_video", lambda *_: (1, 1, 1))
    monkeypatch.setattr("cogvx_jax.cli.decode.write_video", lambda *_: (1, 1, 1))
    key, words, first = KINDS[name]
    facts = told(capsys, name)
    said = facts[key][0] if isinstance(facts[key], list) else facts[key]
    assert words in said and facts["folder" if Path(name).is_dir() else "file"] in (name, shipped(name))
    assert first in facts["use"][0]
    assert {line.partition(" ")[0] for line in facts.get("replace", [])} == {
        word for word in WORDS for line in facts["use"] if word in line.split()
    }
    for command in facts["use"]:
        run(command)


@pytest.mark.full  # videos are compiled
@pytest.mark.parametrize("name", KINDS)
def test_its_videos_are_made(files, monkeypatch, capsys, name):
    monkeypatch.chdir(files)
    for command in (line for line in told(capsys, name)["use"] if line.startswith("cogvx generate")):
        Path("out.mp4").unlink(missing_ok=True)
        run(command)
        assert Path("out.mp4").stat().st_size > 0


def test_a_run_and_clips_that_are_not_used_yet(files, monkeypatch, capsys):
    """Their commands train, which tests of training do."""
    monkeypatch.chdir(files)
    facts = told(capsys, "run of empty")
    assert facts["mind"] == "it has no checkpoint yet" and facts["updates"] == "0"
    assert facts["use"] == ["cogvx train --config 'run of empty/run.json' --out 'run of empty'"]
    facts = told(capsys, "a cache")
    assert facts["clips"] == "2 of 32x48, 9 frames at 8 fps" and facts["model"] == "encoded by small-5b"
    assert facts["use"] == [
        "cogvx train --data 'a cache' --model MODEL --out 'runs/a cache'",
        "cogvx verify 'a cache'",
    ]
    run(facts["use"][1])


@pytest.mark.full  # programs are compiled
def test_stored_programs(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    cx.compile_programs("a model", "of programs")
    facts = told(capsys, "of programs")
    assert "step" in facts["programs"] and "--size 32x48 --frames 9" in facts["use"][0]
    run(facts["use"][0])


# Names.


def test_names_are_those_of_paths_not_of_published_models(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert [model_word(Path(name)) for name in ("tiny", "2b", "zai-org/CogVideoX-2b", "-x", "VAE", "x/tiny")] == [
        "./tiny",
        "./2b",
        "./zai-org/CogVideoX-2b",
        "./-x",
        "./VAE",
        "x/tiny",
    ]
    names = ("a", "a:0.5", "a:b", "-x", "tiny-fast")
    assert [lora_word(Path(name)) for name in names] == ["a", "a:0.5:1", "a:b", "./-x", "./tiny-fast"]
    assert published_word("CogVideoX-5b") == "5b" and published_word("tiny") is None
    Path("5b").mkdir()
    assert published_word("CogVideoX-5b") == "zai-org/CogVideoX-5b"
    assert told(capsys, "tiny")["use"] == ["cogvx generate 'a panda' --model tiny"]
    shutil.copytree(TINY, "tiny")
    assert told(capsys, "tiny")["use"] == ["cogvx generate 'a panda' --model ./tiny"]
    assert commands.command("x", "MODEL", "it's", Path("a b")) == """cogvx x MODEL 'it'"'"'s' 'a b'"""
    for name in ("new", "new-2"):
        assert commands.new_name("x/new.tar.gz", "") == name
        Path(name).mkdir()


def test_what_is_given_is_part_of_the_commands(files, monkeypatch, capsys):
    monkeypatch.chdir(files)
    given = ["--vae", "the vae", "--position", "rope", "--text-length", "24"]
    (use, *_) = told(capsys, "of sat/transformer/1", *given)["use"]
    shown = "--vae 'the vae' --position rope --text-length 24 --text-encoder T5 --tokenizer TOKENIZER"
    assert use == f"cogvx generate 'a panda' --model 'of sat/transformer/1' {shown}"


# What does not open.


def test_parts_that_do_not_open_say_why(files, tmp_path, capsys):
    packed, _ = blocks(np.ones((4, 64), np.float32), "Q8_0", q8_0)
    names = {f"transformer_blocks.0.attn1.to_q{end}": part for end, part in packed.items()}
    facts = told(capsys, save(tmp_path / "x.safetensors", names))
    assert facts["quantised"] == "1 weight as Q8_0 blocks"
    assert "does not tell the sizes of the transformer" in facts["model"] and "use" not in facts
    tensors = {"enc.blk.0.attn_q.weight": plain(np.ones((4, 4), np.float32)), "a": ((4, 256), 77, b"")}
    (tmp_path / "t5.gguf").write_bytes(gguf_bytes(tensors))
    facts = told(capsys, tmp_path / "t5.gguf")
    assert facts["holds"] == "the text encoder (llama.cpp names)" and "not one that opens" in facts["model"]
    words = "is not read" if importlib.util.find_spec("gguf") else "the package gguf may read"
    assert facts["unreadable"].startswith(f"1, such as a: it is of ggml's type 77, which {words}")
    shutil.copytree(files / "a model", tmp_path / "model")
    file = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-9])
    facts = told(capsys, tmp_path / "model")
    assert facts["model"].startswith("not one that opens") and "truncated" in facts["why"][0] and "use" not in facts
    file.unlink()
    file.symlink_to("../blobs/123")  # as of a download that was broken off
    facts = told(capsys, tmp_path / "model")
    assert "a link to ../blobs/123, which is not there, not a file" in facts["why"][0] and "lacks" not in facts
    with pytest.raises(ValueError, match="the name of the file or folder is empty"):
        told(capsys, "")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


@pytest.mark.parametrize(
    "name, words",
    [
        ("x.safetensors", "its tensors are called a.b"),
        ("no.safetensors", "there is no file or folder"),
        ("x.bin", "x.bin cannot be read"),
        ("x.txt", r"is a file of no known kind; files of weights are GGUF \(.gguf\), safetensors"),
        ("lfs.safetensors", "a git-lfs pointer, not the file itself"),
        ("", "is a folder of no known kind; there is lfs.safetensors, x.bin, x.safetensors, x.txt"),
    ],
)
def test_what_is_nothing_is_a_sentence(tmp_path, name, words):
    save(tmp_path / "x.safetensors", {"a.b": np.ones(3, np.float32)})
    for other, content in (("x.bin", b"hello"), ("x.txt", b"hello"), ("lfs.safetensors", LFS)):
        (tmp_path / other).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as raised:
        inspect(tmp_path / name)
    assert str(tmp_path / name) in str(raised.value) and "\n" not in str(raised.value)
