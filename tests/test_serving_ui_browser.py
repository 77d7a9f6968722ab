"""The web page as it is used: by Gradio's own client, and in a Chromium that clicks."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("httpx", reason="tests of the server need the extra `test-serve`")
pytest.importorskip("gradio", reason="the page needs the extra `ui`")
pytest.importorskip("gradio_client", reason="the page needs the extra `ui`")
pytest.importorskip("playwright", reason="tests of the page need the extra `test-ui`")

import gradio_client
import httpx
from chat_server import chat_server
from gradio_client.exceptions import AppError
from playwright.sync_api import expect, sync_playwright
from serving import Site, free_port

from cogvx_jax.cli.serve import _improve, enhancer_of
from cogvx_jax.given import Given
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.serving.keys import new_key
from cogvx_jax.serving.page import uploads

ROOT = Path(__file__).parents[1]
CIRCLE = "a red circle moves right on a white background"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
in_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(tmp_path_factory.mktemp("site"), page=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@contextlib.contextmanager
def opened(browser, url, width=1280, locale="en-GB", seconds=30):
    """The page in a browser of its own; what it asks of other hosts, and what goes wrong in it, is an error."""
    context = browser.new_context(viewport={"width": width, "height": 900}, locale=locale)
    page, asked, wrong = context.new_page(), [], []
    page.set_default_timeout(1000 * seconds)
    expect.set_options(timeout=1000 * seconds)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    expect(page.locator("#cogvx-prompt textarea")).to_be_visible(timeout=60_000)
    try:
        yield page
        assert not wrong
        assert {address.split("/")[2] for address in asked if address.startswith("http")} == {url.split("/")[2]}
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        context.close()


def client(site, **how):
    return gradio_client.Client(f"{site.url}/ui/", verbose=False, **how)


# --- by Gradio's own client


def test_the_page_is_an_api_too(site):
    assert httpx.get(site.url).headers["location"].endswith("/ui/")
    fields = {"seed": 5, "num_frames": 9}
    videos = client(site).predict(prompt=CIRCLE, fields=fields, count=2, api_name="/generate")
    assert [(video["status"], video["seed"]) for video in videos] == [("completed", 5), ("completed", 6)]
    assert httpx.get(f"{site.url}{videos[0]['url']}").content[4:8] == b"ftyp"


def test_what_is_refused_is_told(site):
    for how, words in (
        (dict(prompt=" "), "prompt is empty"),
        (dict(prompt=CIRCLE, fields={"sise": 3}), "unknown field"),
    ):
        with pytest.raises(AppError, match=words):
            client(site).predict(**how, api_name="/generate")


def test_files_of_the_server_cannot_be_named(site, tmp_path):
    secret = site.store.folder / "queue.sqlite"
    assert secret.is_file()
    for path in (secret, "/etc/hostname"):
        assert httpx.get(f"{site.url}/ui/gradio_api/file={path}").status_code in (403, 404)
    dependencies = client(site).config["dependencies"]
    load = next(one["id"] for one in dependencies if one["targets"] and one["targets"][0][1] == "upload")

    def loaded(path):
        given = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
        body = {"data": [given, "en"], "fn_index": load, "session_hash": "x"}
        return httpx.post(f"{site.url}/ui/gradio_api/run/predict", json=body)

    (mine,) = httpx.post(f"{site.url}/ui/gradio_api/upload", files={"files": ("a.mp4", b"x")}).json()
    assert "a.mp4" in loaded(mine).text and loaded(mine).status_code == 200
    assert loaded(secret).status_code == 500 and "sqlite" not in loaded(secret).text


def test_uploads_are_bounded(site, monkeypatch):
    to = f"{site.url}/ui/gradio_api/upload"
    assert httpx.post(to, files={"files": ("a.mp4", b"x" * 2**21)}).status_code == 413
    (kept,) = httpx.post(to, files={"files": ("a.mp4", b"x" * 1000)}).json()
    assert Path(kept).is_relative_to(site.store.folder / "uploads")
    monkeypatch.setattr(uploads, "MOST", 1000)
    answer = httpx.post(to, files={"files": ("a.mp4", b"x")})
    assert (answer.status_code, answer.json()["error"]["code"]) == (507, "disk_full")


def test_with_keys_one_signs_in_and_sees_ones_own(tmp_path):
    (ada, lines), (bob, more) = new_key("ada"), new_key("bob")
    (tmp_path / "keys.toml").write_text(f"{lines}\n{more}\n")
    site = Site(tmp_path, page=True, keys=tmp_path / "keys.toml")
    try:
        assert httpx.post(f"{site.url}/ui/gradio_api/upload", files={"files": ("a", b"x")}).status_code == 401
        for name, key in (("ada", bob), ("ada", "x"), ("eve", ada)):
            with pytest.raises(ValueError, match="Could not login"):
                client(site, auth=(name, key))
        (video,) = client(site, auth=("ada", ada)).predict(prompt=CIRCLE, api_name="/generate")
        asked = {"Authorization": f"Bearer {ada}"}
        assert httpx.get(f"{site.url}/v1/videos/{video['id']}", headers=asked).json()["status"] == "completed"
        assert site.queue.get(video["id"]).owner == "ada"
    finally:
        site.close()


@pytest.mark.full
def test_behind_a_proxy_the_page_knows_where_it_is(tmp_path):
    site = Site(tmp_path, page=True, works=False, public_url="https://videos.test/here")
    try:
        assert "https://videos.test/here/ui" in httpx.get(f"{site.url}/ui/").text
        assert httpx.get(site.url).headers["location"] == "https://videos.test/here/ui/"
    finally:
        site.close()


# --- in a browser, with a sampler that draws nothing


@in_chromium
def test_a_video_is_made_in_a_browser(site, browser):
    with opened(browser, f"{site.url}/ui/") as page:
        page.fill("#cogvx-prompt textarea", CIRCLE)
        page.get_by_role("button", name="Generate", exact=True).click()
        page.wait_for_function("document.querySelector('#cogvx-cards video')?.readyState >= 2")
        assert page.evaluate("document.querySelector('#cogvx-cards video').videoWidth") == 64
        expect(page.locator("#cogvx-history .cogvx-card")).to_have_count(1)
        page.get_by_text("中文", exact=True).click()
        expect(page.get_by_role("button", name="生成", exact=True)).to_be_visible()
        expect(page.locator("#cogvx-cards .cogvx-status")).to_contain_text("用时")
        assert page.locator("#cogvx-prompt textarea").input_value() == CIRCLE
        page.reload()  # the browser remembers the language and its videos
        expect(page.get_by_role("button", name="生成", exact=True)).to_be_visible()
        expect(page.locator("#cogvx-history .cogvx-card")).to_have_count(1)
        page.locator("#cogvx-history").get_by_role("button", name="删除").click()
        expect(page.locator("#cogvx-history .cogvx-card")).to_have_count(0)


@in_chromium
@pytest.mark.full
def test_a_prompt_is_improved_and_given_back(tmp_path, browser, monkeypatch):
    with chat_server(lambda asked: "A red disc glides to the right.") as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        site = Site(tmp_path, page=True, improve=_improve(enhancer_of("tiny", Given())))
        try:
            with opened(browser, f"{site.url}/ui/", seconds=60) as page:
                prompt = page.locator("#cogvx-prompt textarea")
                prompt.fill("红色的圆")
                prompt.blur()
                expect(page.locator("#cogvx-notice")).to_contain_text("looks Chinese")
                page.get_by_role("button", name="Improve the prompt").click()
                expect(prompt).to_have_value("A red disc glides to the right.")
                expect(page.locator("#cogvx-notice")).to_contain_text("stub wrote this prompt")
                page.get_by_role("button", name="Undo").click()
                expect(prompt).to_have_value("红色的圆")
        finally:
            site.close()


# --- in a browser, with the model `tiny`


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The address of the page of a `cogvx serve`."""
    folder = tmp_path_factory.mktemp("served")
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "cogvx_jax.cli", "serve", "--port", str(free_port())]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENAI")} | {"PYTHONPATH": path}
    process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    process.stderr.readline()
    address = re.search(r"(http://\S+) is the page", process.stderr.readline())[1]
    yield f"{address}/"
    process.send_signal(signal.SIGTERM)
    process.wait(60)


