"""Expressions that choose clips by their scores: `motion_mean > 1 and text_area < 0.02 and static < 0.5`.

Names are fields of a row; there are numbers, "texts", true, false and null; `<`, `<=`, `>`, `>=`, `==`, `!=`, `in` and
`not in` a list of values, `is null` and `is not null`, `and`, `or`, `not`, brackets, and `+ - * /` of numbers. As in
SQL, what is compared with null is neither true nor false, `and`, `or` and `not` go on from there, and a row is chosen
where the whole is true. So a score that is missing is never taken for a low one.
"""

import ast
import difflib
import operator
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from cogvx_jax.json_files import quoted

Row = Mapping[str, Any]
Value = bool | int | float | str | None
MOST = 4000  # characters
WORDS = {"true": True, "false": False, "null": None}
COMPARE: Mapping[type, Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
COUNT: Mapping[type, Callable[[Any, Any], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class Expression(NamedTuple):
    """A parsed expression; `names` are the fields that it reads."""

    text: str
    names: tuple[str, ...]
    value: Callable[[Row], Value]

    def chooses(self, row: Row) -> bool:
        """Whether it is true of a row; a field that the row lacks is null. Raises: ValueError for kinds that differ."""
        found = self.value(row)
        if found is not None and type(found) is not bool:
            raise ValueError(f"{self.text!r} must be true or false of a clip, got {quoted(found)}")
        return found is True


def parse_expression(text: str, known: Collection[str] | None) -> Expression:
    """An expression over the fields `known`; None takes any name.

    Raises: ValueError, one sentence, for what is none, and for a name that is not known, with the nearest that is.
    """
    if len(text) > MOST:
        raise ValueError(f"an expression may have {MOST} characters, got {len(text)}")
    try:
        tree = ast.parse(re.sub(r"\s+", " ", text).strip(), mode="eval").body
        names = tuple(
            sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - WORDS.keys(), key=str)
        )
        for name in names:
            if known is not None and name not in known:
                raise ValueError(f"there is no field {quoted(name)}{_nearest(name, known)}")
        return Expression(text, names, _value(tree))
    except (SyntaxError, RecursionError, MemoryError) as error:
        where = f" at character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ValueError(f"{quoted(text)} is no expression{where}; write such as motion_mean > 1") from None
    except ValueError as error:
        raise ValueError(f"the expression {quoted(text)}: {error}") from None


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, 1, 0.4)
    return f"; the nearest is {near[0]}" if near else f"; there are {', '.join(sorted(known)[:20])}"


def _value(node: ast.expr) -> Callable[[Row], Value]:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None as value):
            return lambda row: value
        case ast.Name(id=name):
            return (lambda row: WORDS[name]) if name in WORDS else (lambda row: row.get(name))
        case ast.BoolOp(op=op, values=values):
            return _joined(isinstance(op, ast.And), [_value(each) for each in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            inner = _value(operand)
            return lambda row: None if (found := _truth(inner(row))) is None else not found
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            inner = _value(operand)
            return lambda row: _counted(operator.sub, 0, inner(row))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in COUNT:
            one, other, count = _value(left), _value(right), COUNT[type(op)]
            return lambda row: _counted(count, one(row), other(row))
        case ast.Compare(left=left, ops=ops, comparators=others):
            return _compared(left, ops, others)
    raise ValueError(f"{quoted(ast.unparse(node))} is not known here")


def _joined(all_of: bool, parts: list[Callable[[Row], Value]]) -> Callable[[Row], Value]:
    def joined(row: Row) -> Value:
        found = [_truth(part(row)) for part in parts]
        if (not all_of) in found:
            return not all_of
        return None if None in found else all_of

    return joined


def _compared(left: ast.expr, ops: list[ast.cmpop], others: list[ast.expr]) -> Callable[[Row], Value]:
    steps, one = [], left
    for op, other in zip(ops, others, strict=True):
        steps.append(_comparison(one, op, other))
        one = other
    return steps[0] if len(steps) == 1 else _joined(True, steps)


def _comparison(left: ast.expr, op: ast.cmpop, right: ast.expr) -> Callable[[Row], Value]:
    one = _value(left)
    if isinstance(op, ast.Is | ast.IsNot):
        if not (isinstance(right, ast.Name) and right.id == "null" or ast.unparse(right) == "None"):
            raise ValueError("`is` goes with null alone; compare by ==")
        wanted = isinstance(op, ast.Is)
        return lambda row: (one(row) is None) is wanted
    if isinstance(op, ast.In | ast.NotIn):
        if not isinstance(right, ast.List | ast.Tuple):
            raise ValueError("`in` goes with a list such as ['en', 'de']")
        each, wanted = [_value(item) for item in right.elts], isinstance(op, ast.In)

        def among(row: Row) -> Value:
            own = one(row)
            return None if own is None else any(own == item(row) for item in each) is wanted

        return among
    other, compare = _value(right), COMPARE[type(op)]

    def compared(row: Row) -> Value:
        a, b = one(row), other(row)
        if a is None or b is None:
            return None
        if isinstance(a, str) != isinstance(b, str):
            raise ValueError(f"{quoted(a)} cannot be compared with {quoted(b)} in {ast.unparse(left)!r}")
        return compare(a, b)

    return compared


def _truth(value: Value) -> bool | None:
    if value is None or type(value) is bool:
        return value
    raise ValueError(f"and, or and not join comparisons, got {quoted(value)}")


def _counted(count: Callable[[Any, Any], float], one: Value, other: Value) -> Value:
    if one is None or other is None:
        return None
    if isinstance(one, str) or isinstance(other, str):
        raise ValueError(f"+ - * / are of numbers, got {quoted(one)} and {quoted(other)}")
    return None if count is operator.truediv and other == 0 else count(one, other)
