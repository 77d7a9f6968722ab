"""Words between the processes of a run, by the service through which JAX joined them.

No device takes part, so a process may wait for a word for hours, and one that waits still answers signals. What the
devices compute together stays in step because every process comes to the same calls in the same order.
"""

import time

from jax._src import distributed  # the service's client has no public name

SLICE = 1.0  # seconds of one wait: only between two of them Python handles signals
LATE, ABSENT = "DEADLINE_EXCEEDED", "NOT_FOUND"  # how errors of the client begin


class ProcessLost(RuntimeError):
    """Another process of the run has ended, or does not come to where this one waits for it."""


class Exchange:
    """Words under a name, between the processes that `initialize` has joined.

    Words are kept by the service until all processes have come to the next `of_each`.

    Args:
      name: of these words; the same in all processes, and used once in a run.
    """

    def __init__(self, name: str):
        state = distributed.global_state
        if state.client is None:
            raise ValueError("words are exchanged by processes that have joined; call initialize() before")
        self._client, self._name = state.client, name
        self.index, self.count = state.process_id, state.num_processes
        self._round, self._said = 0, 0  # calls of `of_each`, and of `of_first` since the last one

    def of_first(self, word: str = "") -> str:
        """The first process's word, in all of them; the first one does not wait. Raises: ProcessLost."""
        self._said += 1
        key = f"{self._name}/{self._round}/{self._said}"
        if self.index:
            return self._get(key, None)
        self._set(key, word)
        return word

    def of_each(self, word: str, at: str, patience: float | None = None) -> list[str]:
        """The words of all processes, in their order, once every one has come here.

        Args:
          at: a name of this point of the program: processes that have come to different ones do not meet.
          patience: seconds to wait for each of the others; None is without a bound.
        Raises: ProcessLost.
        """
        place = f"{self._name}/{self._round}/{at}"
        self._set(f"{place}/{self.index}", word)
        words = [self._get(f"{place}/{other}", patience) for other in range(self.count)]
        if self.index == 0 and self._round:
            self._client.key_value_delete(f"{self._name}/{self._round - 1}/")  # which all have read
        self._round, self._said = self._round + 1, 0
        return words

    def call(self) -> None:
        """Says in passing that the first process should look up; `is_called` tells it."""
        self._set(f"{self._name}/called/{self.index}", "")

    def is_called(self) -> bool:
        """Whether a process has called. Raises: ProcessLost."""
        try:
            return bool(self._client.key_value_dir_get(f"{self._name}/called/"))
        except RuntimeError as error:
            if str(error).startswith(ABSENT):
                return False
            raise _lost(error) from error

    def _set(self, key: str, word: str) -> None:
        try:
            self._client.key_value_set(key, f"={word}", allow_overwrite=True)  # no word is empty for the service
        except RuntimeError as error:
            raise _lost(error) from error

    def _get(self, key: str, patience: float | None) -> str:
        until = None if patience is None else time.monotonic() + patience
        while True:
            try:
                return self._client.blocking_key_value_get(key, round(SLICE * 1000))[1:]
            except RuntimeError as error:
                if not str(error).startswith(LATE):
                    raise _lost(error) from error
                if until is not None and time.monotonic() > until:
                    raise ProcessLost(f"another process of this run did not come within {patience:g} s") from None


def _lost(error: RuntimeError) -> ProcessLost:
    return ProcessLost(f"another process of this run can't be reached ({str(error).partition(chr(10))[0][:200]})")
