"""The web page without a widget: words, fields, what a form asks for, how videos look. No model is loaded."""

import asyncio
import dataclasses
import os
import re
import string
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")

from serving import fake_video, submit

import cogvx_jax.cli.serve as serve
from cogvx_jax.configs import Distilled
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.given import Given
from cogvx_jax.pipelines.model import load_spec
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import DIFFUSERS_NAMES, Options
from cogvx_jax.pipelines.record import Record
from cogvx_jax.presets import PRESETS
from cogvx_jax.serving.asking import NUMBER, OPTIONS, read_asked
from cogvx_jax.serving.bodies import Fields, Upload
from cogvx_jax.serving.keys import ANYONE, Keys, new_key
from cogvx_jax.serving.page import uploads
from cogvx_jax.serving.page.actions import Desk, sentence
from cogvx_jax.serving.page.fields import fields_of, files_of
from cogvx_jax.serving.page.following import Pace, follow
from cogvx_jax.serving.page.prompts import FORMULAS, MOVEMENTS, examples, with_movement
from cogvx_jax.serving.page.settings import Form, asked_of, of_job, of_record
from cogvx_jax.serving.page.uploads import Uploads
from cogvx_jax.serving.page.view import card, cards, notice, text
from cogvx_jax.serving.page.words import LANGUAGES, WORDS, duration, language_of, say
from cogvx_jax.serving.pictures import picture_of
from cogvx_jax.serving.queue import FAILED, RUNNING, Queue, Retention
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import Rules, Service
from cogvx_jax.serving.store import Store
from cogvx_jax.serving.worker import Worker

CIRCLE = "a red circle moves right on a white background"
SPEC = load_spec("tiny")
FIELDS = fields_of(SPEC)


@pytest.fixture
def service(tmp_path):
    queue = Queue(f"sqlite:///{tmp_path}/queue.sqlite")
    yield Service(queue, Store(tmp_path), model="tiny", spec=SPEC, rules=Rules(keep=Retention(age=7200.0)))
    queue.close()


@pytest.fixture
def desk(service):
    return Desk(service, Keys())


def make(service, **how):
    """All jobs that wait become videos."""
    Worker(service.queue, service.store, fake_video(seconds=0.0, **how), model="tiny").run(until_idle=True)


def clip(path, frames=17, size=64):
    with VideoWriter(path, fps=8) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (frames, size, size, 3), np.uint8))
    return str(path)


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
    assert everything == (OPTIONS.keys() - DIFFUSERS_NAMES.keys() - {"seed"}) | {"size"}


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
        (dict(files={"video": "vector.svg"}), "no picture or video"),
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


def test_a_dropped_file_without_a_record_is_a_sentence(desk, tmp_path):
    with pytest.raises(ValueError, match="'clip.mp4' carries no record") as error:
        desk.load(clip(tmp_path / "clip.mp4"), "en")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(ValueError, match="'text.mp4'"):
        desk.load(str(tmp_path / "text.mp4"), "en")


# --- jobs


def test_four_videos_at_once_have_four_seeds(desk):
    begun = desk.start(Form(prompt=CIRCLE, seed=5, count=9), ANYONE, "en")
    assert [desk.service.queue.get(id).shown["seed"] for id in begun.ids] == [5, 6, 7, 8] and not begun.wrong
    drawn = desk.start(Form(prompt=CIRCLE, count=4), ANYONE, "en").ids
    assert len({desk.service.queue.get(id).shown["seed"] for id in drawn}) == 4


def test_those_that_a_key_may_not_have_are_told(service, tmp_path):
    _, lines = new_key("ada")
    (tmp_path / "keys.toml").write_text(f"{lines}\njobs = 2\n")
    keys = Keys(tmp_path / "keys.toml")
    begun = Desk(service, keys).start(Form(prompt=CIRCLE, count=4), keys.named("ada"), "en")
    assert len(begun.ids) == 2 and begun.wrong
    assert begun.notes[0] == "2 in the queue." and "all that your key may have" in begun.notes[1]
    with pytest.raises(Refused, match="not known"):
        keys.named("bob")


