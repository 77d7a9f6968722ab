"""Prompts of regions: who meets whom in attention, what is asked for, and whole runs."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closeness import close
from PIL import Image
from small_files import small_spec

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.prompts_file import read_jobs
from cogvx_jax.configs import Compute
from cogvx_jax.data.regions import Region, box_mask, parse_region, region_map
from cogvx_jax.data.video import read_video
from cogvx_jax.models.per_block import PerBlock
from cogvx_jax.models.regions import region_sets
from cogvx_jax.models.transformer import Transformer
from cogvx_jax.nn.attention import BACKENDS, attention
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored

ALL, LEFT, RIGHT = (0, 0, 1, 1), (0, 0, 1 / 3, 1), (1 / 3, 0, 1, 1)


def latents_of(model, prompt="a red circle", **options):
    return cx.generate(model, prompt, output="latents", progress=False, **{"num_inference_steps": 2} | options)


# Who meets whom.


def test_prompts_meet_themselves_and_their_region():
    grid = jnp.asarray(np.repeat(np.repeat([[[[0, 1, 2]]]], 2, axis=2), 2, axis=3), jnp.int32)  # (1, 1, 2, 6)
    sets = np.asarray(region_sets(grid, texts=3, length=2, patch=2, patch_t=None))[0]
    meets = (sets[:, None] & sets[None]) != 0
    kinds = [0, 0, 1, 1, 2, 2]
    for i in range(6):  # text
        assert list(meets[i, :6]) == [kinds[i] == kind for kind in kinds]
        assert list(meets[i, 6:]) == [kinds[i] == region for region in range(3)]
    assert meets[6:, 6:].all() and (meets == meets.T).all()


@pytest.mark.parametrize("name", [name for name, one in BACKENDS.items() if one.overlap])
@pytest.mark.parametrize("tokens", [48, pytest.param(1100, marks=pytest.mark.full)])  # beyond a chunk
def test_backends_that_know_sets(name, tokens):
    rng = np.random.default_rng(0)
    q, k, v = rng.normal(size=(3, 2, 1, tokens, 8)).astype(np.float32)
    sets = rng.choice([0, 1, 2, 3, 4, 6], size=(2, tokens)).astype(np.int32)
    meets = (sets[:, None, :, None] & sets[:, None, None, :]) != 0
    scores = np.where(meets, np.einsum("bask,batk->bast", q, k) * 8**-0.5, -np.inf)
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - np.max(scores, axis=-1, keepdims=True))
    weights = np.nan_to_num(weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30))
    how = dict(scale=8**-0.5, segments=jnp.asarray(sets), overlap=True)
    y = BACKENDS[name].attend(q, k, v, _options(q, how))
    np.testing.assert_allclose(y, weights @ v, rtol=0, atol=1e-5)
    np.testing.assert_allclose(attention(q, k, v, **how), weights @ v, rtol=0, atol=1e-5)


def _options(q, how):
    from cogvx_jax.nn.attention import Options as Asked

    return Asked(how["scale"], None, None, (how["segments"],) * 2, q.shape[2], overlap=True)


def test_kernels_that_know_no_sets_leave_them_to_another():
    q = np.zeros((1, 1, 8, 64), np.float32)
    for name in BACKENDS.keys() - {"plain", "chunked", "by_head"}:
        assert not BACKENDS[name].takes(q, _options(q, dict(scale=1.0, segments=np.zeros((1, 8), np.int32))))


@pytest.mark.parametrize("how", [dict(rows_apart=True), pytest.param({}, marks=pytest.mark.full)], ids=str)
def test_no_regions_leave_nothing_in_the_program(random_params, how):
    cfg = small_spec("5b").transformer
    x, text = jnp.zeros((1, 3, 4, 6, cfg.in_channels)), jnp.zeros((1, cfg.text_length, cfg.text_dim))
    params = random_params(Transformer(cfg), x, text, jnp.zeros(1))

    def lowered(per_block):
        transformer = Transformer(cfg, Compute(**how))
        run = jax.jit(lambda p: transformer.apply({"params": p}, x, text, jnp.zeros(1), per_block=per_block))
        return run.lower(params).as_text()

    plain = lowered(None)
    assert lowered(PerBlock()) == plain
    assert lowered(PerBlock(regions=jnp.ones((1, cfg.text_length + 18), jnp.int32))) != plain


# Which latent belongs to which.


def test_tokens_are_of_the_last_region_that_covers_half_of_them():
    boxes = [box_mask(box, 32, 48) for box in ((0, 0, 0.5, 1), (0, 0.5, 1, 1))]
    found = region_map(boxes, (3, 2, 3), 4, 1)
    np.testing.assert_array_equal(found, [[[1, 1, 0], [2, 2, 2]]] * 3)  # the middle one is half covered
    moving = np.zeros((9, 32, 48), bool)
    moving[3:, :16, :16] = True
    assert region_map([moving], (3, 2, 3), 4, 1)[:, 0, 0].tolist() == [0, 1, 1]  # of frames 1 to 4, half
    moving[3] = False
    assert region_map([moving], (3, 2, 3), 4, 1)[:, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize("kind, frames", [("5b", 9), ("1.5-5b", 17)])
def test_latents_of_a_token_have_one_region(kind, frames):
    moving = np.zeros((frames, 32, 48), bool)
    moving[1:, :, :20] = True
    request = check_request(small_spec(kind), "x", Options(region=[(moving, "y")], size=(32, 48), frames=frames))
    found = request.regions.latents
    assert found.shape == request.shape[:3]
    first = 2 if kind == "1.5-5b" else 1  # the padding and latent 0
    np.testing.assert_array_equal(found[:first], 0)
    np.testing.assert_array_equal(found[first:, 0], [[1, 1, 0, 0, 0, 0]] * (len(found) - first))


# Whole runs.


def test_one_region_of_all_is_the_plain_video_of_its_prompt(small):
    _, model = small("5b")
    plain, other = latents_of(model, "a blue star"), latents_of(model)
    found = latents_of(model, region=[(ALL, "a blue star")])
    close(found, plain)
    assert np.abs(found - other).max() > 1e-3


def test_a_region_changes_all_by_itself(small):
    _, model = small("5b")
    left = latents_of(model, region=[(LEFT, "a blue star")])
    right = latents_of(model, "a blue star", region=[(RIGHT, "a red circle")])
    both = latents_of(model, "x", region=[(LEFT, "a blue star"), (RIGHT, "a red circle")])
    for one in (left, right):
        assert np.abs(one - latents_of(model)).max() > 1e-3
    close(right, left, 1e-4)  # the same halves have the same prompts
    close(both, left, 1e-4)


@pytest.mark.full
def test_videos_do_not_know_each_other(small):
    _, model = small("5b")
    options = dict(region=[(LEFT, "a green square")])
    close(latents_of(model, ["a red circle", "a blue star"], **options)[:1], latents_of(model, **options))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["5b", "1.5-5b"])
@pytest.mark.parametrize("guider", [None, "stg:layers=0"])
def test_everywhere_the_same(small, kind, guider):
    folder, model = small(kind)
    asked = dict(region=[(LEFT, "a blue star")], guider=guider)
    plain = latents_of(model, **asked)
    close(latents_of(model, one_program=True, **asked), plain)
    for memory in ("rows", "chunks"):
        close(latents_of(cx.load(folder, memory=memory), **asked), plain)
    for sizes in (dict(cfg=2, sp=2), dict(context=2, tensor=2), dict(fsdp=2, sp=2)):
        there = cx.load(folder, mesh=cx.make_mesh(**sizes, devices=jax.devices()[:4]))
        close(latents_of(there, **asked), plain, 3e-5)
    if guider is None:
        meshes = None, cx.make_mesh(cfg=2, devices=jax.devices()[:2])
        exact = [latents_of(cx.load(folder, mesh=mesh), exact=True, **asked) for mesh in meshes]
        np.testing.assert_array_equal(*exact)
        close(exact[0], plain)


@pytest.mark.full
def test_it_goes_with_windows_and_other_tasks(small):
    _, model = small("5b")
    clip = np.random.default_rng(0).integers(0, 256, (9, 32, 48, 3), np.uint8)
    for options in (
        dict(num_frames=17, windows="12:4,policy=static"),
        dict(video=clip, strength=0.5, num_inference_steps=4),
        dict(guidance_scale=1.0),
        dict(negative_prompt=None, enhance=1.0),
    ):
        plain = latents_of(model, "a blue star", **options)
        close(latents_of(model, region=[(ALL, "a blue star")], **options), plain)


# What is asked for.


def test_text_and_pairs_say_the_same():
    assert parse_region("0,0,.5,1=a star").box == (0, 0, 0.5, 1)
    assert parse_region("a,b=c.png=a star").place == "a,b"
    one = Options(region=Region(LEFT, "a star")).region
    for said in (
        [(LEFT, "a star")],
        f"0,0,{1 / 3},1=a star",
        [f"0,0,{1 / 3},1=a star"],
        [Region(LEFT, "a star")],
        [[[*LEFT], "a star"]],
    ):
        assert [(region.box, region.prompt) for region in Options(region=said).region] == [(one[0].box, "a star")]
    assert Options().region == Options(region=None).region == ()


BLACK = np.zeros((32, 48), bool)
WRONG = {
    "a region is its place and its prompt, such as 0,0,0.5,1=a blue star, got 'x'": dict(region="x"),
    "region must be a place and its prompt, such as 0,0,0.5,1=a star, got 3": dict(region=[3]),
    "region must be at most 16 places with their prompts": dict(region=[(ALL, "x")] * 17),
    "a box is left, top, right, bottom, as shares of the picture": dict(region=[((0, 0, 2, 1), "x")]),
    "'0,0,1' is no box: a box has four numbers, left, top, right, bottom, got": dict(region="0,0,1=x"),
    "'nan,0,.5,1' is no box: a box has four numbers": dict(region="nan,0,.5,1=x"),
    "'-.1, 0, .5, 1' is no box: a box is left, top, right, bottom, as shares": dict(region="-.1, 0, .5, 1=x"),
    "the prompt of a region must be text, got '3'": dict(region=[(ALL, 3)]),
    "a region is a box, a path or a picture, got '3'": dict(region=[(3, "x")]),
    "the region of 'x' covers no token of 32x48, or is covered": dict(region=[(BLACK, "x")]),
    "the region of 'y' covers no token": dict(region=[(LEFT, "y"), (ALL, "z")]),
    "the region of 'x' has 5 frames, the video 9; give as many": dict(region=[(np.stack([~BLACK] * 5), "x")]),
    "the region of 'x' has more than 9 frames, the video 9; give": dict(region=[(np.stack([~BLACK] * 12), "x")]),
    "has several frames, and segments of a video to extend share their regions; give a box or": dict(
        region=[(np.stack([~BLACK] * 9), "x")], num_frames=17, extend=np.zeros((9, 32, 48, 3), np.uint8)
    ),
    "travel mixes the prompts of a whole clip; give regions or travel": dict(travel={"50%": "x"}),
    "reuse leaves out what regions change; give regions or reuse": dict(reuse="every:2"),
    "ways of guidance leave out what regions change": dict(guidance="delta:2"),
    "nowhere.png": dict(region="nowhere.png=x"),
}


@pytest.mark.parametrize("said", WRONG)
def test_what_cannot_be_is_one_sentence(said):
    options = dict(height=32, width=48, num_frames=9, region=[(ALL, "x")]) | WRONG[said]
    with pytest.raises((ValueError, OSError)) as error:
        check_request(small_spec("5b"), "x", Options.from_keywords(**options))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", [LEFT, ~BLACK, np.stack([~BLACK])])
def test_segments_of_a_video_to_extend_share_boxes_and_pictures(place):
    asked = Options(region=[(place, "y")], size=(32, 48), frames=25, extend=np.zeros((9, 32, 48, 3), np.uint8))
    request = check_request(small_spec("5b"), "x", asked)
    assert request.regions.latents.shape == request.shape[:3]
    np.testing.assert_array_equal(
        request.regions.latents, np.broadcast_to(request.regions.latents[0], request.shape[:3])
    )


@pytest.mark.parametrize("kind", ["2b", "5b-i2v"])
def test_models_of_other_positions_are_refused(kind):
    image = np.zeros((8, 8, 3), np.uint8) if kind == "5b-i2v" else None
    with pytest.raises(ValueError, match="regions lengthen the text, and .* has positions for exactly .* text tokens"):
        check_request(small_spec(kind), "x", Options(region=[(ALL, "y")], image=image, frames=9))


def test_requests_know_their_regions():
    spec, small_size = small_spec("5b"), dict(size=(32, 48), frames=9)
    asked = [(), [(ALL, "a")], [(ALL, "b")], [(LEFT, "a")]]
    requests = [check_request(spec, "x", Options(region=one, **small_size)) for one in asked]
    assert len({request.digest() for request in requests}) == len(asked)
    with pytest.raises(ValueError, match="stored programs know one prompt for the picture; leave out region"):
        check_stored(requests[1])


def test_the_command_and_a_prompts_file(small, tmp_path, monkeypatch):
    folder, model = small("5b")
    monkeypatch.chdir(tmp_path)
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 255
    Image.fromarray(mask).save("right.png")
    line = {"prompt": "x", "region": [[[0, 0, 0.5, 1], "a blue star"], ["right.png", "a green square"]]}
    Path("prompts.jsonl").write_text(json.dumps(line))
    (job,) = read_jobs(None, Path("prompts.jsonl"), Path("out.mp4"), Options())
    regions = check_request(model.spec, job.prompt, job.options).regions
    assert regions.prompts == ("a blue star", "a green square")
    np.testing.assert_array_equal(
        regions.latents[0, 0], [1, 1, 2, 2, 2, 2]
    )  # half of the token in the middle is either's
    words = ["--region", "0,0,0.5,1=a blue star", "--region", "right.png=a green square", "--steps", "2"]
    words += ["--model", str(folder), "--out", "out.mp4", "--no-progress"]
    monkeypatch.setattr(sys, "argv", ["cogvx", "generate", "x", *words])
    cli.main()
    assert read_video("out.mp4")[0].shape == (9, 32, 48, 3)
