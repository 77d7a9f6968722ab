"""Distillation: what it asks of the student, what it refuses, how its runs go on, and how its LoRA is used."""

import dataclasses
import json
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training_objective import I2V, PLAIN, T2V, batch_of

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.distill import recorded
from cogvx_jax.configs import ATTENTION, Compute, Distilled, LoRAConfig, ScheduleConfig
from cogvx_jax.convert import export, open_lora, write_lora
from cogvx_jax.convert.runs import read_run_lora
from cogvx_jax.diffusion import distillation as formulas
from cogvx_jax.diffusion import samplers, schedule
from cogvx_jax.models import lora as loras
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.request import check_request, few_steps_note
from cogvx_jax.pipelines.short_schedule import lossy_note
from cogvx_jax.scripts import distill_tiny
from cogvx_jax.scripts.eval_tiny import judge_videos
from cogvx_jax.train.clips.cache import Shape
from cogvx_jax.train.pace import Pace
from cogvx_jax.train.transformer import distillation
from cogvx_jax.train.transformer import run as runs
from cogvx_jax.train.transformer.settings import Distillation, RunConfig
from cogvx_jax.train.transformer.stages import Stage

SCHEDULE = ScheduleConfig(snr_shift=1.0)
KEY = jax.random.key(0)


def test_the_jumps_of_a_phased_grid_are_the_steps_of_ddim():
    """The teacher's are those of DDIM in 20 steps; the student's from its own timesteps those of DDIM in 4."""
    made = formulas.grid(SCHEDULE, 20, 4)
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(2, 20, 7))
    for count, places, table in ((20, np.arange(20), made.step), (4, np.arange(0, 20, 5), made.jump[::5])):
        sampler = samplers.ddim(SCHEDULE, count)
        np.testing.assert_array_equal(made.timesteps[places], sampler.timesteps)
        for row, place, (c_x, c_v) in zip(sampler.table, places, table, strict=True):
            x0 = row[0] * x[place] - row[1] * v[place]
            wanted = row[2] * x[place] + row[3] * x0
            np.testing.assert_allclose(c_x * x[place] + c_v * v[place], wanted, rtol=0, atol=1e-7)
    np.testing.assert_allclose(made.rest[4::5], [[1, 0]] * 4, atol=1e-15)  # there the next point is the end
    np.testing.assert_allclose(made.rest[:4], made.jump[1:5], atol=1e-15)
    assert made.timesteps[-1] == 0 and len(made.timesteps) == 21


def test_a_grid_of_one_phase_is_that_of_a_consistency_model():
    """Whose c_skip and c_out, with t scaled by 10 and 0.5 as the data's deviation, are as good as 0 and 1 on it."""
    made = formulas.grid(SCHEDULE, 50, 1)
    a = np.append(schedule.alphas_bar(SCHEDULE)[made.timesteps[:-1]], 1)
    scaled = 10.0 * made.timesteps
    c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    wanted = np.stack([c_skip + c_out * np.sqrt(a), -c_out * np.sqrt(1 - a)], axis=-1)
    np.testing.assert_allclose(made.jump, wanted[:-1], atol=8e-6)
    np.testing.assert_allclose(made.rest, wanted[1:], atol=8e-6)
    kept = samplers.lcm(SCHEDULE, 4)
    np.testing.assert_array_equal(kept.timesteps, [999, 759, 499, 259])
    assert set(kept.timesteps) <= set(made.timesteps)  # where it was taught, there it is sampled


@pytest.mark.parametrize("points, phases", [(4, 4), (10, 4), (1, 1), (2, 2)])
def test_a_grid_needs_two_steps_a_phase(points, phases):
    with pytest.raises(ValueError, match=f"a multiple of {phases}, at least {2 * phases}, got {points}"):
        formulas.grid(SCHEDULE, points, phases)
    with pytest.raises(ValueError, match=r"must divide 1000, such as \[8, 20, 40, 100, 200, 500\], got 12"):
        formulas.grid(SCHEDULE, 12, 4)


