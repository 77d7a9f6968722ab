"""`cogvx prepare` on films that are drawn: cuts, scores, labels, what is done again, and lists that training reads."""

import json
import shutil
import sys

import pytest
from chat_server import chat_server
from drawn_films import letterboxed, moving, save, slides

from cogvx_jax.cli.main import main
from cogvx_jax.data.layouts import read_sources
from cogvx_jax.prepare import film as one_film
from cogvx_jax.prepare import films as reading
from cogvx_jax.prepare.rows import read_rows
from cogvx_jax.prepare.run import prepare
from cogvx_jax.prepare.settings import read_settings
from cogvx_jax.prepare.steps import STEPS

for package in ("cv2", "imagehash"):
    pytest.importorskip(package, reason="of the extra `prepare`")

STEPS_HERE = [name for name in STEPS if name not in ("text", "captions")]  # these have tests of their own


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    save(folder / "a b%.mp4", moving(1, 30) + letterboxed(moving(50, 30)))
    (folder / "a b%.txt").write_text("a camera pans")
    save(folder / "slides.mp4", slides(100, 40, 20))
    (folder / "zero.mp4").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def settings():
    return read_settings(None, STEPS_HERE, shots={"shortest": 1.0, "longest": 5.0, "trim": 0.1})


@pytest.fixture(scope="module")
def made(films, settings, tmp_path_factory):
    folder, said = tmp_path_factory.mktemp("sets") / "set", []
    counts = prepare(films, folder, settings, said.append)
    return folder, counts, said


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, words)])
    main()


def test_films_become_clips(made):
    folder, counts, said = made
    assert counts["films"] == 3 and counts["unreadable"] == 1 and counts["failed"] == 0
    assert "zero.mp4: probe: " in said[2]
    pans = [row for row in read_rows(folder / "clips.jsonl") if row["source"].endswith("a b%.mp4")]
    assert [(row["start_frame"], row["end_frame"]) for row in pans] == [(0, 29), (31, 60)]
    assert pans[0]["cut_scores"][0] is None and pans[0]["cut_scores"][1] > 10
    # 2 pixels a frame of 128 are 25 in half a second of a frame 320 wide.
    assert all(abs(row["motion_mean"] - 25) < 3 and row["camera"] == "pan" for row in pans)
    assert pans[0]["crop"] == [0, 0, 1, 1] and abs(pans[1]["border_area"] - 1 / 3) < 0.05
    assert pans[1]["video_height"] in (60, 62, 64) and pans[1]["video_width"] == 128
    assert pans[0]["editing"] == 0 and pans[1]["editing"] > 0.5 and pans[0]["static"] < 0.1
    assert pans[0]["prompt"] == "a camera pans" and pans[0]["caption_words"] == 3
    assert all((folder / row["video"]).is_file() and row["aesthetic"] is None for row in pans)


def test_a_slide_show_of_sharp_stills_is_static(made):
    folder, *_ = made
    found = [row for row in read_rows(folder / "clips.jsonl") if row["source"].endswith("slides.mp4")]
    assert len(found) == 2 and all(row["static"] == 1 and row["freeze_share"] > 0.9 for row in found)


def test_what_is_done_is_not_done_again(made, films, settings, monkeypatch):
    folder, *_ = made
    before = {name: (folder / name).read_bytes() for name in ("clips.jsonl", "films.jsonl")}
    kept = next((folder / "clips").iterdir())
    written = kept.read_bytes()
    kept.unlink()
    asked = []

    def counted(job, *arguments, **more):
        asked.append(job)
        return ask(job, *arguments, **more)

    ask = reading.ask
    monkeypatch.setattr(one_film, "looks", None)
    monkeypatch.setattr("cogvx_jax.prepare.write.ask", counted)
    monkeypatch.setattr("cogvx_jax.prepare.films.ask", counted)
    prepare(films, folder, settings, lambda line: None)
    assert asked == ["write"] and kept.read_bytes() == written
    assert before == {name: (folder / name).read_bytes() for name in before}


def test_a_selection_is_what_training_reads(made, tmp_path, monkeypatch, capsys):
    folder, *_ = made
    run(
        monkeypatch,
        "prepare",
        "select",
        folder,
        "--where",
        "static < 0.5 and motion_mean > 1",
        "--out",
        tmp_path / "c.jsonl",
    )
    assert "2 of 4 clips" in capsys.readouterr().out
    assert {source.prompt for source in read_sources(tmp_path / "c.jsonl")} == {"a camera pans"}
    for where, said in (
        ("static > 2", "none of its 4 clips"),
        ("static > 0.5", "have no caption"),
        ("statc > 1", "nearest is static"),
    ):
        with pytest.raises(SystemExit) as end:
            run(monkeypatch, "prepare", "select", folder, "--where", where, "--out", tmp_path / "d.jsonl")
        assert end.value.code == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "d.jsonl").exists()


