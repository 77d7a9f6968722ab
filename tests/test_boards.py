"""Prompts files of the boards: names, counts, seeds, shared videos; and whether a folder has the videos."""

import json
import os
import sys
import unicodedata

import numpy as np
import pytest

from cogvx_jax.cli.attempts import NotedAttempts
from cogvx_jax.cli.batch import _jobs
from cogvx_jax.cli.main import main
from cogvx_jax.cli.prompts_file import parse_line
from cogvx_jax.data.video import Video
from cogvx_jax.evaluation.boards import BOARDS, dimensions_of, read_entries
from cogvx_jax.evaluation.checking import Expected, check_folder
from cogvx_jax.evaluation.samples import all_samples, choose, read_longer, read_samples
from cogvx_jax.finishing.packaged import Packaged, packaged_file
from cogvx_jax.pipelines.options import Options

ROWS = [
    {"prompt_en": "a dog, still", "dimension": ["temporal_flickering"]},
    {"prompt_en": "the façade, 100% \"new\"", "dimension": ["appearance_style"], "auxiliary_info": {"a": 1}},
    {"prompt_en": "-v, leading dash", "dimension": ["subject_consistency", "dynamic_degree"]},
    {"prompt_en": "the façade, 100% \"new\"", "dimension": ["overall_consistency", "aesthetic_quality"]},
]  # fmt: skip


def entries(tmp_path, rows=ROWS, board="vbench"):
    info = tmp_path / "info.json"
    info.write_text(json.dumps(rows))
    return read_entries(BOARDS[board], info)


def cogvx(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, words)])
    main()


def test_names_counts_and_seeds(tmp_path):
    samples, shared = all_samples(BOARDS["vbench"], entries(tmp_path), seed=7)
    assert [one.seed for one in samples] == list(range(7, 7 + 25 + 5 + 5))
    assert [one.name for one in samples[24:26]] == ["a dog, still-24.mp4", 'the façade, 100% "new"-0.mp4']
    assert len({one.name for one in samples}) == len(samples)
    assert samples[25].dimensions == ("appearance_style", "overall_consistency", "aesthetic_quality")
    assert len(shared) == 1 and shared[0].prompt == ROWS[1]["prompt_en"] and not shared[0].differ


def test_longer_prompts_keep_the_names(tmp_path):
    found = entries(tmp_path)
    (tmp_path / "longer.txt").write_text("A\nB\nC\nD\n")
    samples, shared = all_samples(BOARDS["vbench"], found, longer=read_longer(found, tmp_path / "longer.txt"))
    assert [(one.sampled, one.name) for one in samples[25:31:5]] == [
        ("B", 'the façade, 100% "new"-0.mp4'),
        ("C", "-v, leading dash-0.mp4"),
    ]
    assert "of its two longer prompts the first is sampled" in shared[0].told()


def test_longer_prompts_by_their_originals(tmp_path):
    found = entries(tmp_path)
    (tmp_path / "longer.txt").write_text("A\nB\nC\n")
    (tmp_path / "own.txt").write_text("-v, leading dash\na dog, still\nthe façade, 100% \"new\"\n")  # fmt: skip
    assert read_longer(found, tmp_path / "longer.txt", tmp_path / "own.txt") == {0: "B", 1: "C", 2: "A", 3: "C"}
    with pytest.raises(ValueError, match="3 lines and the board 4 prompts.*--originals"):
        read_longer(found, tmp_path / "longer.txt")
    (tmp_path / "own.txt").write_text("-v, leading dash\na cat\na dog\n")
    with pytest.raises(ValueError, match="3 of 4 prompts of the board are not in it, the first is 'a dog, still'"):
        read_longer(found, tmp_path / "longer.txt", tmp_path / "own.txt")


def test_a_part_of_a_board_has_the_videos_of_the_whole(tmp_path):
    samples, _ = all_samples(BOARDS["vbench"], entries(tmp_path))
    part = choose(samples, ["appearance_style", "dynamic_degree"], prompts=1, videos=2)
    assert [one.seed for one in part] == [25, 26, 30, 31]
    assert set(part) < set(samples)
    assert [one.seed for one in choose(samples, videos=1)] == [0, 25, 30]
    with pytest.raises(ValueError, match="no dimension colour; they are temporal_flickering"):
        choose(samples, ["colour"])
    with pytest.raises(ValueError, match="--limit must be at least 1"):
        choose(samples, prompts=0)


