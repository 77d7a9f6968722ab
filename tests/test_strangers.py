"""Models out of files of strangers: whatever is wrong with them is one short sentence that says what and where."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import socket
import time
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

import cogvx_jax as cx
from cogvx_jax.convert import ConversionError, open_lora, read_lora, read_lpips, read_spec, write_lora
from cogvx_jax.convert.dialects import open_component
from cogvx_jax.convert.inspection import inspect
from cogvx_jax.convert.orbax import read_digests
from cogvx_jax.convert.orbax_export import write_orbax
from cogvx_jax.json_files import POINTER
from cogvx_jax.models import lora as loras
from cogvx_jax.models.lora import LoRA, LoRAConfig
from cogvx_jax.pipelines import model as models
from cogvx_jax.pipelines.model import resolve
from cogvx_jax.pipelines.saved_latents import read_latents
from cogvx_jax.pipelines.stored_programs import MANIFEST, read_manifest
from cogvx_jax.pipelines.tokenizer import load_tokenizer
from cogvx_jax.storage import check_place

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"


# What is no file or folder that can be read.


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Name -> a place, and what it is called."""
    folder = tmp_path_factory.mktemp("places")
    os.mkfifo(folder / "fifo")
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(folder / "socket"))
    (folder / "loop").symlink_to("other loop")
    (folder / "other loop").symlink_to("loop")
    (folder / "gone").symlink_to("nowhere")
    return {
        folder / "fifo": "is a FIFO",
        folder / "socket": "is a socket",
        Path("/dev/null"): "is a device",
        folder / "loop": "is a link that leads back to itself",
        folder / "gone": "is a link to nowhere, which is not there",
    }


READERS = {
    "inspect": inspect,
    "convert": resolve,
    "load": cx.load,
    "a VAE": lambda place: open_component(place, "vae"),
    "lora info": open_lora,
    "decode": read_latents,
    "lpips": read_lpips,
}


@pytest.mark.parametrize("reader", READERS)
def test_places_that_cannot_be_read_are_called_what_they_are(places, reader):
    """None is opened: a FIFO would wait for ever."""
    for place, words in places.items():
        with pytest.raises((ValueError, OSError), match=f"{place}'? {words}") as raised:
            READERS[reader](place)
        assert "\n" not in str(raised.value)


@pytest.mark.parametrize("reader", READERS)
def test_what_a_user_may_not_read_is_called_so(tmp_path, reader, monkeypatch):
    """Root may read everything: the answers are another user's."""
    (tmp_path / "x.safetensors").touch()
    monkeypatch.setattr(os, "access", lambda *_: False)
    for place, kind in ((tmp_path, "a folder"), (tmp_path / "x.safetensors", "a file")):
        if (reader, kind) != ("lpips", "a folder"):
            with pytest.raises(PermissionError, match=f"{place} is {kind} that this user may not read"):
                READERS[reader](place)


def test_a_folder_that_a_user_may_not_look_into(tmp_path, monkeypatch):
    stat = Path.stat

    def refused(self, **options):
        if self.parent == tmp_path:
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **options)

    monkeypatch.setattr(Path, "stat", refused)
    with pytest.raises(ValueError, match="x is in a folder that this user may not look into, not a file or folder"):
        check_place(tmp_path / "x")


# What is no model.


