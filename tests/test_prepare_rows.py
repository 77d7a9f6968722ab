"""Data preparation without a film: expressions, rows, what is kept, lists, labels, answers of captioners."""

import json
import os
import re
import sqlite3
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from cogvx_jax.cli.main import main
from cogvx_jax.data.expressions import parse_expression
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.prepare import label_head
from cogvx_jax.prepare.captions import NoUse, useful
from cogvx_jax.prepare.check import check
from cogvx_jax.prepare.duplicates import duplicates
from cogvx_jax.prepare.embedding import embedding
from cogvx_jax.prepare.formats import write_list
from cogvx_jax.prepare.label_answers import read_answer
from cogvx_jax.prepare.label_names import LABELS
from cogvx_jax.prepare.labels import by_rules
from cogvx_jax.prepare.look import Look
from cogvx_jax.prepare.report import DEFAULT
from cogvx_jax.prepare.rows import finite, key_of, read_rows, write_rows
from cogvx_jax.prepare.select import parse_where
from cogvx_jax.prepare.settings import Captions, Duplicates, Embedding, Settings, Shots, read_settings
from cogvx_jax.prepare.shots import LUMA, Seen, parts
from cogvx_jax.prepare.sources import find_films
from cogvx_jax.prepare.steps import STEPS, chosen
from cogvx_jax.prepare.store import FILE, open_store

ROW = {"motion_mean": 2.0, "text_area": 0.01, "static": 0.1, "camera": "pan", "vfr": False, "prompt": None}


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("motion_mean > 1 and text_area < 0.02 and static < 0.5", True),
        ("motion_mean > 1\n and not vfr", True),
        ("1 < motion_mean <= 2", True),
        ("motion_mean * 2 - 1 == 3", True),
        ("camera in ['pan', 'tilt'] or static > 0.5", True),
        ("camera not in ['pan']", False),
        ("vfr == true", False),
        ("tokens > 1", False),
        ("not tokens > 1", False),  # of what is missing nothing is known
        ("tokens > 1 or motion_mean > 1", True),
        ("tokens > 1 and motion_mean > 1", False),
        ("tokens is null and prompt is null and camera is not null", True),
        ("motion_mean / 0 > 1", False),
    ],
)
def test_expressions(text, wanted):
    assert parse_expression(text, {*ROW, "tokens"}).chooses(ROW) is wanted


@pytest.mark.parametrize(
    "text, said",
    [
        ("motoin_mean > 1", "there is no field 'motoin_mean'; the nearest is motion_mean"),
        ("__import__('os')", "__import__"),
        ("motion_mean.real > 1", "is not known here"),
        ("[x for x in static]", "no field 'x'"),
        ("motion_mean >", "is no expression"),
        ("(" * 3000, "is no expression"),
        ("camera > 1", "cannot be compared"),
        ("camera and vfr", "join comparisons"),
        ("motion_mean", "must be true or false"),
        ("motion_mean is 2.0", "goes with null"),
        ("1 " * 3000, "may have"),
    ],
)
def test_what_is_no_expression_is_one_sentence(text, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as error:
        parse_expression(text, ROW.keys()).chooses(ROW)
    assert "\n" not in str(error.value)


def test_rows_hold_what_json_does(tmp_path):
    rows = [{"a": float("nan"), "b": [np.float32(0.1)], "name": "käse\udcff", "c": np.int64(3)}]
    write_rows(tmp_path / "rows.jsonl", map(finite, [{k: v for k, v in rows[0].items() if k != "name"}]))
    assert read_rows(tmp_path / "rows.jsonl") == [{"a": None, "b": [0.1], "c": 3}]
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1}) != key_of({"a": 1, "b": 3})
    write_rows(tmp_path / "names.jsonl", [rows[0] | {"a": 1, "b": 1, "c": 1}])  # a name that is no UTF-8
    assert b"\\udcff" in (tmp_path / "names.jsonl").read_bytes()


