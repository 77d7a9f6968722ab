"""`cogvx push`: what a page on the hub says, and what is sent, to a stub on the loopback."""

import contextlib
import dataclasses
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml
from safetensors.numpy import save_file

import cogvx_jax as cx
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.model_card import Card, find_base
from cogvx_jax.configs import LoRAConfig
from cogvx_jax.convert.runs import transformer_shapes
from cogvx_jax.data.video import VideoWriter
from cogvx_jax.models import lora as loras
from cogvx_jax.pipelines.option_json import as_json
from cogvx_jax.pipelines.options import Options
from cogvx_jax.pipelines.record import MODEL, Record

PROMPT = 'a panda: "hello" 熊猫'


@pytest.fixture
def lora_2b(tmp_path):
    file, key = tmp_path / "panda.safetensors", "transformer.transformer_blocks.29.attn1.to_q.lora_"
    save_file({f"{key}A.weight": np.ones((4, 1920), "f2"), f"{key}B.weight": np.ones((1920, 4), "f2")}, file)
    return file


@pytest.fixture
def sample(tmp_path):
    """A video that carries a record."""
    model = dict.fromkeys(MODEL, "x") | dict.fromkeys(("exact", "one_program", "programs"), False)
    record = Record(
        prompts=(PROMPT,),
        options=as_json(Options()),
        model=model | {"given": {}, "loras": []},
        files={},
        versions={},
        device={},
    )
    with VideoWriter(tmp_path / "sample.mp4", 8, comment=record.text) as writer:
        writer.write(np.zeros((2, 32, 48, 3), np.uint8))
    return tmp_path / "sample.mp4"


def card_of(text):
    """Metadata and body of the page in a text."""
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def push(*arguments, monkeypatch, capsys, code=0):
    monkeypatch.setattr(sys, "argv", ["cogvx", "push", *map(str, arguments)])
    if code:
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert stopped.value.code == code
    else:
        cli.main()
    return "".join(capsys.readouterr())


@pytest.mark.parametrize(
    "base, hub, licence",
    [
        ("2b", "zai-org/CogVideoX-2b", {"license": "apache-2.0"}),
        ("CogVideoX-5b", "zai-org/CogVideoX-5b", {"license": "other", "license_name": "cogvideox-license"}),
        ("zai-org/CogVideoX1.5-5B-I2V", "zai-org/CogVideoX1.5-5B-I2V", {"license": "other"}),
        ("tiny", None, {"license": "apache-2.0"}),
    ],
)
def test_the_licence_is_that_of_the_base(base, hub, licence):
    data, body = card_of(Card(repo="me/x", part="finetune", kind="t2v", base=find_base(base)).text())
    assert data.get("base_model") == hub and data.items() >= licence.items()
    if data["license"] == "other":
        assert (
            data["license_link"] == f"https://huggingface.co/{hub}/blob/main/LICENSE" and data["license_link"] in body
        )
    with pytest.raises(ValueError, match="the licence of 'mine' is not known here; give --base, one of tiny, 2b"):
        find_base("mine")


def test_an_image_model_has_its_own_page():
    data, body = card_of(Card(repo="me/x", part="adapter", kind="i2v", base=find_base("5b-i2v")).text())
    assert data["pipeline_tag"] == "image-to-video" and {"lora", "cogvideox"} < set(data["tags"])
    assert "CogVideoXImageToVideoPipeline" in body and "--model 5b-i2v --lora pytorch_lora" in body
    assert "--image first.png" in body and 'load_lora_weights("me/x")' in body and "<Gallery" not in body


def test_without_yes_nothing_is_sent(lora_2b, sample, monkeypatch, capsys):
    asked = [lora_2b, "me/panda", "--base", "2b", "--sample", sample, "--trigger", "PNDA"]
    said = push(*asked, monkeypatch=monkeypatch, capsys=capsys)
    assert said.startswith("https://huggingface.co/me/panda would get\n") and "Nothing was sent; --yes" in said
    files, _, page = said.partition("\nREADME.md:\n\n")
    assert [line.split(",")[0].strip() for line in files.splitlines()[1:]] == [
        "README.md",
        "pytorch_lora_weights.safetensors",
        "samples/0.mp4",
    ]
    data, body = card_of(page)
    assert data["widget"] == [{"text": PROMPT, "output": {"url": "samples/0.mp4"}}]
    assert data["instance_prompt"] == "PNDA" and data["base_model_relation"] == "adapter"
    assert "<Gallery />" in body and "rank 4, alpha 4" in body and "`PNDA`" in body


