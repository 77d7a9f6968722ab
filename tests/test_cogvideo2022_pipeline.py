"""CogVideo (2022) with a small random system: steps, draws, depth, guides, pixels, folders, and what is refused."""

import copy
import dataclasses
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cogvideo2022_small import IMAGES, PROMPT, STAGES, START, WORDS, random_parameters, text_model_bytes
from cogvideo2022_weights import number_of, sat_tensors

from cogvx_jax.cli.cogvideo2022 import describe
from cogvx_jax.cli.convert import convert
from cogvx_jax.cli.info import info
from cogvx_jax.convert import ConversionError
from cogvx_jax.convert import cogvideo2022_folder as folders
from cogvx_jax.convert.cogvideo2022 import image_tokenizer_parameters
from cogvx_jax.convert.safetensors import Tensor
from cogvx_jax.convert.torch_writer import write_torch
from cogvx_jax.given import Given
from cogvx_jax.models.cogvideo2022.abstract import network_of
from cogvx_jax.models.cogvideo2022.cached import cache_of, step
from cogvx_jax.models.cogvideo2022.configs import MAX_TEXT
from cogvx_jax.models.cogvideo2022.image_tokenizer import ImageTokenizer
from cogvx_jax.models.cogvideo2022.transformer import Frames, Text
from cogvx_jax.pipelines.cogvideo2022 import generate
from cogvx_jax.pipelines.cogvideo2022.clusters import Draw, draw, probabilities, read_clusters, table_of
from cogvx_jax.pipelines.cogvideo2022.generate import Settings, to_pixels
from cogvx_jax.pipelines.cogvideo2022.load import (
    load_cogvideo2022,
    make_video,
    picture_codes,
    read_small,
    settings_of,
)
from cogvx_jax.pipelines.cogvideo2022.system import System
from cogvx_jax.pipelines.cogvideo2022.text import (
    TextTokenizer,
    batch_of,
    check_prompts,
    check_texts,
    frames_text,
)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    """A file as `ice_text.model`, of a piece for each letter."""
    file = tmp_path_factory.mktemp("text") / "ice_text.model"
    file.write_bytes(text_model_bytes())
    return file


@pytest.fixture(scope="module")
def system(text_model):
    """A system of random numbers whose stages share a base."""
    nested = jax.tree.map(jnp.asarray, random_parameters())
    return System(
        stages=STAGES,
        params=nested,
        tokenizer=TextTokenizer.read(text_model),
        clusters=table_of(np.arange(20_000) % 500),
        image_tokenizer=IMAGES,
        image_params={},
    )


@pytest.fixture(scope="module")
def seeing(system, random_params):
    """The same with an image tokenizer, which takes seconds to trace."""
    made = random_params(ImageTokenizer(IMAGES), jnp.zeros((1, 16, 16, 3)))
    return dataclasses.replace(system, image_params=made)


def test_text_comes_after_the_codes_of_pictures(text_model):
    tokenizer = TextTokenizer.read(text_model)
    ids = frames_text(tokenizer, "猫", 4.0)
    assert ids == [20_001 + WORDS.index(piece) for piece in ("▁", "4", ".", "0", "秒", "<n>", "▁", "猫")]
    assert tokenizer.decode(ids[:5]) == "4.0秒"
    assert tokenizer.start_of_image == START and tokenizer.size == START + 3
    text = batch_of(tokenizer, [ids])
    assert text.ids.shape == (1, MAX_TEXT) and text.real.sum() == len(ids) and text.real[0, -1]


