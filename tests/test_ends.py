"""How the command ends: signals and errors, in processes of their own that need no jax."""

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cogvx_jax import temporaries
from cogvx_jax.cli.errors import sentence
from cogvx_jax.cli.main import VERBS
from cogvx_jax.storage import check_new, new_folder, write_whole
from cogvx_jax.temporaries import never_made_again, temporary_beside, temporary_folder

ROOT = Path(__file__).parents[1]
START = """
import contextlib, gc, hashlib, os, signal, sys, threading, time
from cogvx_jax.cli.ends import ends
from cogvx_jax.temporaries import temporary_beside
def say(text):
    print(text, flush=True)
def in_c(seconds=600):  # returns to Python only then
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(seconds * 1e6))
with ends("nothing was written"):
"""
# What a verb does; "ready" comes when it is to be signalled.
WRITE = """
with temporary_beside(sys.argv[1]) as partial:
    partial.write_text("half")
    say("ready")
    time.sleep(60)
"""
WRITE_IN_C = WRITE.replace("time.sleep(60)", "in_c()")
# What threads make elsewhere than in the folder itself, no removal could end: see `never_made_again`.
WRITE_IN_A_THREAD = """
def write(folder):
    with contextlib.suppress(FileNotFoundError):
        for i in range(50):
            (folder / str(i)).mkdir()
            time.sleep(0.01)
with temporary_beside(sys.argv[1]) as partial:
    partial.mkdir()
    threading.Thread(target=write, args=[partial]).start()
    say("ready")
    time.sleep(60)
"""
# As in jax's callback of the garbage collector: Python drops what is raised there.
IN_A_CALLBACK = """
def callback(phase, info):
    if phase == "start":
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass
gc.callbacks.append(callback)
gc.collect()
gc.callbacks.clear()
say("went on")
time.sleep(60)
"""
SWALLOWED = """
try:
    say("ready")
    time.sleep(60)
except BaseException:
    pass
"""
FORKED = """
child = os.fork()
if not child:
    say("ready")
    time.sleep(60)
    os._exit(0)
_, status = os.waitpid(child, 0)
assert os.WTERMSIG(status) == signal.SIGTERM, status
say("child ended")
"""


def start(verb, *arguments, stdout=subprocess.PIPE):
    """A verb of a line or more of code, or one of the command."""
    code = ["-c", START + "\n".join(f"    {line}" for line in verb.strip().splitlines())]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, *(["-m", "cogvx_jax.cli", verb] if verb in VERBS else code), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "", "PYTHONWARNINGS": "ignore::DeprecationWarning"},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


def ready(process):
    assert process.stdout.readline() == "ready\n", process.stderr.read()
    return process


def finish(process):
    """Its exit status and what it said on stderr."""
    try:
        return (process.communicate(timeout=300)[1], process.returncode)[::-1]
    finally:
        process.kill()


@pytest.mark.parametrize(
    "number, status, said",
    [
        (signal.SIGINT, 130, "cogvx: interrupted; nothing was written\n"),
        (signal.SIGTERM, 143, "cogvx: ended by SIGTERM; nothing was written\n"),
    ],
)
def test_a_signal_unwinds(number, status, said, tmp_path):
    process = ready(start(WRITE, tmp_path / "file"))
    process.send_signal(number)
    assert finish(process) == (status, said)
    assert not list(tmp_path.iterdir())


def test_the_second_signal_ends_at_once(tmp_path):
    process = ready(start(WRITE_IN_C, tmp_path / "file"))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
    assert finish(process) == (130, "cogvx: interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_a_sigterm_does_not_wait_for_python_for_long(tmp_path):
    verb = WRITE_IN_C.replace("say(", "from cogvx_jax.cli import signals; say(", 1)
    process = ready(start("from cogvx_jax.cli import signals\nsignals.PATIENCE = 0.3\n" + verb, tmp_path / "file"))
    process.send_signal(signal.SIGTERM)
    assert finish(process) == (143, "cogvx: ended by SIGTERM; nothing was written\n")
    assert not list(tmp_path.iterdir())


def test_a_signal_is_never_lost():
    interrupted = (130, "cogvx: interrupted; nothing was written\n")
    process = start(IN_A_CALLBACK)
    assert process.stdout.readline() == "went on\n" and finish(process) == interrupted
    process = ready(start(SWALLOWED))
    process.send_signal(signal.SIGINT)
    assert finish(process) == interrupted


def test_forked_processes_die_by_themselves():
    process = ready(start(FORKED))
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(child), signal.SIGTERM)
    assert process.stdout.readline() == "child ended\n" and finish(process) == (0, "")


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path):
    living, dead = (ready(start(WRITE, tmp_path / name)) for name in ("living", "dead"))
    dead.kill()
    dead.wait()
    assert len(list(tmp_path.iterdir())) == 2
    dead = start(WRITE.replace('say("ready")', "break_").replace("time.sleep(60)", ""), tmp_path / "next")
    assert finish(dead)[0] == 1
    (left,) = tmp_path.iterdir()
    assert (left / "living").read_text() == "half"
    living.terminate()
    assert finish(living)[0] == 143 and not list(tmp_path.iterdir())


