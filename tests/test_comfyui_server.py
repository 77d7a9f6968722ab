"""The nodes for ComfyUI against this project's own server: what they send, show, raise, and give."""

import base64
import http.server
import io
import json
import threading
import time
import types

import av
import numpy as np
import PIL.Image
import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from serving import Site, fake_video, free_port
from small_files import small_spec

from cogvx_jax.comfyui_cogvx import media, progress, running, server
from cogvx_jax.comfyui_cogvx.declarations import NODES, WIDGETS
from cogvx_jax.comfyui_cogvx.server import Server, ServerError
from cogvx_jax.comfyui_cogvx.v1 import NODE_CLASS_MAPPINGS
from cogvx_jax.data.comments import read_tags
from cogvx_jax.data.video import VideoWriter, read_video
from cogvx_jax.serving.keys import Keys, new_key
from cogvx_jax.serving.store import WORKFLOW

PLAIN = {node.id: {one.name: one.default for one in node.inputs if one.kind in WIDGETS} for node in NODES}
SMALL = {"prompt": "a red circle", "num_frames": 9, "num_inference_steps": 2}
GRAPH = {"nodes": [{"type": "CogvxServer", "widgets_values": ["http://x", "typed"]}]}


class Shows:
    """Notes what is told; interrupts when it is asked to."""

    def __init__(self, interrupt=None):
        self.told, self._interrupt = [], interrupt or (lambda told: False)

    def tell(self, video):
        self.told.append(video)

    def check(self):
        if self._interrupt(self.told):
            raise KeyboardInterrupt


def with_graph(job, folder, out, tell):
    """A video that carries the graph that came with its request."""
    tags = {"workflow": (folder / WORKFLOW).read_text()} if (folder / WORKFLOW).exists() else {}
    if "slowly" in job.asked["prompt"]:
        tell.tell(stage="sampling", step=1, steps=2, preview=webp())
        time.sleep(1)  # the server looks at what has changed four times a second
    with VideoWriter(out, fps=8, tags=tags) as writer:
        writer.write(np.full((9, 64, 64, 3), job.asked["options"]["seed"] % 256, np.uint8))


