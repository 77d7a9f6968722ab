"""Stopping a generation in the middle and going on: to the same bits, or not at all."""

import dataclasses
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import cogvx_jax as cx
from cogvx_jax.cli import ends, kept_steps, signals
from cogvx_jax.cli import main as cli
from cogvx_jax.cli.kept_steps import Keeper
from cogvx_jax.pipelines.saved_steps import _weights_digest

PROMPT = "a red circle"
IMAGE = np.tile(np.arange(48, dtype=np.uint8)[None, :, None] * 5, (32, 1, 3))
OTHER = r"of another request \("
CLIP = np.stack([np.roll(IMAGE, 2 * i, axis=1) for i in range(9)])


def made(model, folder=None, resume=None, prompt=PROMPT, **options):
    """Latents; with a folder, the steps are saved there, each under its number."""
    on_step = None if folder is None else lambda step: step.save(folder / f"{step.number}.safetensors")
    return cx.generate(
        model, prompt, output="latents", progress=False, on_step=on_step, resume=resume, **({"seed": 5} | options)
    )


def goes_on(model, folder, **options):
    """Whether after every step it goes on to the same bits as without a stop; gives how many steps there were."""
    whole = made(model, folder, **options)
    files = sorted(folder.iterdir(), key=lambda file: int(file.stem))
    for file in files:
        np.testing.assert_array_equal(made(model, resume=file, **options), whole, err_msg=file.name)
    return len(files)


QUICK = {
    "ddim": dict(sampler="ddim"),
    "dpm": dict(sampler="dpm"),
}
FULL = {
    "taylor": dict(reuse="taylor:2", num_inference_steps=6),
    "unipc": dict(sampler="unipc", use_dynamic_cfg=True),
    "deis": dict(sampler="deis"),
    "apg": dict(guider="apg:momentum=-0.5"),
    "first-block": dict(reuse="first-block:0.5", num_inference_steps=6),
    "pab": dict(reuse="pab:2", num_inference_steps=6),
    "delta": dict(guidance="delta:2", num_inference_steps=6),
    "interval": dict(guidance="interval:0.2-0.8", num_inference_steps=6),
    "windows": dict(windows="9:4", num_frames=17),
    "redraw": dict(video=CLIP, strength=1.0),
    "repaint": dict(video=CLIP, mask=CLIP[..., 0] > 99, sampler="dpm"),
    "unguided": dict(guidance_scale=1.0),
}


@pytest.mark.parametrize("options", QUICK.values(), ids=QUICK)
def test_it_goes_on_bit_for_bit_after_every_step(small, tmp_path, options):
    assert goes_on(small("5b")[1], tmp_path, **options) >= 3


@pytest.mark.full
@pytest.mark.parametrize("options", FULL.values(), ids=FULL)
def test_so_it_does_with_all_that_is_carried(small, tmp_path, options):
    assert goes_on(small("5b")[1], tmp_path, **options) >= 3


@pytest.mark.full
@pytest.mark.parametrize("kind", ["2b", "5b-i2v", "1.5-5b-i2v", "control"])
def test_so_do_the_other_models(small, tmp_path, kind):
    options = {"image": IMAGE} if kind.endswith("i2v") else {"control": CLIP} if kind == "control" else {}
    assert goes_on(small(kind)[1], tmp_path, sampler="dpm", **options) == 4


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_exact_steps_go_on_on_another_mesh(small, tmp_path, sampler):
    folder, model = small("5b")
    mesh = cx.make_mesh(data=2, cfg=2, devices=jax.devices()[:4])
    options = dict(exact=True, prompt=[PROMPT, "a blue star"], sampler=sampler)
    whole = made(cx.load(folder, mesh=mesh), tmp_path, **options)
    for step in (1, 3):
        file = tmp_path / f"{step}.safetensors"
        np.testing.assert_array_equal(made(model, resume=file, **options), whole)
        with pytest.raises(ValueError, match=r"3 of 4 steps of a run with exact yes \(here no\), and"):
            made(model, resume=tmp_path / "3.safetensors", **(options | {"exact": False}))


