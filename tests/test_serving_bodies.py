"""Fields of forms whose names are those of objects and lists, as OpenAI's client sends them."""

import pytest

pytest.importorskip("sqlalchemy", reason="the server needs the extra `serve`")
pytest.importorskip("starlette", reason="the server needs the extra `serve`")

from cogvx_jax.serving.bodies import _put
from cogvx_jax.serving.refusals import Refused


def put(*pairs):
    found = {}
    for name, value in pairs:
        _put(found, name, value)
    return found


def test_objects_and_lists_are_put_together():
    assert put(("lora[name]", "a"), ("lora[weight]", "0.8")) == {"lora": {"name": "a", "weight": 0.8}}
    several = ("loras[][name]", "a"), ("loras[][weight]", "1e-05"), ("loras[][name]", "b"), ("loras[][weight]", "2")
    assert put(*several) == {"loras": [{"name": "a", "weight": 1e-05}, {"name": "b", "weight": 2}]}
    assert put(("travel[50%]", "a blue star")) == {"travel": {"50%": "a blue star"}}
    assert put(("x[]", "1"), ("x[]", "007"), ("x[]", "1e999"), ("x[]", "true")) == {"x": [1, "007", "1e999", True]}


@pytest.mark.parametrize(
    "names, said",
    [
        (["region[][][]"], "give region as one field with JSON text in it"),
        (["a["], "give a as one field"),
        (["a[]b"], "give a as one field"),
        (["a[b]", "a[b]"], "a stands in the form twice"),
        (["a[b]", "a[]"], "a stands in the form twice"),
        (["a[]", "a[b]"], "a stands in the form twice"),
    ],
)
def test_what_lies_deeper_or_stands_there_twice_is_refused(names, said):
    with pytest.raises(Refused, match=said):
        put(*((name, "1") for name in names))
