"""A pickle machine that builds plain values only, within a stated bound of memory.

Python's own unpickler can be told what not to resolve, but not what not to allocate: one opcode
asks for a memo of 2^32 entries, a key nested sixty times takes years to hash. This one reads the
same opcodes (their list is that of `pickletools`) and knows lists, dicts, tuples, texts, numbers
and the stand-ins it is given; every other opcode is refused. What it builds is linear in the
file: calls that copy their arguments draw on a `Budget`.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import Any

from uvos_jax.convert.bounds import Budget

#: Bytes counted for an opcode, and for an entry of a container that is copied.
ENTRY = 100

_MARK = object()
_SCALARS = (str, bytes, int, float, bool, type(None))
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING = frozenset({"PROTO", "FRAME"})
_LITERALS = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
     "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
     "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
)  # fmt: skip
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


class RefusedError(Exception):
    """The pickle asks for something a weight file has no need of; the text names it."""


def load(
    file: Any,
    allowed: Mapping[tuple[str, str], Callable[..., Any]],
    budget: Budget,
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """The object of one pickle; the file is left behind its last byte.

    Args:
      file: has `read`, `readline` and `tell`, and returns less where less is left (an `mmap`).
      allowed: (module, name) to the stand-in that is called with what the pickle calls the name
        with. A stand-in may have `__setstate__`.
      persistent: what stands for a persistent id.

    Raises:
      RefusedError: a name that is not in `allowed`, or an opcode no weight file needs.
      Exception: anything else, where the pickle is damaged.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list:
        for at in range(len(stack) - 1, -1, -1):
            if stack[at] is _MARK:
                items = stack[at + 1 :]
                del stack[at:]
                return items
        raise ValueError("a mark is missing")

    def pop(count: int) -> list:
        if count > len(stack) or any(item is _MARK for item in stack[-count:]):
            raise ValueError("the stack is too short")
        items = stack[-count:]
        del stack[-count:]
        return items

    def call(made_from: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise ValueError("a call without arguments")
        if not any(made_from is stand_in for stand_in in allowed.values()):
            raise ValueError("a call of a value")
        for argument in arguments:
            if hasattr(argument, "__len__"):
                budget.draw(len(argument) * (1 if isinstance(argument, (str, bytes)) else ENTRY))
                if isinstance(argument, (list, tuple)):
                    _check_pairs(argument)
        return made_from(*arguments)

    def resolve(module: Any, name: Any) -> Any:
        module = "builtins" if module == "__builtin__" else module
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("a name that is no text")
        if (module, name) not in allowed:
            raise RefusedError(f"{module[:60]}.{name[:60]}")
        return allowed[module, name]

    for opcode, argument, _ in pickletools.genops(file):
        op = opcode.name
        budget.draw(ENTRY)
        if op in _NOTHING:
            continue
        if op in _LITERALS:
            stack.append(argument)
        elif op in _CONSTANTS:
            stack.append(_CONSTANTS[op])
        elif op in _PUTS:
            index = len(memo) if op == "MEMOIZE" else argument
            (memo[index],) = stack[-1:]
            if memo[index] is _MARK:
                raise ValueError("a mark is remembered")
        elif op in _GETS:
            stack.append(memo[argument])
        elif op == "MARK":
            stack.append(_MARK)
        elif op == "POP":
            del stack[-1:]
        elif op == "POP_MARK":
            since_mark()
        elif op in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[op]())
        elif op in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(pop(int(op[-1]))))
        elif op == "TUPLE":
            stack.append(tuple(since_mark()))
        elif op == "LIST":
            stack.append(since_mark())
        elif op == "DICT":
            stack.append(_fill({}, since_mark()))
        elif op in ("SETITEM", "SETITEMS"):
            pairs = pop(2) if op == "SETITEM" else since_mark()
            (target,) = stack[-1:]
            if not isinstance(target, dict):
                raise ValueError("entries of something that is no dict")
            _fill(target, pairs)
        elif op in ("APPEND", "APPENDS"):
            items = pop(1) if op == "APPEND" else since_mark()
            (target,) = stack[-1:]
            if not isinstance(target, list):
                raise ValueError("items of something that is no list")
            target.extend(items)
        elif op == "GLOBAL":
            stack.append(resolve(*argument.split(" ", 1)))
        elif op == "STACK_GLOBAL":
            stack.append(resolve(*pop(2)))
        elif op in ("REDUCE", "NEWOBJ"):
            stack.append(call(*pop(2)))
        elif op == "BUILD":
            target, state = pop(2)
            stack.append(target)
            if isinstance(state, tuple) and hasattr(type(target), "__setstate__"):
                budget.draw(sum(len(s) for s in state if isinstance(s, (str, bytes))))
                target.__setstate__(state)
            # attributes of a dict, such as torch's `_metadata`, are of no use
        elif op == "BINPERSID":
            if persistent is None:
                raise ValueError("a reference to something outside the pickle")
            stack.append(persistent(pop(1)[0]))
        elif op == "STOP":
            return pop(1)[0]
        elif op in ("INST", "PERSID"):
            raise RefusedError(str(argument)[:120].replace(" ", "."))
        else:
            raise RefusedError(f"the pickle opcode {op}")
    raise EOFError("a pickle without its end")


def _fill(target: dict, pairs: list) -> dict:
    for key, value in zip(pairs[::2], pairs[1::2], strict=True):
        _check_key(key)
        target[key] = value
    return target


def _check_pairs(pairs: list | tuple) -> None:
    """Keys of what an ordered dict may be made from."""
    for pair in pairs:
        if isinstance(pair, (list, tuple)) and len(pair) == 2:
            _check_key(pair[0])


def _check_key(key: Any) -> None:
    if not isinstance(key, _SCALARS):
        raise ValueError("a key that is no text or number")
