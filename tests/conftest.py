"""How tests find the code: modules and package under the names that Ansible gives them, applications under their own.

The package is `ansible.module_utils.sluice` here as on a host. Were `module_utils/` itself on sys.path, one class would
exist twice and `except` would miss it; `tests/guards/test_imports.py` watches that nobody imports a bare `sluice`.
"""

from __future__ import annotations

import base64
import secrets
import sys
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import ansible.module_utils
import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

_package_home = str(ROOT / "module_utils")
if _package_home not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(_package_home)
for _folder in (TESTS, ROOT / "app", ROOT / "library"):
    if str(_folder) not in sys.path:
        sys.path.insert(0, str(_folder))

#: Files that take minutes, the longest first. Where several files run at a time, none of these is left for the end.
LONGEST = (
    "test_captions_app",
    "test_playbooks_outage",
    "test_playbooks_back",
    "test_playbooks_store_loss",
    "test_secrets",
    "test_playbooks_forward",
)

# Private MariaDB and Redis for tests marked `real`.
pytest_plugins = ["stores_fixture"] if (TESTS / "stores_fixture.py").exists() else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the longest files; the order within a file, and of all others, stays."""
    rank = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(LONGEST)))


@dataclass
class PlantedSecrets:
    """Secrets made for one test, and the search for them in everything the code under test let out."""

    planted: dict[str, str] = field(default_factory=dict)

    def plant(self, name: str) -> str:
        """Return a new secret, remembered under `name`. It has a character that URLs must quote."""
        value = f"{name}-{secrets.token_hex(12)}@s3"
        self.planted[name] = value
        return value

    def found_in(self, text: str | bytes) -> list[str]:
        """Names of the secrets in `text`: plain, quoted for a URL, in base64, or by their random part alone."""
        haystack = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return [name for name, value in self.planted.items() if any(form in haystack for form in _forms(value))]

    def assert_absent(self, text: str | bytes, where: str) -> None:
        """Fail, naming the secret and `where` but not repeating the value. Fails as well when nothing was planted."""
        assert self.planted, "no secret was planted, so this search proves nothing"
        leaked = self.found_in(text)
        if leaked:
            pytest.fail(f"{where} contains the planted secret(s): {', '.join(leaked)}", pytrace=False)


def _forms(value: str) -> tuple[str, ...]:
    random_part = value.rsplit("-", 1)[1].removesuffix("@s3")
    return (value, quote(value, safe=""), base64.b64encode(value.encode()).decode(), random_part)


@pytest.fixture
def planted_secrets() -> PlantedSecrets:
    """Plant passwords with `.plant(name)`, run the code, then `.assert_absent(output, "what it is")`."""
    return PlantedSecrets()