@pytest.fixture
def shown(monkeypatch):
    """What the transformer is called with; one that multiplies stands in its place."""
    calls: list = []

    class Fake:
        def __init__(self, cfg, compute):
            self.cfg = cfg

        def apply(self, variables, x, text, t):
            calls.append((variables["params"], x, text, t))
            return fake(variables["params"], x[..., : self.cfg.out_channels], text, t)

    monkeypatch.setattr(distillation, "Transformer", Fake)
    return calls


def evaluate(shown, loss, batch):
    """The loss, as one program; `shown` holds the numbers of that program afterwards."""

    def run(batch):
        shown.clear()
        return loss(0.25, batch, KEY), tuple(shown)

    value, found = jax.jit(run)(batch)
    shown[:] = jax.tree.map(np.asarray, found)
    return value


def fake(factor, x, text, t):
    each = (text.mean(axis=(1, 2)) + t / 1000).reshape(-1, 1, 1, 1, 1)
    return factor * x + each


def moved(x, v, table):
    c_x, c_v = table.T.reshape(2, -1, 1, 1, 1, 1)
    return c_x * x + c_v * v


def loss_of(spec, distill, options=PLAIN):
    return distillation.make_distilled_loss(spec, Compute(), options, distill, lambda base, part: base + part)


@pytest.mark.parametrize("empty", ["encoded", "zeros"])
@pytest.mark.parametrize(
    "method, phases, steps", [("phased", 4, 20), pytest.param("consistency", 1, 50, marks=pytest.mark.full)]
)
def test_the_loss_is_that_of_a_consistency_step(shown, method, phases, steps, empty):
    distill = Distillation(method=method, teacher_steps=steps, teacher_guidance=3.0, loss="squared")
    batch = batch_of(T2V, 2 * steps) | {"base": 0.5}
    options = dataclasses.replace(PLAIN, empty=empty)
    value = evaluate(shown, loss_of(T2V, distill, options), batch)
    student, teacher, target = shown
    assert [call[0] for call in shown] == [0.75, 0.5, 0.75]
    _, x, text, t = student
    np.testing.assert_array_equal(text, batch["text"])
    np.testing.assert_array_equal(teacher[1], np.concatenate([x, x]))
    made = formulas.grid(T2V.schedule, steps, phases)
    place = np.searchsorted(-made.timesteps[:-1], -t)
    np.testing.assert_array_equal(np.sort(place), np.repeat(np.arange(steps), 2))  # the range is covered
    nothing = np.broadcast_to(batch["empty"] if empty == "encoded" else 0, text.shape)
    u, c = (fake(0.5, x, words, t) for words in (nothing, text))

    after = moved(x, u + 3 * (c - u), made.step[place])
    np.testing.assert_allclose(target[1], after, atol=1e-5)
    np.testing.assert_array_equal(target[3], made.timesteps[place + 1])
    error = moved(x, fake(0.75, x, text, t), made.jump[place])
    error = error - moved(after, fake(0.75, after, text, target[3]), made.rest[place])
    np.testing.assert_allclose(value, np.mean(error**2), rtol=1e-4)
    smooth = evaluate(shown, loss_of(T2V, dataclasses.replace(distill, loss="huber"), options), batch)
    np.testing.assert_allclose(smooth, np.mean(np.sqrt(error**2 + 1e-6) - 1e-3), rtol=1e-4)