def webp():
    """Three frames: black, red, black."""
    data, frames = io.BytesIO(), [PIL.Image.new("RGB", (8, 8), colour) for colour in ("black", "red", "black")]
    frames[0].save(data, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    return data.getvalue()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    made = Site(
        tmp_path_factory.mktemp("site"), with_graph, limit=2**24, enhance=lambda prompt, image: f"{prompt}, long"
    )
    yield made
    made.close()


@pytest.fixture
def frames_alone(monkeypatch):
    """Results without torch and ComfyUI: IMAGE is the array, VIDEO the bytes."""

    monkeypatch.setattr(media, "images_of", read)
    monkeypatch.setattr(media, "video_of", lambda mp4: mp4)


def read(mp4):
    with av.open(io.BytesIO(mp4)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def image(colour, count=1, size=(64, 48)):
    """As an IMAGE, of which the nodes ask for slices and numpy's array alone."""
    pixels = np.full((count, size[1], size[0], 3), colour, np.float32)
    return Tensor(pixels)


class Tensor:
    def __init__(self, array):
        self.array = array

    def __getitem__(self, key):
        return Tensor(self.array[key])

    def cpu(self):
        return self

    def numpy(self):
        return self.array


def run(id, **inputs):
    """A node as ComfyUI runs its V1 class."""
    cls = NODE_CLASS_MAPPINGS[id]
    return getattr(cls(), cls.FUNCTION)(**PLAIN[id] | inputs)


def test_a_video_of_a_prompt(site, frames_alone, tmp_path):
    (there,) = run("CogvxServer", url=f"{site.url}/")
    hidden = dict(unique_id="5", extra_pnginfo={"workflow": GRAPH})
    video, images, fps, info = run("CogvxTextToVideo", server=there, **SMALL, seed=2**32 + 76, **hidden)
    assert images.shape == (9, 64, 64, 3) and abs(int(images[0, 0, 0, 0]) - 77) <= 2 and fps == 8.0
    told = json.loads(info)
    assert (told["seed"], told["num_frames"], told["status"]) == (77, 9, "completed")
    assert not {"url", "preview"} & told.keys()  # `url` lets anyone fetch the video
    (tmp_path / "out.mp4").write_bytes(video)
    graph = json.loads(read_tags(tmp_path / "out.mp4")["workflow"])
    assert graph["nodes"][0]["widgets_values"] == ["http://x", "..."]


def test_what_the_server_is_told(site, frames_alone):
    loras = run("CogvxLoRA", name="tiny-fast", weight=0.5)[0]
    asked = SMALL | dict(width=32, height=48, loras=loras, more='{"user": "ada"}', guidance_scale=2.0, fps=12.0)
    info = run("CogvxTextToVideo", server=Server(site.url), **asked)[3]
    job = site.queue.get(json.loads(info)["id"])
    assert (job.asked["loras"], job.shown["user"]) == ([["tiny-fast", 0.5]], "ada")
    options = job.asked["options"]
    assert (options["size"], options["frames"], options["fps"], options["steps"]) == ("48x32", 9, 12.0, 2)


@pytest.mark.parametrize("of", ["video", "images"])
def test_a_clip_is_redrawn(site, frames_alone, tmp_path, of):
    pixels = np.full((9, 64, 64, 3), 200, np.uint8)
    with VideoWriter(tmp_path / "in.mp4", 8) as writer:
        writer.write(pixels)
    clip = types.SimpleNamespace(
        save_to=lambda path, format: open(path, "wb").write((tmp_path / "in.mp4").read_bytes())
    )
    given = {"video": clip} if of == "video" else {"images": Tensor(np.float32(pixels / 255))}
    info = run("CogvxVideoToVideo", server=Server(site.url), **SMALL, strength=0.6, **given)[3]
    job = site.queue.get(json.loads(info)["id"])
    assert job.asked["options"]["strength"] == 0.6 and job.shown["task"] == "v2v"
    came, _ = read_video(site.store.folder_of(job.id) / job.asked["files"]["video"])
    assert came.shape == pixels.shape and abs(int(came[4, 30, 30, 0]) - 200) <= 2


@pytest.mark.parametrize("both", [{}, {"video": 1, "images": 2}])
def test_a_clip_is_given_once(both):
    with pytest.raises(ValueError, match="connect a clip to video, or its frames to images"):
        run("CogvxVideoToVideo", server=Server("http://127.0.0.1:1"), **SMALL, **both)


def test_a_picture_goes_to_the_server_whose_words_come_back(site):
    """tiny takes no pictures: the node shows the server's sentence."""
    with pytest.raises(ServerError, match="^tiny is text-to-video and takes no image; use one of the I2V models"):
        run("CogvxImageToVideo", server=Server(site.url), **SMALL, image=image(0.5), last_image=image(1.0))
    with pytest.raises(ServerError, match="^the number of frames must be 8N.1 for tiny, got 10; nearest: 9 or 17$"):
        run("CogvxTextToVideo", server=Server(site.url), **SMALL | {"num_frames": 10})


def test_pictures_of_an_image_to_video_model(tmp_path, frames_alone):
    spec = small_spec("5b-i2v")
    site = Site(tmp_path, with_graph, limit=2**24, spec=spec)
    try:
        asked = SMALL | {"width": 720, "height": 480, "image": image(0.2), "last_image": image(1.0)}
        info = json.loads(run("CogvxImageToVideo", server=Server(site.url), **asked)[3])
    finally:
        site.close()
    assert (info["task"], info["size"]) == ("i2v", "720x480")
    for option, grey in (("image", 51), ("last_image", 255)):
        with PIL.Image.open(site.store.folder_of(info["id"]) / f"{option}.png") as picture:
            assert picture.size == (64, 48) and picture.getpixel((9, 9)) == (grey,) * 3


def test_pictures_keep_their_pixels():
    url = media.picture_url(Tensor(np.stack([np.full((3, 5, 4), 0.2, "f4"), np.ones((3, 5, 4), "f4")])))
    with PIL.Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
        assert (picture.format, picture.size, picture.getpixel((4, 2))) == ("PNG", (5, 3), (51, 51, 51))


def test_frames_of_odd_sizes_are_sent(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 5, 7, 1)).repeat(3, -1)
    url = media.clip_url(images=Tensor(np.float32(pixels / 255)), fps=7.5)
    (tmp_path / "in.mp4").write_bytes(base64.b64decode(url.partition(",")[2]))
    frames, fps = read_video(tmp_path / "in.mp4")
    assert frames.shape == pixels.shape and fps == 7.5 and np.abs(frames - pixels).mean() < 6


def test_frames_become_an_image(tmp_path):
    torch = pytest.importorskip("torch", reason="ComfyUI's pictures are torch's")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 3, 3), np.uint8).repeat(32, 1).repeat(32, 2)
    with VideoWriter(tmp_path / "in.mp4", 8) as writer:
        writer.write(pixels)
    images = media.images_of((tmp_path / "in.mp4").read_bytes())
    assert images.dtype == torch.float32 and images.shape == pixels.shape and 0 <= images.min() <= images.max() <= 1
    assert (
        np.abs(images.numpy() * 255 - pixels)[:, 16::32, 16::32].max() <= 4
    )  # the colours of the matrix that is tagged


