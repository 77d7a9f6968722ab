"""Every command and Python block of docs/evaluation.md, with `tiny` and a small random CLIP."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cogvx_jax.cli.main import main
from cogvx_jax.evaluation.boards import BOARDS
from cogvx_jax.evaluation.measures import MEASURES
from cogvx_jax.evaluation.run import FILTERED, SETS
from cogvx_jax.evaluation.scores import Score, read_scores, write_scores
from cogvx_jax.evaluation.totals import PUBLISHED
from cogvx_jax.finishing.packaged import INTERPOLATORS, packaged_file

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
COMMANDS = re.findall(r"^\|[^|]+\| `(cogvx [^`]+)` \|$", PAGE, flags=re.M)
COMMANDS += re.findall(r"^    (cogvx .*)$", PAGE, flags=re.M)
FEATURES, PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)


def test_the_tables_are_those_of_the_code():
    kinds = dict(re.findall(r"^\| `(\w+)` \| (\w+) \|", PAGE, flags=re.M))
    assert kinds == {one.name: one.kind for one in MEASURES} | {FILTERED: "proxy"} | dict.fromkeys(SETS, "set")
    assert set(re.findall(r"^\| `([\w-]+)` \| [\d,]+", PAGE, flags=re.M)) == set(BOARDS)


def test_the_block_of_python(capsys):
    exec(compile(PYTHON, "docs/evaluation.md", "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) == 3


def rows():
    """A board of eight prompts in the layout of VBench."""
    still = [{"prompt_en": f"a {colour} circle", "dimension": ["temporal_flickering"]} for colour in ("red", "blue")]
    moving = [
        {"prompt_en": f"a {colour} circle moves left", "dimension": ["dynamic_degree", "background_consistency"]}
        for colour in ("red", "blue", "green")
    ]
    return still + moving


def clip_folder():
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**small, "vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**small, "image_size": 32, "patch_size": 8},
        projection_dim=4,
    )
    transformers.CLIPModel(config).save_pretrained("clip")
    side = {"height": 32, "width": 32}
    transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=side).save_pretrained("clip")
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{letter}</w>" for letter in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *letters])}
    Path("clip/vocab.json").write_text(json.dumps(vocabulary))
    Path("clip/merges.txt").write_text("#version: 0.2\n")
    Path("clip/tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')


@pytest.mark.full
def test_the_page(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2", reason="the extra evaluate is not installed")
    if packaged_file(INTERPOLATORS["rife"]) is None:
        pytest.skip("the extra finish is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("info.json").write_text(json.dumps(rows()))
    Path("features.py").write_text(FEATURES)
    monkeypatch.setattr("cogvx_jax.evaluation.boards.packaged_file", lambda wanted: Path("info.json").absolute())
    clip_folder()
    assert len(COMMANDS) == 11
    said = {}
    for command in COMMANDS:
        words = shlex.split(command)[1:]
        if words[0] == "batch":
            words += ["--steps", "2", "--no-progress"]
        if words[1] == "total":  # the rest of the board, by its own tools
            Path("vbench_results").mkdir()
            rest = {name: Score(value) for name, value in PUBLISHED["2b"].items() if name != "temporal_flickering"}
            write_scores(Path("vbench_results/tool_eval_results.json"), rest)
        monkeypatch.setattr(sys, "argv", ["cogvx", *words])
        main()
        said[command] = capsys.readouterr().out
        if words[0] == "batch":
            words = ["fast" if word == "videos" else word for word in words]
            words[words.index("--steps") + 1] = "1"
            monkeypatch.setattr(sys, "argv", ["cogvx", *words])
            main()
    assert "all 8 videos are there and whole" in said["cogvx eval check videos"]
    total = next(printed for command, printed in said.items() if " total " in command)
    assert total.splitlines()[-1].startswith("total")
    assert {"clip_score_given", "frechet_distance", "background_consistency_given"} <= json.loads(
        Path("clip.json").read_text()
    ).keys()
    by_function, by_folder = (read_scores(Path(name))["clip_score_given"] for name in ("clip.json", "clip_score.json"))
    assert by_folder.value > 0 and abs(by_function.value - by_folder.value) < 1e-4
