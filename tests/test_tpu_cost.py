"""The gate on static TPU cost: what its table holds, what it lets pass and what it does not."""

import dataclasses
import importlib.metadata
import json

import pytest

from cogvx_jax.scripts import tpu_cost
from cogvx_jax.scripts.tpu_cost import MODELS, TABLE, TOPOLOGY, Lowered, Row, compare, differences, held, line

ROW = Row(
    model="5b",
    topology="v5e:2x4",
    mesh="cfg=2,sp=4",
    program="step",
    arguments_gib=10.4,
    temporaries_gib=0.1,
    peak_gib=10.5,
    tflops=83.0,
    mega_cycles=509.0,
    kernel_mega_cycles=425.7,
    milliseconds=623.1,
    all_seconds=31.2,
    collectives={"all-to-all": (171, 4462.1)},
    compile_seconds=60.0,
    lowered="old",
)
VERSIONS = {"jax": "1", "libtpu": "2"}


@pytest.fixture
def compiled(monkeypatch):
    """What a compilation gives instead of `ROW`: set `compiled["row"]`."""
    given = {"row": ROW}

    def lower(model, topology, mesh, parts, *_):
        assert (model, topology, mesh, parts) == ("5b", "v5e:2x4", "cfg=2,sp=4", ("step",))
        yield Lowered("step", given["row"].lowered, lambda: given["row"])

    monkeypatch.setattr(tpu_cost, "lower", lower)
    return given


def test_the_same_cost_passes(compiled, capsys):
    # 1.2% more, and a faster machine
    compiled["row"] = dataclasses.replace(ROW, mega_cycles=515.0, compile_seconds=1.0, lowered="new")
    table = {"versions": VERSIONS, "rows": {ROW.key: held(ROW)}}
    assert compare(table, VERSIONS) == 0
    assert "as in the table" in capsys.readouterr().out
    assert table["rows"][ROW.key] == held(ROW) | {"lowered": "new"}  # that the next check need not compile


def test_what_did_not_change_is_not_compiled(monkeypatch, capsys):
    monkeypatch.setattr(tpu_cost, "lower", lambda *_: iter([Lowered("step", "same", lambda: pytest.fail("compiled"))]))
    table = {"versions": VERSIONS, "rows": {ROW.key: held(ROW) | {"lowered": "same"}}}
    assert compare(table, VERSIONS) == 0
    assert "nothing changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "change, said",
    [
        ({"mega_cycles": 560.0}, "mega_cycles was 509 and is 560 (+10.0%)"),
        ({"mega_cycles": 450.0}, "mega_cycles was 509 and is 450 (-11.6%)"),  # better: the table must say so, too
        ({"peak_gib": 11.0}, "peak_gib was 10.5 and is 11"),
        ({"collectives": {"all-to-all": (171, 4462.1), "all-gather": (42, 1.0)}}, "all-gather count was 0 and is 42"),
        ({"collectives": {}}, "all-to-all count was 171 and is 0"),
    ],
)
def test_another_cost_fails_and_is_named(compiled, capsys, change, said):
    compiled["row"] = dataclasses.replace(ROW, **change)
    compiled["row"] = dataclasses.replace(compiled["row"], lowered="new")
    assert compare({"versions": VERSIONS, "rows": {ROW.key: held(ROW)}}, VERSIONS) == 1
    assert said in capsys.readouterr().out


def test_programs_of_one_part_are_compiled_once(monkeypatch, capsys):
    rows, asked = [dataclasses.replace(ROW, program=f"decode {i}") for i in (0, 1)], []

    def lower(*args):
        asked.append(args)
        yield from (Lowered(row.program, "new", lambda row=row: row) for row in rows)

    monkeypatch.setattr(tpu_cost, "lower", lower)
    assert compare({"versions": VERSIONS, "rows": {row.key: held(row) for row in rows}}, VERSIONS) == 0
    assert asked == [
        ("5b", "v5e:2x4", "cfg=2,sp=4", ("decode",), "block", "pallas", "float32", True, "resident", None, 1)
    ]
    assert capsys.readouterr().out.count("as in the table") == 2


def test_a_row_of_a_memory_mode_is_compiled_in_it(monkeypatch, capsys):
    row, asked = dataclasses.replace(ROW, mesh="data=1", program="step offload"), []

    def lower(*args):
        asked.append(args)
        return iter([Lowered(row.program, row.lowered, lambda: row)])

    monkeypatch.setattr(tpu_cost, "lower", lower)
    assert compare({"versions": VERSIONS, "rows": {row.key: held(row)}}, VERSIONS) == 0
    assert asked == [("5b", "v5e:2x4", "data=1", ("step",), "block", "pallas", "float32", True, "offload", None, 1)]


def test_other_versions_are_skipped_with_a_reason(compiled, capsys):
    assert compare({"versions": VERSIONS, "rows": {ROW.key: {}}}, VERSIONS | {"jax": "3"}) == 0
    assert "skipped: the table is of {'jax': '1'" in capsys.readouterr().out


def test_no_difference_in_what_is_equal():
    assert differences(held(ROW), held(ROW)) == []


def test_a_row_reads_well():
    assert "10.50 GiB; 83.0 TFLOP, 509 M cycles + kernels 426 M = 623 ms, 31.2 s a video" in line(ROW)
    assert "171 all-to-all 4462 MiB" in line(ROW)


def test_the_table_holds_the_models_of_the_gate():
    table = json.loads(TABLE.read_text())
    assert set(table["versions"]) == {"jax", "libtpu"}
    found = {tuple(key.split(" ")[i] for i in (0, 1, 3)) for key in table["rows"]}
    assert found >= {(model, TOPOLOGY, "step") for model in MODELS}
    assert found >= {("5b", TOPOLOGY, "text"), ("5b", TOPOLOGY, "decode"), ("1.5-5b", TOPOLOGY, "decode")}
    assert all(row["mega_cycles"] > 0 for row in table["rows"].values())
    assert all(row["kernel_mega_cycles"] > 0 for key, row in table["rows"].items() if " step" in key)


def test_it_says_where_libtpu_is_missing(monkeypatch):
    monkeypatch.setattr("cogvx_jax.sharding.topologies.has_libtpu", lambda: False)
    with pytest.raises(SystemExit, match="pip install libtpu"):
        tpu_cost.main(check=True)


def test_a_small_step_compiles_for_a_slice(monkeypatch):
    """The real thing at a small size, where libtpu is installed: the same every time."""
    pytest.importorskip("libtpu", reason="needs libtpu, which compiles for TPUs without having one")
    from cogvx_jax import presets

    spec = presets.PRESETS["5b"]
    cfg = dataclasses.replace(spec.transformer, layers=2, heads=4, time_dim=64)
    own = dataclasses.replace(spec.defaults, height=64, width=64, num_frames=9)
    monkeypatch.setitem(presets.PRESETS, "small", dataclasses.replace(spec, transformer=cfg, defaults=own))
    tpu_cost._prepare()
    first, second = (list(tpu_cost.costs("small", "v5e:2x2", None, ("step",)))[0] for _ in range(2))
    assert differences(held(first), held(second)) == [] and first.lowered == second.lowered
    assert first.mega_cycles > 0 and first.kernel_mega_cycles > 0 and "all-to-all" in first.collectives
    assert importlib.metadata.version("libtpu")
