"""Files of scores, the boards' totals, and two folders compared."""

import json
import sys

import numpy as np
import pytest

from cogvx_jax.cli.main import main
from cogvx_jax.evaluation.compare import compare_scores
from cogvx_jax.evaluation.scores import Score, VideoScore, read_all, read_scores, write_scores
from cogvx_jax.evaluation.totals import PUBLISHED, TOTALS, canonical, dimensions, guess_board, missing, totals

# What the board prints of its own rows: total, quality, semantic.
BOARD = {"2b": (80.91, 82.18, 75.83), "5b": (81.61, 82.75, 77.04), "1.5-5b": (82.17, 82.78, 79.76)}


def cogvx(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, words)])
    main()


@pytest.mark.parametrize("model", BOARD)
def test_the_published_totals_come_out_of_their_rows(model):
    found = totals("vbench", PUBLISHED[model])
    printed = [100 * found[name] for name in ("total", "quality", "semantic")]
    np.testing.assert_allclose(printed, BOARD[model], rtol=0, atol=0.01)


def test_totals_by_hand():
    """At the most of each dimension all is 1; half of the camera's weight of 0.1 is a 42nd of the pictures' score."""
    for board, groups in TOTALS.items():
        most = {name: one.most for group in groups.values() for name, one in group.dimensions.items()}
        assert totals(board, most) == pytest.approx(dict.fromkeys((*groups, "total"), 1.0))
        assert dimensions(board) == list(most)
    assert {board: len(dimensions(board)) for board in TOTALS} == {"vbench": 16, "vbench-i2v": 9, "vbench2": 18}
    i2v = {"camera_motion": 0.5, "i2v_subject": 1.0, "i2v_background": 1.0}
    i2v |= dict.fromkeys(("subject_consistency", "background_consistency", "aesthetic_quality", "imaging_quality"), 1.0)
    i2v |= {"motion_smoothness": 0.9975, "dynamic_degree": 0.0}
    found = totals("vbench-i2v", i2v)
    assert found["i2v"] == pytest.approx(1 - 0.05 / 2.1) and found["quality"] == pytest.approx(1 - 0.5 / 5.5)
    assert found["total"] == pytest.approx((found["i2v"] + found["quality"]) / 2)
    second = dict.fromkeys(dimensions("vbench2"), 0.5) | {"diversity": 1.0}
    assert totals("vbench2", second)["total"] == pytest.approx((0.75 + 4 * 0.5) / 5)


def test_scores_may_lie_beyond_0_and_1():
    row = PUBLISHED["2b"] | {"motion_smoothness": 1.0}
    assert TOTALS["vbench"]["quality"].dimensions["motion_smoothness"](1.0) > 1
    assert totals("vbench", row)["quality"] > totals("vbench", PUBLISHED["2b"])["quality"]


def test_a_total_of_fewer_dimensions_is_refused():
    row = {name: value for name, value in PUBLISHED["5b"].items() if name not in ("scene", "color")}
    with pytest.raises(ValueError, match="14 of the 16 dimensions of vbench .* missing: color, scene"):
        totals("vbench", row)
    assert missing("vbench", row) == ["color", "scene"]


@pytest.mark.parametrize(
    "written, name",
    [
        ("Human Action", "human_action"),
        ("Complex_LandScape", "complex_landscape"),
        ("Multi-View_Consistency", "multi-view_consistency"),
        ("Multi_View_Consistency", "multi-view_consistency"),
        ("Video-Image Subject Consistency", "i2v_subject"),
    ],
)
def test_names_of_dimensions(written, name):
    assert canonical(written) == name


def test_which_board_scores_are_of():
    assert guess_board(["subject_consistency", "dynamic_degree"]) == "vbench"
    assert guess_board(dimensions("vbench-i2v")) == "vbench-i2v" and guess_board(dimensions("vbench2")) == "vbench2"
    with pytest.raises(ValueError, match="no board has a dimension of these: psnr"):
        guess_board(["psnr"])


def scored(values, shift=0.0):
    """Two videos of each prompt."""
    videos = tuple(
        VideoScore(f"p{i}-{j}.mp4", float(value + shift + 0.01 * j), 1.0, f"p{i}")
        for i, value in enumerate(values)
        for j in range(2)
    )
    return Score(float(np.mean([one.value for one in videos])), videos, {"kind": "board"})


def test_files_go_to_the_tools_of_vbench_and_come_back(tmp_path):
    own = {"temporal_flickering": scored([0.9, 0.8]), "frechet_distance": Score(3.5, (), {"kind": "set"})}
    write_scores(tmp_path / "scores.json", own)
    assert read_scores(tmp_path / "scores.json") == own
    # As scripts/cal_final_score.py reads a file.
    stored = json.loads((tmp_path / "scores.json").read_text())
    assert {key.replace("_", " "): row[0] for key, row in stored.items()} == {
        "temporal flickering": own["temporal_flickering"].value,
        "frechet distance": 3.5,
    }
    assert [row["video_results"] for row in stored["temporal_flickering"][1]] == [0.9, 0.91, 0.8, 0.81]