def test_runs_and_models(small, tmp_path, monkeypatch, capsys):
    spec, config = cx.load_spec("tiny"), LoRAConfig(rank=2, targets=("to_q",))
    run = tmp_path / "run"
    adapters = loras.init(jax.random.key(0), transformer_shapes(spec), config)
    with ocp.CheckpointManager(run / "checkpoints", item_handlers=ocp.PyTreeCheckpointHandler()) as manager:
        manager.save(7, args=ocp.args.PyTreeSave({"params": adapters, "average": None}))
    said = {"source": "tiny", "name": spec.name, "width": spec.transformer.width, "layers": spec.transformer.layers}
    (run / "run.json").write_text(json.dumps(said | {"lora": dataclasses.asdict(config)}))
    shown = push(run, "me/run", monkeypatch=monkeypatch, capsys=capsys)
    assert "pytorch_lora_weights.safetensors" in shown and "7 updates" in shown and "license: apache-2.0" in shown
    shown = push(small("5b")[0], "me/model", "--base", "5b", monkeypatch=monkeypatch, capsys=capsys)
    assert "  transformer/config.json, " in shown and "base_model_relation: finetune" in shown


def test_what_cannot_be_published_is_refused(lora_2b, tmp_path, monkeypatch, capsys):
    def err(*arguments):
        return push(*arguments, monkeypatch=monkeypatch, capsys=capsys, code=2)

    assert "the hub's repository is OWNER/NAME, such as me/panda-lora, got 'x'" in err(lora_2b, "x")
    with VideoWriter(tmp_path / "plain.mp4", 8) as writer:
        writer.write(np.zeros((2, 32, 48, 3), np.uint8))
    assert "plain.mp4' carries no record" in err(lora_2b, "me/x", "--sample", tmp_path / "plain.mp4")
    assert "is no sample" in err(lora_2b, "me/x", "--sample", lora_2b)
    assert "panda.safetensors cannot be of CogVideoX-5b: " in err(lora_2b, "me/x", "--base", "5b")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "nobody is logged in to the hub" in err(lora_2b, "me/x", "--yes")
    renamed = lora_2b.rename(tmp_path / "x.safetensors")
    assert "x.safetensors does not tell which model it is of; give --base, one of CogVideoX-2b" in err(renamed, "me/x")


@contextlib.contextmanager
def hub():
    """The address of a stub of the hub, and what it was sent: path and bytes of each call."""
    calls = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({})

        def do_POST(self):
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = b""
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            else:
                data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            calls.append((self.path, data))
            where = f"http://{self.headers['Host']}/me/panda"
            if self.path.endswith("/preupload/main"):
                names = [file["path"] for file in json.loads(data)["files"]]
                self.answer(
                    {"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]}
                )
            else:
                commit = {"commitUrl": f"{where}/commit/0", "commitOid": "0", "success": True}
                self.answer({"url": where, "id": "me/panda", "errors": [], "warnings": []} | commit)

        def answer(self, body):
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", calls
        server.shutdown()


@pytest.mark.full
def test_it_is_sent(lora_2b, sample, tmp_path):
    """In a process of its own: the client reads the hub's address when it is imported."""
    words = ["push", lora_2b, "me/panda", "--base", "2b", "--sample", sample, "--private", "--yes"]
    with hub() as (address, calls):
        here = {
            "HF_ENDPOINT": address,
            "HF_TOKEN": "hf_dummy",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
        }
        done = subprocess.run(
            [sys.executable, "-m", "cogvx_jax.cli", *map(str, words)],
            capture_output=True,
            text=True,
            env=os.environ | here | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
    assert done.returncode == 0, done.stderr
    sent = dict(calls)
    assert b"private" in sent["/api/repos/create"] and b"panda" in sent["/api/repos/create"]
    assert list(sent) == [
        "/api/repos/create",
        "/api/validate-yaml",
        "/api/models/me/panda/preupload/main",
        "/api/models/me/panda/commit/main",
    ]
    lines = [json.loads(line) for line in sent["/api/models/me/panda/commit/main"].splitlines()]
    assert lines[0]["value"]["summary"] == "Uploaded by cogvx push"
    files = sorted(line["value"]["path"] for line in lines[1:])
    assert files == ["README.md", "pytorch_lora_weights.safetensors", "samples/0.mp4"]
    assert not [path for path in Path(tmp_path).rglob(".cogvx-partial-*")]