@pytest.mark.parametrize(
    "stage, given, slot, training_mask",
    [
        pytest.param("sequential", 1, 2, False, marks=pytest.mark.full),
        ("interpolation", 3, 4, True),
        pytest.param("interpolation", 3, 3, False, marks=pytest.mark.full),
    ],
)
def test_steps_are_the_whole_pass(stage, given, slot, training_mask, system):
    cfg, params, rng = STAGES[stage], system.params[stage], np.random.default_rng(1)
    network, n = network_of(cfg), cfg.frame_codes
    codes = jnp.asarray(rng.integers(0, 60, (2, slot + 1, n)), jnp.int32)
    real = np.arange(9) >= np.array([[0], [4]])  # texts of two lengths
    text = Text(jnp.asarray(rng.integers(20_000, START, (2, 9))), jnp.asarray(real))
    how = dict(given=given, training_mask=training_mask, text_bias=1.4)

    @jax.jit
    def both(params, text, codes):
        whole, _ = network.apply({"params": params}, text, codes, Frames(cfg.order[: slot + 1], **how))
        _, kept = network.apply({"params": params}, text, codes[:, :given], Frames(cfg.order[:given], **how))
        cache, rows = cache_of(cfg, kept, 9), []
        for place in range(given, slot + 1):
            inputs = jnp.pad(codes[:, place, :-1], ((0, 0), (1, 0))).T
            one = lambda c, x, s=place: step(network, params, c, text.real, *x, slot=s, text_bias=1.4)[::-1]  # noqa: E731
            cache, found = jax.lax.scan(one, cache, (inputs, jnp.arange(n)))
            rows.append(jnp.swapaxes(found, 0, 1))
        return whole[:, 9 + given * n :], jnp.concatenate(rows, axis=1)

    whole, steps = both(params, text, codes)
    np.testing.assert_allclose(steps, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_draws_have_the_closed_form_of_the_reference():
    logits = np.float32(2 * np.random.default_rng(0).normal(size=(1, 60)))
    clusters, how = table_of(np.arange(60) % 7), Draw(3, 1.05, 0.89)
    keys = jax.random.split(jax.random.key(0), 20_000)
    drawn = jax.jit(lambda x, k: draw(x, clusters, k, how))(np.repeat(logits, len(keys), axis=0), keys)
    expected = probabilities(logits, clusters, how)[0]
    seen = np.bincount(np.asarray(drawn), minlength=60) / len(keys)
    assert expected.sum() == pytest.approx(1) and not seen[expected == 0].any()
    assert np.abs(seen - expected).max() < 4 * np.sqrt(expected.max() / len(keys))


@pytest.mark.full
def test_a_video_from_its_prompt(seeing):
    settings = Settings(depth=1, guidance_between=2.0, rows=4)
    prompts = [PROMPT, "狗在跑步"]
    codes = generate.make_codes(seeing, prompts, settings, seed=3)
    assert codes.shape == (2, 9, 16) and codes.min() >= 0 and codes.max() < 20_000
    apart = generate.make_codes(seeing, prompts[:1], settings, seed=3)
    np.testing.assert_array_equal(codes[:1], apart)  # of the prompts beside it nothing depends
    large = generate.enlarge(seeing, prompts[:1], codes[:1, :1], settings)
    assert large.shape == (1, 1, 144) and large.min() >= 0
    assert generate.to_pixels(seeing, large).shape == (1, 1, 96, 96, 3)


@pytest.mark.full
def test_frames_between_keep_their_places(system):
    frames = np.random.default_rng(0).integers(0, 60, (1, 5, 16)).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    made = generate.between(system, [PROMPT], frames, 2.0, Settings(rows=4), keys)
    assert made.shape == (1, 9, 16)
    np.testing.assert_array_equal(made[:, ::2], frames)


@pytest.mark.full
@pytest.mark.parametrize("switch", ["training_mask", "guide_shift"])
def test_quirks_of_the_reference_are_switches(switch, system):
    frames = np.random.default_rng(0).integers(0, 60, (1, 3, 16)).astype(np.int32)
    keys = jax.random.split(jax.random.key(0), 1)
    how = Settings(guidance_between=3.0 if switch == "guide_shift" else None)
    made = [
        generate.between(system, [PROMPT], frames, 2.0, dataclasses.replace(how, **{switch: on}), keys)
        for on in (False, True)
    ]
    assert (made[0] != made[1]).any()


@pytest.mark.full
def test_stretched_brightness_is_a_switch(seeing):
    codes = np.random.default_rng(0).integers(0, 60, (1, 1, 16)).astype(np.int32)
    clamped, stretched = (generate.to_pixels(seeing, codes, stretch=stretch) for stretch in (False, True))
    assert (stretched.min(), stretched.max()) == (0, 255) and (clamped != stretched).any()


@pytest.mark.full
def test_numbers_that_are_not_finite_are_told(system):
    params = jax.tree.map(lambda x: x, system.params["sequential"])
    params["norm"] = params["norm"] | {"scale": params["norm"]["scale"].at[0].set(jnp.inf)}
    broken = dataclasses.replace(system, params=dict(system.params) | {"sequential": params}, dtype="float16")
    with pytest.raises(ValueError, match="sequential stage .* not finite: float16 overflows"):
        generate.make_codes(broken, [PROMPT], Settings(depth=0, guidance=None))


@pytest.mark.full
@pytest.mark.parametrize("rate", [4, 8, 16])
def test_pictures_become_codes_at_every_rate(rate, seeing):
    picture = np.float32(np.random.default_rng(0).random((1, 32, 48, 3)))
    images = {"params": seeing.image_params}
    network = ImageTokenizer(IMAGES)
    codes = network.apply(images, picture, rate, method="encode")
    assert codes.shape == (1, 32 // rate, 48 // rate)
    features = np.asarray(network.apply(images, picture, rate, method="features"))
    apart = np.square(features[..., None, :] - seeing.image_params["codebook"]).sum(-1)
    np.testing.assert_array_equal(codes, apart.argmin(-1))
    assert network.apply(images, codes, rate, method="decode").shape == picture.shape


# Folders.


def write_stage(place, cfg, config, change=None):
    tensors = sat_tensors(cfg)
    if cfg.stage == "interpolation":  # the recipe draws the same numbers for both channels, which no model has
        positions = "mixins.extra_position_embedding.position_embeddings.weight"
        tensors = [
            dataclasses.replace(t, make=lambda t=t: t.make() + np.float32(1e-6)) if t.key == positions else t
            for t in tensors
        ]
    if change:
        tensors = [dataclasses.replace(t, make=lambda t=t: t.make() + 1) if t.key == change else t for t in tensors]
    (place / "1").mkdir(parents=True)
    write_torch(place / "1" / "mp_rank_00_model_states.pt", tensors, "module")
    (place / "latest").write_text("1")
    (place / "model_config.json").write_text(json.dumps(config, indent=2) + "\n")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory, text_model):
    """A folder as the makers left it."""
    place = tmp_path_factory.mktemp("cogvideo")
    for stage, name in folders.FOLDERS.items():
        write_stage(place / name, STAGES[stage], folders._model_config(STAGES[stage]))
    np.save(place / "cluster_label2.npy", np.arange(20_000) % 500)
    (place / "ice_text.model").write_bytes(text_model.read_bytes())
    return place


@pytest.fixture(scope="module")
def whole(theirs, seeing, tmp_path_factory):
    """The same with an image tokenizer."""
    place, tensors = tmp_path_factory.mktemp("whole") / "cogvideo", []
    shutil.copytree(theirs, place)
    flat = folders.traverse_util.flatten_dict(seeing.image_params, sep="/")
    for p in image_tokenizer_parameters(IMAGES):
        tensors.append(Tensor.of(p.keys[0], np.ascontiguousarray(p.change.write(np.asarray(flat[p.path])))))
    tensors.append(Tensor.of("quantize.cluster_size", np.zeros(20_000, np.float32)))
    write_torch(place / "ice_image.pt", tensors, "module")
    return place


@pytest.mark.full
def test_a_video_from_folders_and_a_picture(whole, tmp_path):
    folders.write_shared(folders.open_parts(whole, IMAGES), tmp_path / "ours")
    picture = np.random.default_rng(0).integers(0, 256, (40, 64, 3)).astype(np.uint8)
    videos = []
    for place in (whole, tmp_path / "ours"):
        loaded = load_cogvideo2022(place, images=IMAGES)
        params = loaded.params
        assert params["sequential"]["words"] is params["super_resolution"]["words"]
        videos.append(make_video(loaded, [PROMPT], Settings(depth=1), image=picture))
    assert videos[0].frames.shape == (1, 9, 96, 96, 3) and videos[0].fps == 2
    np.testing.assert_array_equal(videos[0].frames, videos[1].frames)
    small = make_video(loaded, [PROMPT], Settings(depth=0), image=picture, large=False)
    np.testing.assert_array_equal(small.frames[0, 0], to_pixels(loaded, picture_codes(loaded, picture)[:, None])[0, 0])


def test_verbs_know_the_folder(theirs, tmp_path, capsys):
    convert(str(theirs), str(tmp_path / "ours"))
    capsys.readouterr()
    facts = describe(str(tmp_path / "ours"), Given())
    assert "stored once" in facts["base"] and facts["text tokenizer"] == "there"
    assert facts["image tokenizer"] == "missing" and facts["frames"] == "5 key frames of 4x4 codes"
    info(str(theirs))
    assert "stored 3 times" in capsys.readouterr().out
    with pytest.raises(ValueError, match="without --dtype"):
        convert(str(theirs), str(tmp_path / "more"), dtype="float16")
    with pytest.raises(ValueError, match="is not written to single"):
        convert(str(theirs), str(tmp_path / "more"), to="single")


def files_of(folder):
    return {str(f.relative_to(folder)): f.read_bytes() for f in Path(folder).rglob("*") if f.is_file()}


def test_folders_there_and_back(theirs, tmp_path):
    parts = folders.open_parts(theirs)
    assert parts.stages == STAGES
    folders.write_shared(parts, tmp_path / "ours")
    sizes = {f.name: f.stat().st_size for f in (tmp_path / "ours").iterdir()}
    assert sizes["base.safetensors"] > sizes["sequential.safetensors"]
    ours = folders.open_parts(tmp_path / "ours")
    assert ours.stages == parts.stages and ours.shared
    folders.write_theirs(ours, tmp_path / "back")
    assert files_of(tmp_path / "back") == files_of(theirs)


def test_the_base_is_in_memory_once(theirs):
    params = folders.read_stages(folders.open_parts(theirs))
    first, second, third = params.values()
    assert first["words"] is second["words"] is third["words"]
    assert first["blocks"]["base"]["up"]["kernel"] is third["blocks"]["base"]["up"]["kernel"]
    name = "transformer.layers.1.attention.query_key_value.weight"
    thirds = np.split(number_of(name, (48, 16)), 3)
    for part, third in zip("qkv", thirds, strict=True):
        np.testing.assert_array_equal(second["blocks"]["base"][part]["kernel"][1], third.T)


def test_bases_that_differ_are_named(theirs, tmp_path):
    (tmp_path / "cogvideo-stage1").symlink_to(theirs / "cogvideo-stage1")
    key, cfg = "transformer.layers.0.mlp.dense_4h_to_h.bias", STAGES["interpolation"]
    write_stage(tmp_path / "cogvideo-stage2", cfg, folders._model_config(cfg), key)
    with pytest.raises(
        ConversionError, match=f"bases differ from that of cogvideo-stage1[^$]*{key} of cogvideo-stage2"
    ):
        folders.read_stages(folders.open_parts(tmp_path))


def test_a_stage_in_anothers_place_is_refused(theirs, tmp_path):
    (tmp_path / "cogvideo-stage2").symlink_to(theirs / "cogvideo-stage1")
    with pytest.raises(
        ValueError, match="is CogVideo's stage 1 by its model_config.json; cogvideo-stage2 belongs there"
    ):
        folders.open_parts(tmp_path)
    (tmp_path / "cogview2-dsr").symlink_to(theirs / "cogvideo-stage1")
    (tmp_path / "cogvideo-stage2").unlink()
    with pytest.raises(ValueError, match="holds a stage of CogVideo, no super-resolution"):
        folders.open_parts(tmp_path)


def test_one_stage_is_no_model_and_its_number_is_one_of_two(theirs, tmp_path):
    copy = shutil.copytree(theirs, tmp_path / "copy")
    stage = copy / "cogvideo-stage1"
    with pytest.raises(ValueError, match="cogvideo-stage1 is one stage of CogVideo .* give the folder above it"):
        folders.open_parts(stage)
    with pytest.raises(ValueError, match="give the folder above it"):
        info(str(stage))
    config = copy / "cogvideo-stage2" / "model_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"cogvideo_stage": "1"}))
    with pytest.raises(ValueError, match="model_config.json: cogvideo_stage must be 1 or 2, got '1'"):
        folders.open_parts(copy)


def test_prompts_are_checked_first(system):
    with pytest.raises(ValueError, match="takes 90 tokens, .* reads 74: shorten it"):
        check_prompts(system.tokenizer, ["猫" * 80])
    with pytest.raises(ValueError, match="is empty"):
        check_prompts(system.tokenizer, ["  "])
    with pytest.warns(UserWarning, match="no Chinese in it"):
        check_prompts(system.tokenizer, ["a cat"])


def test_tables_of_clusters_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match="the table of clusters"):
        read_clusters(tmp_path / "cluster_label2.npy", 60)
    for array, message in ((np.zeros(60), "a whole number"), (np.full(60, 99), "out of range")):
        np.save(tmp_path / "cluster_label2.npy", array)
        with pytest.raises(ValueError, match=message):
            read_clusters(tmp_path / "cluster_label2.npy", 60)
    (tmp_path / "cluster_label2.npy").write_bytes(b"no")
    with pytest.raises(ValueError, match="no array"):
        read_clusters(tmp_path / "cluster_label2.npy", 60)