def test_another_language_is_warned_of(desk):
    assert "looks Chinese" in desk.start(Form(prompt="红色的圆"), ANYONE, "en").notes[0]
    assert desk.start(Form(prompt=CIRCLE), ANYONE, "en").notes == ()


def test_a_video_is_made_again_remixed_cancelled_and_removed(desk):
    service = desk.service
    id = desk.start(Form(prompt=CIRCLE, values={"frames": 9}), ANYONE, "en").ids[0]
    make(service)
    again = desk.replay(id, ANYONE, "en").ids[0]
    assert service.queue.get(again).asked == service.queue.get(id).asked
    remix = service.queue.get(desk.remix(id, "a blue star", ANYONE, "en").ids[0])
    assert remix.shown["task"] == "v2v" and remix.shown["remixed_from_video_id"] == id
    desk.cancel([again, "video_gone"], ANYONE)
    assert service.queue.get(again).status == FAILED and service.queue.get(remix.id).status != FAILED
    desk.delete(id, ANYONE)
    desk.delete(id, ANYONE)
    assert service.queue.get(id) is None
    assert desk.replay(id, ANYONE, "zh").notes == ("该视频已不存在。",)
    assert desk.remix(again, "  ", ANYONE, "en").wrong
    assert desk.remix(again, "a star", ANYONE, "en").notes[0].endswith("its status is failed")


def test_the_history_is_of_this_browser_or_of_this_key(service, tmp_path):
    mine, other = (submit(service.queue, service.store, owner="").id for _ in range(2))
    assert [job.id for job in Desk(service, Keys()).history([mine, "video_gone"], ANYONE)] == [mine]
    (tmp_path / "keys.toml").write_text(new_key("ada")[1])
    keys = Keys(tmp_path / "keys.toml")
    desk, ada = Desk(service, keys), keys.named("ada")
    hers = submit(service.queue, service.store, owner="ada").id
    assert [job.id for job in desk.history([mine, other], ada)] == [hers]
    desk.cancel([other], ada)
    desk.delete(other, ada)
    assert service.queue.get(other).status != FAILED  # it is not hers
    with pytest.raises(Refused):
        desk.settings(other, ada)


def test_jobs_are_followed_to_their_end(desk):
    ids = desk.start(Form(prompt=CIRCLE, count=2), ANYONE, "en").ids

    async def watch():
        found = []
        async for seen in follow(desk.service, [*ids, "video_gone"], ANYONE, look=0.01):
            found.append([(one.job and one.job.status, one.place) for one in seen])
            if len(found) == 1:
                await asyncio.to_thread(make, desk.service)
        return found

    found = asyncio.run(asyncio.wait_for(watch(), 30))
    assert found[0] == [("queued", 0), ("queued", 1), (None, None)]
    assert found[-1] == [("completed", None), ("completed", None), (None, None)]


def test_the_time_left_does_not_count_compiling(desk):
    job = desk.service.queue.get(desk.start(Form(prompt=CIRCLE), ANYONE, "en").ids[0])
    pace = Pace()

    def left(now, stage, step):
        return pace.left(dataclasses.replace(job, status=RUNNING, stage=stage, step=step, steps=10), now)

    assert [left(0, "compiling", 0), left(60, "sampling", 1), left(61, "sampling", 1)] == [None] * 3
    assert left(64, "sampling", 3) == 14  # two seconds a step, seven steps
    assert left(70, "decoding", 10) is None


# --- looks


def test_nothing_of_a_user_is_more_than_text(desk):
    prompt = """<script>alert(1)</script> ${alert(1)} {{value}} `x` \\n " onerror='x' & a red circle"""
    job = desk.service.queue.get(desk.start(Form(prompt=prompt), ANYONE, "en").ids[0])
    job = dataclasses.replace(job, status=FAILED, finished=1.0, error_message="<b>${x}</b>")
    for shown in (card(desk.service, job, "en"), cards(desk.service, [job], "zh"), notice(prompt)):
        assert "<script" not in shown and "<b>" not in shown
        assert not set("${}`\\") & set(shown)
    assert text("a{b}") == "a&#123;b&#125;" and notice("") == "" and notice(["", "x"]).count("<p>") == 1


