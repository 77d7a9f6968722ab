"""Jobs that are alike, made together: who is taken, and that what one of them meets does not hurt the others."""

import dataclasses
import time

import pytest

pytest.importorskip("sqlalchemy", reason="the queue needs the extra `serve`")

from serving import fake, files_of, postgres_url, queue_url, submit  # noqa: F401

import cogvx_jax as cx
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.serving.adapters import Adapters
from cogvx_jax.serving.jobs import ALIKE
from cogvx_jax.serving.making_together import TogetherMaker
from cogvx_jax.serving.queue import Queue
from cogvx_jax.serving.stepping import STEPS
from cogvx_jax.serving.store import Store
from cogvx_jax.serving.worker import Progress, Stopped, Task, Worker


@pytest.fixture
def place(tmp_path):
    return Queue(f"sqlite:///{tmp_path}/queue.sqlite"), Store(tmp_path)


def several_jobs(place, *prompts, like="a", **how):
    return [submit(*place, prompt, asked={ALIKE: like}, **how) for prompt in prompts]


def test_those_are_taken_that_are_alike(queue_url, tmp_path):  # noqa: F811
    place = Queue(queue_url), Store(tmp_path)
    queue = place[0]
    first, second = several_jobs(place, "1", "2")
    (other,) = several_jobs(place, "3", like="b")
    (alone,) = several_jobs(place, "4", like=None)
    fourth, fifth = several_jobs(place, "5", "6")
    (urgent,) = several_jobs(place, "7", priority=1)
    job = queue.claim("me", "tiny")
    assert job.id == urgent.id
    assert queue.claim_like(job, 0) == []
    taken = queue.claim_like(job, 3)
    assert [one.id for one in taken] == [first.id, second.id, fourth.id]
    assert {(one.worker, one.status, one.attempts) for one in taken} == {("me", "running", 1)}
    assert queue.beat(taken[1]) and queue.complete(taken[0], result="v.mp4", size=1)
    assert [queue.claim("b", "tiny").id for _ in range(3)] == [other.id, alone.id, fifth.id]
    assert queue.claim_like(queue.get(alone.id), 5) == []


def test_one_that_was_begun_goes_on_alone(place):
    queue = place[0]
    first, second = several_jobs(place, "1", "2")
    job = queue.claim("me", "tiny")
    queue.beat(job, step=3, steps=9)
    queue.give_back(queue.get(first.id))
    job = queue.claim("me", "tiny")
    assert (job.id, job.step) == (first.id, 3) and queue.claim_like(job, 5) == []
    queue.give_back(job)
    queue.cancel(second.id)
    (third,) = several_jobs(place, "3", priority=1)
    job = queue.claim("me", "tiny")
    assert job.id == third.id and queue.claim_like(job, 5) == []


def fake_several(make, sizes):
    """Makes jobs one after the other, as far as anyone can tell from outside, with what ended each."""

    def several(tasks):
        sizes.append(len(tasks))
        for task in tasks:
            try:
                if task.job.asked["prompt"] == "fail":
                    raise ValueError("numbers are not finite")
                make(task.job, task.folder, task.out, task.progress)
            except Exception as error:
                yield task, error
            else:
                yield task, None

    return several


def run(place, several, make=None, **how):
    lines = []
    worker = Worker(*place, make or fake(), model="tiny", several=several, report=lines.append, **how)
    worker.run(until_idle=True)
    return lines


def test_each_has_its_own_end(place):
    queue, store, sizes = *place, []
    jobs = several_jobs(place, "1", "fail", "3", "4")
    run(place, fake_several(fake(seconds=0.0), sizes), at_a_time=3)
    assert sizes == [3]  # the fourth was alone, and is made as ever
    ended = [queue.get(job.id) for job in jobs]
    assert [job.status for job in ended] == ["completed", "failed", "completed", "completed"]
    assert ended[1].error_message == "numbers are not finite"
    assert files_of(store.folder_of(jobs[0].id)) == ["video-1.mp4"] and files_of(store.folder_of(jobs[1].id)) == []


def test_one_that_is_cancelled_ends_and_the_others_do_not(place):
    queue, sizes = place[0], []
    jobs = several_jobs(place, "1", "2")

    def make(job, folder, out, progress):
        if job.id == jobs[0].id:
            queue.cancel(jobs[1].id)
        until = time.monotonic() + 20
        while job.id == jobs[1].id and time.monotonic() < until:
            progress.check()
            time.sleep(0.01)
        out.write_text("video")

    run(place, fake_several(make, sizes), at_a_time=2, lease=1.0)
    assert [queue.get(job.id).status for job in jobs] == ["completed", "failed"]
    assert queue.get(jobs[1].id).error_code == "cancelled"


