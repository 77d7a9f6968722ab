"""Sound that is made for videos: by functions, behind addresses, by what is built in; and answers that are none."""

import contextlib
import email
import http.server
import threading
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from test_delivery import tone, write_wav
from test_finishing import RECORD, clip

import cogvx_jax as cx
from cogvx_jax.data.sound import RATE, has_sound, read_sound
from cogvx_jax.data.video import Video
from cogvx_jax.finishing import sound_makers
from cogvx_jax.finishing.finish import Coming, finish_file
from cogvx_jax.finishing.options import Delivery, Finish
from cogvx_jax.finishing.scene import SIDE, Scene, small_copy
from cogvx_jax.finishing.sound_makers import make_sound
from cogvx_jax.finishing.sound_process import LOUDEST, NoSound, answered, ask_function
from cogvx_jax.finishing.tones import VOLUME, tones
from cogvx_jax.pipelines.record import read_record

SECONDS = Fraction(5, 8)  # of `clip()` at 8 frames a second


@contextlib.contextmanager
def maker_server(answer):
    """An address; answer(handler, form) writes what comes back."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            form = email.message_from_bytes(head + self.rfile.read(int(self.headers["Content-Length"])))
            parts = {part.get_param("name", header="Content-Disposition"): part for part in form.get_payload()}
            with contextlib.suppress(OSError):
                answer(self, {name: part.get_payload(decode=True) for name, part in parts.items()})

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/sound"
        finally:
            server.shutdown()
            thread.join()


def send(handler, body, status=200, length=None, **headers):
    handler.send_response(status)
    if length != -1:
        handler.send_header("Content-Length", str(len(body) if length is None else length))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    return write_wav(tmp_path_factory.mktemp("sound") / "x.wav", tone(1.0, volume=0.5)).read_bytes()


def made(maker, out, **options):
    return make_sound(maker, Video(clip()[None], 8), out / "sound.w64", **options)


def samples_of(path):
    return np.concatenate(list(read_sound(path)), axis=1)


def scene_of(frames, fps=8, seconds=None):
    scene = Scene(
        video=Path("none"),
        fps=Fraction(fps),
        count=len(frames),
        height=2,
        width=2,
        seconds=len(frames) / fps if seconds is None else seconds,
        prompt="",
        seed=0,
    )
    object.__setattr__(scene, "frames", lambda: iter(frames))
    return scene


def test_tones_follow_brightness_and_motion():
    """A second that is still, then a checkerboard that flips: dark for a second, bright for another."""
    still = [np.zeros((4, 4, 3), np.uint8)] * 8
    board = np.indices((4, 4)).sum(axis=0)[..., None] % 2
    flips = [np.uint8(low + 40 * np.repeat((board + i) % 2, 3, -1)) for low in (0, 200) for i in range(8)]
    samples, rate = tones(scene_of([*still, *flips]))
    assert samples.shape == (3 * rate,) and samples.dtype == np.float32
    assert np.abs(samples).max() <= VOLUME and not samples[[0, -1]].any()
    quiet, low, high = (samples[int((second + 0.3) * rate) : int((second + 0.8) * rate)] for second in range(3))
    assert not quiet.any() and np.abs(low).max() > 0.15 * VOLUME

    def hertz(x):
        return np.fft.rfftfreq(len(x), 1 / rate)[np.abs(np.fft.rfft(x)).argmax()]

    assert abs(hertz(low) - 110 * 8 ** (20 / 255)) < 4 and abs(hertz(high) - 110 * 8 ** (220 / 255)) < 4


def sized(copy):
    return copy.fps, copy.count, copy.height, copy.width


def test_the_small_copy(tmp_path):
    frames = np.zeros((2, 30, 1300, 3), np.uint8)
    assert sized(small_copy(frames, tmp_path / "x.mp4", 25)) == (25, 2, 14, SIDE)
    assert sized(small_copy(frames[:1, :1, :1], tmp_path / "y.mp4", 25)) == (25, 1, 2, 2)
    Video(clip()[None], 8, [RECORD.text]).save(tmp_path / "z.mp4")
    small_copy(tmp_path / "z.mp4", tmp_path / "copy.mp4")
    assert b"a ring" not in (tmp_path / "copy.mp4").read_bytes()


def test_what_a_function_may_give(tmp_path, wav):
    (tmp_path / "x.wav").write_bytes(wav)
    wave = np.sin(np.arange(44_100) / 20)
    for given in (
        (wave, 44_100),
        ([wave, wave], 44_100),
        (np.int16(wave * 2**15 * 0.999), np.int64(44_100)),
        wav,
        tmp_path / "x.wav",
        str(tmp_path / "x.wav"),
    ):
        found = made(lambda scene, given=given: given, tmp_path)
        heard = samples_of(found.path)
        assert heard.shape == (2, SECONDS * RATE) and found.seconds == SECONDS
        assert 0.4 < np.abs(heard).max() < 1.1
    assert "test_what_a_function_may_give.<locals>.<lambda>" in found.maker


@pytest.mark.parametrize(
    "given, said",
    [
        (None, "gives .samples, rate., bytes or a path, got NoneType"),
        ((np.zeros(9), 0), "rate of samples must be a whole number from 8000 to 192000, got 0"),
        ((np.zeros(9), 44_100.5), "rate of samples must be a whole number"),
        ((np.zeros((3, 9)), 44_100), r"samples must be .N,. or .2, N. and not empty, got .3, 9."),
        ((np.zeros(0), 44_100), "not empty"),
        ((np.zeros(9, np.int32), 44_100), "floats in .-1, 1. or int16, got int32"),
        ((np.full(9, np.nan), 44_100), "must be finite"),
        ((np.full(9, LOUDEST + 1), 44_100), "must lie in .-1, 1., and reach 9"),
        (bytes(1001), "gave more than 1,000 bytes"),
    ],
)
def test_what_a_function_may_not_give(given, said, tmp_path):
    with pytest.raises(NoSound, match=said):
        answered(given, scene_of(clip()), tmp_path, 1000)


def test_an_address_gets_a_form_and_gives_a_file(tmp_path, wav, monkeypatch):
    monkeypatch.setenv("COGVX_SOUND_KEY", "secret\n")
    seen = {}

    def answer(handler, form):
        seen.update(form, key=handler.headers["Authorization"], path=handler.path)
        send(handler, wav)

    with maker_server(answer) as address:
        found = made(f"{address}?voice=2", tmp_path, prompt="rain: “soft”", seed=7)
    assert found.maker == address and samples_of(found.path).shape == (2, SECONDS * RATE)
    (tmp_path / "got.mp4").write_bytes(seen.pop("video"))
    assert cx.finish(tmp_path / "got.mp4").frames.shape == (1, 5, 32, 40, 3)
    assert seen == {
        "prompt": "rain: “soft”".encode(),
        "seed": b"7",
        "seconds": b"0.625000",
        "fps": b"8",
        "frames": b"5",
        "key": "Bearer secret",
        "path": "/sound?voice=2",
    }


def slowly(handler, form):
    handler.send_response(200)
    handler.end_headers()
    for _ in range(40):
        handler.wfile.write(b"RIFF")
        handler.wfile.flush()
        time.sleep(0.05)


ANSWERS = {
    "an error": (lambda h, f: send(h, b"no weights\n", 503), OSError, "answers 503: no weights"),
    "elsewhere": (lambda h, f: send(h, b"", 307, location="/there"), OSError, "answers 307 and leads to '/there'"),
    "too large": (lambda h, f: send(h, bytes(5000), length=-1), ValueError, "sends more than 4,000 bytes"),
    "broken off": (lambda h, f: send(h, bytes(50), length=99), OSError, "broke off"),
    "no sound": (lambda h, f: send(h, b'{"a": 1}'), ValueError, "gives is no sound: it begins with '{\"a\": 1}'"),
    "bytes": (lambda h, f: send(h, b"\xff\0" * 99), ValueError, "gives is no sound, or none that can be decoded"),
    "nothing": (lambda h, f: send(h, b""), ValueError, "gives is no sound: it is empty"),
    "nobody": (lambda h, f: None, OSError, "cannot be reached"),
    "slow": (slowly, TimeoutError, "took more than 0.5 s; give more by sound_timeout"),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_that_are_none(name, tmp_path, monkeypatch):
    answer, kind, said = ANSWERS[name]
    monkeypatch.setattr(sound_makers, "MOST", (3999, 1))
    with maker_server(answer) as address, pytest.raises(kind, match=said) as raised:
        made(address, tmp_path, timeout=0.5 if name == "slow" else 30)
    assert address in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_nobody_at_the_address(tmp_path):
    with maker_server(send) as address:
        pass
    with pytest.raises(OSError, match=f"the maker of sound at {address} cannot be reached: Connection refused"):
        made(address, tmp_path)


def test_sound_that_is_too_short_or_of_another_file(tmp_path, wav):
    short = (np.zeros(RATE // 10), RATE)
    with pytest.raises(ValueError, match="gives 0.10 s for 0.62 s of video; let it make more, or loop it"):
        made(lambda scene: short, tmp_path)
    assert made(lambda scene: short, tmp_path, loop=True).seconds == 0.1
    (tmp_path / "private.wav").write_bytes(wav)
    playlist = f"ffconcat version 1.0\nfile {tmp_path / 'private.wav'}\n".encode()
    for names in (playlist, b"#EXTM3U\n#EXTINF:1,\n" + str(tmp_path / "private.wav").encode() + b"\n"):
        with pytest.raises(ValueError, match="no sound: it begins with"):
            made(lambda scene, names=names: names, tmp_path)
    with pytest.raises(ValueError, match="there is no file none.wav"):
        made(lambda scene: "none.wav", tmp_path)


def test_a_finished_file_has_it_and_tells_of_it(tmp_path, wav):
    Video(clip()[None], 8, [RECORD.text]).save(tmp_path / "x.mp4")
    seen = []

    def answer(handler, form):
        seen.append((form["prompt"], form["seconds"]))
        send(handler, wav)

    with maker_server(answer) as address:
        cx.finish_to(
            tmp_path / "x.mp4", tmp_path / "y.mp4", sound_from=f"{address}?key=secret", sound_seed=3, hold=True
        )
        Delivery(sound_from=address)
    assert seen == [(b"a ring", b"0.625000")]
    [step] = read_record(tmp_path / "y.mp4").finished
    told = step["sound"]
    assert (told["maker"], told["prompt"], told["seed"], len(told["sha256"])) == (address, "a ring", 3, 64)
    assert step["file"] == {} and "secret" not in str(step)
    assert has_sound(tmp_path / "y.mp4")
    cx.finish_to(
        clip(), tmp_path / "z.mkv", source_fps=8, codec="h264", sound_from=lambda scene: (np.zeros(99), 8000), loop=True
    )
    assert has_sound(tmp_path / "z.mkv")
    for video, options, said in (
        (clip(), {}, "frames know no rate"),
        (tmp_path / "x.mp4", {"source_fps": 3}, "source_fps is of frames"),
    ):
        with pytest.raises(ValueError, match=said):
            cx.finish_to(video, tmp_path / "no.mp4", **options)


def test_frames_that_are_made_get_sound_once_all_are_there(tmp_path):
    passed, seen = [], []

    def coming():
        for frame in clip():
            passed.append(1)
            yield frame[None]

    def maker(scene):
        seen.append((len(passed), len(list(scene.frames())), scene.seconds, scene.prompt))
        return np.full(round(scene.seconds * 8000), 0.25), 8000

    frames = Coming(coming(), Fraction(8), len(clip()), RECORD.text)
    done = finish_file(frames, tmp_path / "x.mp4", Finish(hold=True), Delivery(sound_from=maker))
    assert seen == [(5, 5, 0.625, "a ring")] and done.problem is None
    assert abs(samples_of(tmp_path / "x.mp4")[:, RATE // 4 :][:, :99].mean() - 0.25) < 0.01
    [step] = read_record(tmp_path / "x.mp4").finished
    assert step["sound"]["prompt"] == "a ring"

    def silent(scene):
        raise ValueError("no ideas")

    done = finish_file(frames._replace(frames=coming()), tmp_path / "y.mp4", None, Delivery(sound_from=silent))
    assert "y.mp4' is whole but for its sound: the maker of sound" in str(done.problem) and done.frames == 5
    assert not has_sound(tmp_path / "y.mp4") and read_record(tmp_path / "y.mp4").prompt == "a ring"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.mp4", "y.mp4"]


def test_makers_that_cannot_be_asked(tmp_path):
    for maker in ("tone", "a b:c", "os:", ":x", "ftp://x/y", "http://", "http://x:0/", "https://[x/"):
        with pytest.raises(ValueError, match="sound_from must be"):
            Delivery(sound_from=maker)
    with pytest.raises(ValueError, match="must not hold a name or a password; set COGVX_SOUND_KEY"):
        Delivery(sound_from="http://me:secret@host/")
    for options, said in (
        ({"sound_from": "tones", "audio": "x.wav"}, "give one of them"),
        ({"sound_prompt": "rain"}, "sound_prompt is about sound that is made; give sound_from"),
        ({"sound_from": "tones", "sound_timeout": 0.0}, "sound_timeout must be up to 86400 seconds, got 0"),
    ):
        with pytest.raises(ValueError, match=said):
            Delivery(**options)
    with pytest.raises(ValueError, match="sound_from needs a file that ends in one of"):
        cx.finish_to(clip(), tmp_path / "x.gif", source_fps=8, sound_from="tones")


MODULE = """
import os, subprocess, sys, time
import numpy as np

