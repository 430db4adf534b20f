"""What there is in the repository: the sets over which the guards run. A set may be empty while the tree grows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "module_utils" / "sluice"

# Made on this machine, never part of the repository (.gitignore has the same list).
MADE_HERE = frozenset(
    {
        ".git",
        ".venv",
        ".lab",
        ".hosts",
        ".cache",
        "__pycache__",
        ".pytest_cache",
        ".mypy_cache",
        ".ruff_cache",
        ".ansible",
    }
    | {"artifacts", ".hypothesis"}
)


def files(root: Path = ROOT) -> Iterator[Path]:
    """Every file that belongs to the repository under `root`, sorted by path."""
    for folder, names, contents in os.walk(root):
        names[:] = sorted(name for name in names if name not in MADE_HERE)
        for name in sorted(contents):
            if not name.endswith(".pyc") and not name.startswith(".coverage"):
                yield Path(folder) / name


def python_files(root: Path = ROOT) -> list[Path]:
    """Every Python source under `root`, scripts without a suffix included."""
    return [path for path in files(root) if path.suffix == ".py" or (not path.suffix and _is_python_script(path))]


def _is_python_script(path: Path) -> bool:
    with path.open("rb") as source:
        first = source.readline(200)
    return first.startswith(b"#!") and b"python" in first


def modules(root: Path = ROOT) -> list[Path]:
    """The Ansible modules: every .py of library/, in subfolders too, is callable."""
    return sorted((root / "library").rglob("*.py"))


def roles(root: Path = ROOT) -> list[Path]:
    """The folders of roles/."""
    return sorted(path for path in (root / "roles").glob("*") if path.is_dir())


def playbooks(root: Path = ROOT) -> list[Path]:
    """The playbooks an operator starts."""
    return sorted((root / "playbooks").glob("*.yml"))


def task_files(root: Path = ROOT) -> list[Path]:
    """Every YAML file that holds plays or tasks: playbooks, roles, molecule scenarios."""
    found = list((root / "playbooks").rglob("*.yml"))
    found += [p for kind in ("tasks", "handlers") for p in (root / "roles").glob(f"*/{kind}/**/*.yml")]
    found += [p for p in (root / "molecule").glob("*/**/*.yml") if p.name != "molecule.yml"]
    return sorted(set(found))


def documents(root: Path = ROOT) -> list[Path]:
    """README, the application's, and the pages of docs/, whose commands people will type, and the role READMEs."""
    top = [path for path in (root / "README.md", root / "app" / "README.md") if path.exists()]
    return top + sorted((root / "docs").rglob("*.md")) + sorted((root / "roles").glob("*/README.md"))


def shown(path: Path, root: Path = ROOT) -> str:
    """The path as messages and test ids show it: from the root of the repository."""
    return path.relative_to(root).as_posix()