def test_guidance_is_learnt_at_all_timesteps(shown):
    distill = Distillation(method="guidance", teacher_guidance=5.0, loss="squared")
    batch = batch_of(T2V, 40) | {"base": 0.5}
    value = evaluate(shown, loss_of(T2V, distill), batch)
    (_, x, text, t), _ = shown
    assert np.all(t // 25 == np.arange(40))
    u, c = (fake(0.5, x, words, t) for words in (np.broadcast_to(batch["empty"], text.shape), text))
    np.testing.assert_allclose(value, np.mean((fake(0.75, x, text, t) - u - 5 * (c - u)) ** 2), rtol=1e-4)


def test_a_walk_goes_to_the_end_of_each_phase(shown, monkeypatch):
    """In the teacher's own steps, from the student's own timesteps."""
    distill = Distillation(method="progressive", teacher_steps=20, teacher_guidance=3.0, loss="squared")
    batch, loss = batch_of(T2V, 40) | {"base": 0.5}, loss_of(T2V, distill)
    rows = jax.tree.map(np.asarray, jax.jit(loss.draw)(batch, KEY))
    x, text, t, place = rows["x"], rows["text"], rows["t"], rows["place"]
    np.testing.assert_array_equal(t, np.repeat([999, 749, 499, 249], 10))
    nothing = np.broadcast_to(batch["empty"], text.shape)
    made, after = formulas.grid(T2V.schedule, 20, 4), x
    for i in range(5):
        u, c = (fake(0.5, after, words, made.timesteps[place + i]) for words in (nothing, text))
        after = moved(after, u + 3 * (c - u), made.step[place + i])
    error = moved(x, fake(0.75, x, text, t), made.jump[place]) - after
    monkeypatch.setattr(distillation.Transformer, "apply", lambda self, p, *of: fake(p["params"], *of))
    np.testing.assert_allclose(loss.mean(0.25, rows, batch), np.mean(error**2), rtol=1e-4)


def test_nothing_but_the_students_own_jump_has_a_gradient(shown, monkeypatch):
    """Its prediction in the target is a number: the gradient is that of the first of its two alone."""
    distill = Distillation(teacher_steps=20, teacher_guidance=3.0, loss="squared")
    batch, loss = batch_of(T2V, 40) | {"base": 0.5}, loss_of(T2V, distill)
    monkeypatch.setattr(distillation.Transformer, "apply", lambda self, p, *of: fake(p["params"], *of))
    rows = jax.jit(loss.draw)(batch, KEY)
    found = jax.jit(jax.grad(loss.mean))(0.25, rows, batch)
    x, text, t, place = (np.asarray(rows[name]) for name in ("x", "text", "t", "place"))
    made = formulas.grid(T2V.schedule, 20, 4)
    u, c = (fake(0.5, x, words, t) for words in (np.broadcast_to(batch["empty"], text.shape), text))
    after = moved(x, u + 3 * (c - u), made.step[place])
    wanted = moved(after, fake(0.75, after, text, made.timesteps[place + 1]), made.rest[place])
    error = moved(x, fake(0.75, x, text, t), made.jump[place]) - wanted
    slope = made.jump[place, 1].reshape(-1, 1, 1, 1, 1) * x  # of the jump by the factor
    np.testing.assert_allclose(found, np.mean(2 * error * slope), rtol=1e-4)


@pytest.mark.full
def test_the_image_stays_where_it_is(shown, monkeypatch):
    def encode(vae, params, pixels):
        return jnp.concatenate([jnp.ones((len(pixels), 1, 4, 4, 4)), jnp.full((len(pixels), 1, 4, 4, 4), -30.0)], -1)

    monkeypatch.setattr(distillation.make_draw.__globals__["vaes"], "encode", encode)
    batch = batch_of(I2V, 4) | {"vae": {}, "base": 0.5}
    loss = loss_of(I2V, Distillation(teacher_steps=8, teacher_guidance=2.0))
    assert np.isfinite(evaluate(shown, loss, batch))
    for _, x, _, _ in shown:
        np.testing.assert_allclose(x[:, 0, ..., 4:], 0.7, atol=1e-5)
        assert not x[:, 1:, ..., 4:].any()


# From the command line: a run, and what is refused.


def run(*arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
    cli.main()


@pytest.fixture(scope="module")
def cache(small, random_cache, tmp_path_factory):
    """Six random clips of the small 5B."""
    return random_cache(tmp_path_factory.mktemp("cache"), small("5b")[1], Shape(32, 48, 9, 8.0), 6)


def flags(cache, out, steps):
    return ["--data", cache.folder, "--out", out, "--steps", steps, *FLAGS]


FLAGS = ["--lora-rank", "2", "--batch-size", "2", "--log-every", "1"]
FLAGS += ["--student-steps", "2", "--teacher-guidance", "3"]


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.full
def test_a_run_is_stopped_goes_on_is_repeated_and_used(small, cache, tmp_path, monkeypatch, capsys):
    folder, model = small("5b")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("distill", folder, *flags(cache, whole, 3), monkeypatch=monkeypatch)
    assert "`cogvx generate --lora" in capsys.readouterr().out
    run("distill", folder, *flags(cache, parts, 2), monkeypatch=monkeypatch)
    run("distill", folder, *flags(cache, parts, 3), monkeypatch=monkeypatch)
    lora = read_run_lora(whole, model.spec)
    assert losses(parts) == losses(whole) and np.isfinite(losses(parts)).all()
    jax.tree.map(np.testing.assert_array_equal, read_run_lora(parts, model.spec).adapters, lora.adapters)
    assert set(lora.adapters) == set(LoRAConfig(targets=(*ATTENTION, "ff")).paths)
    assert all(float(abs(ab["b"]).max()) > 0 for ab in lora.adapters.values())

    said = json.loads((whole / "run.json").read_text())
    assert said["distill"] == {
        "method": "phased",
        "student_steps": 2,
        "teacher_steps": 4,
        "teacher_guidance": 3.0,
        "loss": "huber",
    }
    again = recorded(str(parts / "run.json"))  # what --config repeats
    assert dataclasses.asdict(again.trained.distill) == said["distill"]
    assert (again.model, again.trained.lora.rank, again.read_stages()[0].steps) == (str(folder), 2, 3)
    assert said["distilled"] == {"method": "phased", "steps": 2, "sampler": "ddim", "guidance_scale": 1.0}
    fails = {
        (
            "distill",
            folder,
            *flags(cache, parts, 4),
            "--teacher-steps",
            "8",
        ): "distill.teacher_steps was 4 and is now 8",
        ("train", "--config", whole / "run.json", "--out", tmp_path / "x"): "is of a run of `cogvx distill`",
    }
    for arguments, words in fails.items():
        assert words in refused(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    file = tmp_path / "fast.safetensors"
    run("export", whole, "--out", file, monkeypatch=monkeypatch)
    for source in (whole, file):
        fast = cx.load_lora(model, source)
        own = fast.spec.defaults
        assert (own.distilled, own.num_inference_steps, own.sampler, own.guidance_scale) == ("phased", 2, "ddim", 1.0)
        video = cx.generate(fast, "a star", output="latents", progress=False)
        asked = dict(num_inference_steps=2, guidance_scale=1, sampler="ddim")
        np.testing.assert_array_equal(video, cx.generate(fast, "a star", output="latents", progress=False, **asked))
    capsys.readouterr()
    to = ["--out", tmp_path / "v.mp4", "--no-progress"]
    run("generate", "a star", "--model", folder, "--lora", whole, "--steps", "3", *to, monkeypatch=monkeypatch)
    said = capsys.readouterr().err
    assert f"{whole}: a run of `cogvx distill`, " in said
    assert ", rank 2, alpha 2, for 2 steps of ddim at guidance scale 1, weight 1" in said
    assert "distilled for 2 steps of ddim at guidance scale 1, not for 3 steps of ddim at guidance scale 1" in said
    assert (tmp_path / "v.mp4").exists()


def refused(*arguments, monkeypatch, capsys):
    """The one sentence that a command ends with; nothing is compiled on the way."""
    capsys.readouterr()
    monkeypatch.setattr(jax, "jit", None)
    with pytest.raises(SystemExit) as stopped:
        run(*arguments, monkeypatch=monkeypatch)
    monkeypatch.undo()
    assert stopped.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.parametrize(
    "more, words",
    [
        (["--student-steps", "1"], "student_steps must be at least 2, got 1"),
        (["--student-steps", "4", "--teacher-steps", "4"], "teacher_steps must be above the 4 of the student, got 4"),
        (
            ["--student-steps", "4", "--teacher-steps", "10"],
            "must be such as 8, 20, 40, 100, to have the student's",
        ),
        (["--method", "consistency", "--teacher-steps", "20"], "teacher_steps must be such as 50, 100, 200, 250, to"),
        (["--student-steps", "7"], "no number of teacher's steps fits 7 of the student; take 4"),
        (["--teacher-guidance", "0.5"], "teacher_guidance must be a number of at least 1, got 0.5"),
        (["--method", "guidance", "--teacher-guidance", "1"], "without guidance there is none to learn"),
    ],
)
def test_numbers_that_cannot_be_are_refused(small, cache, tmp_path, monkeypatch, capsys, more, words):
    arguments = ["distill", small("5b")[0], *flags(cache, tmp_path / "x", 2), *more]
    assert words in refused(*arguments, monkeypatch=monkeypatch, capsys=capsys)


def test_models_that_cannot_teach_are_refused(small, cache, tmp_path, monkeypatch, capsys):
    folder, model = small("5b")
    fast, quantized, out = tmp_path / "fast", tmp_path / "int8", flags(cache, tmp_path / "x", 2)
    spec = model.spec.distilled(Distilled(method="phased", steps=4, sampler="ddim"))
    export(fast, spec, model.params)
    assert load_spec(fast) == spec
    run("quantize", folder, quantized, "--to", "int8", monkeypatch=monkeypatch)
    for source, words in (
        (fast, "was distilled already (phased); give the model that it was made of"),
        (quantized, "is quantised, to int8, and cannot be trained; give the original"),
        (tmp_path / "gone", f"there is no folder {tmp_path / 'gone'}"),
    ):
        assert words in refused("distill", source, *out, monkeypatch=monkeypatch, capsys=capsys)
    with pytest.raises(ValueError, match="its teacher is the model without it"):
        RunConfig(lora=None, parts=("*",), distill=Distillation())
    packed = Stage(data=((cache.folder, 1),), steps=1, pack=100)
    with pytest.raises(ValueError, match="distillation takes no packed rows"):
        runs.train(model, (packed,), RunConfig(distill=Distillation()), tmp_path / "x", source="x")


# What a LoRA says of itself.


def lora_of(model, distilled):
    cfg = LoRAConfig(rank=2)
    adapters = loras.init(KEY, model.params["transformer"], cfg)
    return loras.LoRA(adapters=adapters, rank=2, alpha=2.0, distilled=distilled)


def test_a_file_says_what_it_is_for(small, tmp_path, monkeypatch, capsys):
    _, model = small("5b")
    how = Distilled(method="consistency", steps=4, sampler="lcm")
    file, other = tmp_path / "fast.safetensors", tmp_path / "kohya.safetensors"
    write_lora(file, lora_of(model, how), model.spec)
    run("lora", "convert", file, other, "--to", "kohya", monkeypatch=monkeypatch)
    run("lora", "merge", f"{file}:0.5", other, "--out", tmp_path / "both.safetensors", monkeypatch=monkeypatch)
    for path in (file, other, tmp_path / "both.safetensors"):
        assert open_lora(path).distilled == how and "for 4 steps of lcm at guidance scale 1" in open_lora(path).told()
    assert cx.load_lora(model, file, -1.0).spec == model.spec  # it is taken away
    words = refused("lora", "convert", file, tmp_path / "x.pt", "--to", "sat", monkeypatch=monkeypatch, capsys=capsys)
    assert "SAT's files have no place for what it is for, 4 steps of lcm" in words


@pytest.mark.parametrize(
    "said, words",
    [
        ("{", "its cogvx_jax.distilled is"),
        ('{"steps": 4}', "not of the keys method, steps, sampler, guidance_scale"),
        ('{"method": "x", "steps": true, "sampler": "lcm", "guidance_scale": 1.0}', "steps True"),
        ('{"method": "x", "steps": 0, "sampler": "lcm", "guidance_scale": 1.0}', "steps must be 1 to 1000, got 0"),
        ('{"method": "x", "steps": 4, "sampler": "y", "guidance_scale": 1.0}', "sampler 'y', which is not one of ddim"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_refused(small, tmp_path, said, words):
    from safetensors.numpy import load_file, save_file

    write_lora(tmp_path / "a.safetensors", lora_of(small("5b")[1], None), small("5b")[1].spec)
    file = tmp_path / "b.safetensors"
    save_file(load_file(tmp_path / "a.safetensors"), file, {"format": "pt", "cogvx_jax.distilled": said})
    with pytest.raises(ValueError, match="b.safetensors cannot be read as a LoRA: .*") as found:
        open_lora(file)
    assert words in str(found.value)


def test_other_settings_than_it_is_for_are_noted(small):
    spec = small("5b")[1].spec.distilled(Distilled(method="phased", steps=4, sampler="ddim"))
    assert few_steps_note(check_request(spec, "x"), spec) is None
    options = Options(guidance_scale=0.0)
    assert few_steps_note(check_request(spec, "x", options), spec) is None  # nor is that guided
    note = few_steps_note(check_request(spec, "x", Options(steps=8, guidance_scale=6.0)), spec)
    assert "for 4 steps of ddim at guidance scale 1, not for 8 steps of ddim at guidance scale 6" in note


def test_a_sampler_of_few_steps_is_noted_for_another_model(small):
    spec = small("5b")[1].spec
    note = few_steps_note(check_request(spec, "x", Options(sampler="lcm")), spec)
    assert (
        note
        == f"sampler lcm is for models that `cogvx distill` taught it, which {spec.name} is not: expect worse videos"
    )
    assert few_steps_note(check_request(spec, "x", Options(sampler="ddim")), spec) is None
    taught = spec.distilled(Distilled(method="consistency", steps=4, sampler="lcm"))
    assert few_steps_note(check_request(taught, "x"), taught) is None


def test_costs_are_told_of_the_model_that_they_were_judged_on(small):
    spec = small("5b")[1].spec
    asked = check_request(spec, "x", Options(steps=4, reuse="every:2"))
    assert "tiny's videos are 45 dB" in lossy_note(asked, spec)
    note = lossy_note(asked, spec.distilled(Distilled(method="phased", steps=4, sampler="ddim")))
    assert "tiny's videos are 45 dB" not in note and "more so with a LoRA of few steps" in note


def test_what_needs_guidance_says_who_turned_it_off(small):
    plain = small("5b")[1].spec
    fast = plain.distilled(Distilled(method="phased", steps=4, sampler="ddim"))
    for options, name in ((dict(guider="stg:layers=0"), "guider stg"), (dict(guidance="delta:2"), "guidance delta:2")):
        said = f"{name} needs a guidance scale above 1"
        with pytest.raises(ValueError, match=f"{said}, and the LoRA of few steps sets 1; leave it out"):
            check_request(fast, "x", Options(**options))
        with pytest.raises(ValueError, match=f"{said}, got 1; leave it out"):
            check_request(plain, "x", Options(guidance_scale=1, **options))


def test_options_that_do_nothing_without_guidance_are_told_of(small):
    plain = small("5b")[1].spec
    fast = plain.distilled(Distilled(method="phased", steps=4, sampler="ddim"))
    both = dict(negative_prompt="a square", use_dynamic_cfg=True)
    with pytest.warns(UserWarning, match="negative_prompt changes nothing here: .* as the LoRA of few steps sets it; "):
        check_request(fast, "x", Options(negative_prompt="a square"))
    with pytest.warns(
        UserWarning, match="negative_prompt and use_dynamic_cfg change nothing here: guidance is off at "
    ):
        check_request(plain, "x", Options(guidance_scale=0.5, **both))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_request(fast, "x", Options(guidance_scale=2.0, **both))
        check_request(fast, "x")


def test_the_shipped_one_is_known_by_its_name(monkeypatch, capsys):
    lora = cx.find_lora("tiny-fast", load_spec("tiny"))
    assert lora.distilled == Distilled(method="progressive", steps=4, sampler="ddim")
    run("lora", "info", "tiny-fast", monkeypatch=monkeypatch)
    assert "4 steps of ddim at guidance scale 1 (progressive)" in capsys.readouterr().out


@pytest.mark.full
def test_the_shipped_one_makes_videos_of_tiny_in_four_unguided_steps():
    fast = cx.load_lora(cx.load("tiny"), "tiny-fast")
    assert judge_videos(fast, 20, 20, 0, {}).figures()["all"] >= 0.8


CASES = [(kind, "phased") for kind in ("2b", "5b", "5b-i2v", "1.5-5b", "1.5-5b-i2v")]
CASES += [("5b", method) for method in ("progressive", "consistency", "guidance")]


@pytest.mark.full
@pytest.mark.parametrize("kind, method", CASES)
def test_every_kind_is_distilled_and_a_run_moves_between_meshes(small, random_cache, tmp_path, kind, method):
    folder, model = small(kind)
    shape = Shape(32, 48, model.spec.defaults.num_frames, 8.0)
    clips = random_cache(tmp_path / "cache", model, shape, 6)
    distill = Distillation(method=method, teacher_guidance=3.0)
    config = RunConfig(lora=LoRAConfig(rank=2), distill=distill, validation=2)

    def train(out, steps, mesh=None):
        there = model if mesh is None else cx.load(folder, mesh=cx.make_mesh(**mesh, devices=jax.devices()[:4]))
        stages = (Stage(data=((clips.folder, 1),), steps=steps, batch_size=4, learning_rate=1e-2, warmup=0),)
        runs.train(there, stages, config, tmp_path / out, source=str(folder), pace=Pace(log_every=1))
        return losses(tmp_path / out)

    alone = train("alone", 3)
    log = (tmp_path / "alone" / "log.jsonl").read_text().splitlines()
    (validated,) = [row for row in map(json.loads, log) if "validation" in row]
    assert validated["step"] == 3 and np.isfinite(validated["validation"]["distilled"])
    train("mesh", 2, dict(data=2, fsdp=2))
    np.testing.assert_allclose(train("mesh", 3, dict(fsdp=2, tensor=2)), alone, rtol=1e-4)


@pytest.mark.full
def test_the_recipe_of_tinys_lora_runs(tmp_path, monkeypatch):
    """Of `scripts.distill_tiny`, with few clips and updates: the file that ships is what it writes."""
    monkeypatch.setattr(distill_tiny, "WAYS", {"LoRA": (True, {}), "plain": (False, {"num_inference_steps": 2})})
    how = dict(clips=4, steps=2, batch_size=2, rank=2, prompts=2)
    distill_tiny.main(tmp_path, **how)
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert list(scores) == ["LoRA", "plain"]
    assert all(0 <= share <= 1 for figures in scores.values() for share in figures.values())
    written = (tmp_path / "fast.safetensors").read_bytes()
    adapter = cx.find_lora(tmp_path / "fast.safetensors", load_spec("tiny"))
    assert adapter.distilled == Distilled(method="progressive", steps=4, sampler="ddim")
    distill_tiny.main(tmp_path, **how | dict(prompts=0))  # which goes on where it stood, at the end
    assert (tmp_path / "fast.safetensors").read_bytes() == written
