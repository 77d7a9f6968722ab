"""The steps of a video that is sampled, kept in a file beside it: the same command goes on where it was stopped."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from cogvx_jax.cli import signals
from cogvx_jax.cli.options import report
from cogvx_jax.pipelines.seldom import Seldom

if TYPE_CHECKING:
    from cogvx_jax.pipelines.on_step import Step
    from cogvx_jax.pipelines.saved_steps import SavedSteps

EVERY = 5.0  # seconds of sampling after which its steps are kept, though no signal came
SHARE = 1 / 20  # of the time that keeping them takes at most


class Keeper:
    """A function for `on_step` that keeps steps in a file, now and then and where a signal comes.

    As a context it holds signals from the first step to the block's end, so that each finds a whole step.
    """

    def __init__(self, out: Path):
        self.file, self._out = steps_file(out), out
        self._seldom, self._said = Seldom(SHARE, EVERY), ""
        self._ends = contextlib.ExitStack()
        self._signalled: Callable[[], bool] | None = None

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ends.__exit__(kind, error, trace)

    def __call__(self, step: "Step") -> None:
        """Keeps a step where it is time to. Raises: Signalled."""
        if self._signalled is None:
            said = "the step ends first, to be kept; a second signal ends at once"
            self._signalled = self._ends.enter_context(signals.held(said))
        if self._signalled():
            if self._keep(step):
                report(f"{step.number} of {step.count} steps of {self._out} are kept; the same command goes on")
            self._ends.close()  # raises what came
        if step.number < step.count and self._seldom.due():
            self._keep(step)

    def forget(self) -> None:
        """Removes the file, once what it leads to is kept."""
        self.file.unlink(missing_ok=True)

    def _keep(self, step: "Step") -> bool:
        try:
            with self._seldom.doing():
                step.save(self.file)
        except OSError as error:  # sampling may still end well
            said = f"the steps of {self._out} could not be kept ({error})"
            if said != self._said:
                report(said)
            self._said = said
            return False
        return True


def steps_file(out: Path) -> Path:
    """Where the steps of a video are kept."""
    from cogvx_jax.pipelines.saved_steps import SUFFIX

    return out.with_name(f"{out.name}{SUFFIX}")


def earlier_steps(out: Path) -> "SavedSteps | None":
    """What an earlier run of a video kept; None where it kept nothing. Raises: ValueError for a damaged file."""
    from cogvx_jax.pipelines.saved_steps import read_steps

    file = steps_file(out)
    return read_steps(file) if file.exists() else None
