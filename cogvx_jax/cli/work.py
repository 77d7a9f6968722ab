"""`cogvx work`: a worker, which makes the videos that a queue holds."""

import contextlib
import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cogvx_jax.cli.errors import of_another_process, sentence
from cogvx_jax.cli.options import GivenFlags, ModelFlags, RunFlags, check_maker, check_memory, parse_lora, report
from cogvx_jax.pipelines.memory_modes import AUTO
from cogvx_jax.pipelines.options import Sampling

if TYPE_CHECKING:
    from cogvx_jax.given import Given
    from cogvx_jax.pipelines.model import Model
    from cogvx_jax.serving.crew import Leader
    from cogvx_jax.serving.making_together import TogetherMaker
    from cogvx_jax.serving.queue import Queue
    from cogvx_jax.serving.store import Store

# Imports that take seconds, of jax and flax, come inside: the arguments are checked first.

NO_FLAG: Any = (tyro.conf.Fixed, tyro.conf.Suppress)
TELL = "COGVX_TELL"  # of the environment: a file descriptor on which a worker tells its server how far it is
READY = "ready"  # what it says there when it has a model; before, its number where it is one of several processes
MOST_NICE = 19
LEAST_HEARTBEAT = 10  # seconds; a lease may be shorter
EXTRA = "needs packages that are not installed: `pip install 'cogvx_jax[serve]'` brings them"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """What server and workers share.

    Args:
      store: the folder that holds the jobs' files, the same one for all machines unless there are --results.
      results: a bucket such as gs://NAME/videos that holds the jobs' files; --store is of this machine alone then.
      queue: sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/NAME; None is the file queue.sqlite in the store,
        for one machine. It may stand in the variable COGVX_QUEUE, where no list of processes shows the password.
      loras: a folder of LoRAs that requests may name; "tiny-fast" is there without one.
      controlnets: a folder of ControlNets that requests may name.
      toras: a folder of folders with Tora's two files, which requests may name.
      calibrations: a folder of files of `cogvx calibrate` that requests may name.
    """

    store: Path = Path("cogvx-videos")
    results: str | None = None
    queue: str | None = None
    loras: Path | None = None
    controlnets: Path | None = None
    toras: Path | None = None
    calibrations: Path | None = None

    @property
    def parts(self) -> dict[str, Path | None]:
        """Of the options of `adapters.PARTS` their folders."""
        return {"controlnet": self.controlnets, "tora": self.toras, "calibration": self.calibrations}

    @property
    def url(self) -> str:
        """Of the queue. The store's folder is made where the queue lies in it."""
        given = self.queue or os.environ.get("COGVX_QUEUE")
        if given is not None:
            return given
        self.store.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{self.store.absolute()}/queue.sqlite"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkFlags(RunFlags, StoreFlags):
    """How a worker makes videos.

    Args:
      lease: seconds after which another worker takes over, if this one is not heard of.
      save_every: seconds of sampling after which its state is saved, for another worker to go on from.
      warm: compile for videos of HEIGHTxWIDTHxFRAMES before the first job, such as 480x720x49; own is the model's size.
      previews: show what is sampled while it is; takes a fiftieth of the time at most.
      nice: by how much other processes of this machine go first, 0 to 19: a server answers while programs compile.
      until_idle: end when no job waits.
      distributed: this is one of several processes, one a host, that run the same command and make each video together,
        as for `generate`. The first one talks to the queue.
    """

    # A job has its own file and prompt, and is looked at between its steps.
    out: Annotated[Path, *NO_FLAG] = RunFlags.out
    one_program: Annotated[bool, *NO_FLAG] = RunFlags.one_program
    keep_steps: Annotated[bool, *NO_FLAG] = RunFlags.keep_steps
    preview: Annotated[Path | None, *NO_FLAG] = RunFlags.preview
    progress: Annotated[bool, *NO_FLAG] = RunFlags.progress
    enhance_prompt: Annotated[bool, *NO_FLAG] = RunFlags.enhance_prompt
    llm: Annotated[str | None, *NO_FLAG] = RunFlags.llm
    lease: float = 30.0
    save_every: float = 60.0
    warm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    previews: bool = True
    nice: int = 5
    until_idle: bool = False
    distributed: bool = False