def good(scene):
    print("on the way")
    return np.full(round(scene.seconds * 8000), len(list(scene.frames())) / 10), 8000

def wrong(scene):
    raise KeyError("weights")

def dies(scene):
    os.abort()

def sleeps(scene):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", scene.prompt])
    time.sleep(60)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "makers_here.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    return "makers_here"


def test_a_named_function_runs_in_a_process_of_its_own(module, tmp_path, capfd):
    found = made(f"{module}:good", tmp_path)
    np.testing.assert_allclose(samples_of(found.path)[:, RATE // 4 : RATE // 2], 0.5, atol=0.01)
    out, err = capfd.readouterr()
    assert found.maker == "makers_here:good" and not out and "on the way" in err


@pytest.mark.full
@pytest.mark.parametrize(
    "function, said",
    [
        ("makers_here:wrong", "makers_here:wrong failed: KeyError: 'weights'"),
        ("makers_here:dies", "ended by SIGABRT before it gave an answer"),
        ("makers_here:other", "failed: makers_here has no other"),
        ("makers_here:np.pi", "failed: np.pi of makers_here is no function"),
        ("makers_there:good", "failed: there is no module makers_there; run where it lies, or install it"),
    ],
)
def test_named_functions_that_fail(function, said, module, tmp_path):
    with pytest.raises(ValueError, match=said):
        made(function, tmp_path)


@pytest.mark.full
def test_a_function_that_takes_too_long_is_ended_with_all_it_began(module, tmp_path):
    mark = f"a mark of {tmp_path.name}"
    copy = tmp_path / "copy.mp4"
    small_copy(clip(), copy, 8)
    scene = Scene(video=copy, fps=Fraction(8), count=5, height=32, width=40, seconds=1.0, prompt=mark, seed=0)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="makers_here:sleeps took more than 15 s"):
        ask_function(f"{module}:sleeps", scene, tmp_path, 1000, 15)
    assert time.monotonic() - began < 30
    time.sleep(0.5)
    running = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert not [line for line in running if mark.encode() in line]
