"""`cogvx batch`: the lines of a file, each by itself."""

import json
import shutil
import sys

import pytest

from cogvx_jax.cli import generate as verbs
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.batch import identity
from cogvx_jax.cli.prompts_file import parse_line
from cogvx_jax.data.video import read_video
from cogvx_jax.pipelines.options import Options


def test_the_identity_of_a_line_is_what_it_asks():
    def name(line, **options):
        return identity(parse_line(line, Options(**options)))

    line = '{"prompt": "x", "frames": 9, "seed": 1}'
    assert name(line) == name('{"seed": 1, "prompt": "x", "frames": 9, "out": "y.mp4"}') == name("x", frames=9, seed=1)
    assert len({name(line), name("x"), name("y"), name("x", frames=9), name("x", seed="random")}) == 5


@pytest.fixture
def batch(small, tmp_path, monkeypatch, capsys):
    """`batch(*lines, code=0)` with the small 5B in a folder of its own; gives what was printed."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(small("5b")[0], "model")

    def call(*lines, code=0, more=()):
        texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
        (tmp_path / "jobs.jsonl").write_text("\n".join(texts))
        words = ["cogvx", "batch", "jobs.jsonl", "--model", "./model", "--no-progress", *more]
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        if code:
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert stopped.value.code == code
        else:
            cli.main()
        return "".join(capsys.readouterr())

    return call


def made(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix in (".mp4", ".gif"))


def test_lines_that_fail_stop_no_others(batch, tmp_path, monkeypatch):
    lines = [
        "A red panda, in the rain!",
        {"prompt": "x", "colour": 1},
        '{"prompt": "x"',
        {"prompt": "x", "frames": 16},
        {"prompt": "x", "video": "none.mp4"},
        {"prompt": "y", "out": "own.gif", "frames": 9},
        {"prompt": "A red panda, in the rain!", "seed": 0},
        {"prompt": "z", "out": "own.gif"},
        {"prompt": "w", "out": "own.txt"},
    ]
    videos = tmp_path / "videos"
    said = batch(*lines, code=2)
    assert "videos: 2 made, 0 whole already, 6 of 9 lines failed" in said
    assert "cogvx: 6 of 9 lines of jobs.jsonl failed, see videos/cogvx-failed.jsonl; the same" in said
    assert "jobs.jsonl, line 7 asks for the same as jobs.jsonl, line 1" in said
    noted = [json.loads(line) for line in (videos / "cogvx-failed.jsonl").read_text().splitlines()]
    told = {int(one["line"].rpartition(" ")[2]): one["error"] for one in noted}
    assert told.keys() == {2, 3, 4, 5, 8, 9}
    for line, part in {
        2: "colour; a line has a prompt",
        3: "this is not JSON",
        4: "nearest: 9 or 17",
        5: "there is no file 'none.mp4'",
        8: "is the video of line 6, too",
        9: "must end in one of .mp4",
    }.items():
        assert part in told[line] and f"jobs.jsonl, line {line}: " in said
    gif, panda = sorted(made(videos), key=lambda name: name.endswith(".mp4"))
    assert panda.startswith("a-red-panda-in-the-rain-") and gif == "own.gif"
    assert len(read_video(videos / panda)[0]) == 9 and len(read_video(videos / gif)[0]) == 9

    # What is whole is left, wherever its line stands now; what failed is tried again.
    with monkeypatch.context() as nothing_is_made:
        nothing_is_made.setattr(verbs, "_run", None)
        said = batch({"prompt": "y", "out": "own.gif", "frames": 9}, lines[0])
    assert "videos: 0 made, 2 whole already, 0 of 2 lines failed" in said
    assert not (videos / "cogvx-failed.jsonl").exists()


def test_an_error_on_the_way_is_of_one_line(batch, tmp_path, monkeypatch):
    run = verbs._run

    def broken(model, flags, work, *others):
        if work.job.prompt in ("disk", "bug"):
            raise OSError(28, "No space left on device", "x.mp4") if work.job.prompt == "disk" else KeyError("bug")
        return run(model, flags, work, *others)

    monkeypatch.setattr(verbs, "_run", broken)
    said = batch("disk", "bug", "good", code=2)
    assert "line 1: x.mp4: No space left on device" in said and "line 2: KeyError: 'bug'" in said
    assert "Traceback" in said and "1 made, 0 whole already, 2 of 3 lines failed" in said
    monkeypatch.setattr(verbs, "_run", run)
    assert "2 made, 1 whole already, 0 of 3" in batch("disk", "bug", "good")
    assert len(made(tmp_path / "videos")) == 3


def test_what_is_of_all_lines_ends_the_command(batch, tmp_path):
    assert "known are tiny, tiny-inp, 2b" in batch("x", more=["--model", "nothing"], code=2)
    assert "jobs.jsonl holds no prompt" in batch("", code=2)
    (tmp_path / "file").write_text("")
    assert "file is a file; give a folder for the videos" in batch("x", more=["--out", "file"], code=2)
