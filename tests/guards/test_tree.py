"""Nothing in the repository is bound to the machine on which it was written, and no set of things is forgotten."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from guards import tree

# Written with character classes so that this file does not offend against itself.
MACHINE = {
    "a path of the machine it was written on": re.compile(r"(?<![\w.}>/-])/(?:[w]ork|[r]oot)/|/tmp/[w]/"),
    "the host or option of a package index": re.compile(
        r"(?:extra-)?[i]ndex-url|[t]rusted-host|https?://[^\s/]+/[s]imple\b"
    ),
    "a document that is not part of the repository": re.compile(
        r"\bDESIG[N]\.md|\b[r]esearch/[\w-]+\.md|\.\./[s]hared"
    ),
}


def machine_traces(text: str) -> list[str]:
    """What in `text` would mean nothing, or something else, on another machine."""
    found = [f"{what}: {match.group()}" for what, rule in MACHINE.items() if (match := rule.search(text))]
    return found + ([f"the path of this checkout: {tree.ROOT}"] if f"{tree.ROOT}/" in text else [])


def _text(path: Path) -> str | None:
    raw = path.read_bytes()
    return None if b"\0" in raw[:4096] else raw.decode("utf-8")


@pytest.mark.parametrize("path", list(tree.files()), ids=tree.shown)
def test_no_file_names_the_machine(path: Path) -> None:
    text = _text(path)
    if text is not None:
        assert machine_traces(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "see /" + "work/main/x",
        "home: /" + "root/x",
        "cd /tmp" + "/w/y",
        "pip install --index" + "-url https://pypi.example.org/x",
        "https://mirror.example.org/" + "simple",
        "see DESIGN" + ".md",
        f"{tree.ROOT}/playbooks",
    ],
)
def test_a_trace_is_seen(text: str) -> None:
    assert machine_traces(text)


def test_ordinary_paths_are_no_trace() -> None:
    below_a_variable = "{{ base }}/" + "/".join(("root", "y"))
    text = f"image/work/x {below_a_variable} docs/architecture.md https://pypi.org/project/rq /var/lib/x"
    assert machine_traces(text) == []


@pytest.mark.parametrize("path", tree.python_files(), ids=tree.shown)
def test_annotations_are_from_the_future(path: Path) -> None:
    """One rule for all files: a module without it fails on the oldest Python only, and only where it runs."""
    source = path.read_text()
    if path.name != "__init__.py" and source.strip():
        assert "from __future__ import annotations" in source


def unpinned(text: str) -> list[str]:
    """Requirements without an exact version: two machines would test two programs."""
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [
        line for line in lines if line and not line.startswith("-r ") and not re.fullmatch(r"[\w.-]+==[\w.]+", line)
    ]


@pytest.mark.parametrize("path", sorted(tree.ROOT.glob("requirements*.txt")), ids=tree.shown)
def test_every_requirement_is_pinned(path: Path) -> None:
    assert unpinned(path.read_text()) == []


def test_a_requirement_without_a_version_is_seen() -> None:
    assert unpinned("# why\n-r requirements.txt\nrq==3.0.0\nredis>=5\nflask\n") == ["redis>=5", "flask"]


@pytest.mark.skipif(not tree.playbooks(), reason="the tree has no playbooks yet")
@pytest.mark.parametrize("things", [tree.modules, tree.roles, tree.playbooks, tree.task_files, tree.documents])
def test_no_set_is_empty(things: object) -> None:
    """A guard over an empty set passes; once there are playbooks every set has members."""
    assert callable(things)
    assert things()


@pytest.mark.skipif(not tree.playbooks(), reason="the tree has no playbooks yet")
@pytest.mark.parametrize("folder", ["unit", "contract", "modules", "integration", "faults", "guards"])
def test_no_kind_of_test_is_missing(folder: str) -> None:
    """A stage without tests would pass."""
    assert list((tree.ROOT / "tests" / folder).rglob("test_*.py"))
