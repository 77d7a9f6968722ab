"""The web page without a widget: words, fields, from the form to a request and back. No model is loaded."""

import dataclasses
import json
import re
import string

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")

from page_desk import CIRCLE, a_desk, a_service, clip

from cogvx_jax.configs import Distilled
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import DIFFUSERS_NAMES, Options
from cogvx_jax.pipelines.record import Record
from cogvx_jax.presets import PRESETS
from cogvx_jax.serving.asking import NUMBER, OPTIONS, read_asked
from cogvx_jax.serving.bodies import Fields, Upload
from cogvx_jax.serving.keys import ANYONE, Keys
from cogvx_jax.serving.page import settings
from cogvx_jax.serving.page.actions import Desk
from cogvx_jax.serving.page.fields import OF_FINISH, WITH_AUDIO, fields_of, files_of
from cogvx_jax.serving.page.prompts import FORMULAS, MOVEMENTS, examples, with_movement
from cogvx_jax.serving.page.settings import Form, asked_of, of_job, of_record
from cogvx_jax.serving.page.words import LANGUAGES, WORDS, duration, language_of, say
from cogvx_jax.serving.refusals import Refused

SPEC = load_spec("tiny")
FIELDS = fields_of(SPEC)


service, desk = pytest.fixture(a_service), pytest.fixture(a_desk)


# --- words


def names_in(text):
    return sorted(name for _, name, _, _ in string.Formatter().parse(text) if name)


@pytest.mark.parametrize("key", WORDS)
def test_both_languages_say_the_same_values(key):
    english, chinese = WORDS[key]
    assert english and chinese and names_in(english) == names_in(chinese)
    assert key == "loras" or re.search("[一-鿿]", chinese)
    assert not re.search("[一-鿿]", english)


def test_what_the_page_says_is_in_the_table():
    with pytest.raises(KeyError, match="generate"):
        say("generat")
    assert say("queued", "zh", position=3) == "排队中，前面还有 3 个任务"
    assert FORMULAS.keys() == LANGUAGES.keys()
    assert duration(7.4, "en") == "7 s" and duration(200, "zh") == "3 分钟"


@pytest.mark.parametrize(
    "accepted, language",
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("de-DE,de;q=0.9,zh;q=0.5", "zh"),
        ("en-GB,zh", "en"),
        ("fr", "en"),
        (None, "en"),
    ],
)
def test_the_browser_says_which_language(accepted, language):
    assert language_of(accepted) == language


def test_a_movement_of_the_camera_is_a_sentence_of_the_prompt():
    assert with_movement(CIRCLE, "in") == f"{CIRCLE}. The camera moves slowly towards the subject."
    assert with_movement("A dog.", "still") == "A dog. The camera does not move."
    assert with_movement(with_movement("A dog.", "still"), "still") == "A dog. The camera does not move."
    assert [with_movement(CIRCLE, none) for none in (None, "", "no such")] == [CIRCLE] * 3
    assert all(one.sentence.isascii() for one in MOVEMENTS.values())
    assert examples(SPEC)[0] == CIRCLE and len(examples(PRESETS["5b"])[0].split()) > 40


# --- fields


def test_all_options_of_the_api_are_fields():
    control = dataclasses.replace(SPEC, transformer=dataclasses.replace(SPEC.transformer, control=True))
    everything = {field.name for spec in (*PRESETS.values(), control) for field in fields_of(spec)}
    own = {"size", WITH_AUDIO, *OF_FINISH.values()}
    assert everything == (OPTIONS.keys() - DIFFUSERS_NAMES.keys() - {"seed"}) | own


def test_sound_is_asked_for_where_the_server_has_a_maker(service):
    form = Form(prompt=CIRCLE, values={WITH_AUDIO: True})
    assert WITH_AUDIO in Desk(service, Keys(None)).missing
    with pytest.raises(Refused, match="with_audio cannot be had: this server has no maker of sound"):
        asked(form, service)
    service.rules = dataclasses.replace(service.rules, sounds=True)
    assert WITH_AUDIO not in Desk(service, Keys(None)).missing
    assert asked(form, service).sound and not asked(Form(prompt=CIRCLE), service).sound
    job = service.submit(asked(form, service), ANYONE)
    assert job.asked["sound"] is True
    assert service.same(job).sound and settings.of_job(job, FIELDS, service).values[WITH_AUDIO] is True


