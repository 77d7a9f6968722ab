"""What is said of a model beside its files: it is used or refused, and what is found by itself is told."""

import dataclasses
import shutil
import sys

import fsspec
import numpy as np
import pytest
from packings import spec_of_16, write_taehv
from safetensors.numpy import save_file
from small_files import STATES, deepspeed, fine_tuned_file, read_all, small_spec, with_lora, write_small

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.convert.containers import open_tensors
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.sources import open_source
from cogvx_jax.convert.targets import write_model
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.given import Given
from cogvx_jax.pipelines import model as models
from cogvx_jax.presets import PRESETS

ALONE = dict(position="rope", groups=2, sample_height=4, sample_width=6, sample_frames=9, text_length=24)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """`published`; `sat`, the same of SAT's; `lora`, of SAT's with a LoRA; `one.safetensors`, the transformer."""
    folder = tmp_path_factory.mktemp("given")
    published = write_small(folder / "published", small_spec("5b"))
    write_model(open_source(published), folder / "sat", "sat")
    shutil.copytree(folder / "sat", folder / "lora")
    states = folder / "lora" / "transformer" / "1" / STATES
    arrays = with_lora(read_all(open_tensors(states)))
    write_torch(states, [Tensor.of(key, array) for key, array in arrays.items()], "module")
    shutil.copy(published / "transformer" / "diffusion_pytorch_model.safetensors", folder / "one.safetensors")
    shutil.copy(published / "transformer" / "config.json", folder / "one.json")
    return folder


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command; gives all that it prints, or the sentence of its error."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        monkeypatch.setattr(models, "_reported", set())  # as in a process of its own
        if not status:
            cli.main()
            return "".join(capsys.readouterr())
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == status
        return capsys.readouterr().err.splitlines()[-1]

    return run


def test_a_lora_of_sat_that_is_merged_is_told(files, run, tmp_path):
    told = "transformer: a LoRA beside its weights is merged into them: SAT, 4 modules, rank 4, alpha"
    said = run("convert", files / "lora", tmp_path / "one", "--to", "diffusers")
    assert f"cogvx: {files / 'lora'}: {told} 1 (not in the file; 1, the trainer's default), scale 0.25\n" in said
    for flags, name in ((["--sat-lora-alpha", 2], "two"), (["--lora_alpha=2"], "three")):  # the second is its old name
        said = run("convert", files / "lora", tmp_path / name, "--to", "diffusers", *flags)
        assert f"{told} 2 (given), scale 0.5" in said
        assert ("is called --sat-lora-alpha now; it is not of --lora" in said) == (name == "three")
    base, one, two, three = (
        open_source(place).tensors("transformer").read("transformer_blocks.0.attn1.to_q.weight").astype(np.float32)
        for place in (files / "published", *(tmp_path / name for name in ("one", "two", "three")))
    )
    np.testing.assert_allclose(two - base, 2 * (one - base), rtol=0, atol=3e-2 * np.abs(one - base).max())
    np.testing.assert_array_equal(two, three)
    assert "merged into them: SAT, 4 modules" in run("inspect", files / "lora")
    with pytest.raises(TypeError, match="lora_alpha is the old name of sat_lora_alpha; give sat_lora_alpha alone"):
        Given.of({"lora_alpha": 1, "sat_lora_alpha": 2})


@pytest.mark.parametrize("damage", ["missing", "misshapen"])
def test_of_a_damaged_lora_every_problem_is_listed(files, tmp_path, damage):
    shutil.copytree(files / "lora", tmp_path / "lora")
    states = tmp_path / "lora" / "transformer" / "1" / STATES
    arrays = read_all(open_tensors(states))
    name = next(key for key in arrays if key.endswith("query_key_value.matrix_B.1"))
    arrays |= {name: np.ones((3, 3), np.float32)} if damage == "misshapen" else {}
    kept = {key: array for key, array in arrays.items() if damage == "misshapen" or key != name}
    write_torch(states, [Tensor.of(key, array) for key, array in kept.items()], "module")
    with pytest.raises(ValueError, match="does not hold the transformer|spare") as error:
        cx.load(tmp_path / "lora", components=("transformer",))
    assert any("query_key_value.matrix_A.0" in problem for problem in error.value.problems)