@pytest.mark.full
def test_steps_on_a_mesh_go_on_there_and_nowhere_else(small, tmp_path):
    folder, model = small("5b")
    there = cx.load(folder, mesh=cx.make_mesh(cfg=2, sp=2, devices=jax.devices()[:4]))
    options = dict(reuse="taylor:2", num_inference_steps=6)
    assert goes_on(there, tmp_path, **options) == 6
    with pytest.raises(ValueError, match=r"of a run with mesh cfg=2,.* \(here .*\), and would not go on bit for bit"):
        made(model, resume=tmp_path / "3.safetensors", **options)


def test_names_of_weights_are_of_all_types_and_places():
    """Integers of four bits, scalars, and arrays of more axes; a number of those looked at makes another name."""
    params = {"a": jnp.ones((9, 20, 3)), "b": {"c": jnp.ones((4,), jnp.int4), "d": jnp.zeros(())}}
    names = {_weights_digest(params), _weights_digest(jax.tree.map(np.asarray, params))}
    assert len(names) == 1
    names.add(_weights_digest(params | {"a": params["a"].at[0, 0, 0].set(2)}))
    names.add(_weights_digest(params | {"b": params["b"] | {"d": jnp.ones(())}}))
    names.add(_weights_digest(params | {"a": jnp.ones((9, 20, 4))}))
    assert len(names) == 4


def test_text_that_was_changed_is_not_saved(small, tmp_path):
    def look(step):
        if step.number == 2:
            step.save(tmp_path / "file")
        return cx.Change(text=-step.text)

    with pytest.raises(ValueError, match="once on_step has changed the text"):
        cx.generate(small("5b")[1], PROMPT, progress=False, on_step=look)


@pytest.fixture
def saved(small, tmp_path):
    """The file of step 2 of the small 5B."""
    made(small("5b")[1], tmp_path)
    return tmp_path / "2.safetensors"


def test_steps_of_something_else_are_refused(small, saved):
    model = small("5b")[1]
    for said, options in (
        (f"2 of 4 steps {OTHER}prompt 'a red circle', here 'a blue star'\\); delete it to", dict(prompt="a blue star")),
        (f"{OTHER}steps 4, here 5\\)", dict(num_inference_steps=5)),
        (f"{OTHER}seed 5, here 6; sampler [a-z]+, here heun\\)", dict(seed=6, sampler="heun")),
        (f"{OTHER}its inputs or further options differ", dict(guidance_scale=2.5)),
        (r"of a run with exact no \(here yes\), and would not go on bit for bit", dict(exact=True)),
        ("has nothing between them; leave out one_program, or resume", dict(one_program=True)),
        ("a video that is extended is not gone on with", dict(extend=CLIP, output="video")),
    ):
        with pytest.raises(ValueError, match=said):
            made(model, resume=saved, **options) if "extend" not in options else cx.generate(
                model, PROMPT, extend=CLIP, resume=saved, progress=False
            )
    other = jax.tree.map(lambda x: x * 1.01, model.params["transformer"])
    with pytest.raises(ValueError, match="2 of 4 steps of other weights"):
        made(dataclasses.replace(model, params=model.params | {"transformer": other}), resume=saved)
    words = jax.tree.map(lambda x: x * 1.01, model.params["text_encoder"])
    with pytest.warns(UserWarning, match="came out otherwise this time"):
        made(dataclasses.replace(model, params=model.params | {"text_encoder": words}), resume=saved)


def _rewritten(file, arrays=None, **changes):
    """Writes the file anew with other arrays, or other things in what it says of itself."""
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    about = json.loads(metadata["run"]) | changes
    save_file(load_file(file) if arrays is None else arrays, file, metadata | {"run": json.dumps(about)})


