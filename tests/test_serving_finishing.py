"""Videos that a server enlarges and interpolates: the vendors' fields, what is refused, and the worker's files."""

import contextlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")
pytest.importorskip("fastapi", reason="the server needs the extra `serve`")

from serving import submit
from test_finishing import weights  # noqa: F401
from test_finishing_full_disk import room

import cogvx_jax as cx
from cogvx_jax.data.sound import has_sound
from cogvx_jax.data.video import read_video
from cogvx_jax.finishing import asked as asking_of_finish
from cogvx_jax.finishing import finish as finishing
from cogvx_jax.finishing import stream
from cogvx_jax.finishing.packaged import UPSCALERS
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.presets import PRESETS
from cogvx_jax.serving import asking, zhipu_api
from cogvx_jax.serving.adapters import Adapters
from cogvx_jax.serving.asking import read_asked
from cogvx_jax.serving.bodies import Fields
from cogvx_jax.serving.finishing import finished_facts, offered
from cogvx_jax.serving.making import Maker, request_of
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.refusals import Refused
from cogvx_jax.serving.service import Rules
from cogvx_jax.serving.store import Store, live_of
from cogvx_jax.serving.worker import Progress, Worker

SPEC = PRESETS["5b"]


def ask(textual=False, strict=False, **fields):
    return read_asked(Fields({"prompt": "a star", **fields}, textual=textual), SPEC, strict=strict)


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(asking, "enlarges", lambda: True)
    monkeypatch.setattr(zhipu_api, "interpolates", lambda: True)


@pytest.mark.parametrize(
    "fields, finish",
    [
        ({"finish": "scale=2,fps=32"}, {"scale": 2, "fps": "32"}),
        ({"finish": {"size": "2160x3840", "codec": "hevc"}}, {"size": "2160x3840", "codec": "hevc"}),
        ({"enable_upscaling": True}, {"scale": 4}),
        ({"upscaling_scale": 2, "upscaling_model_path": "x4plus"}, {"scale": 2, "upscaler": "x4plus"}),
        ({"enable_upscaling": False, "upscaling_scale": 4}, None),
        ({"enable_frame_interpolation": True}, {"fps": "16"}),
        ({"enable_frame_interpolation": True, "frame_interpolation_exp": 3}, {"fps": "64"}),
        ({"enable_frame_interpolation": True, "fps": 12, "frame_interpolation_scale": 1.0}, {"fps": "24"}),
        ({"output_fps": 60}, {"fps": "60"}),
        ({"size": "1280x720"}, {"size": "720x1280", "scale": 2}),
        ({"size": "3840x2160"}, {"size": "2160x3840", "scale": 4}),
        ({"size": "720x480"}, None),
        ({"size": "1280x720", "finish": "fps=16"}, {"fps": "16", "size": "720x1280", "scale": 2}),
        ({"size": "1280x720", "upscaling_scale": 4}, {"scale": 4}),
    ],
)
def test_what_vendors_fields_ask_for(fields, finish, installed):
    assert ask(**fields).options.get("finish") == finish
    textual = {
        name: str(value).lower() if not isinstance(value, str | dict) else value for name, value in fields.items()
    }
    assert ask(textual=True, **textual).options.get("finish") == finish


