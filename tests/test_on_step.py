"""Looking inside a generation: what `on_step` sees, what it may change, and how it ends one."""

import jax.numpy as jnp
import numpy as np
import pytest

import cogvx_jax as cx
from cogvx_jax.configs import ScheduleConfig
from cogvx_jax.diffusion import samplers, schedule, update
from cogvx_jax.pipelines.generate import sampler_of
from cogvx_jax.pipelines.on_step import Seen
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.saved_steps import Carried, Identity

PROMPT = "a red circle"
CLIP = np.stack([np.full((32, 48, 3), 20 * i, np.uint8) for i in range(9)])


@pytest.fixture
def make(small):
    """`make(**options)`: latents of the small 5B."""

    def call(on_step=None, **options):
        model = small("5b")[1]
        return cx.generate(model, PROMPT, output="latents", progress=False, on_step=on_step, **options)

    return call


def seen(make, **options):
    """Latents, and of each step its number, count, timestep, latents and x0, on the host."""
    steps = []

    def look(step):
        steps.append((step.number, step.count, step.timestep, np.asarray(step.latents), np.asarray(step.x0)))

    return make(look, **options), steps


QUICK = ("dpm", "unipc", "deis", "heun")  # a history of one and two, noise, two evaluations a step
SAMPLERS = [pytest.param(name, marks=() if name in QUICK else pytest.mark.full) for name in samplers.SAMPLERS]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_each_step_is_seen_and_none_is_changed(make, small, sampler):
    latents, steps = seen(make, sampler=sampler, num_inference_steps=5)
    np.testing.assert_array_equal(latents, make(sampler=sampler, num_inference_steps=5))
    np.testing.assert_array_equal(latents, steps[-1][3])
    spec = small("5b")[1].spec
    plan = sampler_of(small("5b")[1], check_request(spec, PROMPT, Options(sampler=sampler, steps=5)))
    assert [step[:3] for step in steps] == [(i + 1, len(plan.timesteps), t) for i, t in enumerate(plan.timesteps)]


@pytest.mark.parametrize("sampler", samplers.SAMPLERS)
def test_x0_is_what_the_model_took_for_clean(sampler):
    """A model that knows the clean latents tells the velocity to them; each sampler shows them."""
    cfg, rng = ScheduleConfig(), np.random.default_rng(0)
    plan = samplers.SAMPLERS[sampler](cfg, 6)
    assert plan.estimates_noise.any() == (sampler == "deis")
    clean, noise = np.float32(rng.normal(size=(2, 1, 1, 2, 3, 4)))
    for i, (t, row) in enumerate(zip(plan.timesteps, np.float32(plan.table), strict=True)):
        a = np.float32(schedule.alphas_bar(cfg)[t])
        x, v = np.sqrt(a) * clean + np.sqrt(1 - a) * noise, np.sqrt(a) * noise - np.sqrt(1 - a) * clean
        state = update.update(update.init(jnp.asarray(x), plan.history), jnp.asarray(v), row, jnp.asarray(noise))
        before = jnp.asarray(x) if plan.estimates_noise[i] else None
        at = Seen(Carried(i + 1, state), row, before, jnp.zeros(()), lambda: Identity({}))
        step = cx.Step(number=i + 1, count=len(plan.timesteps), timestep=int(t), seconds=0.0, seen=at)
        np.testing.assert_allclose(step.x0, clean, atol=1e-4)


def test_arrays_are_copies_and_must_be_asked_for_in_time(make):
    kept = []

    def look(step):
        if step.number != 2:
            kept.append((step, step.latents))
        else:
            kept.append((step, None))

    latents = make(look)
    np.testing.assert_array_equal(kept[-1][1], latents)
    assert not any(array.is_deleted() for _, array in kept if array is not None)
    assert kept[0][0].latents is kept[0][1]
    with pytest.raises(ValueError, match="the arrays of step 2 went to the next one"):
        kept[1][0].x0  # noqa: B018


