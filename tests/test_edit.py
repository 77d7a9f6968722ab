"""Editing by inversion: what the blocks look at, as recorded and by its properties, and what is asked and refused."""

import dataclasses
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from closeness import close
from safetensors.numpy import load_file, save_file
from small_files import small_spec, weights, write_small

import cogvx_jax as cx
from cogvx_jax.cli.generate import _choose
from cogvx_jax.cli.main import VERBS
from cogvx_jax.configs import ScheduleConfig, TransformerConfig
from cogvx_jax.diffusion import inversion, samplers, schedule
from cogvx_jax.diffusion.update import init
from cogvx_jax.models.flops import sequence_tokens, transformer_flops
from cogvx_jax.pipelines.calibrate import check_requests
from cogvx_jax.pipelines.conditions import SamplingInputs
from cogvx_jax.pipelines.denoise import denoise
from cogvx_jax.pipelines.duration import sampling_flops
from cogvx_jax.pipelines.generate import encode_texts, sample, sampler_of
from cogvx_jax.pipelines.inversion import invert
from cogvx_jax.pipelines.memory_modes import AUTO
from cogvx_jax.pipelines.noise import SeededNoise
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.short_schedule import check_stored
from cogvx_jax.pipelines.step_programs import step_program
from cogvx_jax.pipelines.tasks import sampling_inputs
from cogvx_jax.planning.lower import VideoPrograms
from cogvx_jax.presets import PRESETS

GOLDEN = np.load(Path(__file__).parent / "golden" / "ddim_inversion.npz")
STEPS = 5
SHIFTS = {"5b": 1.0, "2b": 3.0}  # of the signal-to-noise ratio


# The recorded run.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The transformer of golden/edit.md, and its arrays, channels last."""
    spec = small_spec("5b")
    sizes = dict(layers=2, heads=2, head_dim=16, text_dim=24, text_length=8, time_dim=16, position="rope")
    spec = dataclasses.replace(
        spec,
        transformer=TransformerConfig(**sizes),
        vae=dataclasses.replace(spec.vae, latent_channels=16),
        text_encoder=dataclasses.replace(spec.text_encoder, width=24),
    )
    folder = write_small(tmp_path_factory.mktemp("recorded") / "model", spec)
    (path,) = (folder / "transformer").glob("*.safetensors")
    shapes = {key: array.shape for key, array in load_file(path).items()}
    assert len(shapes) == 64
    save_file({key: np.ascontiguousarray(x) for key, x in weights(shapes, 200).items()}, path)
    arrays = {name: GOLDEN[name] for name in GOLDEN.files}
    for name in ("x0", "start", "inverted", "plain", "edited"):
        arrays[name] = np.moveaxis(arrays[name], -3, -1)
    return cx.load(folder, components=("transformer",), dtype="float32"), arrays


def sampled(model, inputs, plan, text, negative=None, weight=6.0):
    """The latents after each step."""
    after: list[np.ndarray] = []
    many = np.full(len(plan.timesteps), weight, np.float32)
    how = dict(noise=SeededNoise(0), progress=False, on_step=lambda step: after.append(np.asarray(step.latents)))
    denoise(model, inputs, text, negative, plan, many, **how)
    return np.stack(after)


def test_inversion_and_editing_are_as_recorded(recorded):
    model, golden = recorded
    plan = samplers.ddim(model.spec.schedule, STEPS)
    np.testing.assert_array_equal(plan.timesteps, golden["timesteps"])
    steps = inversion.inversion(model.spec.schedule, plan.timesteps)
    np.testing.assert_array_equal(steps.timesteps, golden["inverse_timesteps"])
    how = dict(noise=SeededNoise(0), progress=False)
    reference = invert(model, golden["x0"], golden["negative"], steps, plan.timesteps, **how)
    np.testing.assert_array_equal(reference.order, [4, 3, 2, 1, 0])
    start, texts = SamplingInputs(golden["start"]), (golden["text"], golden["negative"])
    found = {
        "inverted": reference.latents,
        "plain": sampled(model, start, plan, *texts),
        "edited": sampled(model, start._replace(reference=reference), plan, *texts),
    }
    for name, arrays in found.items():
        assert arrays.shape == golden[name].shape
        for i, (ours, theirs) in enumerate(zip(arrays, golden[name], strict=True)):
            assert np.linalg.norm(ours - theirs) <= 2e-4 * np.linalg.norm(theirs), (name, i)
    assert np.linalg.norm(golden["edited"][-1] - golden["plain"][-1]) > 0.1 * np.linalg.norm(golden["plain"][-1])