@pytest.mark.parametrize(
    "fields, param, said",
    [
        ({"finish": "scle=2"}, "finish", "meant is perhaps scale"),
        ({"finish": 3}, "finish", "finish must be text such as"),
        ({"finish": {"audio": "/etc/passwd"}}, "finish", "audio of finish is not for requests"),
        ({"finish": "loop,audio=a.wav"}, "finish", "of finish is not for requests"),
        ({"finish": "mesh=data=4"}, "finish", "mesh of finish is not for requests"),
        ({"finish": "scale=2,upscaler=/etc/passwd"}, "finish", "upscaler of finish must be one of animevideov3"),
        ({"finish": "fps=16,interpolator=a.pkl"}, "finish", "interpolator of finish must be one of rife"),
        ({"finish": "codec=prores"}, "finish", "codec of finish must be one of h264, hevc, av1"),
        ({"finish": "scale=2", "upscaling_scale": 2}, "finish", "give finish or upscaling_scale"),
        ({"upscaling_scale": 5}, "upscaling_scale", "must be one of 1, 2, 3, 4"),
        ({"upscaling_scale": "two"}, "upscaling_scale", "must be a whole number"),
        ({"enable_upscaling": 1}, "enable_upscaling", "must be true or false"),
        ({"upscaling_model_path": "a.pth", "enable_upscaling": True}, "upscaling_model_path", "must be one of"),
        ({"frame_interpolation_exp": 9}, "frame_interpolation_exp", "from 1 to 6"),
        ({"frame_interpolation_exp": 1, "output_fps": 30}, "output_fps", "not both"),
        ({"frame_interpolation_scale": 0.5}, "frame_interpolation_scale", "cannot be had"),
    ],
)
def test_what_is_refused(fields, param, said):
    with pytest.raises(Refused, match=said) as refused:
        ask(**fields)
    assert refused.value.param == param


def test_without_weights_a_size_is_mapped_and_said(monkeypatch):
    monkeypatch.setattr(asking, "enlarges", lambda: False)
    found = ask(size="1280x720")
    assert "finish" not in found.options and found.options["size"] == "480x720"
    assert "pip install 'cogvx_jax[finish]'" in found.notes[0]
    with pytest.raises(Refused, match="makes videos of 720x480"):
        ask(size="1280x720", strict=True)


def test_sound_needs_a_maker():
    for field, textual in (("with_audio", False), ("generate_sound", True)):
        fields = Fields({"prompt": "a star", field: "true" if textual else True}, textual=textual)
        assert read_asked(fields, SPEC, sounds=True).sound
        with pytest.raises(Refused, match=f"{field} cannot be had: this server has no maker of sound") as refused:
            read_asked(fields, SPEC)
        assert refused.value.param == field
    assert not ask(with_audio=False, sound_duration=None).sound
    with pytest.raises(Refused, match="with_audio must be true or false, got 1"):
        ask(with_audio=1)
    with pytest.raises(Refused, match="with_audio and generate_sound say the same"):
        read_asked(Fields({"prompt": "x", "with_audio": True, "generate_sound": False}), SPEC, sounds=True)
    values = {"prompt": "a star", "model": "cogvideox-3", "with_audio": True}
    assert zhipu_api.read_generation(values, SPEC, Rules(sounds=True)).sound


def test_a_size_that_is_too_far_is_mapped(installed):
    small = read_asked(Fields({"prompt": "a star", "size": "1280x720"}), cx.load_spec("tiny"))
    assert "finish" not in small.options and small.options["size"] == "64x64" and len(small.notes) == 1


def test_zhipu_rates(monkeypatch):
    values = {"prompt": "a star", "model": "cogvideox-3", "fps": 60, "size": "1920x1080"}
    monkeypatch.setattr(asking, "enlarges", lambda: True)
    monkeypatch.setattr(zhipu_api, "interpolates", lambda: True)
    found = zhipu_api.read_generation(dict(values), SPEC, Rules(strict=True))
    assert found.options["finish"] == {"fps": "60", "size": "1080x1920", "scale": 3} and not found.notes
    monkeypatch.setattr(zhipu_api, "interpolates", lambda: False)
    assert any("pip install" in note for note in zhipu_api.read_generation(dict(values), SPEC, Rules()).notes)
    with pytest.raises(Refused, match="makes 8 frames a second, not 60.*pip install"):
        zhipu_api.read_generation(dict(values), SPEC, Rules(strict=True))


def test_what_is_offered(monkeypatch):
    monkeypatch.setitem(UPSCALERS, "x4plus", UPSCALERS["x4plus"]._replace(places=()))
    assert "x4plus" not in offered()["upscalers"]


# --- the worker

