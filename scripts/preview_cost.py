"""What a worker's previews take of its time."""

import tempfile
import time
from pathlib import Path
from typing import Any

PROMPT = "a red circle moves right on a white background"


def preview_cost(steps: int) -> tuple[float, float]:
    """Of the small model: the share of sampling that previews take, and one preview as a part of a step.

    As in a worker: previews are as seldom as `stepping.SHARE` has it. Programs are compiled before.
    """
    from cogvx_jax.pipelines.model import load
    from cogvx_jax.pipelines.options import Options
    from cogvx_jax.pipelines.previews import Preview
    from cogvx_jax.pipelines.request import check_request
    from cogvx_jax.serving.stepping import Stepping
    from cogvx_jax.serving.worker import Progress

    model = load("tiny")
    request, preview = check_request(model.spec, PROMPT, Options(steps=steps, seed=0)), Preview(model)

    class Timed(Stepping):
        """Notes how long each preview took that was shown."""

        def _shown(self, step: Any) -> bytes | None:
            began = time.monotonic()
            shown = super()._shown(step)
            if shown is not None:
                took.append(time.monotonic() - began)
            return shown

    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):  # the first time compiles
            took: list[float] = []
            stepping = Timed(Path(folder), Progress(), save_every=1e9, preview=preview)
            began = time.monotonic()
            stepping.sample(model, request)
            seconds = time.monotonic() - began
    return sum(took) / seconds, sum(took) / len(took) / (seconds / steps)