def reconstruction_error(model, golden, count, cfg=None):
    """Of the clean latents, inverted by the schedule of `cfg` and sampled by the model's own."""
    own = model.spec.schedule
    plan = samplers.ddim(own, count)
    steps = inversion.inversion(cfg or own, plan.timesteps)
    how = dict(noise=SeededNoise(0), progress=False)
    reference = invert(model, golden["x0"], golden["negative"], steps, plan.timesteps, **how)
    again = sampled(model, SamplingInputs(reference.at(0)), plan, golden["negative"])[-1]
    return np.linalg.norm(again - golden["x0"]) / np.linalg.norm(golden["x0"])


@pytest.mark.parametrize("kind", ["5b", pytest.param("2b", marks=pytest.mark.full)])
def test_what_is_inverted_comes_back_the_better_the_more_steps_there_are(recorded, kind):
    """0.48, 0.13 and 0.03 of 5B's schedule, 0.76, 0.23 and 0.06 of 2B's: by the first order."""
    model, golden = recorded
    cfg = dataclasses.replace(model.spec.schedule, snr_shift=SHIFTS[kind])
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, schedule=cfg))
    errors = [reconstruction_error(model, golden, count) for count in (10, 40, 200)]
    assert errors[1] < errors[0] / 2 and errors[2] < errors[1] / 2 and errors[2] < 0.15
    if kind == "2b":  # by the official script's schedule it does not come back
        unshifted = dataclasses.replace(cfg, snr_shift=1.0)
        assert reconstruction_error(model, golden, 200, unshifted) > 2 * errors[2]


# What a step of inversion does.

SCHEDULES = {kind: ScheduleConfig(snr_shift=shift) for kind, shift in SHIFTS.items()}
OFFICIAL = {  # timestep -> coefficients of x and v in the official script, of 50 steps with 5B's schedule
    19: (0.990459740, 0.137802407),
    39: (0.998051155, 0.062401058),
    499: (0.999500071, 0.031616574),
    999: (0.999957105, 0.009262170),
}


def test_the_coefficients_are_those_of_the_official_script():
    found = inversion.inversion(SCHEDULES["5b"], samplers.ddim(SCHEDULES["5b"], 50).timesteps)
    rows = {int(t): row for t, row in zip(found.timesteps, found.table, strict=True)}
    for t, expected in OFFICIAL.items():
        np.testing.assert_allclose(rows[t][2:4], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", SHIFTS)
def test_steps_are_turns_from_clean_latents_to_noise(kind):
    """x and v lie on a circle: each step turns by what the levels differ, all of them by a quarter."""
    cfg = SCHEDULES[kind]
    found = inversion.inversion(cfg, samplers.ddim(cfg, 50).timesteps)
    c_x, c_v = found.table[:, 2], found.table[:, 3]
    np.testing.assert_allclose(c_x**2 + c_v**2, 1, rtol=1e-12)
    turned = np.cumsum(np.arctan2(c_v, c_x))
    np.testing.assert_allclose(np.cos(turned) ** 2, schedule.alphas_bar(cfg)[found.timesteps], rtol=0, atol=1e-9)
    assert turned[-1] == pytest.approx(np.pi / 2)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
@pytest.mark.parametrize("count", [4, 7, 61])  # that divides 1000, that does not, and one that gives the timestep -1
@pytest.mark.filterwarnings("ignore:.* inference steps. the reference")
def test_each_evaluation_has_the_clip_at_its_own_level(name, count):
    cfg = SCHEDULES["2b"]
    plan = samplers.SAMPLERS[name](cfg, count)
    steps = inversion.inversion(cfg, plan.timesteps)
    assert np.all(np.diff(steps.timesteps) > 0) and np.isfinite(steps.table).all()
    order = inversion.which(steps.timesteps, plan.timesteps)
    real = plan.timesteps >= 0
    np.testing.assert_array_equal(steps.timesteps[order][real], plan.timesteps[real])
    assert not order[~real].any()


# Whole runs.

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (9, 32, 48, 3), np.uint8)
LEFT = np.zeros((32, 48), bool)
LEFT[:, :16] = True  # columns 0 and 1 of 6
PROMPTS = ["a blue star", "a red circle"]
SAME = 2e-5  # of the largest value: sums in another order