def test_prompts_are_enhanced(site):
    assert run("CogvxEnhancePrompt", server=Server(site.url), prompt="a panda") == ("a panda, long",)
    assert run("CogvxEnhancePrompt", server=Server(site.url), prompt="it", image=image(0.5)) == ("it, long",)


def test_keys(tmp_path, monkeypatch, frames_alone):
    key, lines = new_key("ada")
    (tmp_path / "keys.toml").write_text(lines)
    site = Site(tmp_path, fake_video(steps=1), keys=tmp_path / "keys.toml")
    try:
        with pytest.raises(ServerError, match="key"):
            run("CogvxTextToVideo", server=Server(site.url, "$COGVX_KEY_OF_TESTS"), **SMALL)
        monkeypatch.setenv("COGVX_KEY_OF_TESTS", key)
        for given in ("$COGVX_KEY_OF_TESTS", f" {key}\n"):
            assert run("CogvxTextToVideo", server=Server(site.url, given), **SMALL)[2] == 8.0
    finally:
        site.close()


def test_progress_and_previews(site):
    shows = Shows()
    running.make_video(Server(site.url), SMALL | {"prompt": "a circle moves slowly"}, shows)
    assert [video["status"] for video in shows.told][-1] == "completed"
    seen = [video for video in shows.told if video.get("preview")]
    assert seen and seen[-1]["steps"] == 2
    kind, picture, most = progress.picture(seen[-1]["preview"])
    assert (kind, most, picture.mode, picture.getpixel((4, 4))) == ("JPEG", None, "RGB", (255, 0, 0))


def test_what_is_no_preview_shows_none():
    assert [progress.picture(url) for url in (None, "", "data:image/webp;base64,AAAA", "x,!")] == [None] * 4


def test_words_of_a_video():
    for video, said in (
        ({"status": "queued", "queue_position": 3}, "waiting, 3 before it"),
        ({"status": "in_progress", "stage": "compiling"}, "compiling"),
        ({"status": "in_progress"}, "begun"),
        ({"status": "completed", "notes": ["a", "b"]}, "completed; a; b"),
    ):
        assert progress.words(video) == said


def test_comfyuis_bar_gets_steps_and_pictures(monkeypatch):
    """As ComfyUI has them; `server` is a module of its own."""
    calls, said = [], []
    bar = lambda total: types.SimpleNamespace(update_absolute=lambda *given: calls.append(given))  # noqa: E731
    manager = types.ModuleType("comfy.model_management")
    manager.throw_exception_if_processing_interrupted = lambda: calls.append("checked")
    instance = types.SimpleNamespace(send_progress_text=lambda *given: said.append(given))
    for name, module in {
        "comfy": types.ModuleType("comfy"),
        "comfy.utils": types.SimpleNamespace(ProgressBar=bar),
        "comfy.model_management": manager,
        "server": types.SimpleNamespace(PromptServer=types.SimpleNamespace(instance=instance)),
    }.items():
        monkeypatch.setitem(__import__("sys").modules, name, module)
    shown = progress.Progress("5")
    shown.check()
    for step in (1, 2):
        shown.tell({"id": "v", "status": "in_progress", "stage": "sampling", "step": step, "steps": 4})
    assert calls == ["checked", (1, 4, None), (2, 4, None)] and said == [("sampling", "5")]