def test_other_tokenizers_are_refused(tmp_path, system):
    (tmp_path / "ice_text.model").write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match=r"ice_text.model: it is damaged"):
        TextTokenizer.read(tmp_path / "ice_text.model")
    stages = {"sequential": dataclasses.replace(STAGES["sequential"], start_of_image=START - 1)}
    with pytest.raises(ValueError, match="for the start of an image; the sequential transformer has"):
        dataclasses.replace(system, stages=stages)


# Sizes and settings that do not go together, of a copy of the one that ships.


def changed(tmp_path, **changes):
    """A folder as tiny2022 with other values in its sizes, by the path of each."""
    shutil.copytree(folders.ASSETS / "tiny2022", tmp_path / "tiny")
    said = json.loads((tmp_path / "tiny" / folders.SIZES).read_text())
    for path, value in changes.items():
        *way, last = path.split("__")
        table = said
        for name in way:
            table = table[name]
        table[last] = value
    (tmp_path / "tiny" / folders.SIZES).write_text(json.dumps(said))
    return tmp_path / "tiny"


SEQUENTIAL, BETWEEN = "stages__sequential__", "stages__interpolation__"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({SEQUENTIAL + "base_positions": 143}, "sequential: base_positions is 143, but must be 144 at least"),
        ({SEQUENTIAL + "first_position": 100}, "base_positions is 144, but must be 164 at least .* first_position 100"),
        ({SEQUENTIAL + "grid": 16}, "base_positions is 144, but must be 336 at least for a frame of grid 16"),
        ({SEQUENTIAL + "frames": 100_000}, "extra_positions is 320, but must be 6399936"),
        ({SEQUENTIAL + "frames": 1}, "frames is 1, but must be 2 at least"),
        ({SEQUENTIAL + "frames": 4}, "sequential: frames is 4, but an interpolation puts frames between an odd number"),
        ({SEQUENTIAL + "frames": 3, BETWEEN + "frames": 3}, "interpolation: frames is 3, .* must be 5"),
        ({BETWEEN + "frames": 4}, "interpolation: frames is 4"),
        ({BETWEEN + "grid": 4}, "grid is 8 for sequential and 4 for interpolation; .* must be the same"),
        ({BETWEEN + "window": 3}, "interpolation: window is 3, which does not divide grid 8"),
        ({BETWEEN + "window": 1}, "window is 1, but must be 2"),
        ({BETWEEN + "vocab": 600}, "vocab is 608 for sequential and 600 for interpolation"),
        ({SEQUENTIAL + "start_of_image": 608}, "vocab is 608, but must be 609 at least to hold start_of_image"),
        ({SEQUENTIAL + "codes": 600}, "start_of_image is 597, but must be 600 at least after 600 codes"),
        ({SEQUENTIAL + "text_length": 100_000}, "base_positions is 144, but must be 100000"),
        ({SEQUENTIAL + "heads": 1.5}, "sequential: heads 1.5 is no size"),
        ({SEQUENTIAL + "layers": 100_000, BETWEEN + "layers": 100_000}, "layers is 100000, but base.safetensors holds"),
        ({"images__codes": 500}, "codes is 512 for the stages and 500 for images"),
        ({"images__encoder_blocks": 100_000}, "encoder_blocks 100000 is no size"),
    ],
)
def test_sizes_that_do_not_go_together_are_named(changes, message, tmp_path):
    with pytest.raises(ValueError, match=rf"tiny/{folders.SIZES}: .*{message}"):
        folders.open_parts(changed(tmp_path, **changes))


