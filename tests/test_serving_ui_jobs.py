"""The web page without a widget: jobs, how they look, what is uploaded. No model is loaded."""

import asyncio
import dataclasses
import os
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")

from page_desk import CIRCLE, a_desk, a_service
from serving import fake_video, submit

import cogvx_jax.cli.serve as serve
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.given import Given
from cogvx_jax.serving.jobs import FAILED, RUNNING
from cogvx_jax.serving.keys import ANYONE, Keys, new_key
from cogvx_jax.serving.page import uploads
from cogvx_jax.serving.page.actions import Desk, sentence
from cogvx_jax.serving.page.following import Pace, follow
from cogvx_jax.serving.page.refused import CHINESE
from cogvx_jax.serving.page.settings import Form
from cogvx_jax.serving.page.uploads import Uploads
from cogvx_jax.serving.page.view import card, cards, notice, text
from cogvx_jax.serving.pictures import picture_of
from cogvx_jax.serving.queue import Full
from cogvx_jax.serving.refusals import KINDS, Refused
from cogvx_jax.serving.worker import Worker

service, desk = pytest.fixture(a_service), pytest.fixture(a_desk)


def make(service, **how):
    """All jobs that wait become videos."""
    Worker(service.queue, service.store, fake_video(seconds=0.0, **how), model="tiny").run(until_idle=True)


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
        async for seen in follow(desk.looks, [*ids, "video_gone"], ANYONE, look=0.01):
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
    assert serve._add_page(None, serve.ServeFlags(), Keys(), None) is None and "cogvx_jax[ui]" in serve.NO_PAGE
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert serve.enhancer_of("tiny", Given()) is serve._improve(None) is None


def test_refusals_and_failures_have_chinese_words(desk, tmp_path):
    assert CHINESE.keys() >= KINDS.keys()
    for form, said in (
        (Form(prompt="x" * 10_001), "设置不可用（提示词）"),
        (Form(prompt=CIRCLE, values={"size": "65x64"}), "设置不可用（尺寸）：.*64 or 80"),
        (Form(prompt=CIRCLE, values={"steps": 5000}), "设置不可用（步数）：.*5000"),
        (Form(prompt=CIRCLE, files={"video": str(tmp_path / "clip.mp4")}), "设置不可用（要改绘的视频）：.*mp4"),
        (Form(prompt=" "), "缺少必填项（提示词）：请填写提示词。"),
    ):
        (tmp_path / "clip.mp4").write_bytes(b"no clip")
        begun = desk.start(form, ANYONE, "zh")
        assert begun.wrong and re.search(said, begun.notes[-1]), begun
        assert not re.search("[\u4e00-\u9fff]", desk.start(form, ANYONE, "en").notes[-1])
    assert sentence(Full("5 jobs wait"), "zh") == "任务过多，请稍后再试：5 jobs wait"
    assert sentence(OSError("/secret/place"), "zh").startswith("服务暂时不可用，请稍后再试：the server cannot")
    job = desk.service.queue.get(desk.start(Form(prompt=CIRCLE), ANYONE, "zh").ids[0])
    lost = dataclasses.replace(job, status=FAILED, finished=1.0, error_code="worker_lost", error_message="3 workers")
    assert "失败：多个工作进程" in card(desk.service, lost, "zh") and "Failed: 3 workers" in card(
        desk.service, lost, "en"
    )


def test_a_lora_of_few_steps_says_so(desk):
    found = desk.few_steps(["tiny-fast"], "0.8", "en")
    assert (found.steps, found.guidance_scale) == (4, 1.0)
    assert desk.few_steps(["tiny-fast"], "-0.8", "en") is desk.few_steps([], "", "en") is None
    with pytest.raises(Refused, match="权重应为数字"):
        desk.few_steps(["tiny-fast"], "much", "zh")
    with pytest.raises(Refused, match="none"):
        desk.few_steps(["none"], "", "en")


def test_a_lora_of_few_steps_sets_the_form_and_gives_it_back(desk):
    events = pytest.importorskip("cogvx_jax.serving.page.events", reason="the page needs the extra `ui`")
    page = events.Events(desk, None, None, None)
    *form, few, notice = page.few_steps(["tiny-fast"], "", False, "en")
    assert form == [4, 1.0, "ddim"] and few and "4 steps of ddim at guidance 1" in notice["value"]
    own = {field.name: field.shown for field in desk.fields}
    assert page.few_steps([], "", True, "en")[:4] == [*(own[name] for name in events.OF_FEW_STEPS), False]
    assert page.few_steps([], "", False, "en")[:3] == [events.SKIP] * 3  # what a user has set stays
    assert "权重" in page.few_steps(["tiny-fast"], "much", False, "zh")[-1]["value"]


def test_errors_are_sentences(capsys):
    assert sentence(Refused("not_found", "there is no video"), "en") == "There is no such video any more."
    assert sentence(ValueError("steps must be 1"), "en") == "steps must be 1"
    assert "cannot reach its queue" in sentence(OSError("/secret/place"), "en")
    assert sentence(KeyError("x"), "zh") == "服务器出错，详见其日志。"
    assert "/secret/place" in capsys.readouterr().err  # for the log
