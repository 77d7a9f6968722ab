"""What tests of the web page share: the page without a widget, over a queue of its own."""

import numpy as np

CIRCLE = "a red circle moves right on a white background"


def new_service(folder):
    """The service of a server for tiny that keeps videos for two hours; close its queue."""
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.serving.queue import Queue, Retention
    from cogvx_jax.serving.service import Rules, Service
    from cogvx_jax.serving.store import Store

    queue, rules = Queue(f"sqlite:///{folder}/queue.sqlite"), Rules(keep=Retention(age=7200.0))
    return Service(queue, Store(folder), model="tiny", spec=load_spec("tiny"), rules=rules)


def clip(path, frames=17, size=64):
    """The path of a video of noise that is written there."""
    from cogvx_jax.data.writer import VideoWriter

    with VideoWriter(path, fps=8) as writer:
        writer.write(np.random.default_rng(0).integers(0, 255, (frames, size, size, 3), np.uint8))
    return str(path)


# What a file of tests makes its fixtures of, as `service = pytest.fixture(a_service)`.


def a_service(tmp_path):
    made = new_service(tmp_path)
    yield made
    made.queue.close()


def a_desk(service):
    from cogvx_jax.serving.keys import Keys
    from cogvx_jax.serving.page.actions import Desk

    return Desk(service, Keys())
