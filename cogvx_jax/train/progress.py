"""What a person sees of a run's updates, and when they have gone wrong too often."""

import contextlib
import io
import time
from collections import deque
from collections.abc import Iterator, Mapping
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


class Progress:
    """Prints and logs the metrics of updates, and counts those that were not finite.

    An update's metrics are read when the next one is on its way to the devices, so that they need not wait for the
    host in between: all that is said here is said one update late.

    Args:
      folder: of the run.
      steps: updates of the whole run.
      stop: updates after which this part of it ends, which a line says.
      every: updates that a line is about.
      tokens, flops: of an update, 0 if not known; see `models.flops.training_flops`.
      devices: that compute it together.
      rate: learning rate by updates done before, to be logged.
      seed: of the run, to be saved with a batch.
      patience: updates in a row without a finite loss and gradient that end the run.
      about: what each line of the log says, too.
    """

    def __init__(
        self,
        folder: StoragePath,
        curve: Curve,
        *,
        steps: int,
        stop: int,
        every: int,
        patience: int,
        seed: int,
        tokens: int = 0,
        flops: int = 0,
        devices: int = 1,
        rate: optax.Schedule | None = None,
        about: Mapping[str, Any] | None = None,
    ):
        self._folder, self._curve, self._steps, self._every = folder, curve, steps, every
        self._stop, self._about = stop, dict(about or {})
        self._patience, self._seed, self._rate = patience, seed, rate
        self._tokens, self._flops, self._devices = tokens, flops, devices
        self._waiting: deque[tuple[int, Any, Any]] = deque()  # updates whose metrics were not read yet
        self._rows: list[Row] = []
        self._unsound = 0
        self._since = time.monotonic()

    def add(self, step: int, batch: Any, metrics: Mapping[str, jax.Array]) -> None:
        """Takes update `step`, counted from 0, which may not be computed yet, and reads the one before.

        Raises: ValueError where too many in a row were not finite; the last one's batch is then in the folder.
        """
        self._waiting.append((step, batch, metrics))
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
        step, batch, metrics = self._waiting.popleft()
        row, done = read(metrics), step + 1
        self._rows.append(row)
        self._unsound = 0 if row["sound"] else self._unsound + 1
        if self._unsound == self._patience:
            raise ValueError(_unsound(self._folder, batch, step, self._seed, self._patience))
        if done % self._every == 0 or done == self._stop:
            self._say(done)

    def _say(self, done: int) -> None:
        seconds = (time.monotonic() - self._since) / len(self._rows)
        found, mfu = summary(self._rows), utilisation(self._flops, seconds, self._devices)
        if self._rate is not None:
            found["learning_rate"] = float(self._rate(done - 1))
        found["seconds_per_step"] = round(seconds, 4)
        self._curve.add(done, found | ({} if mfu is None else {"mfu": round(mfu, 4)}) | self._about)
        say(line(self._folder.name, done, self._steps, self._rows, seconds, self._tokens, mfu))
        self._rows, self._since = [], time.monotonic()


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