def test_what_is_done_is_kept_and_one_process_has_it(tmp_path):
    with open_store(tmp_path / "set") as store:
        store.put("motion", "k", {"x": 1})
        with pytest.raises(OSError, match="another process prepares"):
            with open_store(tmp_path / "set"):
                pass
    film = tmp_path / "film.mp4"
    film.write_bytes(b"one")
    with open_store(tmp_path / "set") as store:
        assert store.get("motion", "k") == {"x": 1} and store.get("motion", "l") is None
        first = store.digest(film)
        film.write_bytes(b"two")
        os.utime(film, (time.time() + 5,) * 2)
        assert store.digest(film) != first
    with sqlite3.connect(tmp_path / "set" / FILE) as database:
        database.execute("pragma user_version = 7")
    with pytest.raises(ValueError, match="is of version 7"):
        with open_store(tmp_path / "set"):
            pass
    (tmp_path / "set" / FILE).write_bytes(b"no database at all, but long enough to be one" * 100)
    with pytest.raises(ValueError, match="is damaged"):
        with open_store(tmp_path / "set"):
            pass


def test_settings_of_a_file_and_of_the_command_line(tmp_path):
    file = tmp_path / "prepare.toml"
    file.write_text('limit = 9\n[shots]\ndetector = "content"\nlongest = 6\n')
    settings = read_settings(file, ["probe"], shots={"detector": "scdet"}, captions={"url": None})
    assert settings.shots == Shots(detector="scdet", longest=6.0) and settings.steps == ("probe",)
    for text, said in (("[shot]\n", "no setting 'shot'"), ("[shots]\ntrim = -1\n", "trim"), ("x", "is not TOML")):
        file.write_text(text)
        with pytest.raises(ValueError, match=said):
            read_settings(file)
    with pytest.raises(ValueError, match="there is no step 'shot'"):
        chosen(Settings(steps=("shot",)))


def test_shots_are_trimmed_and_divided():
    settings = Shots(shortest=1, longest=2, trim=0.25)
    assert parts(0, 100, (None, None), 10.0, settings) == [(0, 20), (20, 40), (40, 60), (60, 80), (80, 100)]
    assert parts(0, 24, (None, 9.0), 10.0, settings) == [(0, 10), (10, 21)]
    assert parts(0, 24, (12.0, 9.0), 10.0, settings) == [(3, 21)]
    assert parts(0, 14, (12.0, 9.0), 10.0, settings) == []


def test_flashes_are_no_cuts_and_black_frames_no_shots():
    from cogvx_jax.data.scene_scores import SceneScores

    draw = np.random.default_rng(0)
    one, two = draw.integers(0, 255, (2, 48, 64, 3), np.uint8)
    white, black = np.full_like(one, 255), np.zeros_like(one)
    film = [one] * 10 + [white] * 2 + [one] * 10 + [two] * 10 + [black] * 5
    seen, scores = Seen(Shots()), SceneScores()
    for frame in film:
        seen.add((frame @ LUMA * 219 / 255 + 16).astype(np.uint8), scores(frame))
    assert [(first, stop) for first, stop, _ in seen.shots()] == [(0, 22), (22, 32)]


def test_copies_are_found_without_comparing_all_pairs():
    draw = np.random.default_rng(1)
    rows = [{"clip_id": str(n), "phash": [f"{x:016x}" for x in draw.integers(0, 2**63, 3)]} for n in range(2000)]
    near = [f"{int(text, 16) ^ 0b1011:016x}" for text in rows[17]["phash"]]  # three bits of each
    found = duplicates([*rows, {"clip_id": "copy", "phash": near}, {"clip_id": "none", "phash": None}], Settings())
    assert found[-2]["dup_of"] == "17" and found[-1]["dup_of"] is None
    assert not any(row["dup_of"] for row in found[:2000])
    strict = Settings(duplicates=Duplicates(distance=2))
    assert duplicates([rows[17], {"clip_id": "copy", "phash": near}], strict)[1]["dup_of"] is None