def test_a_mistake_of_ours_fails_those_that_are_left(place):
    queue = place[0]
    jobs = several_jobs(place, "1", "2", "3")

    def several(tasks):
        tasks[0].out.write_text("video")
        yield tasks[0], None
        raise RuntimeError("a mistake")

    lines = run(place, several, at_a_time=3)
    assert [queue.get(job.id).status for job in jobs] == ["completed", "failed", "failed"]
    assert any("a mistake" in line for line in lines)


def test_all_jobs_of_a_worker_that_dies_are_taken_by_others(place):
    queue = place[0]
    jobs = several_jobs(place, "1", "2", "3")
    job = queue.claim("dead", "tiny")
    assert len(queue.claim_like(job, 5)) == 2
    queue.died("dead")
    run(place, None)
    assert [(queue.get(job.id).status, queue.get(job.id).attempts) for job in jobs] == [("completed", 2)] * 3


# With a model.


class Told(Progress):
    """Keeps what is told, and is stopped before the step `after`."""

    def __init__(self, after=99, why=Stopped.LOST):
        super().__init__()
        self.after, self.why_then, self.told = after, why, []

    def tell(self, **columns):
        self.told.append(columns)
        if columns.get("step") == self.after:
            self.stop(self.why_then)
        super().tell(**columns)

    @property
    def steps(self):
        return [told["step"] for told in self.told if "step" in told]


@pytest.fixture(scope="module")
def exact(small):
    return dataclasses.replace(small("2b")[1], exact=True)


@pytest.fixture(scope="module")
def maker(exact):
    return TogetherMaker(exact, Adapters(None), width=3)  # the last one fills it up


PROMPTS = ("a red circle", "a blue star")


@pytest.fixture(scope="module")
def alone(exact, tmp_path_factory):
    """The videos' bytes, made alone."""
    files = [tmp_path_factory.mktemp("alone") / f"{seed}.mp4" for seed in (3, 4)]
    for seed, (prompt, file) in enumerate(zip(PROMPTS, files, strict=True), 3):
        cx.generate(exact, prompt, seed=seed, num_inference_steps=4, progress=False).save(file)
    return [file.read_bytes() for file in files]


def tasks_of(place, *progress, prompts=PROMPTS, steps=(4, 4)):
    queue, store, found = *place, []
    for seed, (prompt, told, count) in enumerate(zip(prompts, progress, steps, strict=True), 3):
        submit(queue, store, prompt, asked={"options": {"seed": seed, "steps": count}, ALIKE: "a"})
        job = queue.claim("me", "tiny")
        folder = store.folder_of(job.id)
        found.append(Task(job, folder, folder / job.file, told, time.monotonic(), time.monotonic()))
    return found


@pytest.mark.full
def test_videos_are_those_made_alone(place, maker, alone):
    tasks = tasks_of(place, Told(), Told())
    assert [(task.job.id, error) for task, error in maker.several(tasks)] == [(task.job.id, None) for task in tasks]
    for task, prompt, seed, own in zip(tasks, PROMPTS, (3, 4), alone, strict=True):
        record = read_record(task.out)
        assert (record.prompts, record.options["seed"]) == ((prompt,), seed)
        assert task.out.read_bytes() == own and task.progress.steps == [1, 2, 3, 4]


@pytest.mark.full
def test_a_cancelled_one_does_not_stop_the_other(place, maker, alone):
    tasks = tasks_of(place, Told(), Told(after=2))
    ends = dict(maker.several(tasks))
    assert ends[tasks[0]] is None and tasks[0].out.read_bytes() == alone[0]
    assert isinstance(ends[tasks[1]], Stopped) and not tasks[1].out.exists()
    assert not (tasks[1].folder / STEPS).exists()


@pytest.mark.full
def test_each_goes_on_alone_after_the_worker_ended(place, maker, alone):
    tasks = tasks_of(place, *[Told(after=3, why=Stopped.ENDING) for _ in range(2)])
    assert all(isinstance(error, Stopped) for _, error in maker.several(tasks))
    for task, own in zip(tasks, alone, strict=True):
        progress = Told()
        maker(task.job, task.folder, task.out, progress)
        assert progress.steps == [4] and task.out.read_bytes() == own


@pytest.mark.full
def test_what_cannot_be_made_together_is_made_alone(place, maker, alone, monkeypatch, capsys):
    prompts, steps = (*PROMPTS, "other steps", "bad"), (4, 4, 5, 0)
    tasks = tasks_of(place, *[Told() for _ in prompts], prompts=prompts, steps=steps)

    def fails(self, begun):
        raise ValueError("out of memory")

    monkeypatch.setattr(TogetherMaker, "_sample", fails)
    ends = {task.job.asked["prompt"]: error for task, error in maker.several(tasks)}
    assert "steps must be" in str(ends.pop("bad")) and set(ends.values()) == {None}
    assert [task.out.read_bytes() for task in tasks[:2]] == alone
    assert "made one by one" in capsys.readouterr().err