def test_vbench2_has_folders_and_cuts_names(tmp_path):
    rows = [{"prompt_en": "x" * 400, "dimension": ["Diversity"]}, {"prompt_en": "y", "dimension": ["Material"]}]
    samples, _ = all_samples(BOARDS["vbench2"], entries(tmp_path, rows, "vbench2"))
    assert len(samples) == 20 + 3
    assert samples[3].name == f"Diversity/{'x' * 180}-3.mp4" and samples[-1].name == "Material/y-2.mp4"


def test_pictures_of_image_to_video(tmp_path):
    rows = [{"prompt_en": "a", "dimension": ["i2v_subject"], "image_name": "a.jpg"}]
    found, board = entries(tmp_path, rows, "vbench-i2v"), BOARDS["vbench-i2v"]
    with pytest.raises(ValueError, match="begins with 1 pictures; give their folder as --images"):
        all_samples(board, found)
    with pytest.raises(FileNotFoundError, match="1 of 1 pictures are not there, the first is 'a.jpg'"):
        all_samples(board, found, images=tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    samples, _ = all_samples(board, found, images=tmp_path)
    assert len(samples) == 5 and json.loads(samples[0].line())["image"] == str(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="vbench has no pictures"):
        all_samples(BOARDS["vbench"], entries(tmp_path), images=tmp_path)


@pytest.mark.parametrize(
    "rows, said",
    [
        ({"a": 1}, "not a list of prompts"),
        ([], "not a list of prompts"),
        ([3], "its prompt 1 has no text prompt_en"),
        ([*ROWS, {"prompt_en": "a", "dimension": []}], "its prompt 5 has no text"),
        ([{"prompt_en": "../../etc/passwd", "dimension": ["scene"]}], "cannot be the name of a file"),
        ([{"prompt_en": "a", "dimension": ["scene"], "image_name": "../a.jpg"}], "cannot be the name of a file"),
        ([{"prompt_en": "a", "dimension": ["a/b"]}], "no text prompt_en with a list of dimensions"),
    ],
)
def test_files_of_prompts_from_strangers(tmp_path, rows, said):
    with pytest.raises(ValueError, match=f"info.json: .*{said}"):
        entries(tmp_path, rows)


def test_names_that_are_too_long(tmp_path):
    found = entries(tmp_path, [{"prompt_en": "é" * 120, "dimension": ["scene"]}])
    with pytest.raises(ValueError, match="5 of 5 names are longer than 220 bytes"):
        all_samples(BOARDS["vbench"], found)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr("cogvx_jax.evaluation.boards.packaged_file", lambda wanted: None)
    with pytest.raises(
        FileNotFoundError, match="pip install --no-deps vbench, or give VBench_full_info.json as --info"
    ):
        read_entries(BOARDS["vbench"])
    with pytest.raises(FileNotFoundError, match="no package brings vbench2_i2v_full_info.json; give it"):
        read_entries(BOARDS["vbench-i2v"])


@pytest.mark.parametrize("board, videos, prompts, shared", [("vbench", 6220, 944, 2), ("vbench2", 3857, 1229, 1)])
def test_the_boards_own_files(board, videos, prompts, shared):
    """Of vbench 0.1.5 and vbench2 0.1.1, where they are installed; their modules are not imported."""
    if packaged_file(Packaged(((BOARDS[board].package, BOARDS[board].info),))) is None:
        pytest.skip(f"the package {board} is not installed: pip install --no-deps {board}")
    found = read_entries(BOARDS[board])
    samples, double = all_samples(BOARDS[board], found)
    assert (len(samples), len({(one.prompt, one.dimensions) for one in samples})) == (videos, prompts)
    assert len(double) == shared and len(dimensions_of(found)) in (16, 18)
    assert len({one.seed for one in samples}) == videos


def test_lines_go_to_batch_and_come_back(tmp_path, monkeypatch, capsys):
    entries(tmp_path)
    jobs = tmp_path / "jobs.jsonl"
    cogvx(monkeypatch, "eval", "prepare", "vbench", "--info", tmp_path / "info.json", "--out", jobs, "--seed", 3)
    printed = capsys.readouterr()
    assert "jobs.jsonl: 35 videos of 3 prompts of vbench, seeds 3 to 37" in printed.out
    assert "two entries have the prompt" in printed.err
    samples, _ = all_samples(BOARDS["vbench"], read_entries(BOARDS["vbench"], tmp_path / "info.json"), seed=3)
    assert read_samples(jobs) == samples
    asked = [parse_line(line, Options()) for line in jobs.read_text().splitlines()]
    assert [(one.prompt, str(one.out), one.options.seed) for one in asked] == [
        (one.sampled, one.name, one.seed) for one in samples
    ]


def test_a_batch_makes_the_folders_of_its_videos(tmp_path):
    """VBench-2.0 has one for each dimension. Outside its own folder it makes none."""
    names = ("Material/a-0.mp4", "../b/a.mp4")
    lines = [(f"f, line {i}", json.dumps({"prompt": "a", "out": name})) for i, name in enumerate(names)]
    jobs = _jobs(lines, tmp_path / "videos", Options(), NotedAttempts(lambda *_: None))
    assert [one.out for one in jobs] == [tmp_path / "videos" / name for name in names]
    assert (tmp_path / "videos/Material").is_dir() and not (tmp_path / "b").exists()


OUTSIDE = {"prompt": "a", "out": "../a.mp4", "board": {"name": "v", "prompt": "a", "index": 0, "dimensions": []}}


@pytest.mark.parametrize(
    "line", ['{"prompt": "a"}', json.dumps(OUTSIDE), "[]", '{"prompt": 1, "out": "a", "board": 3}', ""]
)
def test_lines_that_are_not_of_prepare(tmp_path, line):
    (tmp_path / "jobs.jsonl").write_text(line)
    with pytest.raises(ValueError, match="jobs.jsonl"):
        read_samples(tmp_path / "jobs.jsonl")


def clip(frames, value=100):
    return np.full((1, frames, 16, 16, 3), value, np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Videos of two prompts, five each, with all that may be wrong."""
    rows = [{"prompt_en": "a é", "dimension": ["scene"]}, {"prompt_en": "b", "dimension": ["scene"]}]
    samples, _ = all_samples(BOARDS["vbench"], entries(tmp_path, rows))
    videos = tmp_path / "videos"
    videos.mkdir()
    for i in range(4):
        Video(clip(5), 8).save(videos / unicodedata.normalize("NFD", f"a é-{i}.mp4"))
    (videos / "a é-4.mp4").write_bytes(b"")
    whole = (videos / unicodedata.normalize("NFD", "a é-0.mp4")).read_bytes()
    (videos / "b-0.mp4").write_bytes(whole[: len(whole) // 2])
    Video(clip(1), 8).save(videos / "b-1.mp4")
    Video(clip(5), 16).save(videos / "b-2.mp4")
    (videos / "b-3.mp4").symlink_to("b-3.mp4")
    Video(clip(5), 8).save(videos / "c-0.mp4")
    (videos / "circle").symlink_to(videos)
    return videos, samples


def test_what_is_wrong_with_a_folder(folder):
    found = check_folder(*folder)
    assert found.missing == ["b-4.mp4"] and found.extra == ["c-0.mp4"]
    assert set(found.unreadable) == {"a é-4.mp4", "b-0.mp4", "b-3.mp4"}
    assert "a link that leads back to itself" in found.unreadable["b-3.mp4"]
    assert found.odd == {"b-1.mp4": "1 frames, not 5 frames", "b-2.mp4": "16 fps, not 8 fps"}
    assert (found.asked, found.whole, found.complete) == (10, 6, False)


def test_expectations_count_before_the_others(folder):
    odd = check_folder(*folder, Expected(frames=1, fps=8.0)).odd
    assert odd["a é-0.mp4"] == "5 frames, not 1 frames" and "b-1.mp4" not in odd


def test_the_verb_check(folder, tmp_path, monkeypatch, capsys):
    videos, samples = folder
    jobs = tmp_path / "jobs.jsonl"
    jobs.write_text("\n".join(one.line() for one in samples))
    with pytest.raises(SystemExit) as stopped:
        cogvx(monkeypatch, "eval", "check", videos, "--jobs", jobs)
    printed = capsys.readouterr()
    assert stopped.value.code == 2
    assert "10 are asked for, 1 missing, 3 unreadable, 2 unlike the others; `cogvx batch" in printed.err
    assert "unlike: b-2.mp4: 16 fps, not 8 fps" in printed.out
    jobs.write_text("\n".join(one.line() for one in samples[:4]))
    cogvx(monkeypatch, "eval", "check", videos, "--jobs", jobs)
    assert "all 4 videos are there and whole" in capsys.readouterr().out


def test_folders_that_cannot_be_read(folder, tmp_path):
    samples = folder[1]
    with pytest.raises(FileNotFoundError, match="no file or folder"):
        check_folder(tmp_path / "none", samples)
    with pytest.raises(NotADirectoryError, match="give the folder of the videos"):
        check_folder(tmp_path / "info.json", samples)
    if os.geteuid() == 0:
        return  # root may look everywhere
    (tmp_path / "videos" / "closed").mkdir(mode=0)
    with pytest.raises(PermissionError):
        check_folder(tmp_path / "videos", samples)
