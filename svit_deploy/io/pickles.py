"""What a pickle asks for and what it would make, read from its operations without running them."""

from __future__ import annotations

import logging
import pickletools
from collections.abc import Iterable
from typing import IO, Any, NamedTuple

log = logging.getLogger(__name__)

MAX_DEPTH = 1000
WORK_PER_OPERATION = 100
LEAST_WORK = 100_000


class _Tree(NamedTuple):
    """A value on the unpickler's stack, as what hashing it would have to visit."""

    size: int = 1
    depth: int = 1


_LEAF, _MARK = _Tree(), _Tree()


def pickle_globals(file: IO[bytes], pickles: int) -> list[str]:
    """Names the functions and classes that pickles ask for, without running them.

    Args:
        file: at the start of the first pickle.
        pickles: how many follow each other; a damaged one ends the search.
    """
    named: set[str] = set()
    try:
        for _ in range(pickles):
            strings: list[str] = []
            memo: dict[int, str] = {}
            operations: Iterable[tuple[Any, Any, Any]] = pickletools.genops(file)
            for opcode, argument, _position in operations:
                if opcode.name in ("GLOBAL", "INST"):
                    named.add(argument.replace(" ", "."))
                elif opcode.name == "STACK_GLOBAL":
                    named.add(".".join(strings[-2:]))
                elif opcode.name == "MEMOIZE":
                    memo[len(memo)] = strings[-1] if strings else ""
                elif "PUT" in opcode.name:
                    memo[argument] = strings[-1] if strings else ""
                elif "GET" in opcode.name:
                    strings.append(memo.get(argument, "?"))
                elif isinstance(argument, str):
                    strings.append(argument)
    except Exception as error:
        log.debug("the search for globals ended early: %s", error)
    return sorted(named)


def is_pickle_bomb(file: IO[bytes], pickles: int) -> bool:
    """Whether loading pickles would take time or stack out of proportion to what they hold.

    A tuple of two references to a tuple of two references, and so on, is short to write; as the
    key of a dictionary it is hashed, which visits every leaf of it. A tuple in a tuple in a tuple
    ends the process: the interpreter hashes by recursion, without a limit.

    Args:
        file: at the start of the first pickle.
        pickles: how many follow each other; a damaged one ends the search, as it ends a load.
    """
    allowed, taken = LEAST_WORK, 0
    try:
        for _ in range(pickles):
            stack: list[_Tree] = []
            memo: dict[int, _Tree] = {}
            steps: Iterable[tuple[Any, Any, Any]] = pickletools.genops(file)
            for opcode, argument, _position in steps:
                name, trees = opcode.name, _taken(opcode, stack)
                allowed += WORK_PER_OPERATION
                taken += sum(tree.size for tree in trees)
                made = _MARK if name == "MARK" else _LEAF
                if "TUPLE" in name:
                    sizes, depths = zip(*trees, strict=True) if trees else ((), ())
                    made = _Tree(1 + sum(sizes), 1 + max(depths, default=0))
                elif "GET" in name:
                    made = memo[argument]
                elif "PUT" in name:
                    memo[argument] = stack[-1]
                elif name in ("DUP", "MEMOIZE"):
                    (made,) = trees
                    memo |= {len(memo): made} if name == "MEMOIZE" else {}
                if taken > allowed or made.depth > MAX_DEPTH:
                    return True
                stack += [made] * len(opcode.stack_after)
    except Exception as error:
        log.debug("the search for bombs ended early: %s", error)
    return False


def _taken(opcode: Any, stack: list[_Tree]) -> list[_Tree]:
    """What an operation takes off the stack."""
    kinds = [kind.name for kind in opcode.stack_before]
    taken = []
    if "mark" in kinds:
        kinds = kinds[: kinds.index("mark")]
        while (tree := stack.pop()) is not _MARK:
            taken.append(tree)
    return taken + [stack.pop() for _ in kinds]