def test_what_is_done_afterwards_goes_to_the_form_and_back(service):
    found = asked(Form(prompt=CIRCLE, values={"upscaling_scale": "2", "output_fps": "30"}), service)
    assert found.options["finish"] == {"scale": 2, "fps": "30"}
    values, left = settings._values({"finish": {"scale": 2, "fps": "30", "hold": True}}, FIELDS)
    assert (values["upscaling_scale"], values["output_fps"], left) == ("2", "30", ["finish"])


def test_fields_have_the_models_own_values_and_the_apis_ranges():
    found = {field.name: field for field in FIELDS}
    own = SPEC.defaults
    assert found["size"].choices[0] == found["size"].own == f"{own.width}x{own.height}"
    assert (found["steps"].shown, found["steps"].low, found["steps"].high) == (own.num_inference_steps, 1, 1000)
    assert found["sampler"].own == own.sampler and "dpm" in found["sampler"].choices
    assert (found["strength"].shown, found["strength"].kind) == (0.8, NUMBER)
    assert found["reuse"].help.startswith("make some steps of what others computed")
    assert found.keys() <= WORDS.keys()  # in both languages
    assert "control_strength" not in found  # for other kinds of models
    assert files_of(SPEC) == {"video": True, "mask": True, "edit": True, "extend": True}
    assert files_of(PRESETS["5b-i2v"]) == {"image": False, "last_image": False, "extend": True}


# --- from the form to a request


def asked(form, service):
    return asked_of(form, FIELDS, service, "en")


def test_a_form_asks_for_what_the_api_would(service, tmp_path):
    path = clip(tmp_path / "clip.mp4")
    values = {
        "steps": 5,
        "size": "64x64",
        "strength": 0.5,
        "negative_prompt": "blue",
        "tiling": True,
        "reuse": "every:2",
    }
    form = Form(
        prompt=CIRCLE, values=values, files={"video": path, "mask": None}, loras=["a", "b"], weights="0.5", seed=3
    )
    fields = {"prompt": CIRCLE, "num_inference_steps": "5", "strength": "0.5", "negative_prompt": "blue", "seed": 3}
    fields |= {"tiling": "true", "reuse": "every:2", "video": Upload((tmp_path / "clip.mp4").read_bytes())}
    fields |= {"loras": [{"name": "a", "weight": 0.5}, "b"]}
    theirs = read_asked(Fields(fields, textual=True), SPEC)
    assert dataclasses.replace(asked(form, service), fields={}) == dataclasses.replace(theirs, fields={})


def test_what_stands_in_the_form_at_first_asks_for_nothing(service):
    found = asked(Form(prompt=CIRCLE, values={field.name: field.shown for field in FIELDS}), service)
    assert found.options.keys() == {"seed"} and not found.seeded and found.loras is None
    few = SPEC.distilled(Distilled(method="dmd", steps=4, sampler="lcm"))
    shown = {field.name: field.shown for field in fields_of(few)}
    assert (shown["steps"], shown["sampler"], shown["guidance_scale"]) == (4, "lcm", 1.0)


def test_strength_without_a_video_is_passed_over(service):
    assert "strength" not in asked(Form(prompt=CIRCLE, values={"strength": 0.3}), service).options


@pytest.mark.parametrize(
    "how, words",
    [
        (dict(prompt="  "), "Say in the prompt"),
        (dict(loras=["a"], weights="much"), "Weights are numbers"),
        (dict(loras=["a"], weights="nan"), "Weights are numbers"),
        (dict(loras=["a"], weights="1000"), "from -100 to 100"),
        (dict(values={"size": "65x"}), "WIDTHxHEIGHT"),
        (dict(values={"fps": "many"}), "must be a number"),
        (dict(values={"reuse": "nothing:2"}), "reuse"),
        (dict(files={"video": "picture.png"}), "picture"),
        (dict(files={"video": "vector.svg"}), "no video that is known here; give an mp4"),
        (dict(files={"mask": "large.png"}), "at most"),
    ],
)
def test_what_a_form_cannot_ask_for_is_a_sentence(service, tmp_path, how, words):
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "picture.png")
    (tmp_path / "vector.svg").write_text("<svg/>")
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(2**31)  # of holes; it is refused before it is read
    how["files"] = {option: str(tmp_path / name) for option, name in how.get("files", {}).items()}
    with pytest.raises(Refused, match=words):
        asked(Form(**{"prompt": CIRCLE} | how), service)