def test_the_report_shows_clips_near_thresholds(made, tmp_path, monkeypatch, capsys):
    folder, *_ = made
    run(
        monkeypatch, "prepare", "report", folder, "--where", "static < 0.5 and tokens > 1", "--out", tmp_path / "r.html"
    )
    said = capsys.readouterr().out
    assert "not static < 0.5" in said and "unknown: tokens > 1" in said and "films that cannot be read" in said
    page = (tmp_path / "r.html").read_text()
    assert page.count("data:image/jpeg") == 4 and "<svg" in page and "just dropped" in page


def test_a_copy_in_another_size_is_told(films, made, settings, tmp_path):
    folder, *_ = made
    shutil.copytree(films, tmp_path / "films")
    shutil.copy(tmp_path / "films" / "slides.mp4", tmp_path / "films" / "zz same bytes.mp4")
    save(tmp_path / "films" / "0 coarse.mp4", moving(1, 30) + letterboxed(moving(50, 30)), crf=38)
    shutil.copytree(folder, tmp_path / "set")
    few = read_settings(
        None, ["probe", "shots", "borders", "duplicates"], shots={"shortest": 1.0, "longest": 5.0, "trim": 0.1}
    )
    counts = prepare(tmp_path / "films", tmp_path / "set", few, lambda line: None)
    assert counts["clips"] == 6 and counts["copies"] == 2
    rows = read_rows(tmp_path / "set" / "clips.jsonl")
    copies = [row for row in rows if row["dup_of"]]
    assert all(row["source"].endswith("0 coarse.mp4") for row in copies)
    films_told = read_rows(tmp_path / "set" / "films.jsonl")
    assert [row["same_as"] is not None for row in films_told].count(True) == 1
    assert all(row["motion_mean"] is not None for row in rows if not row["dup_of"])  # of steps not asked for, too


def test_captions_are_cached_and_a_captioner_that_is_down_is_asked_again(films, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="of the extra `enhance`")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    answers = iter([429, "I'm sorry, I can't help with that.", 500])

    def answer(asked):
        found = next(answers, None)
        text = asked["messages"][0]["content"][0]["text"]
        return found if found is not None else "a merged description" if "At " in text else "A dog runs along."

    few = ["probe", "shots", "captions", "check"]

    def prepared(url):
        about = {"url": url, "model": "stub"}
        given = read_settings(None, few, shots={"shortest": 1.0, "longest": 5.0, "trim": 0.1}, captions=about)
        prepare(films / "a b%.mp4", tmp_path / "set", given, lambda line: None)
        return read_rows(tmp_path / "set" / "clips.jsonl")

    with chat_server(answer) as stub:
        rows = prepared(stub.url)
        count = len(stub.requests)
        assert all(row["caption"] == "A merged description" and row["tokens"] > 2 for row in rows)
        assert all(row["caption_short"] and len(row["caption_frames"]) == 3 and row["refused"] is False for row in rows)
        images = [part for part in stub.requests[0]["messages"][0]["content"] if part["type"] == "image_url"]
        assert images[0]["image_url"]["url"].startswith("data:image/jpeg;base64,")
        prepared(stub.url)
        assert len(stub.requests) == count
    shutil.rmtree(tmp_path / "set")
    with chat_server(lambda asked: 500) as stub:
        rows = prepared(stub.url)
        assert all(row["caption"] is None and "did not answer" in row["errors"]["captions"] for row in rows)
        stub.answers = lambda asked: "As an AI language model, I cannot see this."
        rows = prepared(stub.url)
        assert all(row["caption"] is None and row["refused"] for row in rows)
        count = len(stub.requests)
        prepared(stub.url)  # refusals are answers, too
        assert len(stub.requests) == count


@pytest.mark.full
def test_labels_of_a_vision_model(films, tmp_path, monkeypatch):
    pytest.importorskip("openai", reason="of the extra `enhance`")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    said = {name: 0.5 for name in ("editing", "static", "low_quality", "lecture", "text", "screenshot")}
    with chat_server(lambda asked: json.dumps(said)) as stub:
        about = {"url": stub.url, "model": "stub"}
        given = read_settings(None, ["probe", "shots", "labels"], labels={"source": "vlm"}, captions=about)
        prepare(films / "slides.mp4", tmp_path / "set", given, lambda line: None)
    rows = read_rows(tmp_path / "set" / "clips.jsonl")
    assert all(row["lecture"] == 0.5 and row["label_source"] == "vlm stub" for row in rows)


def test_a_film_that_takes_too_long_is_an_error_of_its_row(films):
    with pytest.raises(TimeoutError, match="took more than 0.01 s"):
        reading.facts(films / "slides.mp4", 0.01)


def test_jobs_of_a_film_have_one_process_until_one_fails(films, monkeypatch):
    started, new = [], reading._new_reader
    monkeypatch.setattr(reading, "_new_reader", lambda: started.append(new()) or started[-1])
    with reading.one_film():
        first = reading.facts(films / "slides.mp4", 60)
        assert reading.facts(films / "slides.mp4", 60) == first and len(started) == 1
        with pytest.raises(ValueError, match="cannot be read as a video"):
            reading.facts(films / "zero.mp4", 60)
        assert reading.facts(films / "slides.mp4", 60) == first and len(started) == 2
    assert all(child.poll() is not None for child in started)
    reading.facts(films / "slides.mp4", 60)
    assert len(started) == 3 and started[2].poll() is not None
