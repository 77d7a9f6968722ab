"""What a person sees of a run's updates, and when they have gone wrong too often."""

import contextlib
import dataclasses
import io
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import optax

from cogvx_jax.sharding import first_process
from cogvx_jax.storage import StoragePath, write_whole
from cogvx_jax.train.curve import Curve
from cogvx_jax.train.mfu import utilisation
from cogvx_jax.train.placement import names

Row = dict[str, float]  # metrics of an update, see `step.step`


# what is exported -> losses by name; where one is named "loss", it is the one that counts, else their mean
Validate = Callable[[Any], dict[str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Updates of a stage of a run."""

    steps: int  # done when it ends
    start: int = 0  # done when it begins. The best state is the best of a stage: on other clips, losses are others
    end: int | None = None  # done when the last stage of the run ends; None is `steps`

    @property
    def end_of_run(self) -> int:
        return self.steps if self.end is None else self.end


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watch:
    """What is told of a stage's updates, beside their losses."""

    tokens: int = 0  # of an update, 0 if not known
    flops: int = 0  # of an update, 0 if not known; see `models.flops.training_flops`
    rate: optax.Schedule | None = None  # learning rate by updates done before, to be logged
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what each line of the log says, too
    validate: Validate | None = None  # logged when `Pace` says; the best state is kept in the folder "best"
    show: Callable[[Any, int], None] | None = None  # called with what is exported and the updates done
    show_every: int = 1000  # updates, and after the last one
    patience: int = 10  # updates in a row without a finite loss and gradient, after which training ends


class Progress:
    """Prints and logs the metrics of updates, and counts those that were not finite.

    An update's metrics are read when the next one is on its way to the devices, so that they need not wait for the
    host in between: all that is said here is said one update late. When an update was computed is noted in a thread of
    its own: the time when it is read is another.

    Args:
      folder: of the run.
      every: updates that a line is about.
      seed: of the run, to be saved with a batch.
      devices: that compute an update together.
    """

    def __init__(
        self,
        folder: StoragePath,
        curve: Curve,
        span: Span,
        watch: Watch,
        *,
        every: int,
        seed: int,
        devices: int = 1,
    ):
        self._folder, self._curve, self._span, self._watch = folder, curve, span, watch
        self._every, self._seed, self._devices = every, seed, devices
        self._waiting: deque[tuple[int, Any, Any, Future[float]]] = deque()  # updates whose metrics were not read yet
        self._clock = ThreadPoolExecutor(1, "computed")
        self._rows: list[Row] = []
        self._unsound = 0
        self._since = time.monotonic()

    def add(self, step: int, batch: Any, metrics: Mapping[str, jax.Array]) -> None:
        """Takes update `step`, counted from 0, which may not be computed yet, and reads the one before.

        Raises: ValueError where too many in a row were not finite; the last one's batch is then in the folder.
        """
        self._waiting.append((step, batch, metrics, self._clock.submit(_computed, metrics)))
        if len(self._waiting) > 1:
            self._next()

    def catch_up(self) -> None:
        """Reads all there is, which waits for the devices. Raises: as `add`."""
        while self._waiting:
            self._next()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """After all is read, a time that does not count for the pace."""
        self.catch_up()
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def _next(self) -> None:
        step, batch, metrics, computed = self._waiting.popleft()
        row, done = read(metrics), step + 1
        self._rows.append(row)
        self._unsound = 0 if row["sound"] else self._unsound + 1
        if self._unsound == self._watch.patience:
            raise ValueError(_unsound(self._folder, batch, step, self._seed, self._watch.patience))
        if done % self._every == 0 or done == self._span.steps:
            self._say(done, computed.result())

    def _say(self, done: int, now: float) -> None:
        seconds = max(now - self._since, 1e-9) / len(self._rows)
        found, mfu = summary(self._rows), utilisation(self._watch.flops, seconds, self._devices)
        if self._watch.rate is not None:
            found["learning_rate"] = float(self._watch.rate(done - 1))
        found["seconds_per_step"] = float(f"{seconds:.4g}")
        about = ({} if mfu is None else {"mfu": round(mfu, 4)}) | dict(self._watch.about)
        self._curve.add(done, found | about)
        say(line(self._folder.name, done, self._span.end_of_run, self._rows, seconds, self._watch.tokens, mfu))
        self._rows, self._since = [], now


def _computed(metrics: Mapping[str, jax.Array]) -> float:
    """When they were."""
    jax.block_until_ready(metrics)
    return time.monotonic()


def read(metrics: Mapping[str, jax.Array]) -> Row:
    """Numbers on the host, once they are computed; every device has them."""
    return {name: float(value) for name, value in metrics.items()}


def line(
    name: str, done: int, steps: int, rows: list[Row], seconds: float, tokens: int = 0, mfu: float | None = None
) -> str:
    """About the updates in `rows`, each of which took `seconds`."""
    found = summary(rows)
    loss = "not finite" if found["loss"] is None else f"{found['loss']:.5f}"
    text = f"{name} {done}/{steps} loss {loss}, {1 / seconds:.3g} steps/s"
    text += f", {tokens / seconds:,.0f} tokens/s" if tokens else ""
    text += f", MFU {mfu:.1%}" if mfu is not None else ""
    left = round((steps - done) * seconds)
    text += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
    return text + (f"; {found['skipped']} updates skipped, not finite" if "skipped" in found else "")


def summary(rows: list[Row]) -> dict[str, Any]:
    """Means and last gradient norm of the sound updates, None where there is none; the number of others."""
    sound = [row for row in rows if row["sound"]]
    means = ["loss", *(name for name in rows[-1] if name not in ("loss", "grad_norm", "sound"))]
    found = {name: float(np.mean([row[name] for row in sound])) if sound else None for name in means}
    found["grad_norm"] = sound[-1]["grad_norm"] if sound else None
    return found | ({"skipped": len(rows) - len(sound)} if len(sound) < len(rows) else {})


def say(text: str) -> None:
    """Prints at once; of several processes the first one alone."""
    if first_process():
        print(text, flush=True)


def _unsound(folder: StoragePath, batch: Any, step: int, seed: int, patience: int) -> str:
    """Saves the batch of a step, each process what it read of it; the sentence that says so."""
    processes = jax.process_count()
    file = folder / (f"batch-{step}.npz" if processes == 1 else f"batch-{step}-{jax.process_index()}.npz")
    leaves: dict[str, Any] = {"/".join(names(path)) or "batch": x for path, x in jax.tree.leaves_with_path(batch)}
    data = io.BytesIO()
    np.savez(data, **leaves | {"step": step, "seed": seed})
    write_whole(file, data.getvalue())
    where = file.name if processes == 1 else f"batch-{step}-0.npz to batch-{step}-{processes - 1}.npz"
    return (
        f"{folder}: {patience} updates in a row had a loss or gradient that is not finite; the batch of the last is in "
        f"{where}, its step and seed give the key: check the data, or begin in another folder with a lower rate"
    )