@pytest.mark.parametrize(
    "marks, words",
    [
        ([], r"there is nothing"),
        (["a.txt"], "there is a.txt"),
        ([f"{i}.txt" for i in range(99)], r"there is 0.txt, 1.txt, 10.txt, 11.txt, 12.txt, \.\.\.$"),
        (["run.json", "log.jsonl"], "it is a run of `cogvx train` or `cogvx train-vae`; `cogvx export` makes a model"),
        (["cache.json"], "it is a cache of `cogvx encode`"),
        (["programs.json"], "it is a folder of `cogvx compile`, for --programs"),
        (["pytorch_lora_weights.safetensors"], "it is a LoRA, for --lora"),
        (["config.json", "diffusion_pytorch_model.safetensors"], "it is a part of a model"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_is(tmp_path, marks, words):
    for mark in marks:
        (tmp_path / mark).touch()
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no model_index.json: .*{words}"):
        resolve(tmp_path)


def test_a_file_is_no_model_and_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.safetensors").touch()
    save_file({"to_q.lora_A.weight": np.zeros((1, 2), np.float32)}, tmp_path / "sub" / "lora.safetensors")
    (tmp_path / "sub" / "name").touch()
    os.mkfifo(tmp_path / "fifo")
    for name, words in [
        ("sub/name", "sub/name is a file; give the folder of a model, in which model_index.json is$"),
        ("sub/weights.safetensors", "^sub/weights.safetensors cannot be read: corrupt header; 0 bytes"),
        ("sub/lora.safetensors", "^sub/lora.safetensors holds no transformer; it looks like a LoRA, for --lora$"),
        ("fifo", "fifo is a FIFO; give the folder of a model"),
        (tmp_path / "sub" / "name", "is a file; give the folder"),
    ]:
        with pytest.raises(ValueError, match=words):
            cx.load(name)
    with pytest.raises(FileNotFoundError, match="there is no folder sub/other.safetensors"):
        cx.load("sub/other.safetensors")
    with pytest.raises(FileNotFoundError, match="sub has no model_index.json"):
        cx.load("sub")
    (tmp_path / "2b").touch()  # a preset's name stays one
    monkeypatch.setattr(models, "_fetch", lambda hub, weights: hub)
    assert resolve("2b") == "zai-org/CogVideoX-2b"


# Tokenizers.


@pytest.fixture
def tokenizer(small, tmp_path):
    """A spec and a folder with the tokenizer alone, to damage."""
    folder, model = small("5b")
    shutil.copytree(folder / "tokenizer", tmp_path / "tokenizer")
    return model.spec, tmp_path


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def put(text):
    return lambda path: path.write_text(text)


def change(**values):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | values))


def fifo(path):
    path.unlink()
    os.mkfifo(path)


CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
REGEX = {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x"}
MODEL = {"type": "Unigram", "unk_id": 0, "vocab": 5}


@pytest.mark.parametrize(
    "name, damage, words",
    [
        ("tokenizer.json", cut, "not JSON"),
        ("tokenizer.json", put("[]"), "not a JSON object"),
        ("tokenizer.json", put("{}"), "is damaged, or not of T5: KeyError, 'added_tokens'"),
        ("tokenizer.json", put(LFS), "git lfs pull"),
        ("tokenizer.json", put('{"a":' * 10**5), "nested too deep"),
        ("tokenizer.json", change(model=MODEL), "is damaged, or not of T5"),
        ("tokenizer.json", change(normalizer=CHARSMAP), "is damaged, or not of T5: PanicException"),
        ("tokenizer.json", change(normalizer=REGEX), r"the regular expression '\(a\+\)\+\$' is not one of T5's"),
        ("tokenizer.json", change(normalizer=REGEX | {"pattern": {"Regex": [1]}}), "the regular expression"),
        ("tokenizer_config.json", put("{"), "not JSON"),
        ("tokenizer_config.json", put("[]"), "not a JSON object"),
        ("tokenizer_config.json", change(extra_ids=10**9), "extra_ids 1000000000 is not supported, only 0 to 1000 is"),
        ("tokenizer_config.json", change(extra_ids="many"), "extra_ids 'many' is not supported"),
        ("tokenizer_config.json", fifo, "a FIFO, not a file"),
        ("spiece.model", cut, "is damaged"),
        ("spiece.model", put("x" * 100), "is damaged"),
        ("spiece.model", put(""), "is damaged"),
        ("spiece.model", put(LFS), "git lfs pull"),
    ],
)
def test_damaged_files_of_a_tokenizer_are_named(tokenizer, capfd, name, damage, words):
    spec, folder = tokenizer
    if name == "spiece.model":  # which is read where there is no other
        (folder / "tokenizer" / "tokenizer.json").unlink()
    damage(folder / "tokenizer" / name)
    with pytest.raises(ValueError, match=words) as raised:
        load_tokenizer(folder, spec)
    said = str(raised.value)
    named = said.removeprefix(f"{folder}/tokenizer/")
    assert named.startswith(name) or (name == "tokenizer_config.json" and named != said)
    assert "\n" not in said and len(said) < 500 + len(str(folder))
    assert "panicked" not in capfd.readouterr().err


# Everything at once: pointers, and files that are damaged at random.


def test_pointers_are_called_so_wherever_they_stand(small, tmp_path):
    folder, _ = small("5b")
    files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 10
    for file in files:
        copy = shutil.copytree(folder, tmp_path / "model", dirs_exist_ok=True)
        if file.name == "spiece.model":
            (copy / "tokenizer" / "tokenizer.json").unlink()
        (copy / file).write_text(LFS)
        with pytest.raises(ValueError) as raised:
            cx.load(copy)
        assert POINTER in str(raised.value) and file.name in str(raised.value)


def mutate(data, rng):
    """Damage of a kind that happens, or that someone thinks of."""
    data, kind = bytearray(data), rng.randrange(6)
    end = rng.choice([4000, 4000, len(data)])  # headers come first
    at = rng.randrange(max(1, min(len(data), end)))
    if kind == 0:
        return bytes(data[:at])
    if kind == 1:
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(max(1, min(len(data), end)))] = rng.randrange(256)
    elif kind == 2:
        data[at:at] = rng.choice([b"9" * 50, b"[" * 5000, b'"', b"}", b"\xff", b"\x00", b"NaN", b"-", b"1e999", b"{"])
    elif kind == 3:
        del data[at : at + rng.randrange(1, 20)]
    elif kind == 4:
        data[at : at + 8] = rng.randbytes(8)
    else:  # one number or word of the text becomes another
        words = [b"null", b"true", b"-1", b"0", b"1e30", b"10000000000", b"[]", b"{}", b'"x"', b"0.5"]
        return swap(bytes(data), rng, rng.choice(words))
    return bytes(data)


def swap(data, rng, word):
    found = list(re.finditer(rb"(?<=: )[^,{}\[\]\n]+|(?<=:)[^,{}\[\]\n]+|(?<=[\[, ])\d+", data[:20_000]))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + word + data[match.end() :]


@pytest.fixture(scope="module")
def victims(small, lpips_file, tmp_path_factory):
    """Kind of file -> the file, and what reads it."""
    top = tmp_path_factory.mktemp("victims")
    folder = Path(shutil.copytree(small("5b")[0], top / "model"))
    spec = small("5b")[1].spec
    plain = Path(shutil.copytree(folder, top / "plain"))
    (plain / "tokenizer" / "tokenizer.json").unlink()
    write_orbax(folder, top / "orbax")
    shapes = jax.tree.map(np.asarray, small("5b")[1].params["transformer"])
    config = LoRAConfig(rank=2)
    adapters = loras.init(jax.random.key(0), shapes, config)
    (top / "lora").mkdir()
    write_lora(top / "lora" / "adapter_model.safetensors", LoRA(adapters=adapters, rank=2, alpha=2.0), spec)
    bare = Path(shutil.copytree(top / "lora", top / "bare"))
    stored = (bare / "adapter_model.safetensors").read_bytes()
    text = json.loads(stored[8 : 8 + int.from_bytes(stored[:8], "little")])
    text["__metadata__"] = {"format": "pt"}
    head = json.dumps(text).encode()
    data = stored[8 + int.from_bytes(stored[:8], "little") :]
    (bare / "adapter_model.safetensors").write_bytes(len(head).to_bytes(8, "little") + head + data)
    peft = {"r": 2, "lora_alpha": 4, "alpha_pattern": {"to_q": 2}, "rank_pattern": {}, "use_rslora": False}
    (bare / "adapter_config.json").write_text(json.dumps(peft, indent=1))
    (top / "programs").mkdir(mode=0o755)
    entry = {"name": "step", "takes": "x", "file": "0-step.pickle", "sha256": "0"}
    decode = {"latents": [3, 4, 6, 4], "padding": 0, "bytes": 5, "strips": 1}
    manifest = {"format": 2, "made_for": {"platform": "cpu"}, "request": {}, "decode": decode, "programs": [entry]}
    (top / "programs" / MANIFEST).write_text(json.dumps(manifest, indent=1))
    (top / "programs" / MANIFEST).chmod(0o644)

    def weights(component):
        return lambda: cx.load(folder, components=(component,))

    configs = ["model_index", "transformer/config", "vae/config", "text_encoder/config", "scheduler/scheduler_config"]
    return {
        **{f"{name}.json": (folder / f"{name}.json", lambda: read_spec(folder)) for name in [*configs, "generation"]},
        "transformer": (folder / "transformer/diffusion_pytorch_model.safetensors", weights("transformer")),
        "text_encoder": (folder / "text_encoder/model.safetensors", weights("text_encoder")),
        "digests": (top / "orbax/digests.json", lambda: read_digests(top / "orbax")),
        "tokenizer.json": (folder / "tokenizer/tokenizer.json", lambda: load_tokenizer(folder, spec)),
        "tokenizer_config": (folder / "tokenizer/tokenizer_config.json", lambda: load_tokenizer(folder, spec)),
        "spiece": (plain / "tokenizer/spiece.model", lambda: load_tokenizer(plain, spec)),
        "lora": (top / "lora/adapter_model.safetensors", lambda: read_lora(top / "lora", spec)),
        "adapter_config": (bare / "adapter_config.json", lambda: read_lora(bare, spec)),
        "lpips": (Path(shutil.copy(lpips_file, top)), lambda: read_lpips(top / lpips_file.name)),
        "programs": (top / "programs" / MANIFEST, lambda: read_manifest(top / "programs")),
    }


KINDS = [
    "model_index.json",
    "transformer/config.json",
    "vae/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
    "generation.json",
    "transformer",
    "text_encoder",
    "digests",
    "tokenizer.json",
    "tokenizer_config",
    "spiece",
    "lora",
    "adapter_config",
    "lpips",
    "programs",
]


@contextlib.contextmanager
def bounded(gigabytes):
    """Inside, no more memory than that above what is held now can be had."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + gigabytes * 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_damage_at_random_is_a_sentence_or_nothing(victims, kind, capfd):
    file, read = victims[kind]
    whole, rng, refused = file.read_bytes(), random.Random(kind), 0
    read()
    try:
        for number in range(200):
            file.write_bytes(mutate(whole, rng))
            began = time.process_time()
            try:
                with bounded(4):
                    read()
            except (ValueError, FileNotFoundError) as error:
                refused += 1
                said = str(error)
                assert len(said) < 7000 and max(map(len, said.splitlines())) < 700 + len(str(file)), number
                assert isinstance(error, ConversionError) or "\n" not in said, number
                assert file.name in said or str(file.parent) in said, (number, said)
            except BaseException:
                pytest.fail(f"mutation {number}: {traceback.format_exc()[-2000:]}")
            assert time.process_time() - began < 30, number
    finally:
        file.write_bytes(whole)
    assert refused > 20  # not all of them matter: a digit of a tensor's number, a word in a comment
    assert "Traceback" not in (err := capfd.readouterr().err) and "panicked" not in err
    read()