def test_super_resolution_has_positions_for_its_grid_and_its_text():
    large = STAGES["super_resolution"]
    for change, message in (({"extra_positions": 143}, "must be 144"), ({"text_length": 73}, "text_length is 73")):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(large, **change)


@pytest.mark.parametrize(
    "said, message",
    [
        ({"frames": {"clusters": 1.5}}, "frames: clusters is 1.5; it must be a whole number, at least 1"),
        ({"frames": {"clusters": None}}, "frames: clusters is None"),
        ({"frames": {"more": 1}}, "frames: there is no 'more' among them, but clusters, temperature, inner"),
        ({"first": {"temperature": 1e-300}}, "first: temperature 1e-300 is not from 0.001"),
        ({"large": {"inner": "1"}}, "large: inner is '1'"),
        ({"large": 3}, "large is 3; it must be a draw"),
        ({"rows": 1.5}, "rows is 1.5; it must be a whole number"),
        ({"rows": True}, "rows is True; it must be a whole number"),
        ({"text_bias": None}, "text_bias is None; it must be a finite number"),
        ({"guidance_between": "2"}, "guidance_between is '2'"),
        ({"depth": 1.5}, "depth is 1.5; it must be a whole number, from 0 to 3"),
        ({"depth": None}, "depth is None; it must be a whole number"),
        ({"depth": 4}, "depth 4 is not from 0 to 3"),
        ({"training_mask": 3.5}, "training_mask is 3.5; it must be true or false"),
        ({"deep": 1}, "there is no 'deep' among them"),
    ],
)
def test_settings_have_kinds(said, message, tmp_path):
    place = changed(tmp_path, settings=said)
    with pytest.raises(ValueError, match=f"tiny/{folders.SIZES} has settings that no video has: {message}"):
        read_small(folders.open_parts(place))


