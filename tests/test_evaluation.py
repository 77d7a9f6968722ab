"""Scores of folders of videos, with OpenCV: flickering, the proxies by optical flow, features, and other folders."""

import json
import os
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cogvx_jax.cli.main import main
from cogvx_jax.convert import read_lpips
from cogvx_jax.data.video import Video, read_video
from cogvx_jax.evaluation import flowing, measures, vmaf
from cogvx_jax.evaluation.boards import BOARDS, Entry
from cogvx_jax.evaluation.encoders import Encoders
from cogvx_jax.evaluation.frames import open_frames
from cogvx_jax.evaluation.run import judged_videos, read_static, run
from cogvx_jax.evaluation.samples import all_samples
from cogvx_jax.evaluation.scores import read_scores
from cogvx_jax.evaluation.setup import Setup
from cogvx_jax.finishing.packaged import Packaged, packaged_file
from cogvx_jax.metrics import consistency, temporal_flickering
from cogvx_jax.metrics.feature_functions import frame_features
from cogvx_jax.metrics.motion import dis_flow

cv2 = pytest.importorskip("cv2", reason="the extra evaluate is not installed")

SIZE = (96, 128)
TEXTURE = cv2.resize(
    np.random.default_rng(1).integers(0, 256, (12, 12, 3), np.uint8), (48, 48), interpolation=cv2.INTER_CUBIC
)


def square(frames, speed, height=96, width=128):
    """A square with a pattern that moves right by `speed` pixels a frame, (F, H, W, 3)."""
    clip = np.full((frames, height, width, 3), 90, np.uint8)
    for i, frame in enumerate(clip):
        left = 8 + round(i * speed)
        frame[24:72, left : left + 48] = TEXTURE
    return clip


def save(clip, path, fps=8):
    path.parent.mkdir(exist_ok=True)
    Video(clip[None], fps).save(path)
    return path


def cogvx(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, words)])
    main()


@pytest.mark.parametrize("speed", [1, 2, 3, 5, 8])
def test_the_flow_of_a_square_of_known_speed(speed):
    first, second = square(2, speed)
    flow = dis_flow(first, second)[32:64, 16:48]
    np.testing.assert_allclose(np.median(flow[..., 0]), speed, rtol=0.05)
    assert abs(np.median(flow[..., 1])) < 0.05


def test_frames_that_have_no_flow():
    with pytest.raises(ValueError, match="two frames of one size, 16x16 or more"):
        dis_flow(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8, 3), np.uint8))


def test_frames_are_those_of_opencv(tmp_path):
    path = save(square(5, 2), tmp_path / "-100% é.mp4")
    capture, own = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG), open_frames(path)
    assert (own.height, own.width, own.fps) == (*SIZE, 8)
    for frame in own.frames:
        there, theirs = capture.read()
        assert there and (frame == theirs[..., ::-1]).all()
    assert not capture.read()[0]


def test_flickering_of_a_file_is_that_of_the_package(tmp_path):
    """By the package's own file, where it is installed; only that file is run, without its package."""
    source = packaged_file(Packaged((("vbench", "temporal_flickering.py"),)))
    if source is None:
        pytest.skip("the package vbench is not installed: pip install --no-deps vbench")
    text = "\n".join(line for line in source.read_text().split("\ndef temporal_flickering")[0].splitlines())
    kept = text[text.index("def get_frames") :]
    theirs = {"cv2": cv2, "np": np}
    exec(compile(kept, str(source), "exec"), theirs)
    for speed in (0, 1, 3):
        path = save(square(9, speed), tmp_path / f"{speed}.mp4")
        assert temporal_flickering(open_frames(path).frames) == theirs["cal_score"](str(path))


def test_what_moves_and_what_is_static(tmp_path):
    """Of 96 rows the dynamic degree asks for 2.25 pixels each 1/8 s, the static filter for 1.125 a frame."""
    for speed, static, dynamic in ((0, True, False), (0.25, True, False), (1, False, False), (3, False, True)):
        path = save(square(9, speed), tmp_path / f"{speed}.mp4")
        assert (flowing.static(path), flowing.dynamic(path)) == (static, dynamic), speed
    assert flowing.dynamic(save(square(17, 1.5), tmp_path / "16 fps.mp4", fps=16))  # 3 pixels each 1/8 s


