"""Import direction: playbook -> role -> module -> services -> ports <- adapters, and nothing points back."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# What a room of the package may import besides itself and the standard library: other rooms, and foreign packages.
ROOMS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "core": (frozenset(), frozenset()),
    "ports": (frozenset({"core"}), frozenset()),
    "services": (frozenset({"core", "ports"}), frozenset()),
    "adapters": (frozenset({"core", "ports"}), frozenset({"pymysql", "redis", "rq", "sqlalchemy", "yaml"})),
    "shell": (frozenset({"core", "ports", "services", "adapters"}), frozenset({"ansible", "yaml"})),
}

# Standard library that a pure core has no business with: I/O, clocks, processes, threads, chance.
IMPURE = frozenset({"asyncio", "os", "random", "socket", "subprocess", "tempfile", "threading", "time", "urllib"})

# Ansible ships to the host what it finds by reading import statements, so a module of ours imported by name at run time
# is missing there. A file may load a function of the *application* by name; it is listed here with the reason.
LOADS_BY_NAME: dict[str, str] = {}


@dataclass(frozen=True)
class Import:
    """One import statement: how many dots it begins with, and the dotted name it reaches for."""

    line: int
    level: int
    target: str

    @property
    def top(self) -> str:
        """The first part of the name."""
        return self.target.split(".", 1)[0]


#: The one file of the application that uses our package. There it has no other name: Ansible is not there.
GUEST = "app/captions/mover.py"


def imports_of(source: str) -> Iterator[Import]:
    """Every import in `source`, inside functions and under TYPE_CHECKING too: Ansible reads those as well."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, 0, alias.name)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                base = f"{node.module}.{alias.name}" if node.module else alias.name
                yield Import(node.lineno, node.level, base)


def package_offences(package: Path) -> list[str]:
    """What breaks the import rules inside the package at `package`, one line each with file and line number."""
    offences: list[str] = []
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package)
        room = inside.parts[0] if len(inside.parts) > 1 else ""
        source = path.read_text()
        for found in imports_of(source):
            reason = _offence(found, room, inside)
            if reason:
                offences.append(f"{inside}:{found.line}: {reason}")
        if "__import__(" in source:
            offences.append(f"{inside}: calls __import__; what it names is not shipped to the host")
    return offences


def _offence(found: Import, room: str, inside: Path) -> str | None:
    if found.level:
        return _relative_offence(found, room, inside)
    if "sluice" in found.target.split("."):
        return f"imports '{found.target}' by its full name; inside the package imports are relative"
    if room not in ROOMS:
        return f"imports '{found.target}' outside the rooms {', '.join(ROOMS)}" if found.top != "__future__" else None
    if found.top == "importlib" and found.target != "importlib.metadata" and str(inside) not in LOADS_BY_NAME:
        return "imports importlib; what it loads by name is not shipped to the host"
    if room == "core" and found.top in IMPURE:
        return f"core is pure, but imports '{found.top}'"
    if found.top in sys.stdlib_module_names or found.top in ROOMS[room][1]:
        return None
    return f"{room} may not import '{found.top}'"


def _relative_offence(found: Import, room: str, inside: Path) -> str | None:
    folder = inside.parts[:-1]
    if found.level > len(folder) + 1:
        return "a relative import leaves the package"
    reached = (*folder[: len(folder) - (found.level - 1)], *found.target.split("."))
    if not room or reached[0] == room:
        return None
    if reached[0] in ROOMS.get(room, (frozenset(), frozenset()))[0]:
        return None
    return f"{room} may not import {reached[0]}"


def sent_with(source: str, module_utils: Path) -> set[str]:
    """The files of ours that Ansible sends to the host with a module of this source, relative to `module_utils`."""
    found: set[str] = set()
    waiting: list[tuple[Import, tuple[str, ...]]] = [(reach, ()) for reach in imports_of(source)]
    while waiting:
        reach, folder = waiting.pop()
        start = folder[: len(folder) - (reach.level - 1)] if reach.level else ()
        names = (*start, *reach.target.removeprefix("ansible.module_utils.").split("."))
        for parts in (names, names[:-1]):  # a name may be a file, or something in it
            path = module_utils.joinpath(*parts).with_suffix(".py") if parts else module_utils
            inside = path.relative_to(module_utils).as_posix()
            if path.is_file() and inside not in found:
                found.add(inside)
                waiting += [(next_, parts[:-1]) for next_ in imports_of(path.read_text())]
    return found


def bound_at_import(source: str) -> list[str]:
    """Lines of `source` that bind Ansible's AnsibleModule when they are imported.

    ansible-lint checks arguments by running `main()` with `ansible.module_utils.basic.AnsibleModule` replaced. A part
    of the package that took the name earlier would keep the real class, and linting would carry the step out. So
    `library/` imports the class, and the package, if it builds one, says `basic.AnsibleModule` when it is called.
    """
    return [
        f"line {node.lineno}: binds AnsibleModule at import; write basic.AnsibleModule where it is built"
        for node in ast.parse(source).body
        if isinstance(node, ast.ImportFrom) and any(alias.name == "AnsibleModule" for alias in node.names)
    ]


def folders_without_init(package: Path) -> list[str]:
    """Folders of the package without `__init__.py`: tests and linters pass, and the host cannot import them."""
    folders = [package, *(path for path in package.rglob("*") if path.is_dir() and path.name != "__pycache__")]
    return sorted(str(path.relative_to(package.parent)) for path in folders if not (path / "__init__.py").exists())


def files_not_shipped(package: Path) -> list[str]:
    """Files inside the package that are not Python: Ansible does not ship them."""
    found = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return sorted(str(path.relative_to(package.parent)) for path in found if path.suffix != ".py")


def beside_the_package(module_utils: Path) -> list[str]:
    """What lies in module_utils/ besides the package: a name of Ansible's own there would break every module."""
    return sorted(path.name for path in module_utils.iterdir() if path.name not in {"sluice", "__pycache__"})


def bare_package_imports(source: str) -> list[str]:
    """Imports of a top-level `sluice` or `module_utils`, which would make a second copy of every class."""
    return [
        f"line {found.line}: imports '{found.target}'; write ansible.module_utils.sluice"
        for found in imports_of(source)
        if not found.level and found.top in {"sluice", "module_utils"}
    ]


def application_offences(source: str) -> list[str]:
    """Imports that the application under `app/` may not have: it is what is moved, and knows neither Ansible nor us."""
    return [
        f"line {found.line}: imports '{found.target}'"
        for found in imports_of(source)
        if not found.level and found.top in {"ansible", "sluice", "module_utils", "oracle"}
    ]


def oracle_offences(source: str) -> list[str]:
    """Imports of the oracle that would let it share a mistake with what it judges."""
    return [
        f"line {found.line}: imports '{found.target}'"
        for found in imports_of(source)
        if not found.level and found.top in {"ansible", "sluice", "module_utils"}
    ]
