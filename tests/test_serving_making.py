"""How a worker makes a job's video with a loaded model."""

import dataclasses
import warnings

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")

from serving import submit

import cogvx_jax as cx
from cogvx_jax.data.writer import VideoWriter
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.serving.adapters import Adapters
from cogvx_jax.serving.making import Maker
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.stepping import STEPS, animation
from cogvx_jax.serving.store import Store
from cogvx_jax.serving.worker import Progress, Stopped, Worker

ASKED = {"options": {"seed": 3, "steps": 4}}


@pytest.fixture
def place(tmp_path):
    return Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)


@pytest.fixture(scope="module")
def model(small):
    return small("2b")[1]


def work(place, make):
    Worker(*place, make, model="tiny").run(until_idle=True)


def test_the_video_is_that_of_generate(place, model, tmp_path):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED)
    work(place, Maker(model, Adapters(None)))
    done = queue.get(job.id)
    assert done.status == "completed", done.error_message
    cx.generate(model, "a red circle", seed=3, num_inference_steps=4, progress=False).save(tmp_path / "own.mp4")
    assert (store.folder_of(job.id) / done.result).read_bytes() == (tmp_path / "own.mp4").read_bytes()


def test_the_record_tells_no_place_of_the_server(place, model):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED | {"files": {"video": "video.mp4"}})
    with VideoWriter(store.folder_of(job.id) / "video.mp4", 8) as writer:
        writer.write(np.zeros((9, 32, 48, 3), np.uint8))
    work(place, Maker(model, Adapters(None)))
    done = queue.get(job.id)
    assert done.status == "completed", done.error_message
    record = read_record(store.folder_of(job.id) / done.result)
    assert (record.prompt, record.options["video"], record.options["seed"]) == ("a red circle", "video.mp4", 3)
    assert str(store.folder) not in record.text


def test_what_is_warm_compiles_nothing(place, model):
    """The stage of a job of that size is sampling at once."""
    queue, store = place
    make, progress = Maker(model, Adapters(None)), Ends(after=100)
    make.warm(["own"])
    job = submit(queue, store, "a red circle", asked=ASKED)
    make(job, store.folder_of(job.id), store.folder_of(job.id) / "video-1.mp4", progress)
    stages = [told["stage"] for told in progress.told]
    assert stages[0] == "sampling" and "compiling" not in stages
    for size, said in (("big", "HEIGHTxWIDTHxFRAMES"), ("33x48x9", "multiple of 16")):
        with pytest.raises(ValueError, match=said):
            make.warm([size])


class Warns(Maker):
    """Makes nothing, and warns."""

    def _make(self, job, folder, out, progress):
        warnings.warn(f"{folder}/control.mp4 is short", stacklevel=2)
        out.write_bytes(b"video")


def test_what_a_worker_warns_of_is_noted(place, model):
    queue, store = place
    job = submit(queue, store, "p", shown={"notes": ["lossy"]})
    with pytest.warns(UserWarning, match="is short"):
        work(place, Warns(model, Adapters(None)))
    assert queue.get(job.id).shown["notes"] == ["lossy", "control.mp4 is short"]


def test_what_the_model_does_not_take_fails(place, model):
    queue, store = place
    job = submit(queue, store, "a red circle", asked={"options": {"frames": 10}})
    work(place, Maker(model, Adapters(None)))
    assert "8N+1" in queue.get(job.id).error_message


class Ends(Progress):
    """Lets the worker end after some steps."""

    def __init__(self, after):
        super().__init__()
        self.after, self.told = after, []

    def tell(self, **columns):
        self.told.append(columns)
        if columns.get("step") == self.after - 1:
            self.stop(Stopped.ENDING)
        super().tell(**columns)


def test_a_worker_that_ends_saves_its_steps_and_another_goes_on(place, model, tmp_path):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED)
    folder, whole, gone_on = store.folder_of(job.id), tmp_path / "whole.mp4", tmp_path / "gone_on.mp4"
    make = Maker(model, Adapters(None))
    make(job, folder, whole, Progress())
    first = Ends(after=3)
    with pytest.raises(Stopped):
        make(job, folder, gone_on, first)
    assert (folder / STEPS).exists() and not gone_on.exists()
    second = Ends(after=100)
    make(job, folder, gone_on, second)
    steps = [told["step"] for told in second.told if "step" in told]
    assert steps and steps[0] > 1 and steps[-1] == 4  # not from the beginning
    assert gone_on.read_bytes() == whole.read_bytes()


def test_saved_steps_of_another_request_are_passed_over(place, model, tmp_path, capsys):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED)
    other = dataclasses.replace(job, asked=dict(job.asked) | {"prompt": "a blue star"})
    make, folder = Maker(model, Adapters(None)), store.folder_of(job.id)
    with pytest.raises(Stopped):
        make(other, folder, tmp_path / "a.mp4", Ends(after=3))
    progress = Ends(after=100)
    make(job, folder, tmp_path / "b.mp4", progress)
    assert [told["step"] for told in progress.told if "step" in told] == [1, 2, 3, 4]
    assert "begins anew" in capsys.readouterr().err


def test_a_cancelled_job_ends_between_steps(place, model, tmp_path):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED)

    class Cancelled(Ends):
        def tell(self, **columns):
            if columns.get("step") == 2:
                self.stop(Stopped.LOST)
            super().tell(**columns)

    with pytest.raises(Stopped):
        Maker(model, Adapters(None))(job, store.folder_of(job.id), tmp_path / "a.mp4", Cancelled(after=100))
    assert not (store.folder_of(job.id) / STEPS).exists()


def test_previews_are_told(place, model, tmp_path):
    queue, store = place
    job = submit(queue, store, "a red circle", asked=ASKED)
    shown, progress = [], Ends(after=100)

    def preview(step):
        shown.append(step.number)
        return np.zeros((1, 3, 4, 6, 3), np.uint8)

    Maker(model, Adapters(None), preview=preview)(job, store.folder_of(job.id), tmp_path / "a.mp4", progress)
    previews = [told["preview"] for told in progress.told if "preview" in told]
    assert shown and len(previews) == len(shown) and previews[0][8:12] == b"WEBP"


def test_a_large_animation_becomes_a_picture():
    noise = np.random.default_rng(0).integers(0, 255, (20, 120, 160, 3), np.uint8)
    assert animation(noise[:1, :8, :8])[8:12] == b"WEBP"
    assert len(animation(noise)) < 64 * 2**10
