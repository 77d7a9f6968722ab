"""Prompts rewritten by a language model, and which language they are."""

import base64
import io
import sys

import numpy as np
import PIL.Image
import pytest
from chat_server import chat_server

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.enhance import language_note
from cogvx_jax.pipelines.record import read_record
from cogvx_jax.prompting import languages, wording
from cogvx_jax.prompting.chat import MOST_BYTES, Endpoint, cleaned
from cogvx_jax.prompting.enhance import Enhancer, data_url, token_counter
from cogvx_jax.prompting.languages import other_language

ANSWER = "A red panda walks."


@pytest.fixture(autouse=True)
def no_endpoint(monkeypatch):
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "OPENAI_MODEL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def by_letters_alone(monkeypatch):
    monkeypatch.setattr(languages, "_identifier", lambda: None)


@pytest.mark.parametrize(
    "prompt, language",
    [
        ("熊猫在雨中吃竹子", "Chinese"),
        ("a 熊猫 in the 竹林, 4k", "Chinese"),
        ("猫が庭で眠る", "Japanese"),
        ("판다가 대나무를 먹는다", "Korean"),
        ("Кот идёт по улице", "Russian or a language like it"),
        ("قطة تمشي في الشارع", "Arabic or Persian"),
        ("חתול הולך ברחוב", "Hebrew"),
        ("Μια γάτα περπατά", "Greek"),
        ("बिल्ली सड़क पर चलती है", "Hindi"),
        ("แมวเดินบนถนน", "Thai"),
        ("ድመት በመንገድ ላይ", "a language in ethiopic letters"),
        ("a red circle moves right on a white background", None),
        ('a shop whose sign says "福", in the evening, shot on film', None),
        ("crème brûlée, naïve café, jalapeño", None),
        ("8k, 24 fps, 100%!", None),
        ("", None),
    ],
)
def test_letters_tell_languages(by_letters_alone, prompt, language):
    assert other_language(prompt) == language


@pytest.mark.parametrize(
    "prompt, language",
    [
        ("Ein roter Panda frisst Bambus im Regen", "German"),
        ("una mujer camina por la playa al atardecer", "Spanish"),
        ("un chat noir marche dans la rue la nuit", "French"),
        ("a red panda eats bamboo in the rain", None),
        ("astronaut riding a horse on mars", None),
        ("noir film style", None),  # too short to tell
        ("sunset, 8k, cinematic", None),
        ("chat", None),
    ],
)
def test_words_tell_languages(prompt, language):
    pytest.importorskip("py3langid", reason="of the extra `enhance`")
    assert other_language(prompt) == language


def test_the_note_says_what_would_help(by_letters_alone, monkeypatch):
    assert language_note("a cat") is None
    said = "'熊猫' looks Chinese, and the models know English: translate it, or give --enhance-prompt"
    assert language_note("熊猫") == f"{said} with OPENAI_API_KEY or OPENAI_BASE_URL set"
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    assert language_note("熊猫") == said


def test_examples_fit_and_are_english():
    """In tokens of T5 about 1.3 a word; 226 are read."""
    for _, answer in wording.EXAMPLES:
        assert 80 <= len(answer.split()) <= 110 and answer.isascii()


def test_what_models_put_around_an_answer_goes():
    assert cleaned("<think>hm\nhm</think>\n\n```text\nA cat\n walks.```") == "A cat walks."
    assert cleaned('"A cat."') == "A cat." and cleaned("“A cat.”") == "A cat." and cleaned(" \n") == ""


def test_a_picture_is_sent_small():
    url = data_url(PIL.Image.new("RGB", (3000, 1500), "red"))
    head, _, data = url.partition(",")
    picture = PIL.Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and picture.size == (1024, 512)


def words(text):
    return len(text.split())


@pytest.fixture
def enhancer():
    """`enhancer(stub, **endpoint)`, which counts words up to 8."""
    pytest.importorskip("openai", reason="of the extra `enhance`")

    def make(stub, **endpoint):
        return Enhancer(Endpoint(url=stub.url, **endpoint), words, 8)

    return make