def test_a_draw_that_is_told_in_part_is_otherwise_the_usual_one():
    assert settings_of({"frames": {"temperature": 0.5}}, "x").frames == Draw(12, 0.5)


@pytest.mark.parametrize(
    "prompts, asked, message",
    [
        ([], {}, "a string or a list of at least one string"),
        ([3], {}, "a string or a list of at least one string"),
        (PROMPT, {"seed": 2**63}, "seed 9223372036854775808 is not from"),
        (PROMPT, {"seed": 1.5}, "seed is 1.5; it must be a whole number"),
        (PROMPT, {"large": True}, "has no super-resolution; leave out large"),
        (PROMPT, {"settings": Settings(depth=1)}, "no stage that makes frames in between"),
    ],
)
def test_what_a_video_cannot_be_of_is_refused_first(prompts, asked, message, system, monkeypatch):
    monkeypatch.setattr("cogvx_jax.pipelines.cogvideo2022.load.make_codes", None)
    first = dataclasses.replace(system, stages={"sequential": STAGES["sequential"]})
    with pytest.raises(ValueError, match=message):
        make_video(first, prompts, **asked)
    with pytest.raises(ValueError, match="guidance is nan; it must be a finite number"):
        Settings(guidance=float("nan"))


def test_a_string_is_one_prompt_and_is_warned_of_once(system, monkeypatch):
    class Made(Exception):
        pass

    def codes(system, prompts, how, **rest):
        check_texts(system.tokenizer, prompts)
        raise Made(prompts, how.depth)

    monkeypatch.setattr("cogvx_jax.pipelines.cogvideo2022.load.make_codes", codes)
    first = dataclasses.replace(system, stages={"sequential": STAGES["sequential"]})
    with pytest.warns(UserWarning, match="no Chinese in it") as said, pytest.raises(Made) as made:
        make_video(first, "red")
    assert made.value.args == (("red",), 0) and len(said) == 1


def test_chinese_is_warned_of_where_the_language_is_english(system):
    tokenizer = copy.copy(system.tokenizer)
    tokenizer.language = "English"
    with pytest.warns(UserWarning, match=r"has Chinese in it, but this CogVideo \(2022\) was trained on English"):
        check_prompts(tokenizer, [PROMPT])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_prompts(tokenizer, ["a cat"])
        check_texts(tokenizer, [PROMPT])