def latents_of(model, prompt="a blue star", **options):
    how = dict(output="latents", progress=False, num_inference_steps=3, edit=CLIP)
    return np.asarray(cx.generate(model, prompt, **how | options))


def with_compute(model, **how):
    return dataclasses.replace(model, compute=dataclasses.replace(model.compute, **how))


@pytest.fixture(scope="module")
def made(small, random_params):
    """kind -> the small model of a kind, with a transformer whose attention matters."""

    def make(kind):
        _, base = small(kind)
        cfg = base.spec.transformer
        inputs = jnp.zeros((1, 2, 4, 6, cfg.in_channels)), jnp.zeros((1, cfg.text_length, cfg.text_dim)), jnp.zeros(1)
        params = {name: base.params[name] for name in ("vae", "text_encoder")}
        return dataclasses.replace(base, params=params | {"transformer": random_params(base.transformer, *inputs)})

    return make


@pytest.fixture(scope="module")
def model(made):
    return made("5b")


@pytest.fixture(scope="module")
def edited(model):
    """The latents of an edit."""
    return latents_of(model)


def differ(a, b):
    return np.abs(a - b).max() > 0.005 * np.abs(b).max()


def test_it_looks_at_the_clip_and_nothing_is_compiled_between_steps(model, edited):
    program = step_program(model.transformer, True, None, model.exact, "cfg", ())
    before = program._cache_size()
    assert differ(latents_of(model, edit=CLIP[::-1]), edited)
    assert program._cache_size() == before
    assert differ(latents_of(model, edit=None), edited)  # from the same noise


OTHERS = {  # the same video by other programs
    "one program": lambda model: latents_of(model, one_program=True),
    "exact": lambda model: latents_of(model, exact=True),
    "guider": lambda model: latents_of(model, guider="cfg"),
    "rows": lambda model: latents_of(with_compute(model, rows_apart=True)),
    "chunks": lambda model: latents_of(with_compute(model, rows_apart=True, mlp_tokens=16)),
    "streamed": lambda model: latents_of(with_compute(model, streamed=True)),
    "batch": lambda model: latents_of(model, PROMPTS)[:1],
    "batch of rows": lambda model: latents_of(with_compute(model, rows_apart=True), PROMPTS)[:1],
}
FEW = ("one program",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FEW else pytest.mark.full) for n in OTHERS])
def test_other_programs_give_the_same(model, edited, name):
    close(OTHERS[name](model), edited, SAME)