def remains(folder, *, machine=None, held=False, age=0.0):
    """A hidden folder as a process leaves it that is not of this machine, or has just been killed."""
    hidden = folder / f"{temporaries.PREFIX}{os.urandom(6).hex()}"
    hidden.mkdir()
    (hidden / "file").write_text("half")
    (hidden / temporaries.LOCK).write_bytes(temporaries._machine() if machine is None else machine)
    for path in (*hidden.iterdir(), hidden):
        os.utime(path, (time.time() - age,) * 2)
    return hidden


def test_remains_of_other_hosts_are_removed_when_they_are_old(tmp_path):
    day = 24 * 3600
    kept = {remains(tmp_path, machine=b"other"), remains(tmp_path, machine=b"", age=day - 60)}
    remains(tmp_path)
    remains(tmp_path, machine=b"other", age=day + 60)
    remains(tmp_path, machine=b"", age=day + 60)
    (tmp_path / f"{temporaries.PREFIX}empty").mkdir()  # its process died at once
    other = tmp_path / f"{temporaries.PREFIX}without-lock"
    other.mkdir()
    (other / "file").touch()
    aged = remains(tmp_path, age=day + 60)
    (aged / temporaries.LOCK).unlink()
    os.utime(aged, (time.time() - day - 60,) * 2)
    temporaries.remove_dead(tmp_path)
    assert set(tmp_path.iterdir()) == {*kept, other}


@pytest.mark.parametrize("there", (False, True))
def test_what_a_link_names_is_written(tmp_path, there):
    """A link stays a link, whether what it names is there or not; see `temporaries.written_place`."""
    (tmp_path / "far").mkdir()
    file, folder = tmp_path / "far" / "file.bin", tmp_path / "far" / "folder"
    if there:
        file.write_bytes(b"old")
        folder.mkdir()
    link, other = tmp_path / "link.txt", tmp_path / "other"
    link.symlink_to("far/file.bin")
    other.symlink_to(folder)
    with temporary_beside(link) as partial:
        assert partial.suffix == ".txt"  # some writers go by it
        partial.write_bytes(b"new")
    with new_folder(other) as partial:
        (partial / "in").write_bytes(b"")
    assert link.is_symlink() and other.is_symlink()
    assert file.read_bytes() == b"new" and [path.name for path in folder.iterdir()] == ["in"]
    with pytest.raises(FileExistsError, match="other exists and is not an empty folder"), new_folder(other):
        pass


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    for write in (temporary_beside, new_folder):
        with pytest.raises(OSError, match="circle of links") as refused, write(tmp_path / "one"):
            pass
        assert refused.value.filename == str(tmp_path / "one")
    assert (tmp_path / "one").is_symlink()


def test_remains_inside_a_folder_do_not_count(tmp_path):
    remains(tmp_path)
    assert check_new(tmp_path) == tmp_path and not list(tmp_path.iterdir())
    kept = remains(tmp_path, machine=b"other")
    with pytest.raises(FileExistsError, match="is not an empty folder"):
        check_new(tmp_path)
    assert kept.exists()


def test_what_threads_still_write_is_removed(tmp_path):
    process = ready(start(WRITE_IN_A_THREAD, tmp_path / "folder"))
    process.terminate()
    assert finish(process)[0] == 143 and not list(tmp_path.iterdir())


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    kept = remains(tmp_path)
    write_whole(tmp_path / "file", b"x")
    assert {path.name for path in tmp_path.iterdir()} == {kept.name, "file"}


def test_nothing_half_written_has_a_final_name(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)) as raised, temporary_beside(tmp_path / "x.mp4") as partial:
            assert partial.name == "x.mp4" and partial.parent.parent == tmp_path
            partial.write_text("half")
            raise error
        if isinstance(error, OSError):  # a full disk names no file by itself
            assert raised.value.filename == str(tmp_path / "x.mp4")
    with pytest.raises(FileExistsError, match="is not an empty folder"), new_folder(tmp_path / "new"):
        (tmp_path / "new").mkdir()
        (tmp_path / "new" / "of another process").touch()
    with temporary_folder() as folder:
        (folder / "x").mkdir()
    assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    for where, error in ((tmp_path / "none", FileNotFoundError), (tmp_path / "file", NotADirectoryError)):
        with pytest.raises(error) as raised, temporary_beside(where / "x"):
            pass
        assert raised.value.filename == str(where)