def work(
    *,
    run: Annotated[WorkFlags, tyro.conf.OmitArgPrefixes] = WorkFlags(),  # noqa: B008
    given: ModelFlags = GivenFlags(),  # noqa: B008
) -> None:
    """Makes the videos that a queue holds, one after the other, until SIGTERM.

    SIGTERM gives the job at hand back, from where another worker goes on. Ctrl-C gives it back at once.
    """
    about = given.checked()
    _check(run)
    if hasattr(os, "nice"):  # before any thread begins
        os.nice(run.nice)
    with serving_packages("work"):
        from cogvx_jax.serving.bucket import open_store
        from cogvx_jax.serving.queue import Queue
    from cogvx_jax.pipelines.model import load_spec
    from cogvx_jax.sharding import first_process, initialize, process_index

    if run.distributed:
        initialize(heartbeat=max(LEAST_HEARTBEAT, round(run.lease)))
        _tell(str(process_index()))
    queue = Queue(run.url) if not run.distributed or first_process() else None  # the others need none
    store = open_store(run.store, run.results)
    spec = load_spec(run.model, about)  # one that is not there is said before it is loaded
    from cogvx_jax.pipelines.previews import Preview
    from cogvx_jax.pipelines.request import check_sampling
    from cogvx_jax.serving.adapters import Adapters, find_parts
    from cogvx_jax.serving.making import warm_options
    from cogvx_jax.serving.making_together import TogetherMaker

    adapters, parts = Adapters(run.loras), find_parts(**run.parts)
    for size in run.warm:
        check_sampling(spec, warm_options(spec, size))
    model = load_model(run, about)
    preview = Preview(model) if run.previews else None  # which is fitted to the model's colours once
    width = 1 if model.mesh is None or run.distributed else model.mesh.shape.get("data", 1)
    how: dict[str, Any] = dict(record=run.record, parts=parts, width=width, sound_from=run.sound_from)
    maker = TogetherMaker(model, adapters, run.save_every, preview, **how)
    maker.warm(run.warm)
    _tell(READY)
    if run.distributed:
        _work_together(run, maker, store, queue)
    else:
        assert queue is not None
        _work(run, maker, store, queue)


def _tell(word: str) -> None:
    """Tells the server that started this worker, where one did."""
    if (handle := os.environ.get(TELL, "")).isdecimal():
        os.set_inheritable(int(handle), False)
        with contextlib.suppress(OSError):  # it has ended
            os.write(int(handle), f"{word}\n".encode())


def _check(run: WorkFlags) -> None:
    """Raises: ValueError for flags that cannot be, before anything is begun."""
    check_memory(run.memory)
    check_maker(run.sound_from)
    check_nice(run.nice)
    check_lease(run.lease, run.save_every)
    check_together(run)


def check_nice(nice: int) -> None:
    """Raises: ValueError for what is no such number."""
    if not 0 <= nice <= MOST_NICE:
        raise ValueError(f"--nice must be from 0 to {MOST_NICE}, got {nice}")


def check_together(run: WorkFlags) -> None:
    """Raises: ValueError for several processes without a mesh over all of them."""
    if run.distributed and run.mesh is None:
        raise ValueError("--distributed needs --mesh: without one, every process would make videos on its own")


def _work(
    run: WorkFlags, make: "TogetherMaker", store: "Store", queue: "Queue", leader: "Leader | None" = None
) -> None:
    """A worker's life, in the process that talks to the queue. Raises: Lost."""
    from cogvx_jax.serving.worker import Worker
    from cogvx_jax.sharding.aborts import say_if_aborted
    from cogvx_jax.sharding.processes import LOST

    how: dict[str, Any] = dict(describe=sentence, lease=run.lease, report=report, name=_own_name())
    if leader is None:
        how |= dict(several=make.several, at_a_time=make.width)
    else:
        how["progress"] = leader.progress
    worker = Worker(queue, store, leader or make, model=run.model, **how)
    if leader is not None:
        say_if_aborted(LOST, lambda: queue.died(worker.name))
    report(f"worker {worker.name} makes videos with {run.model}")
    with sigterm(worker.end), contextlib.nullcontext() if leader is None else leader.leading(worker.end):
        worker.run(until_idle=run.until_idle)
    report(f"worker {worker.name} has ended")


