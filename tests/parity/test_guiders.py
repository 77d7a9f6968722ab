"""Guiders against those of diffusers, on numbers."""

import pytest

diffusers = pytest.importorskip("diffusers")
torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
from diffusers import guiders as theirs  # noqa: E402

from cogvx_jax.diffusion.combining import combine, start  # noqa: E402
from cogvx_jax.diffusion.guiders import APG, CFG, PAG, SLG, ZeroStar, lay_out  # noqa: E402

STEPS = 20
SHAPE = (2, 3, 4, 6, 16)
SLG_NAMES = ("scale", "start", "stop")


def skipping(make, layers, **own):
    part = "perturbed" if make is theirs.PerturbedAttentionGuidance else "skip_layer"
    named = {(f"{part}_guidance_{name}" if name in SLG_NAMES else name): value for name, value in own.items()}
    return lambda weight: make(guidance_scale=weight, **{f"{part}_guidance_layers": layers}, **named)


def adaptive(**own):
    names = {f"adaptive_projected_guidance_{k}": own.pop(k) for k in ("momentum", "rescale") if k in own}
    return lambda weight: theirs.AdaptiveProjectedGuidance(guidance_scale=weight, **names, **own)


CASES = {
    "cfg": (CFG(rescale=0.7), lambda w: theirs.ClassifierFreeGuidance(guidance_scale=w, guidance_rescale=0.7)),
    "zero-star": (ZeroStar(zero_steps=2), lambda w: theirs.ClassifierFreeZeroStarGuidance(w, zero_init_steps=2)),
    "zero-star, rescale": (
        ZeroStar(zero_steps=0, rescale=0.5),
        lambda w: theirs.ClassifierFreeZeroStarGuidance(w, zero_init_steps=0, guidance_rescale=0.5),
    ),
    "apg": (APG(), adaptive()),
    "apg, small": (APG(limit=1, eta=0.2), adaptive(rescale=1.0, eta=0.2)),
    "apg, momentum": (
        APG(limit=20, momentum=-0.5, rescale=0.3),
        adaptive(rescale=20.0, momentum=-0.5, guidance_rescale=0.3),
    ),
    "slg": (SLG(layers=7), skipping(theirs.SkipLayerGuidance, [7])),
    "slg, other share": (
        SLG(layers=7, scale=1.5, begin=0.1, end=0.8, rescale=0.7),
        skipping(theirs.SkipLayerGuidance, [7], scale=1.5, start=0.1, stop=0.8, guidance_rescale=0.7),
    ),
    "pag": (PAG(layers=7), skipping(theirs.PerturbedAttentionGuidance, [7])),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("weight", [6.0, 1.5])
def test_combines_as_diffusers(case, weight):
    ours, make = CASES[case]
    reference, rng = make(weight), np.random.default_rng(0)
    if case.startswith("apg, momentum"):
        reference.momentum_buffer = theirs.adaptive_projected_guidance.MomentumBuffer(-0.5)
    numbers, carry = lay_out(ours, np.full(STEPS, weight), layers=30), start(ours, SHAPE)
    for i in range(STEPS):
        c, p = (rng.standard_normal(SHAPE, np.float32) for _ in range(2))
        u = 0.6 * c + 0.3 * rng.standard_normal(SHAPE, np.float32)
        step = type(numbers)(numbers.weight[i], {k: v[i] for k, v in numbers.own.items()})
        got, carry = combine(ours.kind, u, c, step, perturbed=p, carry=carry)
        reference.set_state(i, STEPS, torch.tensor(0))
        third = (torch.from_numpy(p),) if ours.third else ()
        want = reference.forward(torch.from_numpy(c), torch.from_numpy(u), *third).pred.numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * max(np.abs(want).max(), 1))