def test_films_of_folders_and_of_lists(tmp_path):
    deep = tmp_path / "films" / "-a b%20ü"
    deep.mkdir(parents=True)
    (deep / "-x y.mp4").write_bytes(b"x")
    (deep / "-x y.txt").write_text("a caption\nof which one line counts")
    (deep / "notes.pdf").write_bytes(b"x")
    (deep / "round").symlink_to(tmp_path / "films")  # links in a circle
    (deep / "self.mp4").symlink_to(deep / "self.mp4")
    said = []
    found = find_films(tmp_path / "films", said.append)
    assert [(film.path.name, film.prompt) for film in found if film.path.name != "self.mp4"] == [
        ("-x y.mp4", "a caption")
    ]
    fun, juicer = tmp_path / "fun.json", tmp_path / "juicer.jsonl"
    fun.write_text(
        json.dumps(
            [
                {"file_path": "a.mp4", "text": "one", "type": "video"},
                {"file_path": "b.jpg", "text": "x", "type": "image"},
            ]
        )
    )
    juicer.write_text(json.dumps({"videos": ["a.mp4"], "text": "<__dj__video> two words <|__dj__eoc|>"}) + "\n")
    assert [film.prompt for film in find_films(fun, said.append)] == ["one"]
    assert [film.prompt for film in find_films(juicer, said.append)] == ["two words"]
    for text, error in (('{"x": 1}\n', "names no video"), ("[]", "no JSON objects")):
        juicer.write_text(text)
        with pytest.raises(ValueError, match=error):
            find_films(juicer, said.append)
    with pytest.raises(FileNotFoundError):
        find_films(tmp_path / "none", said.append)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no films"):
        find_films(tmp_path / "empty", said.append)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read all folders")