@pytest.mark.parametrize(
    "changes, said",
    [
        (dict(steps=9), "is damaged: it says 9 of 4 steps"),
        (dict(count=5), "is damaged: it says 5 steps, there are 4"),
        (dict(steps="2"), "is damaged: it says '2' of 4 steps"),
        (dict(facts=["x"]), "is damaged: its facts must be text"),
        (dict(computed=3), "is damaged: it says 3 of 2 steps were computed"),
        (dict(arrays={}), "is damaged: latents must be .* it has nothing"),
        (dict(arrays={"latents": np.zeros(2**20, np.float32)}), r"it has \(1048576,\) float32"),
    ],
)
def test_damaged_files_are_named(small, saved, changes, said):
    _rewritten(saved, **changes)
    with pytest.raises(ValueError, match=said):
        made(small("5b")[1], resume=saved)


def test_a_changed_number_is_found_and_other_files_are_refused(small, saved, tmp_path):
    model = small("5b")[1]
    arrays = load_file(saved)
    arrays["latents"][0, 0, 0, 0, 0] += 1e-3
    _rewritten(saved, arrays)
    with pytest.raises(ValueError, match="its numbers are not those that were written"):
        made(model, resume=saved)
    data = saved.read_bytes()
    saved.write_bytes(data[:-9])
    with pytest.raises(ValueError, match="holds no saved steps: truncated"):
        made(model, resume=saved)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        made(model, resume=tmp_path / "none")
    with pytest.raises(ValueError, match="is a folder"):
        made(model, resume=tmp_path)
    save_file({"latents": np.zeros(1, np.float32)}, saved)
    with pytest.raises(ValueError, match="does not hold steps"):
        made(model, resume=saved)


def test_inspect_tells_what_is_kept(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["cogvx", "inspect", str(saved)])
    cli.main()
    said = capsys.readouterr().out
    assert "the command that began them, once more, goes on" in said
    assert "2 of 4" in said and "'a red circle'" in said and "exact: 'no'" in said