def _work_together(run: WorkFlags, make: "TogetherMaker", store: "Store", queue: "Queue | None") -> None:
    """The part of one of several processes. Raises: ValueError where another one is lost."""
    from cogvx_jax.serving.crew import NAME, Leader, follow
    from cogvx_jax.serving.worker import Lost
    from cogvx_jax.sharding import Exchange, ProcessLost

    exchange = Exchange(NAME)
    try:
        if queue is not None:
            _work(run, make, store, queue, Leader(make, exchange, of_another_process))
            return
        report(f"process {exchange.index} of {exchange.count} makes with the others what the first one takes")
        with sigterm(exchange.call):
            follow(make, store, exchange, sentence, report)
    except (Lost, ProcessLost) as error:
        raise ValueError(f"another process of this worker has ended; its job waits again ({error})") from error


def check_lease(lease: float, save_every: float) -> None:
    """Raises: ValueError for seconds that are none."""
    if not 1 <= lease <= 3600:
        raise ValueError(f"--lease must be from 1 to 3600 seconds, got {lease:g}")
    if not save_every > 0:
        raise ValueError(f"--save-every must be above 0 seconds, got {save_every:g}")


@contextlib.contextmanager
def serving_packages(verb: str) -> Iterator[None]:
    """Around imports: says which packages are missing. Raises: ValueError."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cogvx_jax"):
            raise
        raise ValueError(f"cogvx {verb} {EXTRA} ({error.name} is missing)") from None


def load_model(run: RunFlags, about: "Given") -> "Model":
    """The model that the flags stand for, with its LoRAs. Raises: as `load` and `load_lora`."""
    from cogvx_jax.pipelines.lora import find_lora, load_lora, stack_loras
    from cogvx_jax.pipelines.model import load, load_spec
    from cogvx_jax.planning.plan import choose
    from cogvx_jax.sharding import parse_mesh

    spec = load_spec(run.model, about)
    memory: Any = run.memory
    adapters = [(find_lora(path, spec), weight) for path, weight in map(parse_lora, run.lora)]
    devices: Any = run.mesh if run.mesh in (None, AUTO) else parse_mesh(run.mesh)
    if AUTO in (run.mesh, memory):
        how = dict(dtype=run.dtype, quantize=run.quantize, mesh=devices, memory=memory)
        devices, memory = choose(run.model, sampling=Sampling(), report=report, **how)  # type: ignore[arg-type]
    # To a quantised model's kernels nothing can be added later.
    first = None if run.quantize is None else stack_loras(adapters)
    how = dict(dtype=run.dtype, mesh=devices, quantize=run.quantize, lora=first, memory=memory)
    model = load(run.model, **how, **vars(about))  # type: ignore[arg-type]
    for adapter, weight in adapters if run.quantize is None else ():
        model = load_lora(model, adapter, weight)
    return dataclasses.replace(model, exact=True) if run.exact else model


@contextlib.contextmanager
def sigterm(end: Callable[[], None]) -> Iterator[None]:
    """Inside, a first SIGTERM calls `end`; a second one ends as Ctrl-C does.

    Where COGVX_PARENT is set, the end of standard input counts as a SIGTERM: whoever started this has ended.
    """

    def handle(number: int, frame: object) -> None:
        signal.signal(number, before)
        report("SIGTERM: ends after this step")
        end()

    if os.environ.get("COGVX_PARENT"):
        threading.Thread(target=_end_with_parent, args=(end,), name="parent", daemon=True).start()
    before: Any = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with_parent(end: Callable[[], None]) -> None:
    # Not of sys.stdin: a thread that still waits in its buffer when Python ends takes the process down.
    with contextlib.suppress(OSError):  # closed already
        while os.read(0, 4096):
            pass
    end()


def _own_name() -> str | None:
    """The name under which whoever started this worker knows it."""
    return os.environ.get("COGVX_WORKER") or None