def test_cards_say_where_a_video_stands(desk, monkeypatch):
    service = desk.service
    first, second = (service.queue.get(id) for id in desk.start(Form(prompt=CIRCLE, count=2), ANYONE, "en").ids)
    assert "Waits for a worker; none is there now" in card(service, first, "en", place=0)
    service.queue.seen("w", "tiny", "idle")
    assert "Waits; before it: 1" in card(service, second, "en", place=1) and "Is next" in card(
        service, first, "en", place=0
    )
    running = service.queue.claim("w", "tiny")
    compiling = card(service, dataclasses.replace(running, stage="compiling"), "zh")
    assert "首次为该尺寸编译" in compiling and "<progress>" in compiling
    sampling = dataclasses.replace(running, stage="sampling", step=3, steps=20, preview=b"\xff\xd8\xff")
    shown = card(service, sampling, "en", left=130)
    assert "Step 3 of 20, about 2 min left" in shown and 'value="3"' in shown and "data:image/jpeg" in shown
    assert 'data-do="cancel"' in shown and 'data-do="delete"' not in shown
    service.cancel(first.id, ANYONE)
    stopped = card(service, service.queue.get(first.id), "en")
    assert "Stopped" in stopped and 'data-do="replay"' in stopped and 'data-do="remix"' not in stopped
    make(service)
    done = card(service, service.queue.get(second.id), "en", plays=True)
    assert "<video" in done and "autoplay" in done and done.count(" download=") == 2 and "seed" in done
    assert 'preload="none"' in cards(service, [service.queue.get(second.id)], "en")
    assert "kept for 2 hours" in cards(service, [service.queue.get(second.id)], "en")
    assert "not kept any more" in card(service, None, "en") and "listed here" in cards(service, [], "en")


def test_a_gif_is_low_and_slow(tmp_path):
    with VideoWriter(tmp_path / "v.mp4", fps=16) as writer:
        writer.write(np.zeros((33, 480, 720, 3), np.uint8))
    (tmp_path / "v.gif").write_bytes(picture_of(tmp_path / "v.mp4", "gif"))
    with PIL.Image.open(tmp_path / "v.gif") as image:
        assert (image.size, image.n_frames) == ((360, 240), 17)


def test_uploads_go_by_age_and_by_bytes(service, tmp_path, monkeypatch):
    folder = Uploads(service.store)
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    kept, old = Path(folder.copy(tmp_path / "a.png")), Path(folder.copy(tmp_path / "a.png"))
    assert folder.tidy() == 200 and folder.has_room()
    for path in (old, old.parent):
        os.utime(path, (0, 0))
    os.utime(tmp_path / "a.png", (0, 0))
    assert folder.tidy() == 100 and kept.is_file() and not old.exists()
    os.utime(old.parent, (0, 0))
    folder.tidy()
    assert not old.parent.exists()
    assert Path(folder.copy(tmp_path / "a.png")).is_file()  # a copy of an old file is new
    monkeypatch.setattr(uploads, "MOST", 200)
    assert not folder.has_room()


def test_a_server_without_the_extra_says_how_to_get_the_page(monkeypatch):
    monkeypatch.setattr(serve.importlib.util, "find_spec", lambda name: None)
    assert serve._add_page(None, serve.ServeFlags(), Given(), Keys()) is None and "cogvx_jax[ui]" in serve.NO_PAGE
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert serve._improver("tiny", Given()) is None


def test_errors_are_sentences(capsys):
    assert sentence(Refused("not_found", "there is no video"), "en") == "There is no such video any more."
    assert sentence(ValueError("steps must be 1"), "en") == "steps must be 1"
    assert "cannot reach its queue" in sentence(OSError("/secret/place"), "en")
    assert sentence(KeyError("x"), "zh") == "服务器出错，详见其日志。"
    assert "/secret/place" in capsys.readouterr().err  # for the log
