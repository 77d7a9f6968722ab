"""Clips, runs and models in a bucket of Google Cloud Storage, of which `bucket` is a stand-in."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bucket import Bucket
from safetensors.numpy import load_file

from cogvx_jax.data.video import VideoWriter, read_video

pytest.importorskip("gcsfs", reason="needs gcsfs: pip install gcsfs")
pytestmark = pytest.mark.full
ROOT = Path(__file__).parents[1]
TRAIN = "--lora-rank 2 --batch-size 2 --log-every 1 --validation 1 --validate-every 2".split()


@pytest.fixture
def bucket():
    served = Bucket()
    with served:
        yield served
    assert served.unknown == []


def start(bucket, *arguments, **variables):
    """`cogvx` in a process of its own, which finds the bucket."""
    own = {"STORAGE_EMULATOR_HOST": bucket.url, "TENSORSTORE_GCS_HTTP_URL": bucket.url}
    # No credentials are asked for, of which there are none here, and no kind of bucket but the plain one.
    own |= {"GOOGLE_AUTH_TOKEN_FOR_TESTING": "none", "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}
    own |= {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "cogvx_jax.cli", *map(str, arguments)],
        env=os.environ | own | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process, status=0):
    said, _ = process.communicate(timeout=240)
    assert process.returncode == status, said
    return said


def run(bucket, *arguments, status=0):
    return finish(start(bucket, *arguments), status)


def read(bucket, name):
    return bucket.objects["clips", name][1].decode()


@pytest.fixture
def listed(tmp_path):
    """A list of four videos."""
    rows = []
    for i in range(4):
        with VideoWriter(tmp_path / f"{i}.mp4", 8) as writer:
            writer.write(np.random.default_rng(i).integers(0, 255, (9, 32, 48, 3), np.uint8))
        rows.append(json.dumps({"video": f"{i}.mp4", "prompt": f"video {i}"}))
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    return tmp_path / "list.jsonl"


def test_training_from_and_to_a_bucket(bucket, small, listed, tmp_path):
    folder, _ = small("5b")
    said = run(bucket, "encode", "--data", listed, "--model", folder, "--out", "gs://clips/cache")
    assert "4 clips in gs://clips/cache, 4 of them encoded now" in said
    assert "0 of them encoded now" in run(
        bucket, "encode", "--data", listed, "--model", folder, "--out", "gs://clips/cache"
    )
    (tmp_path / "prompts.txt").write_text("a star")
    arguments = ["train", "--model", folder, "--data", "gs://clips/cache", "--out", "gs://clips/run", *TRAIN]
    arguments += ["--prompts", tmp_path / "prompts.txt", "--video-every", 2]
    run(bucket, *arguments, "--steps", 2)
    said = run(bucket, *arguments, "--steps", 4, "--workers", 1)
    assert "run 3/4" in said and "run 1/4" not in said and "trained to update 4" in said
    rows = [json.loads(line) for line in read(bucket, "run/log.jsonl").splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    (tmp_path / "video.mp4").write_bytes(bucket.objects["clips", "run/videos/4/00.mp4"][1])
    assert len(read_video(tmp_path / "video.mp4")[0]) == 9

    # The same run on a disk ends at the same numbers.
    run(bucket, "encode", "--data", listed, "--model", folder, "--out", tmp_path / "cache")
    run(bucket, "train", "--model", folder, "--data", tmp_path / "cache", "--out", tmp_path / "run", *TRAIN,
        "--steps", 4)  # fmt: skip
    local = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows if "loss" in row] == [row["loss"] for row in local if "loss" in row]
    for best in ([], ["--best"]):
        run(bucket, "export", "gs://clips/run", "--out", tmp_path / "bucket.safetensors", *best)
        run(bucket, "export", tmp_path / "run", "--out", tmp_path / "disk.safetensors", *best)
        one, other = (load_file(tmp_path / f"{name}.safetensors") for name in ("bucket", "disk"))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])
            assert np.any(one[name]) or best
        (tmp_path / "bucket.safetensors").unlink()
        (tmp_path / "disk.safetensors").unlink()
    run(bucket, "generate", "a star", "--model", folder, "--lora", "gs://clips/run:0.5", "--out", tmp_path / "v.mp4")
    assert (tmp_path / "v.mp4").exists()

    said = run(bucket, *arguments, "--steps", 4, "--learning-rate", 0.1, status=2)
    assert "gs://clips/run holds a run with other settings: stages.1.learning_rate was 0.0005 and is now 0.1" in said
    assert "holds no clips of `cogvx encode`" in run(
        bucket, "train", "--data", "gs://clips/none", "--out", "gs://clips/x", status=2
    )
    assert "there is no LoRA 'gs://clips/none'" in run(
        bucket, "generate", "a star", "--lora", "gs://clips/none", "--out", tmp_path / "x.mp4", status=2
    )
    assert "needs a run on a disk" in run(bucket, *arguments, "--tensorboard", status=2)


def test_several_processes_share_a_bucket(bucket, small, listed):
    folder, _ = small("5b")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"

    def together(*arguments):
        joined = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_NUM_CPU_DEVICES": "1"}
        processes = [start(bucket, *arguments, "--distributed", **joined, JAX_PROCESS_ID=f"{i}") for i in range(2)]
        return [finish(process) for process in processes]

    said = together("encode", "--data", listed, "--model", folder, "--out", "gs://clips/cache")
    assert "4 clips in gs://clips/cache, 4 of them encoded now" in said[0]
    assert not [name for _, name in bucket.objects if ".part-" in name]
    arguments = ["train", "--model", folder, "--data", "gs://clips/cache", "--out", "gs://clips/run", *TRAIN]
    # The newest and the best are saved at the same time.
    together(*arguments, "--steps", 2, "--mesh", "data=2")
    said = run(bucket, *arguments, "--steps", 3)  # one process goes on
    assert "run 3/3" in said and "run 2/3" not in said


def test_a_model_in_a_bucket(bucket, small, tmp_path):
    folder, _ = small("5b")
    run(bucket, "convert", folder, "gs://models/five")
    said = run(bucket, "verify", "gs://models/five")
    assert "every array is what was written" in said
    for source, name in (("gs://models/five", "bucket"), (folder, "disk")):
        run(bucket, "generate", "a star", "--model", source, "--steps", 2, "--out", tmp_path / f"{name}.mp4")
    np.testing.assert_array_equal(*(read_video(tmp_path / f"{name}.mp4")[0] for name in ("bucket", "disk")))
    for key, (generation, data) in bucket.objects.items():
        if key[1].startswith("five/vae/orbax/") and "/d/" in key[1]:
            bucket.objects[key] = generation, data[: len(data) // 2]
    said = run(bucket, "verify", "gs://models/five", status=2)
    assert "cogvx: gs://models/five" in said and "vae/orbax" in said
