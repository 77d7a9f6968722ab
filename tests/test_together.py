"""Requests that are sampled together come out as they are made alone, and go on alone."""

import dataclasses

import numpy as np
import pytest
from small_files import small_spec

from cogvx_jax.pipelines import generate
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request
from cogvx_jax.pipelines.saved_steps import read_steps
from cogvx_jax.pipelines.together import Together, likeness, part_of

PICTURE = np.random.default_rng(0).integers(0, 255, (32, 48, 3), np.uint8)
CLIP = np.random.default_rng(1).integers(0, 255, (9, 32, 48, 3), np.uint8)


@pytest.fixture(scope="module")
def exact(small):
    def make(kind):
        return dataclasses.replace(small(kind)[1], exact=True)

    return make


def requests_of(model, several):
    return [check_request(model.spec, prompt, Options(**options)) for prompt, options in several]


def test_what_may_be_made_together():
    spec = small_spec("2b")

    def like(**options):
        return likeness(check_request(spec, options.pop("prompt", "a"), Options(**options)))

    own = like()
    assert own is not None
    for same in ({"prompt": "b"}, {"seed": 9}, {"negative_prompt": "dark"}, {"fps": 12}):
        assert like(**same) == own, same
    assert own != like(frames=9) != like(frames=9, video=CLIP) == like(frames=9, video=CLIP[::-1])
    for other in ({"steps": 5}, {"sampler": "dpm"}, {"guidance_scale": 2}, {"size": "48x48"}):
        assert like(**other) not in (None, own), other
    for alone in ({"reuse": "every:2"}, {"guidance": "delta:2"}, {"extend": CLIP}, {"video": CLIP, "mask": PICTURE}):
        assert like(**alone) is None, alone


CASES = [
    ("2b", {"sampler": "dpm"}),
    ("2b", {"video": CLIP, "strength": 0.5}),
    ("5b", {"guider": "apg:momentum=-0.5"}),
    ("5b", {"travel": "50%=night"}),
    ("5b-i2v", {"image": PICTURE, "image_noise": 0.1}),
]


@pytest.mark.full  # both ways are compiled
@pytest.mark.parametrize("kind, options", CASES)
def test_each_is_as_it_is_made_alone_and_goes_on_alone(exact, kind, options, tmp_path):
    model = exact(kind)
    several = [("a red circle", {"seed": 3}), ("a blue star", {"seed": 4, "negative_prompt": "dark"})]
    requests = requests_of(model, [(prompt, options | own) for prompt, own in several])
    assert likeness(requests[0]) == likeness(requests[1])
    together, files = Together(model, [part_of(model, request) for request in requests]), []

    def save(step):
        if step.number == 1:
            for number in range(2):
                files.append(tmp_path / f"{number}.safetensors")
                together.own(step, number).save(files[-1])

    made = np.asarray(together.sample(save))
    assert np.abs(made[0] - made[1]).max() > 0.1
    for number, request in enumerate(requests):
        alone = np.asarray(generate.sample(model, request, progress=False))
        np.testing.assert_array_equal(made[number], alone[0])
        saved = read_steps(files[number])
        generate.check_resumed(model, request, saved)
        gone_on = generate.sample(model, request, progress=False, resume=saved)  # a warning would be an error
        np.testing.assert_array_equal(np.asarray(gone_on), alone)
