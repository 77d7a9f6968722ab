"""The accelerator benchmark at small size on CPU: that it runs, and what its rows say. The figures mean nothing."""

import json

import pytest

from cogvx_jax.models.flops import sequence_tokens
from cogvx_jax.scripts import benchmark, benchmark_gpu


def test_native_sizes():
    tokens = {name: benchmark_gpu.case(name, small=False).tokens for name in benchmark_gpu.MODELS}
    assert tokens == {"2b": 17776, "5b": 17776, "1.5-5b": 45106}
    one = benchmark_gpu.case("1.5-5b", small=False)
    assert (one.shape, one.kept) == ((1, 22, 96, 170, 16), 21)
    assert sequence_tokens(one.spec.transformer, one.shape[1:4]) == one.tokens


@pytest.mark.full
@pytest.mark.parametrize("part, columns", [("step", {"ours s for 50"}), ("decode", set())])
def test_our_side_at_small_size(part, columns, tmp_path, capsys):
    file = tmp_path / "rows.json"
    benchmark_gpu.main(models=("5b",), parts=(part,), sides=("ours",), runs=1, small=True, json_file=file)
    (row,) = json.loads(file.read_text())
    assert row.keys() == {"model", "part", "ours s", "ours GiB", "ours first s"} | columns
    assert 0 < row["ours s"] <= row["ours first s"]
    assert f"| 5b | {part} |" in capsys.readouterr().out


def test_the_environment_names_the_vector_instructions(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    one = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nflags\t\t: sse avx avx2 {}\n\n"
    wide = one.format("avx512f") + one.format("").replace("Some", "Other")
    assert benchmark.processor(wide) == {"machine": "Some CPU @ 2.0GHz", "vectors": "AVX-512"}
    assert benchmark.processor(one.format("bmi2"))["vectors"] == "AVX2"
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_max_isa=AVX2 --xla_dump_to=x")
    assert benchmark.processor(wide)["vectors"] == "AVX-512, XLA AVX2"
    assert benchmark.processor("processor : 0\nFeatures : neon\n") == {}