@pytest.fixture
def command(small, tmp_path, monkeypatch, capfd):
    """`command(*arguments, at=None, number=SIGTERM)`: the exit status, and what was said.

    A signal comes during the step after `at`.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ends, "_end_at_once", lambda status: None)
    monkeypatch.setattr(signals, "_quiet", lambda: None)
    call = Keeper.__call__

    def run(*arguments, at=None, number=signal.SIGTERM):
        def signalled(keeper, step):
            if step.number == at:
                call(keeper, step)
                os.kill(os.getpid(), number)
            else:
                call(keeper, step)

        monkeypatch.setattr(Keeper, "__call__", signalled)
        arguments = ["generate", *arguments, "--model", small("5b")[0], "--no-progress", "--sampler", "dpm"]
        arguments.append("--no-record")
        monkeypatch.setattr(sys, "argv", ["cogvx", *map(str, arguments)])
        capfd.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            status = ended.code
        return status, "".join(capfd.readouterr())

    return run


def test_the_same_command_goes_on(command, tmp_path):
    def ended(number, status, at):
        found, said = command(PROMPT, "--out", "out.gif", at=at, number=number)
        assert found == status
        assert "a second signal ends at once" in said
        assert f"{at + 1} of 4 steps of out.gif are kept; the same command goes on" in said
        assert [path.name for path in tmp_path.iterdir()] == ["out.gif.steps.safetensors"]
        return said

    assert "ended by SIGTERM; the video" in ended(signal.SIGTERM, 143, 1)
    assert "out.gif: 2 of 4 steps were kept, and are gone on with" in ended(signal.SIGINT, 130, 3)
    status, said = command("a blue star", "--out", "out.gif")
    assert status == 2 and "delete it, or give --again, to begin anew" in said
    assert re.search(f"out.gif.steps.safetensors holds 4 of 4 steps {OTHER}prompt .a red circle.", said)
    assert command(PROMPT, "--out", "out.gif")[0] == 0
    assert command(PROMPT, "--out", "whole.gif", "--no-keep-steps")[0] == 0
    assert (tmp_path / "out.gif").read_bytes() == (tmp_path / "whole.gif").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.gif", "whole.gif"}


@pytest.mark.full
def test_a_line_of_a_prompts_file_goes_on(command, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\na blue star\n")
    asked = "--prompts-file", "prompts.txt", "--out", "out.gif"
    assert command(*asked, "--no-keep-steps")[0] == 0
    whole = {path.name: path.read_bytes() for path in tmp_path.glob("*.gif")}
    (tmp_path / "out-1.gif").unlink()
    status, said = command(*asked, at=1)
    assert status == 143 and "1 of 2 videos are whole already" in said and "2 of 4 steps of out-1.gif are kept" in said
    status, said = command(*asked)
    assert status == 0 and "out-1.gif: 2 of 4 steps were kept, and are gone on with" in said
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.gif")} == whole


@pytest.mark.full
def test_again_begins_anew_and_a_drawn_seed_is_gone_on_with(command, tmp_path):
    _, said = command(PROMPT, "--out", "out.gif", "--seed", "random", at=2)
    seed = said.split("--seed ")[1].split()[0]
    status, said = command(PROMPT, "--out", "out.gif", "--seed", "random")
    assert status == 0 and f"--seed {seed}" in said and "3 of 4 steps were kept" in said
    command(PROMPT, "--out", "other.gif", at=1)
    status, said = command("a blue star", "--out", "other.gif", "--again")
    assert status == 0 and "were kept" not in said
    assert {path.name for path in tmp_path.iterdir()} == {"out.gif", "other.gif"}


def test_steps_are_kept_now_and_then_and_a_full_disk_ends_nothing(command, tmp_path, monkeypatch):
    monkeypatch.setattr(kept_steps, "EVERY", 0.0)
    monkeypatch.setattr(kept_steps, "SHARE", 1)
    saved, save = [], cx.Step.save

    def saves(step, file):
        saved.append(step.number)
        save(step, file)

    monkeypatch.setattr(cx.Step, "save", saves)
    assert command(PROMPT, "--out", "out.gif")[0] == 0
    assert saved == [1, 2, 3] and [path.name for path in tmp_path.iterdir()] == ["out.gif"]

    def full(step, file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))

    monkeypatch.setattr(cx.Step, "save", full)
    status, said = command(PROMPT, "--out", "other.gif")
    assert status == 0 and "the steps of other.gif could not be kept" in said and "No space left" in said
    assert {path.name for path in tmp_path.iterdir()} == {"out.gif", "other.gif"}


@pytest.mark.full
def test_processes_that_are_ended_go_on(tmp_path):
    """Of its own accord a process keeps steps after 5 seconds of sampling; 200 steps of tiny take longer."""
    out, whole = tmp_path / "out.gif", tmp_path / "whole.gif"
    kept, before = tmp_path / "out.gif.steps.safetensors", 0.0

    def start(out):
        arguments = ["generate", PROMPT, "--steps", "200", "--sampler", "dpm", "--no-progress", "--out", str(out)]
        return subprocess.Popen([sys.executable, "-m", "cogvx_jax.cli", *arguments], stderr=subprocess.PIPE, text=True)

    for number, status, words in ((signal.SIGKILL, -9, ""), (signal.SIGTERM, 143, "of 200 steps were kept")):
        process = start(out)
        while process.poll() is None and not (kept.exists() and kept.stat().st_mtime > before):
            time.sleep(0.1)
        process.send_signal(number)
        said = process.communicate(timeout=300)[1]
        assert process.returncode == status and words in said
        before = kept.stat().st_mtime
    assert "the same command goes on" in said
    again, other = start(out), start(whole)
    said = again.communicate()[1]
    other.communicate()
    assert (again.returncode, other.returncode) == (0, 0) and "of 200 steps were kept" in said
    assert out.read_bytes() == whole.read_bytes()
    assert not kept.exists()