def test_a_folder_that_cannot_be_read_is_told_of(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.mp4").write_bytes(b"x")
    closed.chmod(0)
    said = []
    assert len(find_films(tmp_path, said.append)) == 1
    closed.chmod(0o700)
    assert "closed" in said[0]


def test_lists_of_others_come_back(tmp_path):
    folder = tmp_path / "set"
    (folder / "clips").mkdir(parents=True)
    (folder / "clips" / "a.mp4").write_bytes(b"film")
    samples = [{"video": "clips/a.mp4", "prompt": "a dog, running", "motion_mean": 1.5}]
    (tmp_path / "tars").mkdir()
    for name in ("clips.jsonl", "fun.json", "tars/data.tar"):
        out = tmp_path / name
        write_list(out, samples, folder)
        [source] = read_sources(out)
        assert source.prompt == "a dog, running"
    with tarfile.open(tmp_path / "tars" / "data.tar") as tar:
        assert tar.extractfile("a.mp4").read() == b"film"
    with pytest.raises(ValueError, match="must end in"):
        write_list(tmp_path / "clips.txt", samples, folder)
    parquet = pytest.importorskip("pyarrow.parquet", reason="of the extra `prepare`")
    write_list(tmp_path / "clips.parquet", samples, folder)
    assert parquet.read_table(tmp_path / "clips.parquet").to_pylist() == [samples[0] | {"video": "set/clips/a.mp4"}]


def test_rules_know_nothing_of_missing_scores():
    assert set(by_rules({}).values()) == {None}
    slides = {"motion_static_share": 0.9, "freeze_share": 0.9, "text_area": 0.3}
    assert by_rules(slides) == dict.fromkeys(LABELS) | {"static": 1.0, "text": 1.0, "screenshot": 1.0}
    sharp = {"sharpness": 400.0, "contrast": 0.2, "clipped": 0.0, "blockiness": None, "shake": 0.3}
    assert by_rules(sharp)["low_quality"] == 0.0
    assert by_rules(sharp | {"sharpness": 5.0})["low_quality"] == 1.0


def test_a_head_learns_a_label_and_tells_its_accuracy(tmp_path):
    draw, folder = np.random.default_rng(2), tmp_path / "set"
    folder.mkdir()
    rows = []
    for n in range(60):
        talks = n % 3 == 0
        motion = float(draw.normal(1.0 if talks else 6.0, 1.0))
        rows.append({"clip_id": f"c{n}", "motion_mean": motion, "static": 0.9 if talks else 0.1, "lecture": None})
    write_rows(folder / "clips.jsonl", rows)
    (folder / "set.json").write_text('{"format": 1}')
    table = tmp_path / "labels.csv"
    lines = [f"c{n},{int(n % 3 == 0)},{int(n % 3 == 0)}" for n in range(60)]
    table.write_text("\n".join(["clip_id,lecture,static", *lines]))
    said = list(label_head.fit(folder, table, tmp_path / "head.json"))
    lecture = next(line.split() for line in said if line.startswith("lecture"))
    assert float(lecture[2]) > 0.9 and lecture[3] == "-" and lecture[4] == "0.99"
    assert float(next(line.split() for line in said if line.startswith("static"))[3]) == 1.0
    head = label_head.read_head(str(tmp_path / "head.json"))
    assert head({"motion_mean": 0.5})["lecture"] > 0.5 > head({"motion_mean": 7.0})["lecture"]
    assert head({})["editing"] is None
    for text, error in (
        ("clip_id,x\n", "must have the columns"),
        ("clip_id,static\nc1,2\n", "must be 0, 1"),
        ("clip_id,static\nq,1\n", "has no clip"),
    ):
        table.write_text(text)
        with pytest.raises(ValueError, match=error):
            list(label_head.fit(folder, table, tmp_path / "other.json"))
    (folder / "set.json").write_text('{"format": 9}')
    with pytest.raises(ValueError, match="version 9"):
        list(label_head.fit(folder, table, tmp_path / "other.json"))


def test_a_head_of_embeddings(tmp_path, monkeypatch, capsys):
    """A direction of 80 tells the label; no score does. There are fewer clips than numbers of each."""
    draw, folder = np.random.default_rng(3), tmp_path / "set"
    folder.mkdir()
    rows, talks = [], np.arange(70) % 2
    for n, one in enumerate(talks):
        vector = draw.normal(0, 1, 80)
        vector[:4] += 3.0 * one
        rows.append({"clip_id": f"c{n}", "motion_mean": 1.0, "embedding": vector.tolist(), "embedding_of": "m:f 1"})
    write_rows(folder / "clips.jsonl", rows)
    (folder / "set.json").write_text('{"format": 1}')
    table, out = tmp_path / "labels.csv", tmp_path / "head.json"
    table.write_text("\n".join(["clip_id,lecture", *(f"c{n},{one}" for n, one in enumerate(talks))]))
    accuracies = {}
    for on in ("scores", "embedding", "both"):
        words = ["cogvx", "prepare", "fit-labels", str(folder), str(table), "--on", on, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", words)
        main()
        said = capsys.readouterr().out.splitlines()
        accuracies[on] = float(next(line.split() for line in said if line.startswith("lecture"))[2])
    assert accuracies["scores"] < 0.7 and min(accuracies["embedding"], accuracies["both"]) > 0.9
    head = label_head.read_head(str(out))
    right = [(head(row)["lecture"] > 0.5) == bool(one) for row, one in zip(rows, talks, strict=True)]
    assert np.mean(right) > 0.97
    unknown = head({"motion_mean": 1.0})["lecture"]
    assert head(rows[1] | {"embedding_of": "other 1"})["lecture"] == unknown  # what it never saw counts as missing
    write_rows(folder / "clips.jsonl", [*rows[1:], rows[0] | {"embedding_of": "other 1"}])
    with pytest.raises(ValueError, match="are of m:f 1 and of other 1"):
        list(label_head.fit(folder, table, out, "embedding"))
    write_rows(folder / "clips.jsonl", [row | {"embedding": None} for row in rows])
    with pytest.raises(ValueError, match="has an embedding"):
        list(label_head.fit(folder, table, out, "embedding"))


def test_the_fit_of_few_clips_is_that_of_many():
    """In the space of the clips, and in that of the numbers."""
    draw = np.random.default_rng(0)
    x = np.concatenate([draw.normal(size=(40, 60)), np.ones((40, 1))], axis=1)
    y = (x[:, 0] + draw.normal(size=40) > 0).astype(float)
    few = label_head._logistic(x, y)
    p = 1 / (1 + np.exp(-(x @ few)))
    slope = x.T @ (p - y) + np.r_[np.full(60, label_head.RIDGE), 1e-3] * few
    assert np.abs(slope).max() < 1e-6  # where the slope is 0 there is one minimum


def pixels(frames):
    return frames.reshape(len(frames), -1, 3).mean(1)


def words(texts):
    return np.array([[255.0 * ("red" in text), 0, 255.0 * ("blue" in text)] for text in texts])


def test_embeddings_and_how_like_its_caption_a_clip_is(monkeypatch):
    module = type(os)("own_features")
    module.pixels, module.words = pixels, words
    module.broken, module.same = lambda frames: 1 / 0, lambda frames: frames
    monkeypatch.setitem(sys.modules, "own_features", module)
    settings = Settings(embedding=Embedding(function="own_features:pixels", texts="own_features:words"))
    red = np.zeros((3, 8, 8, 3), np.uint8)
    red[..., 0] = 200
    look = Look(red, 8.0, red, (0.0, 1.0, 2.0), True)
    row = embedding({}, look, settings)
    assert row == {"embedding": [1.0, 0.0, 0.0], "embedding_of": "own_features:pixels 1"}
    scores = [check(row | {"caption": text}, settings)["clip_score"] for text in ("a red ball", "a blue ball")]
    assert scores == [100, 0] and check(row | {"caption": "a ball"}, Settings())["clip_score"] is None
    assert embedding({}, look, Settings()) == {} == embedding({}, Look(red, 8.0, red[:0], (), True), settings)
    for name, said in (("own_features:broken", "ZeroDivisionError"), ("own_features:same", "must give features")):
        with pytest.raises(ValueError, match=said):
            embedding({}, look, Settings(embedding=Embedding(function=name)))
    with pytest.raises(ValueError, match="there is no function own_features:none"):
        chosen(Settings(steps=("embedding",), embedding=Embedding(function="own_features:none")))


def test_answers_that_are_no_description_are_not_taken():
    assert useful('"The video shows a dog\nthat runs."') == "A dog that runs."
    for answer in (
        "",
        "ok",
        "I'm sorry, I can't help with that.",
        "# Title\n- a dog runs far",
        "As an AI, I see a dog",
        "\x1b[31m a dog runs far",
        "%%%% $$$$ &&&& ####",
        "a dog " * 2000,
    ):
        with pytest.raises(NoUse):
            useful(answer)


def test_labels_of_a_vision_model_are_all_six_or_none():
    said = dict.fromkeys(LABELS, 0.25)
    assert read_answer(f"<think>hm</think>Sure: ```json\n{json.dumps(said)}\n```") == said
    for answer in ("", "{", json.dumps(said | {"text": 2}), json.dumps({"text": 1}), '{"text": NaN}', "{" * 10_000):
        assert read_answer(answer) is None


def test_fields_are_of_one_step_each():
    fields = [field for step in STEPS.values() for field in step.fields]
    assert len(fields) == len(set(fields))
    assert all(field in {"prompt", *fields} for step in STEPS.values() for field in step.reads)


def test_the_page_names_the_fields_and_the_defaults(tmp_path):
    page = (Path(__file__).parents[1] / "docs" / "prepare.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.M))
    assert list(rows) == list(STEPS)
    for name, step in STEPS.items():
        assert set(re.findall(r"`(\w+)`", rows[name])) == set(step.fields)
    defaults, where = re.findall(r"```toml\n(.*?)```", page, flags=re.S)
    (tmp_path / "prepare.toml").write_text(defaults)
    assert read_settings(tmp_path / "prepare.toml") == Settings()
    for text in re.findall(r'where(?: =)? "([^"]+)"', page):
        assert parse_where(text).names
    assert f"`{DEFAULT.split(' and ')[0]}`" in page


def test_captions_need_somebody_to_ask():
    with pytest.raises(ValueError, match="give --captions URL"):
        chosen(Settings(steps=("captions",)))
    asked = Captions(url="http://one/v1", model="m")
    assert asked.decides == Captions(url="http://two/v1", model="m", timeout=9.0, at_once=1).decides
    assert asked.decides != Captions(url="http://one/v1", model="n").decides
    for wrong in ({"url": "u", "local": "l"}, {"tries": 0}, {"timeout": 0.0}):
        with pytest.raises(ValueError):
            Captions(**wrong)