def test_a_prompt_is_rewritten(enhancer):
    with chat_server(lambda asked: f'"{ANSWER}"') as stub:
        made = enhancer(stub, key="secret")
        assert made("熊猫") == ANSWER and made.llm == "stub"
        assert "secret" not in repr(Endpoint(key="secret"))
        picture = np.zeros((16, 16, 3), np.uint8)
        assert made("it walks", picture) == ANSWER and made("", picture) == ANSWER
    text, image, silent = stub.requests
    assert text["key"] == "Bearer secret" and text["path"] == "/v1/chat/completions" and text["model"] == "stub"
    assert [one["role"] for one in text["messages"]] == ["system", *["user", "assistant"] * 3, "user"]
    assert text["messages"][-1]["content"] == "熊猫" and text["temperature"] == 0 and text["max_tokens"] == 16
    wish, shown = image["messages"][-1]["content"]
    assert wish["text"] == "it walks" and shown["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert image["messages"][0]["content"] == wording.FROM_IMAGE and len(image["messages"]) == 2
    assert silent["messages"][-1]["content"][0]["text"] == wording.WITHOUT_WISH


def test_empty_and_long_answers_are_asked_for_again(enhancer):
    answers = iter([None, "", ANSWER])
    with chat_server(lambda asked: next(answers)) as stub:
        assert enhancer(stub)("a") == ANSWER and len(stub.requests) == 3
    with chat_server(lambda asked: "One two three. Four five six. Seven eight nine ten.") as stub:
        assert enhancer(stub)("a") == "One two three. Four five six."
        assert [words(one["messages"][-1]["content"]) for one in stub.requests][1:] == [12, 12]
        assert "at most 4 words" in stub.requests[1]["messages"][-1]["content"]
    with chat_server(lambda asked: "word " * 20) as stub:
        assert enhancer(stub)("a") == "word word word word word word word word"


def test_endpoints_that_take_no_settings_get_none(enhancer):
    with chat_server(lambda asked: 400 if "temperature" in asked else ANSWER) as stub:
        made = enhancer(stub)
        assert made("a") == made("b") == ANSWER
    assert ["temperature" in asked for asked in stub.requests] == [True, False, False]


def test_what_goes_wrong_is_one_sentence(enhancer, monkeypatch):
    with chat_server(lambda asked: 401) as stub:
        with pytest.raises(OSError, match=r"the language model at http://127.* did not answer: .*401"):
            enhancer(stub)("a")
    with chat_server(lambda asked: None) as stub:
        with pytest.raises(ValueError, match="stub gave no answer in 3 tries"):
            enhancer(stub)("a")
    with chat_server(lambda asked: ANSWER, models=("one", "two")) as stub:
        with pytest.raises(ValueError, match="has several language models; name one, of one, two"):
            enhancer(stub)("a")
        assert enhancer(stub, llm="two")("a") == ANSWER and stub.requests[0]["model"] == "two"
    for prompt, said in ((" ", "the prompt is empty"), ("x" * 4001, "may have 4,000 characters, got 4,001")):
        with pytest.raises(ValueError, match=said):
            enhancer(stub)(prompt)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0)
    with chat_server(lambda asked: "x" * (MOST_BYTES + 1)) as stub:  # no more of it is held
        with pytest.raises(OSError, match="did not answer"):
            enhancer(stub)("a")
    with chat_server(lambda asked: {"no": "text"}) as stub:
        with pytest.raises(ValueError, match="gave no answer"):
            enhancer(stub)("a")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(OSError, match="at http://127.0.0.1:9/v1 did not answer: Connection error"):
        Enhancer(Endpoint(llm="x"), words, 8)("a")


def test_without_an_endpoint_or_the_package_it_is_said(monkeypatch, capsys):
    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvx", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == 2
        return capsys.readouterr().err

    for arguments in (["enhance", "a cat"], ["generate", "a cat", "--enhance-prompt", "--model", "nowhere"]):
        assert "no language model is named: set OPENAI_API_KEY, or OPENAI_BASE_URL" in said(*arguments)
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "needs the package openai: pip install 'cogvx_jax[enhance]'" in said("enhance", "a cat")
    assert "use `cogvx enhance` before" in said("generate", "a cat", "--enhance-prompt", "--distributed")


def test_commands_and_python(small, tmp_path, monkeypatch, capsys):
    pytest.importorskip("openai", reason="of the extra `enhance`")
    folder, model = small("5b")
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        cli.main()
        return capsys.readouterr()

    with chat_server(lambda asked: ANSWER) as stub:
        monkeypatch.setenv("OPENAI_BASE_URL", stub.url)
        assert run("enhance", "a panda", "--model", folder).out == f"{ANSWER}\n"
        assert cx.enhance_prompt(model, "a panda") == ANSWER
        made = ["generate", "熊猫", "--enhance-prompt", "--model", folder, "--no-progress", "--out"]
        assert f"cogvx: out.gif: {ANSWER}\n" in run(*made, "out.gif").err
    record = read_record("out.gif")
    assert record.prompts == (ANSWER,) and record.enhanced == {"wish": "熊猫", "llm": "stub"}
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert "wish 熊猫" in run("show", "out.gif").out
    run("replay", "out.gif", "--no-progress")
    for name in ("gif", "gif.json"):
        assert (tmp_path / f"out-replay.{name}").read_bytes() == (tmp_path / f"out.{name}").read_bytes()
    assert token_counter(model.tokenizer)("a") >= 2