def test_smoothness_is_of_every_second_frame(tmp_path):
    path = save(square(7, 2), tmp_path / "a.mp4")
    frames, asked = list(open_frames(path).frames), []

    def middle(first, second):
        asked.append((first, second))
        return first

    found = flowing.smoothness(path, middle)
    expected = np.mean([np.mean(np.abs(frames[i + 1].astype(float) - frames[i])) for i in (0, 2, 4)])
    np.testing.assert_allclose(found, (255 - expected) / 255, rtol=1e-6)
    assert all(
        (pair[0] == frames[i]).all() and (pair[1] == frames[i + 2]).all()
        for i, pair in zip((0, 2, 4), asked, strict=True)
    )
    with pytest.raises(ValueError, match="three or more"):
        flowing.smoothness(save(square(2, 1), tmp_path / "b.mp4"), middle)


@pytest.mark.full
def test_smoothness_by_rife(tmp_path):
    """A square that moves evenly is smoother than one that jumps to and fro."""
    weights = measures.packaged_file(measures.INTERPOLATORS["rife"])
    if weights is None:
        pytest.skip("the extra finish is not installed")
    middle = flowing.rife_middle(weights)
    even, jumping = square(9, 2), square(9, 2)
    jumping[1::2] = square(9, 2)[[3, 1, 7, 5]]
    found = [flowing.smoothness(save(one, tmp_path / f"{i}.mp4"), middle) for i, one in enumerate((even, jumping))]
    assert found[0] > 0.99 and found[0] - found[1] > 0.01


# Functions of features, as a user has them.
def tone_features(frames):
    return frames.reshape(len(frames), -1, 3).mean(axis=1)


def prompt_features(prompts):
    return np.array([[1.0, 0, 0] if "red" in prompt else [0, 0, 1.0] for prompt in prompts])


def video_tones(frames):
    return tone_features(frames).mean(axis=0)


def broken_features(frames):
    return np.full((len(frames), 2), np.nan)


def named(function):
    return f"{__name__}:{function.__name__}"


@pytest.fixture
def features(monkeypatch):
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or sys.modules["__main__"])
    module = type(sys)(__name__)
    for function in (tone_features, prompt_features, video_tones, broken_features):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, __name__, module)
    return Encoders(
        subject_features=named(tone_features),
        clip_features=named(tone_features),
        text_features=named(prompt_features),
        video_features=named(video_tones),
        video_frames=4,
    )


def board():
    """A board of a still prompt, sampled 25 times, and a moving one."""
    entries = [
        Entry("a red square", ("temporal_flickering",)),
        Entry("a blue square", ("subject_consistency", "dynamic_degree")),
    ]
    return all_samples(BOARDS["vbench"], entries)[0]