@pytest.mark.full
@pytest.mark.parametrize("mode", ["rows", "chunks", "offload"])
def test_memory_modes_give_the_same(small, mode, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder, resident = small("5b")
    close(latents_of(cx.load(folder, memory=mode)), latents_of(resident), SAME)


def test_what_the_mask_keeps_is_the_clip(model):
    options = Options(edit=CLIP, mask=LEFT, steps=3)
    request = check_request(model.spec, "a blue star", options)
    inputs = sampling_inputs(model, request, SeededNoise(0), sampler_of(model, request))
    found, clip = latents_of(model, mask=LEFT), np.asarray(inputs.known.clean)
    np.testing.assert_array_equal(found[..., 2:, :], clip[..., 2:, :])
    assert differ(found[..., :2, :], clip[..., :2, :])


WITH = {
    "alone": ("5b", dict(guidance_scale=1.0)),
    "2b": ("2b", {}),
    "1.5": ("1.5-5b", {}),
    "strength": ("5b", dict(strength=0.7)),
    "negative": ("5b", dict(negative_prompt="blurred")),
    "zeros": ("5b", dict(negative_prompt=None)),
    "stg": ("5b", dict(guider="stg:layers=0", enhance=2.0)),
    "windows": ("5b", dict(windows="8:4,policy=static")),
    "riflex": ("5b", dict(positions="riflex")),
} | {name: ("5b", dict(sampler=name)) for name in samplers.SAMPLERS}


@pytest.mark.full
@pytest.mark.filterwarnings("ignore:positions riflex change nothing")
@pytest.mark.parametrize("name", WITH)
def test_it_goes_with_other_options(made, name):
    """In one program, too, and the clip counts."""
    kind, options = WITH[name]
    model, clip = made(kind), np.concatenate([CLIP, CLIP[:8]]) if kind == "1.5-5b" else CLIP
    loop = latents_of(model, edit=clip, **options)
    close(latents_of(model, edit=clip, one_program=True, **options), loop, SAME)
    assert differ(latents_of(model, edit=clip[::-1], **options), loop)


# What is asked, and refused before any work.


def test_the_request(model):
    request = check_request(model.spec, "x", Options(edit=CLIP, fps=12))
    assert (request.task, request.strength, request.frames, request.fps) == ("edit", 1.0, 9, 12)
    np.testing.assert_array_equal(request.video, CLIP)
    texts = encode_texts(model, request)
    np.testing.assert_array_equal(texts.empty, texts.negative)  # the empty prompt is encoded once
    other = encode_texts(model, check_request(model.spec, "x", Options(edit=CLIP, negative_prompt="blurred")))
    np.testing.assert_allclose(other.empty, texts.empty, rtol=0, atol=1e-5)
    assert not np.allclose(other.negative, texts.empty, atol=1e-2)
    assert encode_texts(model, check_request(model.spec, "x")).empty is None


REFUSED = {
    "give a video to edit or a video, not both": ("5b", dict(video=CLIP)),
    "give a video to extend or a video to edit, not both": ("5b", dict(extend=CLIP)),
    "give a video to edit or a control video, not both": ("5b", dict(control=CLIP, controlnet="x")),
    "takes no video to edit; use a text-to-video model": ("5b-i2v", {}),
    "is for inpainting and takes no video to edit": ("inpaint", {}),
    "makes videos from a control video and takes no video to edit": ("control", {}),
    "an edit looks at its clip in all evaluations, and reuse every:2 leaves some out": ("5b", dict(reuse="every:2")),
    "an edit looks at its clip in all evaluations, and guidance delta:2 leaves some": ("5b", dict(guidance="delta:2")),
    "num_frames is 17 but the video has only 9 frames": ("5b", dict(frames=17)),
    "the mask is 1 frame of 8x8, the video 9 frames of 32x48; give a mask of": (
        "5b",
        dict(mask=np.zeros((8, 8), bool)),
    ),
    "the number of frames must be 16N\\+1": ("1.5-5b", dict(frames=9)),
    "strength 0.1 of 4 steps leaves none to take": ("5b", dict(strength=0.1, steps=4)),
}


KINDS = {"inpaint": dict(in_channels=9), "control": dict(in_channels=8, control=True)}  # what they are as a 5B


def spec_of(kind):
    spec = small_spec("5b" if kind in KINDS else kind)
    defaults = dataclasses.replace(spec.defaults, height=32, width=48, num_frames=9)
    transformer = dataclasses.replace(spec.transformer, **KINDS.get(kind, {}))
    return dataclasses.replace(spec, transformer=transformer, defaults=defaults)


@pytest.mark.parametrize("said", REFUSED)
def test_what_cannot_be_edited_is_refused(said):
    kind, options = REFUSED[said]
    with pytest.raises(ValueError, match=said):
        check_request(spec_of(kind), "x", Options(edit=CLIP, **options))


def test_what_knows_no_clip_is_refused(model):
    request = check_request(model.spec, "x", Options(edit=CLIP))
    with pytest.raises(ValueError, match="stored programs look at no clip; leave out the programs"):
        check_stored(request)
    with pytest.raises(ValueError, match="beside a ControlNet or a video to edit; leave it out"):
        sample(model, request, watch=print)
    other = check_request(model.spec, "x")
    with pytest.raises(ValueError, match="auto plans for videos to edit or for others; make them in two runs"):
        _choose("tiny", [request, other], None, None, AUTO, None)
    with pytest.raises(ValueError, match="clip to edit or extend"):
        check_requests([request])


@pytest.mark.full
def test_a_plan_compiles_the_step_that_runs(model):
    request = check_request(model.spec, "x", Options(edit=CLIP))
    shape = request.batch_shape
    programs = VideoPrograms(spec=model.spec, compute=model.compute, mesh=None, shape=shape, sampler="ddim", edit=True)
    texts, state = encode_texts(model, request), init(np.zeros(shape, np.float32))
    params, t, row = model.params["transformer"], np.int32(999), np.zeros(6, np.float32)

    def text_of(guided, words, **more):
        step = step_program(model.transformer, guided, None, guider="cfg")
        return step.lower(params, state, words, None, t, row, np.float32(6), None, **more).as_text()

    both = np.concatenate([texts.negative, texts.prompts])
    (step,), (inversion,) = (list(programs.lower(name)) for name in ("step", "inversion"))
    assert step.as_text() == text_of(True, both, reference=np.zeros(shape, np.float32)) != text_of(True, both)
    assert inversion.as_text() == text_of(False, texts.empty)


def test_the_work_is_counted():
    """Of 5B one evaluation of inversion a step beside both branches, which look at twice the keys, and theirs."""
    spec = PRESETS["5b"]
    clip = np.zeros((49, 16, 16, 3), np.uint8)
    plain, edit = (check_request(spec, "x", Options(steps=50, **how)) for how in ({}, dict(edit=clip)))
    tokens = sequence_tokens(spec.transformer, edit.shape[:3])
    own = transformer_flops(spec.transformer, tokens)
    scores = spec.transformer.layers * tokens**2 * 4 * spec.transformer.width
    assert sampling_flops(spec, plain, 1) == 50 * 2 * own
    assert sampling_flops(spec, edit, 1) == 50 * own + 50 * 2 * (2 * own + scores)
    half = check_request(spec, "x", Options(steps=50, edit=clip, strength=0.5))
    assert sampling_flops(spec, half, 1) == sampling_flops(spec, edit, 1) / 2


@pytest.mark.parametrize(
    "words, options",
    [
        (["edit", "in.mp4", "x", "--out", "y.mp4"], dict(edit="in.mp4")),
        (["edit", "in.mp4", "x", "--mask", "m.png", "--steps", "9"], dict(edit="in.mp4", mask="m.png", steps=9)),
    ],
)
def test_the_verb_is_generate_with_an_option(monkeypatch, words, options):
    given = {}
    monkeypatch.setattr("cogvx_jax.cli.edit.generate", lambda prompt, **how: given.update(how, prompt=prompt))
    tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)
    assert given["prompt"] == "x"
    assert {name: getattr(given["video"], name) for name in options} == options


def test_the_verb_takes_one_video():
    words = ["edit", "in.mp4", "x", "--edit", "other.mp4"]
    with pytest.raises(ValueError, match="the video to edit stands before the prompt"):
        tyro.extras.subcommand_cli_from_dict({name: verb.run for name, verb in VERBS.items()}, args=words)
