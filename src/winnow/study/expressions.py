"""Conditions over named values, `len(model.dilation) == model.n_layers and attn != "T"`: read, checked, worked out.

Python's syntax, read with `ast`; only what is listed here is permitted, and nothing is ever executed:

    and, or, not          of truths only: `attn == "a" or "b"` is refused, not always true
    == != < <= > >=       chained too; texts with texts, numbers with numbers
    in, not in            a list or a text
    + - * / // %          of numbers
    len(x)                of a list or a text
    names, dots, numbers, texts in quotes, true, false, [lists]
"""

from __future__ import annotations

import ast
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Final, NoReturn, cast

from winnow.errors import InputError

LONGEST: Final = 1000
"""Characters of a condition: what is longer is no condition, and might be nested too deeply to read."""
DEEPEST: Final = 40
"""Conditions inside conditions."""
PERMITTED: Final = "comparisons, and, or, not, in, len(), + - * / // %, names, numbers, texts and lists"

_TRUTHS: Final = {"true": True, "false": False}
_ORDER: Final = {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
_SUMS: Final = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: Final = (ast.Eq, ast.NotEq, ast.In, ast.NotIn, *_ORDER)


class Expression:
    """A condition that has been read. Raises InputError with a caret at the place that is wrong."""

    def __init__(self, text: str) -> None:
        self.text = " ".join(text.split("\n")).strip()
        if len(self.text) > LONGEST:
            raise InputError(f"a condition of {len(self.text)} characters", mend=f"at most {LONGEST} are read")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._body = ast.parse(self.text, mode="eval").body
        except SyntaxError as error:
            self._fail(error.msg.partition(".")[0], (error.offset or 1) - 1)
        except (ValueError, MemoryError, RecursionError):
            raise InputError("the condition cannot be read", mend=f"permitted: {PERMITTED}") from None
        self._check(self._body)

    def holds(self, value_of: Callable[[str], Any]) -> bool:
        """Whether it is true. value_of: the value of a (dotted) name. Raises InputError with a caret."""
        return self._truth(self._body, value_of)

    def names(self) -> Iterator[tuple[str, int]]:
        """Every (dotted) name in it, and where it stands."""
        yield from self._names(self._body)

    def compared(self) -> Iterator[tuple[str, Any, int]]:
        """(name, constant, place) of each constant that a name is compared with by ==, !=, in or not in."""
        for node in ast.walk(self._body):
            if not isinstance(node, ast.Compare):
                continue
            sides = [node.left, *node.comparators]
            for sign, one, other in zip(node.ops, sides, sides[1:], strict=False):
                if not isinstance(sign, ast.Eq | ast.NotEq | ast.In | ast.NotIn):
                    continue
                for name, constants in ((one, other), (other, one)):
                    if isinstance(name, ast.Name | ast.Attribute):
                        listed = constants.elts if isinstance(constants, ast.List | ast.Tuple) else [constants]
                        for item in listed:
                            if isinstance(item, ast.Constant):
                                yield _dotted(name), item.value, self._place(item)

    def fail_at(self, place: int, message: str, mend: str | None = None) -> NoReturn:
        """Raise InputError with a caret at a place in the text."""
        self._fail(message, place, mend)

    def _check(self, node: ast.expr, depth: int = 0) -> None:
        if depth > DEEPEST:
            self._fail("this is nested too deeply", self._place(node))
        for inner in self._permitted(node):
            self._check(inner, depth + 1)

    def _permitted(self, node: ast.expr) -> list[ast.expr]:
        """What stands inside a node that is permitted itself."""
        match node:
            case ast.BoolOp():
                return node.values
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                return [node.operand]
            case ast.BinOp() if type(node.op) in _SUMS:
                return [node.left, node.right]
            case ast.Compare() if all(isinstance(sign, _COMPARISONS) for sign in node.ops):
                return [node.left, *node.comparators]
            case ast.Call(func=ast.Name(id="len"), args=[inner], keywords=[]):
                return [inner]
            case ast.List() | ast.Tuple():
                return node.elts
            case ast.Constant() if isinstance(node.value, str | int | float):
                return []
            case ast.Name():
                return []
            case ast.Attribute(value=ast.Name() | ast.Attribute()):
                return [node.value]
            case ast.Attribute():
                self._fail("only a name has a part after a dot", self._place(node))
            case _:
                self._fail("this is not permitted", self._place(node))

    def _names(self, node: ast.AST) -> Iterator[tuple[str, int]]:
        if isinstance(node, ast.Name | ast.Attribute):
            if _dotted(node) not in _TRUTHS:
                yield _dotted(node), self._place(node)
            return
        inner = node.args if isinstance(node, ast.Call) else ast.iter_child_nodes(node)
        for child in inner:
            yield from self._names(child)

    def _value(self, node: ast.expr, value_of: Callable[[str], Any]) -> Any:
        match node:
            case ast.Constant():
                return node.value
            case ast.Name() | ast.Attribute():
                name = _dotted(node)
                return _TRUTHS[name] if name in _TRUTHS else value_of(name)
            case ast.List() | ast.Tuple():
                return [self._value(item, value_of) for item in node.elts]
            case ast.UnaryOp(op=ast.USub()):
                return -self._number(node.operand, value_of)
            case ast.BinOp():
                one, other = self._number(node.left, value_of), self._number(node.right, value_of)
                try:
                    return _SUMS[type(node.op)](one, other)
                except (ArithmeticError, ValueError):
                    self._fail("cannot be worked out", self._place(node))
            case ast.Call():
                inner = self._value(node.args[0], value_of)
                if not isinstance(inner, list | tuple | str):
                    self._fail(f"{inner!r} has no length", self._place(node.args[0]))
                return len(inner)
            case ast.BoolOp(op=ast.And()):
                return all(self._truth(item, value_of) for item in node.values)
            case ast.BoolOp():
                return any(self._truth(item, value_of) for item in node.values)
            case ast.UnaryOp():
                return not self._truth(node.operand, value_of)
            case ast.Compare():
                return self._compare(node, value_of)
        raise AssertionError(node)  # `_check` has let nothing else through

    def _compare(self, node: ast.Compare, value_of: Callable[[str], Any]) -> bool:
        left = self._value(node.left, value_of)
        for sign, side in zip(node.ops, node.comparators, strict=True):
            right: Any = self._value(side, value_of)
            if isinstance(sign, ast.In | ast.NotIn):
                if not isinstance(right, list | tuple) and not (isinstance(right, str) and isinstance(left, str)):
                    self._fail(f"{right!r} is no list to look for {left!r} in", self._place(side))
                found = (left in cast(Any, right)) == isinstance(sign, ast.In)
            elif isinstance(sign, ast.Eq | ast.NotEq):
                found = (left == right) == isinstance(sign, ast.Eq)
            else:
                if not (_is_number(left) and _is_number(right)) and not (
                    isinstance(left, str) and isinstance(right, str)
                ):
                    self._fail(f"{left!r} and {right!r} have no order", self._place(side))
                found = _ORDER[type(sign)](left, right)
            if not found:
                return False
            left = right
        return True

    def _truth(self, node: ast.expr, value_of: Callable[[str], Any]) -> bool:
        found = self._value(node, value_of)
        if not isinstance(found, bool):
            self._fail(f"{found!r} is neither true nor false", self._place(node), "compare it with something")
        return found

    def _number(self, node: ast.expr, value_of: Callable[[str], Any]) -> Any:
        found = self._value(node, value_of)
        if not _is_number(found):
            self._fail(f"{found!r} is no number", self._place(node))
        return found

    def _place(self, node: ast.expr) -> int:
        """In characters; `ast` counts bytes."""
        return len(self.text.encode()[: node.col_offset].decode())

    def _fail(self, message: str, place: int, mend: str | None = None) -> NoReturn:
        marked = f"{self.text[:place]}^{self.text[place:]}"
        raise InputError(f"{message} at ^ in {marked!r}", mend=mend or f"permitted: {PERMITTED}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    assert isinstance(node, ast.Name)
    return node.id