CHEAP = ["temporal_flickering", "static_share_dis", "dynamic_degree_dis", "temporal_flickering_static_dis"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Of the still prompt the first four and the eleventh move, the sixth to the eighth do not."""
    folder = tmp_path_factory.mktemp("evaluation") / "videos"
    for i, speed in {0: 3, 1: 3, 2: 3, 3: 3, 5: 0, 6: 0, 7: 0, 10: 3}.items():
        save(square(5, speed), folder / f"a red square-{i}.mp4")
    for i, speed in {0: 3, 1: 0}.items():
        save(square(5, speed), folder / f"a blue square-{i}.mp4")
    return folder


def test_videos_count_for_their_dimensions(videos):
    found = run(videos, board(), Setup(), CHEAP)
    flickering = found.scores["temporal_flickering"]
    assert [one.name for one in flickering.videos] == [f"a red square-{i}.mp4" for i in range(4)]
    assert flickering.value == np.mean(
        [temporal_flickering(open_frames(videos / one.name).frames) for one in flickering.videos]
    )
    assert (flickering.about["videos"], flickering.about["asked"], flickering.about["kind"]) == (4, 5, "board")
    assert found.scores["static_share_dis"].value == 3 / 8
    assert found.scores["dynamic_degree_dis"].value == 0.5
    filtered = found.scores["temporal_flickering_static_dis"]
    assert {one.name for one in filtered.videos} == {f"a red square-{i}.mp4" for i in (5, 6, 7)}
    assert filtered.about["kind"] == "proxy" and filtered.value > flickering.value
    assert not found.failed and not found.not_computed


def test_the_static_filter_of_vbench_chooses(videos, tmp_path):
    names = [f"/elsewhere/a red square-{i}.mp4" for i in (10, 5)]
    (tmp_path / "static.json").write_text(json.dumps({"a red square": {"static_count": 2, "static_path": names}}))
    found = run(videos, board(), Setup(static=read_static(tmp_path / "static.json")), CHEAP[:1])
    score = found.scores["temporal_flickering"]
    assert {one.name for one in score.videos} == {"a red square-10.mp4", "a red square-5.mp4"} and score.about[
        "filtered"
    ]
    (tmp_path / "static.json").write_text('{"a": {"static_count": 1}}')
    with pytest.raises(ValueError, match="static.json is no file of VBench's static filter"):
        read_static(tmp_path / "static.json")


def test_results_are_kept(videos, monkeypatch):
    run(videos, board(), Setup(), CHEAP)
    kept = (videos / "cogvx-eval.jsonl").read_text().splitlines()
    assert len({json.loads(line)["key"] for line in kept}) == len(kept)

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(measures, "static", never)
    monkeypatch.setattr(measures, "dynamic", never)
    with (videos / "cogvx-eval.jsonl").open("a") as file:
        file.write('{"key": "cut o')
    again = run(videos, board(), Setup(), CHEAP)
    assert again.scores["dynamic_degree_dis"].value == 0.5
    save(square(5, 2), videos / "a blue square-1.mp4")
    with pytest.raises(AssertionError, match="computed again"):
        run(videos, board(), Setup(), CHEAP)
    save(square(5, 0), videos / "a blue square-1.mp4")


def test_features_of_any_function(videos, features):
    found = run(videos, board(), Setup(encoders=features), ["subject_consistency", "clip_score"])
    score = found.scores["subject_consistency_given"]
    paths = [videos / f"a blue square-{i}.mp4" for i in range(2)]
    own = [frame_features(named(tone_features), open_frames(path).frames) for path in paths]
    np.testing.assert_allclose(score.value, np.mean([consistency(one) for one in own]), rtol=1e-12)
    assert [one.weight for one in score.videos] == [4, 4] and score.about["features"]["subject_features"] == named(
        tone_features
    )
    assert found.scores["clip_score_given"].about["prompts"] == 2
    named_so = Encoders(**{**vars(features), "board_features": True})
    assert "subject_consistency" in run(videos, board(), Setup(encoders=named_so), ["subject_consistency"]).scores


def test_features_that_are_none(videos, features):
    broken = Encoders(subject_features=named(broken_features))
    found = run(videos, board(), Setup(encoders=broken), ["subject_consistency"])
    assert (
        not found.scores
        and "gave features that are not finite" in found.failed["subject_consistency"]["a blue square-0.mp4"]
    )
    with pytest.raises(ValueError, match="must give features \\(3, d\\), got"):
        frame_features(named(video_tones), iter(square(3, 1)))
    with pytest.raises(ValueError, match="there is no function json:none"):
        Encoders(video_features="json:none").check()
    with pytest.raises(ValueError, match="named as MODULE:FUNCTION, got 'json'"):
        Encoders(video_features="json").check()
    with pytest.raises(ValueError, match="give both clip_features and text_features"):
        Encoders(clip_features="a:b")


def test_two_sets_by_features(videos, features, tmp_path):
    references = {one.name: one.path for one in judged_videos(videos, None, {})}
    found = run(videos, None, Setup(encoders=features, references=references), ["frechet_distance", "squared_mmd"])
    assert found.scores["frechet_distance"].value < 1e-6 and found.scores["frechet_distance"].about["videos"] == [
        10,
        10,
    ]
    assert "warning" not in found.scores["frechet_distance"].about
    few = dict(list(references.items())[:2])
    about = (
        run(videos, None, Setup(encoders=features, references=few), ["frechet_distance"])
        .scores["frechet_distance"]
        .about
    )
    assert about["warning"].startswith("2 videos give a singular covariance of 3 features")


def test_other_folders(tmp_path, lpips_file):
    """The same frames at two qualities; their likeness is that of the decoded arrays."""
    clip = square(5, 2)
    noisy = np.clip(clip + np.random.default_rng(0).normal(0, 20, clip.shape), 0, 255).astype(np.uint8)
    for folder, frames in (("a", clip), ("b", noisy)):
        save(frames, tmp_path / folder / "x-0.mp4")
    weights, (network, params) = lpips_file, read_lpips(lpips_file)
    setup = Setup(references={"x-0.mp4": tmp_path / "b" / "x-0.mp4"}, lpips=weights)
    found = run(tmp_path / "a", None, setup, ["psnr", "ssim", "lpips"]).scores
    x, y = (read_video(tmp_path / folder / "x-0.mp4")[0].astype(np.float64) for folder in "ab")
    expected = np.mean(20 * np.log10(255 / np.sqrt(np.mean((x - y) ** 2, axis=(1, 2, 3)))))
    np.testing.assert_allclose(found["psnr"].value, expected, rtol=1e-4)
    assert 0.2 < found["ssim"].value < 0.95
    own = jax.jit(network.apply)({"params": params}, *(np.float32(v) / 127.5 - 1 for v in (x, y)))
    np.testing.assert_allclose(found["lpips"].value, np.mean(own), rtol=1e-3)
    same = run(tmp_path / "a", None, Setup(references={"x-0.mp4": tmp_path / "a" / "x-0.mp4"}), ["psnr", "ssim"]).scores
    assert (same["psnr"].value, round(same["ssim"].value, 5)) == (100, 1)


def test_videos_that_cannot_be_compared(tmp_path):
    save(square(5, 2), tmp_path / "a" / "x.mp4")
    for name, clip in (("long", square(6, 2)), ("wide", square(5, 2, width=144))):
        reference = save(clip, tmp_path / name / "x.mp4")
        found = run(tmp_path / "a", None, Setup(references={"x.mp4": reference}), ["psnr"])
        said = found.failed["psnr"]["x.mp4"]
        assert ("another number of frames" if name == "long" else "96x128 pixels") in said


@pytest.mark.skipif(vmaf.find_ffmpeg() is None, reason="there is no ffmpeg with libvmaf")
def test_vmaf(tmp_path):
    first = save(square(8, 2), tmp_path / "-a %d.mp4")
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 3) for frame in square(8, 2)])
    second = save(blurred, tmp_path / "b.mp4")
    assert vmaf.vmaf(first, first) > 95 > 80 > vmaf.vmaf(second, first)
    (tmp_path / "c.mp4").write_bytes(first.read_bytes()[:300])
    with pytest.raises(ValueError, match="ffmpeg cannot compare"):
        vmaf.vmaf(tmp_path / "c.mp4", first)


def test_videos_that_cannot_be_read_stop_no_others(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "videos"
    whole = save(square(5, 0), folder / "a-0.mp4")
    (folder / "a-1.mp4").write_bytes(b"")
    (folder / "a-2.mp4").write_bytes(whole.read_bytes()[:200])
    (folder / "a-3.mp4").write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n")
    (folder / "a-4.mp4").symlink_to("a-4.mp4")
    save(square(1, 0), folder / "a-5.mp4")
    os.mkfifo(folder / "a-6.mp4")
    with pytest.raises(SystemExit) as stopped:
        cogvx(
            monkeypatch,
            "eval",
            "run",
            folder,
            "--custom",
            "--only",
            *CHEAP[:2],
            "--out",
            tmp_path / "s.json",
            "--no-progress",
        )
    printed = capsys.readouterr()
    assert (
        stopped.value.code == 2
        and "6 videos could not be scored and count nowhere, the first is 'a-1.mp4'" in printed.err
    )
    assert read_scores(tmp_path / "s.json")["temporal_flickering"].about["videos"] == 1


def test_the_verb_run(videos, tmp_path, monkeypatch, capsys):
    (tmp_path / "jobs.jsonl").write_text("\n".join(one.line() for one in board()))
    words = [
        "eval",
        "run",
        videos,
        "--jobs",
        tmp_path / "jobs.jsonl",
        "--out",
        tmp_path / "scores.json",
        "--no-progress",
    ]
    monkeypatch.setattr(measures, "packaged_file", lambda wanted: None)
    cogvx(monkeypatch, *words)
    printed = capsys.readouterr().out
    for line in (
        "4 of 5 videos  [board]",
        "not computed: needs --subject-features MODULE:FUNCTION",
        "not computed: needs the weights of RIFE",
        "not computed: needs --reference FOLDER",
        "not computed: needs RAFT-things",
    ):
        assert line in printed
    assert set(read_scores(tmp_path / "scores.json")) == set(CHEAP)
    cogvx(monkeypatch, *words, "--only", "temporal_flickering")
    assert "not computed" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cogvx(monkeypatch, *words, "--only", "flicker")
    assert "there is no measure flicker; they are temporal_flickering" in capsys.readouterr().err
    (tmp_path / "jobs.jsonl").unlink()
    with pytest.raises(SystemExit):
        cogvx(monkeypatch, *words)
    assert "give --jobs, or --custom where the videos are no board's" in capsys.readouterr().err


def test_without_opencv_the_output_says_what_to_install(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(measures, "has_opencv", lambda: False)
    found = run(videos, None, Setup(), ["temporal_flickering"])
    assert not found.scores and "cogvx_jax[evaluate]" in found.not_computed["temporal_flickering"]


def test_a_folder_without_videos(tmp_path):
    with pytest.raises(ValueError, match="holds no videos"):
        run(Path(tmp_path), None, Setup(), CHEAP)