# --- and back


def test_settings_of_a_job_make_the_same_video(service, tmp_path):
    values = {"steps": 5, "frames": 9, "negative_prompt": "blue", "tiling": True, "strength": 0.75}
    form = Form(prompt=CIRCLE, movement="up", values=values, files={"video": clip(tmp_path / "clip.mp4")}, seed=7)
    job = service.submit(asked(form, service), ANYONE)
    filled = of_job(job, FIELDS, service)
    assert filled.prompt.endswith("The camera rises.") and filled.seed == 7 and filled.files.keys() == {"video"}
    files = {option: str(path) for option, path in filled.files.items()}
    again = Form(prompt=filled.prompt, values=filled.values, files=files, seed=filled.seed)
    other = service.submit(asked(again, service), ANYONE)
    assert other.asked == job.asked


def record_of(prompt=CIRCLE, model="tiny", loras=(), **options):
    options = as_json(Options(**{"size": (64, 64), "frames": 9, "steps": 5, "seed": 11} | options))
    named = {"source": model, "name": model, "given": {}, "dtype": "float32", "quantize": None, "memory": "none"}
    named |= {"mesh": "one device", "exact": False, "one_program": False, "programs": False, "loras": list(loras)}
    device = {"platform": "cpu", "kind": "cpu", "count": 1}
    return Record(prompts=(prompt,), options=options, model=named, files={}, versions={}, device=device)


def test_a_dropped_video_fills_the_form(desk, tmp_path):
    loras = [{"source": f"/x/{name}.safetensors", "weight": 0.5, "digest": ""} for name in ("tiny-fast", "gone")]
    record = record_of(model="5b", loras=loras, guidance_scale=4.0, video="a.mp4", travel=["50%=a star"], tiling=True)
    with VideoWriter(tmp_path / "made.mp4", fps=8, comment=record.text) as writer:
        writer.write(np.zeros((9, 64, 64, 3), np.uint8))
    filled = desk.load(str(tmp_path / "made.mp4"), "en")
    assert (filled.prompt, filled.seed, filled.loras) == (CIRCLE, 11, (("tiny-fast", 0.5),))
    shown = {name: filled.values[name] for name in ("size", "frames", "steps", "guidance_scale", "tiling", "sampler")}
    assert shown == {"size": "64x64", "frames": 9, "steps": 5, "guidance_scale": 4.0, "tiling": True, "sampler": "ddim"}
    said = " ".join(filled.notes)
    assert "made by 5b; here is tiny" in said and "Give its video again" in said and "travel, LoRA gone" in said
    assert of_record(record, FIELDS, desk.service, "zh").notes[0] == "设置已填入表单。"


@pytest.mark.parametrize(
    "record, words",
    [
        (dict(options={"frames": {"a": 1}}), "frames must be a whole number"),
        (dict(options={"size": [1, 2, 3]}), "size must be"),
        (dict(options={"no such": 1}), "no such"),
        (dict(model={"loras": [{"source": "tiny-fast", "weight": [1], "digest": ""}]}), "LoRA"),
    ],
)
def test_a_record_of_a_stranger_is_looked_at(desk, tmp_path, record, words):
    good = record_of()
    changed = {name: {**getattr(good, name), **value} for name, value in record.items()}
    text = json.dumps(json.loads(good.text) | changed)
    with VideoWriter(tmp_path / "strange.mp4", fps=8, comment=text) as writer:
        writer.write(np.zeros((1, 64, 64, 3), np.uint8))
    with pytest.raises(ValueError, match=f"'strange.mp4' carries .*{words}"):
        desk.load(str(tmp_path / "strange.mp4"), "en")


def test_a_dropped_file_without_a_record_is_a_sentence(desk, tmp_path):
    with pytest.raises(ValueError, match="'clip.mp4' carries no record") as error:
        desk.load(clip(tmp_path / "clip.mp4"), "en")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="'text.mp4'"):
        desk.load(str(tmp_path / "text.mp4"), "en")