@pytest.mark.parametrize(
    "options, words",
    [
        (["--masters"], "masters is for a folder that DeepSpeed saved, with mp_rank_00_model_states.pt in it, and"),
        (["--sat-lora-alpha", "1"], "sat_lora_alpha is for a file of SAT's with a LoRA beside its weights, and"),
        (["--tokenizer", "nowhere"], "nowhere is not there; a tokenizer is a folder with tokenizer.json or spiece"),
        (["--tokenizer", "vae"], "vae has neither tokenizer.json nor spiece.model, of which a tokenizer is read"),
        (["--tokenizer", "model_index.json"], "model_index.json is a file; a tokenizer is a folder with tokenizer"),
        (["--tokenizer", ""], "tokenizer must be the path or URL of a file or folder, got ''"),
    ],
)
def test_what_is_of_no_effect_is_refused_before_weights_are_read(files, run, monkeypatch, tmp_path, options, words):
    published = files / "published"
    monkeypatch.chdir(published)
    for place in (published, files / "one.safetensors"):
        monkeypatch.setattr("cogvx_jax.convert.targets.published_tensors", lambda *_: pytest.fail("weights are read"))
        monkeypatch.setattr("cogvx_jax.pipelines.lora.load_params", lambda *_: pytest.fail("weights are read"))
        parts = ["--vae", published / "vae", "--text-encoder", published / "text_encoder"]
        assert words in run("convert", place, tmp_path / "x", "--to", "single", *parts, *options, status=2)
        assert words in run("info", place, *parts, *options, status=2)
        assert words in run("quantize", place, tmp_path / "x", *parts, *options, status=2)
        save_file({"x": np.zeros(1)}, tmp_path / "lora.safetensors")
        lora = ["lora", "merge", tmp_path / "lora.safetensors", "--model", place, "--out", tmp_path / "x"]
        assert words in run(*lora, *parts, *options, status=2)
    assert [path.name for path in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.full
def test_options_without_an_effect_are_refused(files, run, tmp_path):
    place, out = files / "published", tmp_path / "x"
    tokenizer = ["--tokenizer", place / "tokenizer"]
    assert "--tokenizer goes with the text encoder, which --parts leaves out" in run(
        "convert", place, out, "--to", "single", "--parts", "vae", *tokenizer, status=2
    )
    assert "dtype is of the transformer and the text encoder, and only the vae is written" in run(
        "convert", place, out, "--to", "single", "--parts", "vae", "--dtype", "bfloat16", status=2
    )
    assert "--layout is of the folder to write, and there is none" in run(
        "quantize", place, "--report", "--layout", "orbax", status=2
    )
    assert "--to is the kind of one LoRA of several" in run(
        "lora", "merge", "x", "--model", place, "--to", "peft", "--out", out, status=2
    )
    assert "--tokenizer tells about a model, and one LoRA of several is made without one; give --model" in run(
        "lora", "merge", "x", *tokenizer, "--out", out, status=2
    )
    for file in (place / "vae" / "diffusion_pytorch_model.safetensors", lora_of(place, tmp_path)):
        assert "; leave it out" in run("inspect", file, "--position", "rope", status=2)
    write_small(tmp_path / "wide", spec_of_16())
    write_taehv(tmp_path / "taecvx.safetensors")
    assert "groups is for a VAE with norms" in run(
        "info", tmp_path / "wide", "--vae", tmp_path / "taecvx.safetensors", "--groups", 2, status=2
    )
    assert not out.exists()


def lora_of(published, folder):
    """A LoRA of PEFT's for a model."""
    width = cx.load_spec(published).transformer.width
    key = "transformer.transformer_blocks.0.attn1.to_q.lora_"
    arrays = {f"{key}A.weight": np.ones((2, width), np.float32), f"{key}B.weight": np.ones((width, 2), np.float32)}
    save_file(arrays, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def test_position_counts_in_every_layout(files):
    """It was ignored where a configuration tells it, and where the kind of a file does."""
    assert open_source(files / "published", Given(position="sincos")).spec().transformer.position == "sincos"
    assert open_source(files / "one.safetensors", Given(position="sincos")).spec().transformer.position == "sincos"
    assert open_source(files / "one.safetensors").spec().transformer.position == "rope"


@pytest.mark.parametrize(
    "kind, words", [("1.5-5b", "patches of several frames"), ("5b-i2v", "a learned table of them")]
)
def test_positions_that_leave_no_choice(run, tmp_path, kind, words):
    published = write_small(tmp_path / kind, small_spec(kind))
    alone = shutil.copy(published / "transformer" / "diffusion_pytorch_model.safetensors", tmp_path / "x.safetensors")
    for place in (published, alone):
        said = f"position sincos is for 2B and its like, and {place} has {words}, with which"
        assert said in run("info", place, "--position", "sincos", status=2)
        assert ", rope" in run("info", place, "--position", "rope")


def test_nothing_is_said_of_what_is_no_model(files, run, tmp_path):
    """It was left out without a word, but of a LoRA."""
    lora = lora_of(files / "published", tmp_path)
    for place in (files / "published" / "tokenizer", files / "published" / "scheduler", lora, "tiny-fast", "tiny2022"):
        said = run("inspect", place, "--position", "rope", status=2)
        assert said.startswith("cogvx: position tells about a CogVideoX model, and ") and "is none" in said
    assert "tiny2022 is CogVideo (2022), whose files tell everything; leave out position" in run(
        "info", "tiny2022", "--position", "rope", status=2
    )
    write_model(open_source(files / "published"), tmp_path / "vae", "sat", parts=("vae",))
    assert "position tells about a transformer, and" in run("inspect", tmp_path / "vae", "--position", "rope", status=2)
    assert "--groups 2" in run("inspect", tmp_path / "vae", "--groups", 2)


def test_a_lora_is_merged_into_a_model_of_single_files(files, run, tmp_path):
    place, published = files / "one.safetensors", files / "published"
    lora = lora_of(published, tmp_path)
    said = run("lora", "merge", lora, "--model", place, "--out", tmp_path / "a", status=2)
    assert "give vae, a file or a folder" in said
    parts = ["--vae", published / "vae", "--text-encoder", published / "text_encoder"]
    run("lora", "merge", lora, "--model", place, "--out", tmp_path / "a", *parts)
    run("lora", "merge", lora, "--model", published, "--out", tmp_path / "b")
    for part in ("transformer", "vae", "text_encoder"):
        a, b = (read_all(open_source(tmp_path / name).tensors(part)) for name in "ab")
        assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


@pytest.mark.full
def test_a_model_of_single_files_is_quantised(files, run, tmp_path):
    published = files / "published"
    parts = ["--vae", published / "vae", "--text-encoder", published / "text_encoder"]
    said = run("quantize", files / "one.safetensors", tmp_path / "a", *parts)
    assert "transformer: settings of" in said
    run("quantize", published, tmp_path / "b")
    a, b = (read_all(open_tensors(tmp_path / x / "transformer")) for x in "ab")
    assert a.keys() == b.keys() and all((a[key] == b[key]).all() for key in a)


def test_what_is_found_beside_a_file_is_told(files, tmp_path, capsys):
    published, sat = files / "published", files / "sat"
    place, text = files / "one.safetensors", published / "text_encoder"
    lines = open_source(place, Given(vae=str(published / "vae"), text_encoder=str(text))).inferred()
    assert f"tokenizer: found at {published / 'tokenizer'}" in lines
    assert f"transformer: settings of {files / 'one.json'}" in lines  # which tell all of it
    assert f"vae: settings of {published / 'vae' / 'config.json'}" in lines
    assert not any(line.startswith("vae: found") for line in lines)  # it was given
    lines = open_source(sat).inferred()
    assert f"vae: found at {sat / 'vae' / '3d-vae.pt'}" in lines
    assert f"text encoder: found at {sat / 't5-v1_1-xxl'}" in lines
    assert f"tokenizer: found at {sat / 't5-v1_1-xxl'}" in lines
    fine_tuned_file(published, sat, tmp_path / "run")
    lines = open_source(tmp_path / "run", Given(**ALONE)).inferred()
    assert {"vae: in the same file", "text encoder: in the same file"} <= {*lines}
    for _ in range(2):
        models.report_inferred(open_source(sat))
    assert capsys.readouterr().err.count(f"{sat}: vae: found at") == 1


def test_what_a_given_part_has_beside_it_counts(files, tmp_path):
    """In every layout alike; without a configuration, what is taken for granted is told."""
    published = files / "published"
    vae = tmp_path / "vae.safetensors"
    shutil.copy(published / "vae" / "diffusion_pytorch_model.safetensors", vae)
    source = open_source(published, Given(vae=str(vae)))
    assert source.spec() == open_source(published).spec()
    assert any(line.startswith("vae: from its tensors: block_out_channels [4, 4, 8, 8]") for line in source.inferred())
    vae.with_suffix(".json").write_text('{"scaling_factor": 0.5}')
    for place in (published, files / "one.safetensors"):
        source = open_source(place, Given(vae=str(vae), groups=2))
        assert source.spec().vae.scaling_factor == 0.5
        (line,) = [line for line in source.inferred() if line.startswith("vae: ")]
        assert line.startswith(f"vae: settings of {vae.with_suffix('.json')}; as given: norm_num_groups 2; from its")
    assert open_source(published, Given(vae=str(vae), scaling_factor=0.9)).spec().vae.scaling_factor == 0.9


def test_a_published_t5_without_a_tokenizer_takes_the_published_one(run, monkeypatch, tmp_path):
    """As files of ComfyUI lie; it is known by the words of T5, and fetched where it is needed."""
    import huggingface_hub

    spec = small_spec("5b")
    words = PRESETS["5b"].text_encoder.vocab
    spec = dataclasses.replace(spec, text_encoder=dataclasses.replace(spec.text_encoder, vocab=words))
    published = write_small(tmp_path / "hub", spec)
    write_model(open_source(published), tmp_path / "single", "single")
    shutil.rmtree(tmp_path / "single" / "tokenizer")
    asked = []

    def snapshot(repo, *, allow_patterns):
        asked.append((repo, *allow_patterns))
        return str(published)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    told = "tokenizer: there is none, so that of zai-org/CogVideoX-5b is fetched from the hub where it is needed"
    assert told in run("info", tmp_path / "single") and "--tokenizer TOKENIZER" in run("inspect", tmp_path / "single")
    assert not asked
    model = cx.load(tmp_path / "single", components=("text_encoder",))
    assert asked == [("zai-org/CogVideoX-5b", "tokenizer/*")]
    assert model.tokenizer("a red circle").input_ids == cx.load(published).tokenizer("a red circle").input_ids

    def offline(repo, *, allow_patterns):
        raise OSError("no connection")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(OSError, match="single has no tokenizer: give tokenizer, a folder .* could not get zai-org"):
        cx.load(tmp_path / "single")


def test_masters_are_of_the_folder_that_has_them(files, tmp_path):
    arrays = read_all(open_source(files / "published").tensors("transformer"))
    deepspeed(tmp_path, {key: np.float32(array) for key, array in arrays.items()}, 1, [list(arrays)])
    shutil.copy(files / "one.json", tmp_path / "config.json")
    given = Given(masters=True, groups=2)
    assert open_source(tmp_path, given).spec().transformer == cx.load_spec(files / "published").transformer
    (tmp_path / STATES).rename(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="masters is for a folder that DeepSpeed saved"):
        open_source(tmp_path / "x.pt", given).spec()


# Names, places and arguments of another kind.


@pytest.mark.parametrize("name, hub", [("tiny", None), ("2b", "zai-org/CogVideoX-2b")])
def test_a_published_name_comes_before_a_folder(files, monkeypatch, tmp_path, name, hub):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_fetch", lambda hub, weights: hub)
    shutil.copytree(files / "published", tmp_path / name)
    both = f"^{name} is .*; the folder of that name here is ./{name}$"
    with pytest.warns(UserWarning, match=both):
        assert models.resolve(name) == (hub or models.TINY)
    with pytest.warns(UserWarning, match=both):
        published = cx.load_spec(name)
    assert cx.load_spec(f"./{name}").transformer == cx.load_spec(tmp_path / name).transformer != published.transformer
    assert models.absolute_source(name) == name
    assert models.absolute_source(f"./{name}") == str(tmp_path / name)


def test_a_folder_comes_before_a_hub_id(files, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cx.load_spec("zai-org/CogVideoX-2b").transformer.width == 1920  # of the table, which needs no files
    shutil.copytree(files / "published", tmp_path / "zai-org" / "CogVideoX-2b")
    assert cx.load_spec("zai-org/CogVideoX-2b").transformer.width == 48
    assert str(models.resolve("zai-org/CogVideoX-2b")) == "zai-org/CogVideoX-2b"


def test_what_is_said_of_a_published_name_counts(files, monkeypatch):
    monkeypatch.setattr(models, "_fetch", lambda hub, weights: files / "published")
    assert cx.load_spec("5b", Given(sample_frames=13)).transformer.sample_frames == 13


def test_a_lora_opens_below_a_url(files, run, tmp_path):
    lora = lora_of(files / "published", tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 8}')
    system = fsspec.filesystem("memory")
    system.put(str(lora), "/loras/adapter_model.safetensors")
    system.put(str(tmp_path / "adapter_config.json"), "/loras/adapter_config.json")
    try:
        for url in ("memory://loras", "memory://loras/adapter_model.safetensors"):
            said = run("lora", "info", url)
            assert "memory://loras/adapter_model.safetensors\n" in said and "8 (adapter_config.json)" in said
            assert cx.find_lora(url, cx.load_spec(files / "published")).scale == 4
    finally:
        system.rm("/loras", recursive=True)
    assert run("lora", "info", "memory://none/x.bin", status=2) == "cogvx: there is no LoRA 'memory://none/x.bin'"


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "x", "--out", "gs://b/c.mp4"],
        ["generate", "--prompts-file", "gs://b/c.mp4"],
        ["decode", "gs://b/c.mp4"],
        ["export", "run", "--out", "gs://b/c.mp4"],
        ["lora", "convert", "x.safetensors", "gs://b/c.mp4"],
        ["lora", "merge", "x.safetensors", "--out", "gs://b/c.mp4"],
        ["lora", "merge", "x.safetensors", "--model", "tiny", "--out", "gs://b/c.mp4"],
        ["compile", "--out", "gs://b/c.mp4"],
        ["calibrate", "--out", "gs://b/c.mp4"],
    ],
)
def test_a_url_is_named_as_it_was_written(run, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "is a path of this machine, not a URL such as gs://b/c.mp4" in run(*arguments, status=2)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bare():
    """A model without parameters: what is refused looks at none."""
    return cx.Model(spec=cx.load_spec("2b"), params={}, tokenizer=None)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda model: cx.load(5), "a model is a name, a path or a URL, got 5"),
        (lambda model: cx.load(model), "a model is a name, a path or a URL, got Model"),
        (lambda model: cx.load(5, memory="auto"), "a model is a name, a path or a URL, got 5"),
        (lambda model: cx.load("tiny", mesh="data=2"), "mesh must be what `make_mesh` gives, got 'data=2'"),
        (lambda model: cx.load("tiny", components="vae"), "components must be a tuple of some of transformer, vae"),
        (lambda model: cx.load("tiny", lora="x"), "lora must be what `find_lora` gives, got 'x'"),
        (lambda model: cx.load("tiny", vae=5), "vae must be the path or URL of a file or folder, got 5"),
        (lambda model: cx.load_spec(b"tiny"), "a model is a name, a path or a URL, got b'tiny'"),
        (lambda model: cx.load_spec("tiny", "x"), "given must be a `Given`, got 'x'"),
        (lambda model: cx.generate("tiny", "a star"), "the model must be what `load` gives, got 'tiny'"),
        (lambda model: cx.generate(model, 5), "prompt must be a string or a list"),
        (lambda model: cx.load_lora("model", "x"), "the model must be what `load` gives, got 'model'"),
        (lambda model: cx.load_lora(model, 5), "a LoRA is a path, a URL or a `LoRA`, got 5"),
        (lambda model: cx.load_lora(model, "x", "y"), "the weight of a LoRA must be a finite number, got 'y'"),
        (lambda model: cx.load_lora(model, "x", None), "the weight of a LoRA must be a finite number, got None"),
        (lambda model: cx.load_lora(model, "x", float("nan")), "the weight of a LoRA must be a finite number, got nan"),
        (lambda model: cx.load_lora(model, "x", -np.inf), "the weight of a LoRA must be a finite number, got -inf"),
        (lambda model: cx.find_lora(None, model.spec), "a LoRA is a path, a URL or a `LoRA`, got None"),
        (lambda model: cx.find_lora("x", model), "the spec must be what `load_spec` gives"),
        (lambda model: cx.plan(model), "a model is a name, a path or a URL, got Model"),
        (lambda model: cx.compile_programs("tiny", 5), "the folder to write is a path, got 5"),
        (lambda model: cx.compile_programs(None, "x"), "a model is a name, a path or a URL, got None"),
        (lambda model: cx.make_mesh(data="2"), "the mesh axis data has size '2'; sizes are whole numbers"),
        (lambda model: cx.Video(np.zeros((1, 1, 2, 2, 3), np.uint8), "8"), "fps must be a number, got '8'"),
        (lambda model: cx.Video(5, 8), "frames must be uint8"),
    ],
)
def test_arguments_of_another_kind(bare, call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        call(bare)
    assert str(error.value).startswith(words)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_converted_to_what_a_link_names(files, run, tmp_path):
    (tmp_path / "link").symlink_to("there")
    (tmp_path / "lora").symlink_to("there.safetensors")
    run("convert", files / "published", tmp_path / "link", "--to", "single", "--parts", "vae")
    (tmp_path / "x.safetensors").symlink_to("y.safetensors")
    run("lora", "convert", lora_of(files / "published", tmp_path), tmp_path / "x.safetensors", "--to", "kohya")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "there" / "vae.safetensors").is_file()
    assert (tmp_path / "x.safetensors").is_symlink() and not (tmp_path / "y.safetensors").is_symlink()
