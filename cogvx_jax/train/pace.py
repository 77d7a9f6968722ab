"""How often a run says, checks and keeps something."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pace:
    """Changes no number of a run. Raises: ValueError for numbers that cannot be."""

    validate_every: int = 200  # updates between validations; the state of the lowest loss is kept
    save_every: int = 200  # updates between checkpoints
    keep: int = 2  # newest checkpoints to keep
    log_every: int = 50  # updates that a line of the log is about
    tensorboard: bool = False  # write the curve to the run's folder "tensorboard", too (pip install tensorboardX)
    # processes that read batches ahead; 0 reads in threads of this one, which mostly suffices for encoded clips
    workers: int = 0

    def __post_init__(self):
        for name in ("validate_every", "save_every", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.workers < 0:
            raise ValueError(f"workers must be at least 0, got {self.workers}")