class JaxRuntimeError(RuntimeError):
    """Known by its name."""


@pytest.mark.parametrize(
    "error, said",
    [
        (ValueError("size must be"), "size must be"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a/b"), "a/b: No such file or directory"),
        (FileNotFoundError("there is no file a"), "there is no file a"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OverflowError("int too large to convert"), "a number is too large: int too large"),
        (MemoryError(), "this host has too little memory; try a smaller --size"),
        (MemoryError("Unable to allocate 8 TiB"), "this host has too little memory: Unable to allocate 8 TiB; try"),
        (
            JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nmore"),
            "the devices have too little memory: RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes; try",
        ),
        (
            ValueError("UNKNOWN: Gloo AllGather failed: Connection reset by peer"),
            "another process of this run has ended, or can't be reached; see its own messages (UNKNOWN: Gloo",
        ),
        (
            RuntimeError("Unable to initialize backend 'tpu': no libtpu.so (set JAX_PLATFORMS='' to choose)"),
            "JAX finds no such device here: Unable to initialize backend 'tpu': no libtpu.so; set JAX_PLATFORMS to",
        ),
        (RuntimeError("something else"), None),
        (JaxRuntimeError("INTERNAL: a bug"), None),
        (AssertionError(), None),
        (KeyError("x"), None),
    ],
)
def test_known_errors_are_a_sentence(error, said):
    found = sentence(error)
    assert found == said if said is None else found.startswith(said) and "\n" not in found


def test_the_output_may_end_early(tmp_path):
    verb = 'print("x" * 100)\nif sys.argv[1:]: raise ValueError("wrong")'
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as closed, open("/dev/full", "w") as full:
        assert finish(start(verb, stdout=closed)) == (141, "")
        assert finish(start(verb, "wrong", stdout=closed)) == (2, "cogvx: wrong\n")
        status, said = finish(start(verb, stdout=full))
    assert (status, said) == (2, "cogvx: standard output: No space left on device\n")


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_without_a_teardown_that_could_crash(number, status):
    """Threads in which JAX computes go on, and Python's teardown under them has ended by SIGSEGV."""
    process = ready(start("import atexit\natexit.register(os.abort)\nsay('ready')\ntime.sleep(60)"))
    process.send_signal(number)
    assert finish(process)[0] == status


def test_errors_of_the_program_stay_tracebacks():
    status, said = finish(start("raise KeyError('x')"))
    assert status == 1 and "Traceback" in said and "KeyError: 'x'" in said


@pytest.mark.full
@pytest.mark.parametrize(
    "number, status, said",
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_stopped_conversion_leaves_nothing(number, status, said, tmp_path):
    process = start("convert", "tiny", tmp_path / "out")
    while process.poll() is None and not list(tmp_path.glob(f"{temporaries.PREFIX}*/out/*")):
        time.sleep(0.01)
    process.send_signal(number)
    assert finish(process) == (status, f"cogvx: {said}; no model was written\n")
    assert not list(tmp_path.iterdir())


def test_a_writer_that_outlives_an_error_makes_no_folder_again(tmp_path):
    with pytest.raises(OSError, match="full"), temporary_beside(tmp_path / "out") as partial:
        partial.mkdir()
        with never_made_again(partial) as held:
            (held / "deep").mkdir()
            assert (partial / "deep").is_dir()
            raise OSError("full")
    if held == partial:
        pytest.skip("this system has no names that stand for an open folder")
    with pytest.raises(OSError):
        (held / "deep").mkdir(parents=True)
    assert not list(tmp_path.iterdir())


def test_a_disk_without_room_for_a_lock_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(temporaries.os, "write", full)
    with pytest.raises(OSError, match="No space left"), temporary_beside(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.full
def test_a_conversion_to_a_full_disk_is_a_sentence(tmp_path):
    process = start("convert", "tiny", tmp_path / "out")
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (2**20,) * 2)
    assert finish(process) == (2, f"cogvx: cannot write {tmp_path / 'out'}: File too large; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.full
@pytest.mark.parametrize("platform, said", [("tpu", "Unable to initialize backend 'tpu'"), ("cuda", "the package for")])
def test_a_platform_that_is_not_there_is_said(platform, said, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", platform)
    status, text = finish(start("generate", "x", "--out", tmp_path / "x.mp4"))
    if status == 0:
        pytest.skip(f"this machine has {platform}")
    assert status == 2 and f"cogvx: JAX finds no such device here: {said}" in text and "Traceback" not in text