def test_what_is_given_back_is_gone_on_with(make):
    def stop_early(step):
        return cx.Change(end=step.number == 2)

    _, steps = seen(make)
    np.testing.assert_array_equal(make(stop_early), steps[1][3])

    other = np.float32(np.random.default_rng(0).normal(size=steps[0][3].shape))
    ended = make(lambda step: cx.Change(latents=other) if step.number == step.count else None)
    np.testing.assert_array_equal(ended, other)
    words = make(lambda step: cx.Change(text=-step.text) if step.number == 1 else None)
    assert np.abs(words - steps[-1][3]).max() > 1e-3
    for change, said in (
        (cx.Change(latents=other[:, :1]), "latents of shape"),
        (cx.Change(latents=np.full_like(other, np.nan)), "not finite"),
        (cx.Change(text=other), "text of shape"),
    ):
        with pytest.raises(ValueError, match=said):
            make(lambda step, change=change: change)


def test_what_it_raises_ends_the_generation(make):
    numbers = []

    def look(step):
        numbers.append(step.number)
        if step.number == 2:
            raise cx.Cancelled("enough")

    with pytest.raises(cx.Cancelled, match="enough"):
        make(look)
    assert numbers == [1, 2]


@pytest.mark.parametrize("given", [5, "end", np.ones(3), 0, {}, [], False], ids=repr)
def test_what_is_no_change_is_refused(make, given):
    numbers = []
    with pytest.raises(ValueError, match=f"must give a cx.Change or None, got {type(given).__name__}$"):
        make(lambda step: numbers.append(step.number) or given)
    assert numbers == [1]


@pytest.mark.parametrize("name", ["on_step", "callback_on_step_end"])
def test_what_is_no_function_is_refused_first(make, name):
    for given in (5, 0, "end"):
        with pytest.raises(ValueError, match=f"^{name} must be a function .*, got {type(given).__name__}$"):
            make(**{name: given}, image="none.png")


def test_a_program_of_all_steps_shows_none(make):
    with pytest.raises(ValueError, match="has nothing between them; leave out one_program, or on_step"):
        make(lambda step: None, one_program=True)
    with pytest.raises(ValueError, match="give either on_step or callback_on_step_end"):
        make(lambda step: None, callback_on_step_end=lambda *_: {})


@pytest.mark.full
def test_segments_of_a_longer_video_are_counted(small):
    model, numbers = small("5b")[1], []
    video = cx.generate(
        model,
        PROMPT,
        extend=CLIP,
        num_frames=20,
        progress=False,
        on_step=lambda step: numbers.append((step.segment, step.segments, step.number)),
    )
    assert video.frames.shape[1] == 20
    assert numbers == [(part, 2, number) for part in (1, 2) for number in (1, 2, 3, 4)]


def test_diffusers_callback(make):
    calls = []

    def callback(pipe, index, timestep, tensors):
        calls.append((pipe.num_timesteps, index, timestep, sorted(tensors)))
        if index == 1:
            pipe._interrupt = True
            return {"latents": tensors.pop("latents") * 2}
        return tensors

    names = ["latents", "prompt_embeds", "negative_prompt_embeds"]
    latents = make(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names)
    _, steps = seen(make)
    np.testing.assert_array_equal(latents, steps[1][3] * 2)
    assert calls == [(4, i, steps[i][2], sorted(names)) for i in (0, 1)]
    with pytest.raises(ValueError, match="may have latents, prompt_embeds, negative_prompt_embeds, got"):
        make(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=["noise_pred"])
    with pytest.raises(ValueError, match="must give back a dict of tensors, such as {}, got NoneType"):
        make(callback_on_step_end=lambda *_: None)
    with pytest.raises(AttributeError, match="_guidance_scale"):
        make(callback_on_step_end=lambda pipe, *_: setattr(pipe, "_guidance_scale", 0.0))
