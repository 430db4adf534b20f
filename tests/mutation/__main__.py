"""Changes one thing in a module at a time and runs the tests that decide on it: ``python -m mutation MODULE...``.

A change that no test notices survives, and is printed with its line. Modules are named inside the package, such as
``core/phases``; without any, all that are known here. Each mutant is a fork of a process that has pytest imported, and
gets the changed module by an import hook: no file is written.
"""

from __future__ import annotations

import argparse
import ast
import copy
import functools
import importlib.abc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import ansible.module_utils
import hypothesis  # noqa: F401  what the tests import is imported once, here
import pytest
import yaml  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]
#: The tests that decide on each module.
TESTS = {
    "core/verdicts": ["verdicts"],
    "core/phases": ["phases"],
    "core/homecoming": ["homecoming"],
    "core/balance": ["balance"],
    "core/decision": ["decision"],
    "core/tasks": ["tasks"],
    "core/in_hand": ["in_hand"],
    "services/verify": ["verification"],
    "services/transfer": ["transfer"],
}
#: Seconds of a mutant: one that never ends was noticed.
PATIENCE = 120
_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
}
_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


@dataclass(frozen=True)
class Mutant:
    """One change: the line, the words before and after, and the module's whole source with it."""

    line: int
    before: str
    after: str
    source: str


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What could stand in the place of a node."""
    match node:
        case ast.Compare(ops=[only]) if type(only) in _COMPARISONS:
            yield ast.Compare(node.left, [_COMPARISONS[type(only)]()], node.comparators)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.BinOp() if type(node.op) in _OPERATORS:
            yield ast.BinOp(node.left, _OPERATORS[type(node.op)](), node.right)
        case ast.Constant(value=bool() as truth):
            yield ast.Constant(not truth)
        case ast.Constant(value=int() | float() as number):
            yield ast.Constant(number + 1)
        case ast.Constant(value=str() as text) if text:
            yield ast.Constant(f"{text}?")
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)
        case ast.If():
            yield ast.If(ast.Constant(True), node.body, node.orelse)
            yield ast.If(ast.Constant(False), node.body, node.orelse)
        case ast.Return(value=value) if value is not None:
            yield ast.Return(ast.Constant(None))
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break():
            yield ast.Pass()
        case ast.match_case() if not isinstance(node.pattern, ast.MatchAs):
            yield ast.match_case(ast.MatchSingleton(False), node.guard, node.body)


def mutants(path: Path) -> Iterator[Mutant]:
    """Every change of one node; annotations, docstrings and defaults of dataclasses' options stay as they are."""
    source = path.read_text()
    tree = ast.parse(source)
    number = 0
    spared = set(_spared(tree))
    for index, node in enumerate(ast.walk(tree)):
        if id(node) in spared:
            continue
        for which, _ in enumerate(list(changes(node))):
            number += 1
            twin = copy.deepcopy(tree)
            place = next(found for at, found in enumerate(ast.walk(twin)) if at == index)
            put = list(changes(place))[which]
            _replace(twin, place, put)
            line = getattr(node, "lineno", getattr(getattr(node, "pattern", None), "lineno", 0))
            yield Mutant(line, _words(node), _words(put), ast.unparse(ast.fix_missing_locations(twin)))


def _spared(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        parts: list[ast.AST] = []
        match node:
            case ast.Expr(value=ast.Constant()):
                parts = [node]
            case ast.AnnAssign():
                parts = [node.annotation]
            case ast.arg(annotation=ast.AST() as annotation):
                parts = [annotation]
            case ast.FunctionDef():
                parts = [*node.decorator_list, *([node.returns] if node.returns else [])]
            case ast.ClassDef():
                parts = list(node.decorator_list)
        for part in parts:
            yield from (id(inner) for inner in ast.walk(part))


def _replace(tree: ast.AST, old: ast.AST, new: ast.AST) -> None:
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if value is old:
                setattr(node, name, new)
                return
            if isinstance(value, list) and any(entry is old for entry in value):
                value[next(at for at, entry in enumerate(value) if entry is old)] = new
                return


def _words(node: ast.AST) -> str:
    if isinstance(node, ast.If):
        return f"if {ast.unparse(node.test)}"
    if isinstance(node, ast.match_case):
        return f"case {ast.unparse(node.pattern)}"
    return ast.unparse(node).splitlines()[0]


class Hook(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module another source."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.path, self.source = name, path, source

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.source, str(self.path), "exec"), module.__dict__)  # noqa: S102  the source is ours


def survives(module: str, source: str) -> bool:
    """Whether the module's tests pass with this source, in a process of their own."""
    path = ROOT / "module_utils" / "sluice" / f"{module}.py"
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(quiet, descriptor)
        signal.alarm(PATIENCE)
        sys.meta_path.insert(0, Hook(f"ansible.module_utils.sluice.{module.replace('/', '.')}", path, source))
        tests = [str(ROOT / "tests" / "unit" / f"test_{name}.py") for name in TESTS[module]]
        # These tests need no fixture but their own, and the plugins of others cost more than all of them.
        options = ["-x", "-q", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "--import-mode=importlib"]
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        code = 1
        try:
            code = int(pytest.main([*options, "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 0


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0; survivors are for somebody to judge."""
    parser = argparse.ArgumentParser(prog="mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="MODULE")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args(argv)
    os.chdir(ROOT)
    ansible.module_utils.__path__.append(str(ROOT / "module_utils"))
    for module in options.modules:
        path = ROOT / "module_utils" / "sluice" / f"{module}.py"
        begun = time.monotonic()
        assert survives(module, path.read_text()), f"the tests of {module} fail without any change"
        found = list(mutants(path))
        with ThreadPoolExecutor(options.jobs) as pool:
            left = pool.map(functools.partial(survives, module), [mutant.source for mutant in found])
            alive = [mutant for mutant, lives in zip(found, left, strict=True) if lives]
        print(
            f"{module:<20}{len(found):>6} mutants  {len(found) - len(alive):>6} killed  {len(alive):>4} survived  "
            f"{time.monotonic() - begun:6.0f} s",
            flush=True,
        )
        for mutant in alive:
            print(f"  {mutant.line:>4}  {mutant.before}  ->  {mutant.after}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