def test_files_of_the_tools_of_vbench_are_read(tmp_path):
    """One a dimension, with paths, and with true and false of the dynamic degree."""
    rows = [{"video_path": f"videos/a cat-{i}.mp4", "video_results": i < 1} for i in range(4)]
    (tmp_path / "x_eval_results.json").write_text(json.dumps({"dynamic_degree": [0.25, rows]}))
    (tmp_path / "y_eval_results.json").write_text(json.dumps({"human action": [0.98, [{"other": 1}]]}))
    (tmp_path / "x_full_info.json").write_text("[]")  # which the tools write, too
    found = read_all([tmp_path])
    assert {name: score.value for name, score in found.items()} == {"dynamic_degree": 0.25, "human_action": 0.98}
    assert found["dynamic_degree"].videos[0] == VideoScore("videos/a cat-0.mp4", 1.0, 1.0, "a cat")
    assert found["dynamic_degree"].interval().groups == 1 and not found["human_action"].videos
    (tmp_path / "z.json").write_text('{"dynamic_degree": [0.5, []]}')
    with pytest.raises(ValueError, match="dynamic_degree has one score in .*x_eval_res.* and another in .*z.json"):
        read_all([tmp_path, tmp_path / "z.json"])


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "not JSON"),
        ("[]", "not a JSON object"),
        ('{"scene": [NaN, []]}', "not finite"),
        ('{"scene": [true, []]}', "'scene' has no score as its first number"),
        ('{"scene": []}', "has no score"),
        ('{"scene": "0.5"}', "has no score"),
        ('{"scene": [0.5], "Scene": [0.5]}', "scene stands in it twice"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_files_of_scores_from_strangers(tmp_path, text, said):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ValueError, match=f"scores.json: .*{said}"):
        read_scores(tmp_path / "scores.json")


def test_a_difference_by_pairs_is_surer_than_the_scores():
    """Prompts differ by much, the two models by little, but always."""
    values = np.random.default_rng(0).uniform(0.2, 0.8, 40)
    first, second = scored(values), scored(values, 0.01)
    found = compare_scores({"a": first}, {"a": second, "b": first})["a"]
    assert found.change == pytest.approx(0.01) and found.low == pytest.approx(0.01) and found.word() == "more"
    assert first.interval().high - first.interval().low > 0.05
    noise = scored(values + np.random.default_rng(1).normal(0, 0.1, 40))
    assert compare_scores({"a": first}, {"a": noise})["a"].word() == "within chance"
    assert compare_scores({"a": second}, {"a": first})["a"].word() == "less"


def test_prompts_of_one_side_only_are_told():
    first, second = scored(np.linspace(0.2, 0.8, 12)), scored(np.linspace(0.2, 0.8, 10))
    found = compare_scores({"a": first}, {"a": second})["a"]
    assert (found.prompts, found.left) == (10, 2)
    few = compare_scores({"a": scored([0.5, 0.6])}, {"a": scored([0.6, 0.7])})["a"]
    assert few.word() == "fewer than 8 prompts say nothing"
    whole = compare_scores({"fvd": Score(3.0)}, {"fvd": Score(2.0)})["fvd"]
    assert whole.change == -1 and whole.low is None and "one number of all videos" in whole.word()
    with pytest.raises(ValueError, match="no measure in common: a and b"):
        compare_scores({"a": first}, {"b": first})


def test_the_verb_total(tmp_path, monkeypatch, capsys):
    path = tmp_path / "scores.json"
    write_scores(path, {name: Score(value) for name, value in PUBLISHED["2b"].items()})
    cogvx(monkeypatch, "eval", "total", path)
    printed = capsys.readouterr().out
    assert printed.splitlines()[0].split() == ["vbench", "here", "2b", "5b", "1.5-5b"]
    assert printed.splitlines()[-1].split() == ["total", "80.91", "80.91", "81.61", "82.17"]
    cogvx(monkeypatch, "eval", "total", path, "--json")
    assert json.loads(capsys.readouterr().out)["total"] == pytest.approx(0.8091, abs=1e-4)


@pytest.mark.parametrize(
    "scores, said",
    [
        (
            {"scene": Score(0.5)},
            "1 of the 16 dimensions of vbench are there, and a total of fewer is none; missing: s",
        ),
        ({"scene": Score(53.2)}, "scene is 53.2; scores are fractions of 1, so divide percentages by 100"),
        (
            {"scene": Score(0.5), "dynamic_degree_dis": Score(1.0, (), {"kind": "proxy"})},
            "; dynamic_degree_dis are no scores of the board",
        ),
        ({"psnr": Score(30.0)}, "no board has a dimension of these: psnr"),
    ],
)
def test_what_has_no_total(tmp_path, monkeypatch, capsys, scores, said):
    write_scores(tmp_path / "scores.json", scores)
    with pytest.raises(SystemExit) as stopped:
        cogvx(monkeypatch, "eval", "total", tmp_path / "scores.json")
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_scores_that_may_be_wrong_are_told(tmp_path, monkeypatch, capsys):
    rows = {name: Score(value) for name, value in PUBLISHED["2b"].items()}
    rows["imaging_quality"] = Score(0.0062)
    rows["temporal_flickering"] = Score(0.98, (), {"kind": "board", "videos": 3, "asked": 375})
    write_scores(tmp_path / "scores.json", rows)
    cogvx(monkeypatch, "eval", "total", tmp_path / "scores.json")
    said = capsys.readouterr().err
    for part in ("divides it by 100 twice", "is of 3 of 375 videos", "static filter did not choose"):
        assert part in said


def test_the_verb_compare(tmp_path, monkeypatch, capsys):
    values = np.linspace(0.2, 0.8, 12)
    for name, shift in (("a", 0.0), ("b", 0.02)):
        write_scores(tmp_path / f"{name}.json", {"temporal_flickering": scored(values, shift)})
    cogvx(monkeypatch, "eval", "compare", tmp_path / "a.json", tmp_path / "b.json")
    printed = capsys.readouterr().out
    assert "+0.02000" in printed and "12, more" in printed
    cogvx(monkeypatch, "eval", "compare", tmp_path / "a.json", tmp_path / "b.json", "--json")
    assert json.loads(capsys.readouterr().out)["temporal_flickering"]["says"] == "more"