ASKED = {"options": {"seed": 3, "steps": 1, "finish": {"scale": 2, "fps": "16"}}}


@pytest.fixture
def found_weights(monkeypatch, weights):  # noqa: F811
    def find(name, known):
        return Path(weights["upscaler" if name == "animevideov3" else "interpolator"])

    for module in (asking_of_finish, stream):
        monkeypatch.setattr(module, "find_weights", find)


@pytest.mark.full
def test_the_worker_has_sound_made(small, tmp_path):
    model, queue, store = small("2b")[1], Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)
    asked = {"options": {"seed": 3, "steps": 1}, "sound": True}
    for maker, heard, said in (
        ("tones", True, None),
        ("nobody:here", False, "the video is whole but for its sound: the maker of sound nobody:here failed"),
        (None, False, "the worker that made it has no maker of sound"),
    ):
        job = submit(queue, store, "a red circle", asked=asked)
        Worker(queue, store, Maker(model, Adapters(None), sound_from=maker), model="tiny").run(until_idle=True)
        done = queue.get(job.id)
        assert done.status == "completed", done.error_message
        assert has_sound(store.folder_of(job.id) / done.result) == heard
        notes = done.shown.get("notes", [])
        assert str(tmp_path) not in str(notes) and (any(said in note for note in notes) if said else not notes), notes


@pytest.mark.full
def test_the_worker_finishes(found_weights, small, tmp_path, monkeypatch):
    model, queue, store = small("2b")[1], Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)
    job = submit(queue, store, "a red circle", asked=ASKED)
    folder, progress = store.folder_of(job.id), Progress()
    out = folder / "video-1.mp4"
    Maker(model, Adapters(None))(job, folder, out, progress)
    request = request_of(model.spec, job.asked, folder)
    facts = finished_facts(request, request.frames)
    frames, fps = read_video(out)
    assert (f"{frames.shape[2]}x{frames.shape[1]}", len(frames), fps) == (facts["size"], facts["num_frames"], 16)
    live, rate = read_video(live_of(out))
    assert live.shape == frames.shape and rate == 16
    assert np.abs(np.float32(live) - frames).mean() < 6
    record = read_record(out)
    assert len(record.finished) == 1 and str(tmp_path) not in record.text
    assert sorted(path.name for path in folder.iterdir() if path.suffix == ".mp4") == sorted(
        [out.name, live_of(out).name]
    )

    def broken(job, *begin):
        raise MemoryError("no room")

    monkeypatch.setattr(finishing, "finished_pictures", broken)
    job = submit(queue, store, "a red circle", asked=ASKED)
    Worker(queue, store, Maker(model, Adapters(None)), model="tiny").run(until_idle=True)
    done = queue.get(job.id)
    assert done.status == "completed", done.error_message
    plain = read_video(store.folder_of(job.id) / done.result)[0]
    assert plain.shape == (request.frames, request.height, request.width, 3)
    assert done.shown["size"] == f"{request.width}x{request.height}"
    assert any("finishing failed: no room" in note for note in done.shown["notes"])


@pytest.mark.full
def test_the_worker_waits_for_room(found_weights, small, tmp_path):
    """The job goes back to the queue."""
    model, queue, store = small("2b")[1], Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)
    maker, sizes = Maker(model, Adapters(None)), []

    def make(job, folder, out, progress):
        with room(sizes[0] // 2) if sizes else contextlib.nullcontext():
            maker(job, folder, out, progress)
        sizes.append(out.stat().st_size)

    # The first has room: programs are compiled then, which are kept on the disk, too.
    first, second = (submit(queue, store, "a red circle", asked=ASKED) for _ in range(2))
    Worker(queue, store, make, model="tiny").run(until_idle=True)
    waiting = queue.get(second.id)
    assert queue.get(first.id).status == "completed" and len(sizes) == 1
    assert (waiting.status, waiting.stage) == ("queued", "waiting: the disk is full"), waiting.error_message
    assert not list(store.folder_of(second.id).glob("*.mp4"))