def number(page, label, value):
    page.get_by_label(label, exact=True).first.fill(str(value))


@in_chromium
@pytest.mark.full
@pytest.mark.parametrize("width, locale, words", [(1280, "en-GB", "Generate"), (390, "zh-CN", "生成")])
def test_a_preview_is_seen_and_the_video_plays(served, browser, width, locale, words):
    with opened(browser, served, width, locale, seconds=300) as page:
        generate = page.get_by_role("button", name=words, exact=True)
        expect(generate).to_be_visible()
        page.fill("#cogvx-prompt textarea", CIRCLE)
        generate.click()
        expect(page.locator("#cogvx-cards img")).to_be_visible()
        assert page.locator("#cogvx-cards img").get_attribute("src").startswith("data:image/webp")
        page.wait_for_function("document.querySelector('#cogvx-cards video')?.readyState >= 2")
        told = page.evaluate(
            "(({videoWidth, duration, error}) => [videoWidth, duration, error])"
            "(document.querySelector('#cogvx-cards video'))"
        )
        assert told == [64, 2.125, None]


@in_chromium
@pytest.mark.full
def test_settings_are_reused_remixed_cancelled_and_dropped(served, browser, tmp_path):
    with opened(browser, served, seconds=300) as page:
        prompt, cards = page.locator("#cogvx-prompt textarea"), page.locator("#cogvx-cards .cogvx-card")
        prompt.fill(CIRCLE)
        number(page, "Steps", 4)
        number(page, "Seed", 77)
        page.get_by_label("New seed each time").uncheck()
        page.locator("#cogvx-more").get_by_label("2", exact=True).check()
        page.get_by_role("button", name="Generate", exact=True).click()
        expect(page.locator("#cogvx-cards video")).to_have_count(2)
        expect(cards.nth(1)).to_contain_text("seed 78")
        # mp4 and GIF, and what the former tells
        with page.expect_download() as download:
            cards.nth(1).get_by_role("link", name="MP4").click()
        download.value.save_as(tmp_path / "made.mp4")
        record = read_record(tmp_path / "made.mp4")
        assert (record.prompt, record.options["seed"], record.options["steps"]) == (CIRCLE, 78, 4)
        with page.expect_download() as download:
            cards.nth(1).get_by_role("link", name="GIF").click()
        assert Path(download.value.path()).read_bytes().startswith(b"GIF8")
        # a remix, which is redrawn from the video
        prompt.fill("a blue star grows on a yellow background")
        number(page, "Steps", 9)
        cards.nth(0).get_by_role("button", name="Remix").click()
        expect(cards).to_have_count(1)
        expect(cards.nth(0)).to_contain_text("a blue star")
        expect(page.locator("#cogvx-cards video")).to_have_count(1)
        cards.nth(0).get_by_role("button", name="Reuse settings").click()
        expect(prompt).to_have_value("a blue star grows on a yellow background")
        page.get_by_role("tab", name="From a video").click()
        expect(page.locator("#cogvx-form video")).to_have_count(1)  # its file is there again
        # settings of an earlier one, from the history
        page.locator("#cogvx-history .cogvx-card").last.get_by_role("button", name="Reuse settings").click()
        expect(prompt).to_have_value(CIRCLE)
        expect(page.get_by_label("Seed", exact=True).first).to_have_value("77")
        expect(page.get_by_label("Steps", exact=True).first).to_have_value("4")
        # a job that is stopped
        number(page, "Steps", 900)
        page.get_by_role("button", name="Generate", exact=True).click()
        cards.nth(0).get_by_role("button", name="Stop").click()
        expect(cards.nth(0)).to_contain_text("Stopped")
        # a video that is dropped
        page.get_by_text("Load the settings of an mp4").click()
        page.locator("#cogvx-more input[type=file]").last.set_input_files(str(tmp_path / "made.mp4"))
        expect(page.get_by_label("Seed", exact=True).first).to_have_value("78")
        expect(page.locator("#cogvx-notice")).to_contain_text("The settings are in the form.")
        expect(page.get_by_label("Steps", exact=True).first).to_have_value("4")