def test_an_interrupt_cancels_the_servers_job(tmp_path):
    site = Site(tmp_path, fake_video(steps=2000, seconds=0.05))
    try:
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            running.make_video(Server(site.url), SMALL, Shows(lambda told: any(v.get("step") for v in told)))
        assert site.wait(site.store.ids()[0], 10).error_code == "cancelled" and time.monotonic() - began < 15
    finally:
        site.close()


def test_failing_and_deleted_videos(tmp_path):
    site = Site(tmp_path, fake_video(steps=400, seconds=0.02))
    there = Server(site.url)
    try:
        with pytest.raises(ServerError, match="^the sampler met numbers that are not finite$"):
            running.make_video(there, SMALL | {"prompt": "to fail"}, Shows())

        deleted = []

        def delete(told):
            if told and not deleted:
                deleted.append(told[0]["id"])
                site.service.delete(deleted[0], Keys(None).of(None))
            return False

        with pytest.raises(ServerError, match="was deleted on the server while it was made"):
            running.make_video(there, SMALL, Shows(delete))
    finally:
        site.close()


def test_a_server_that_is_not_there():
    with pytest.raises(ServerError, match="cannot be reached: .*; is `cogvx serve` running there"):
        Server(f"http://127.0.0.1:{free_port()}").post("/v1/videos", {})


class Rough(http.server.BaseHTTPRequestHandler):
    """Answers from a list: a connection that ends, or a status with a body."""

    def do_GET(self):
        self.server.seen.append((self.path, dict(self.headers)))
        answer = self.server.answers.pop(0)
        if answer is None:
            return
        status, body = answer
        self.send_response(status)
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@pytest.fixture
def rough(monkeypatch):
    monkeypatch.setattr(server, "PAUSE", 0.01)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Rough) as found:
        found.answers, found.seen = [], []
        found.there = Server(f"http://127.0.0.1:{found.server_address[1]}", "secret")
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def event(revision, status):
    return f"retry: 2000\n\n: 1\n\nid: {revision}\nevent: {status}\ndata: {json.dumps({'status': status})}\n\n".encode()


def test_a_lost_connection_is_made_again(rough):
    half = event(7, "in_progress") + b"id: 8\nevent: in_progr"
    rough.answers += [(200, half), None, (200, event(9, "completed"))]
    assert [told["status"] for told in rough.there.events("v")] == ["in_progress", "completed"]
    assert [headers.get("Last-Event-Id") for _, headers in rough.seen] == [None, "7", "7"]
    rough.answers += [None] * server.TRIES
    with pytest.raises(ServerError, match="was lost while it made the video v"):
        list(rough.there.events("v"))


def test_a_request_is_sent_again_under_one_name(rough):
    rough.answers += [None, (200, b'{"id": "v"}')]
    assert rough.there.post("/v1/videos", {}, once="x") == {"id": "v"}
    assert [headers["Idempotency-Key"] for _, headers in rough.seen] == ["x", "x"]


@pytest.mark.parametrize(
    "answer, said",
    [
        ((302, b""), "answered 302"),  # the key goes to no other server
        ((500, b"<html>"), "answered 500"),
        ((400, b'{"error": "x"}'), "answered 400"),
        ((429, b'{"error": {"message": "the queue is full"}}'), "^the queue is full$"),
        ((200, b"["), "no answer that can be read"),
    ],
)
def test_answers_of_other_servers(rough, answer, said):
    rough.answers.append(answer)
    with pytest.raises(ServerError, match=said):
        rough.there.post("/x")
    assert len(rough.seen) == 1


def test_what_is_no_mp4(rough):
    rough.answers.append((200, b"<html>"))
    with pytest.raises(ServerError, match="gave no mp4"):
        rough.there.content("v")
