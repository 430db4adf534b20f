"""Data flows one way, and everything a module needs reaches the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from guards import imports, tree

PYTHON = tree.python_files()


def _package(root: Path, **sources: str) -> Path:
    """A package with a folder per room; `core__x="..."` writes core/x.py."""
    package = root / "module_utils" / "sluice"
    for room in imports.ROOMS:
        (package / room).mkdir(parents=True)
        (package / room / "__init__.py").touch()
    (package / "__init__.py").touch()
    for name, source in sources.items():
        (package / (name.replace("__", "/") + ".py")).write_text(source)
    return package


def test_the_package_imports_in_one_direction() -> None:
    assert imports.package_offences(tree.PACKAGE) == []


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("core__x", "import redis\n", "core may not import 'redis'"),
        ("core__x", "from ..ports import store\n", "core may not import ports"),
        ("core__x", "def f():\n    from .. import services\n", "core may not import services"),
        ("core__x", "import time\n", "core is pure"),
        ("ports__x", "from ..services.run import advance\n", "ports may not import services"),
        ("services__x", "from ..adapters import rq\n", "services may not import adapters"),
        ("services__x", "import sqlalchemy as sa\n", "services may not import 'sqlalchemy'"),
        ("adapters__x", "from ..services import run\n", "adapters may not import services"),
        ("adapters__x", "from ansible.module_utils.basic import AnsibleModule\n", "adapters may not import 'ansible'"),
        ("adapters__x", "import importlib\n", "imports importlib"),
        ("adapters__x", "from importlib import import_module\n", "imports importlib"),
        ("shell__x", "from ansible.module_utils.sluice.core import tasks\n", "inside the package imports are relative"),
        ("services__x", "from sluice.core import tasks\n", "inside the package imports are relative"),
        ("core__x", "from ... import basic\n", "leaves the package"),
        ("adapters__x", "m = __import__('redis')\n", "calls __import__"),
        ("version", "import redis\n", "outside the rooms"),
    ],
)
def test_a_wrong_import_is_seen(tmp_path: Path, name: str, source: str, reason: str) -> None:
    [offence] = imports.package_offences(_package(tmp_path, **{name: source}))
    assert reason in offence


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("core__x", "from __future__ import annotations\nimport hashlib\nfrom . import y\nfrom .y import Z\n"),
        ("services__x", "from ..core.tasks import Task\nfrom ..ports import store\nfrom .run import go\n"),
        ("adapters__x", "import redis\nfrom rq import Queue\nfrom ..core import tasks\n"),
        ("shell__x", "from ansible.module_utils.basic import AnsibleModule\nfrom ..adapters.factory import build\n"),
    ],
)
def test_a_right_import_is_not_reported(tmp_path: Path, name: str, source: str) -> None:
    assert imports.package_offences(_package(tmp_path, **{name: source})) == []


#: Modules that run on the application's hosts, with the size up to which they are sent there (KB of our source).
ON_HOSTS = {"queue_config": 40, "queue_revision": 60, "queue_workers": 90, "queue_assess_host": 200}


@pytest.mark.parametrize("name", ON_HOSTS)
def test_hosts_are_sent_nothing_of_the_stores(name: str) -> None:
    """They have no drivers, and a fleet has many hosts: each step is sent to each of them."""
    module_utils = tree.PACKAGE.parent
    sent = imports.sent_with((tree.ROOT / "library" / f"{name}.py").read_text(), module_utils)
    assert "sluice/shell/runner.py" in sent
    of_stores = {
        word for word in ("factory", "ledger", "sql", "redis", "rq") for path in sent if f"adapters/{word}" in path
    }
    assert of_stores == set(), sorted(sent)
    assert sum((module_utils / path).stat().st_size for path in sent) < ON_HOSTS[name] * 1024


def test_what_is_sent_is_followed_to_its_end(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        core__x="X = 1\n",
        adapters__y="def f():\n    from ..core.x import X\n",
        adapters__z="",
        shell__s="from ..adapters import y\n",
    )
    sent = imports.sent_with("from ansible.module_utils.sluice.shell import s\n", package.parent)
    assert sent == {"sluice/shell/s.py", "sluice/adapters/y.py", "sluice/core/x.py"}


@pytest.mark.parametrize("path", tree.python_files(tree.ROOT / "module_utils"), ids=tree.shown)
def test_linting_cannot_run_a_step(path: Path) -> None:
    assert imports.bound_at_import(path.read_text()) == []


def test_a_class_bound_too_early_is_seen() -> None:
    assert imports.bound_at_import("from ansible.module_utils.basic import AnsibleModule\n")
    late = "if TYPE_CHECKING:\n    from ansible.module_utils.basic import AnsibleModule\n"
    assert imports.bound_at_import(late + "from ansible.module_utils import basic\n") == []


def test_every_folder_of_the_package_has_an_init() -> None:
    assert imports.folders_without_init(tree.PACKAGE) == []


def test_a_missing_init_is_seen(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (package / "core" / "__init__.py").unlink()
    assert imports.folders_without_init(package) == ["sluice/core"]


def test_the_package_holds_only_what_is_shipped() -> None:
    assert imports.files_not_shipped(tree.PACKAGE) == []


def test_a_file_that_is_not_shipped_is_seen(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (package / "adapters" / "claim.lua").touch()
    assert imports.files_not_shipped(package) == ["sluice/adapters/claim.lua"]


def test_nothing_lies_beside_the_package() -> None:
    assert imports.beside_the_package(tree.PACKAGE.parent) == []


def test_a_file_beside_the_package_is_seen(tmp_path: Path) -> None:
    package = _package(tmp_path)
    (package.parent / "errors.py").touch()
    assert imports.beside_the_package(package.parent) == ["errors.py"]


@pytest.mark.parametrize("path", [p for p in PYTHON if tree.shown(p) != imports.GUEST], ids=tree.shown)
def test_the_package_has_one_name(path: Path) -> None:
    assert imports.bare_package_imports(path.read_text()) == []


@pytest.mark.parametrize("line", ["import sluice", "from sluice.core import tasks", "import module_utils.sluice.core"])
def test_a_second_name_is_seen(line: str) -> None:
    assert imports.bare_package_imports(line)
    assert imports.bare_package_imports(f"def f():\n    {line}\n")


@pytest.mark.parametrize(
    "path",
    [p for p in PYTHON if tree.shown(p).startswith("app/") and tree.shown(p) != imports.GUEST],
    ids=tree.shown,
)
def test_the_application_knows_neither_ansible_nor_sluice(path: Path) -> None:
    assert imports.application_offences(path.read_text()) == []


def test_the_guest_uses_the_package_and_not_ansible() -> None:
    source = (tree.ROOT / imports.GUEST).read_text()
    assert "ansible" not in {found.top for found in imports.imports_of(source)}
    assert "sluice" in {found.top for found in imports.imports_of(source)}


def test_an_application_that_knows_us_is_seen() -> None:
    assert imports.application_offences("from ansible.module_utils.sluice.core import tasks")
    assert imports.application_offences("import redis\nfrom . import jobs\n") == []


@pytest.mark.parametrize("path", [p for p in PYTHON if tree.shown(p).startswith("tests/oracle/")], ids=tree.shown)
def test_the_oracle_shares_no_code_with_what_it_judges(path: Path) -> None:
    if path.name.startswith("test_"):
        pytest.skip("a test of the oracle, not the oracle")
    assert imports.oracle_offences(path.read_text()) == []


def test_an_oracle_that_shares_code_is_seen() -> None:
    assert imports.oracle_offences("from ansible.module_utils.sluice.core.balance import balance")


@pytest.mark.parametrize("path", tree.modules(), ids=tree.shown)
def test_no_module_shadows_another_name(path: Path) -> None:
    """A bare name that equals a built-in module wins over it; library/ is on sys.path in tests."""
    assert path.stem.startswith("queue_"), f"{path.name}: modules are named queue_<verb>"
    assert path.parent == tree.ROOT / "library", f"{path}: modules lie directly in library/"
