"""Settings of the application, read from its managed ``.env`` file when a process starts."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ENV_FILE_VARIABLE = "CAPTIONS_ENV_FILE"
LEGACY_KINDS = ("guarded", "unguarded")
_MOST_DIGITS = 9


class SettingsError(Exception):
    """The settings cannot be used; the message says which key, in which file, and what it should hold."""


@dataclass(frozen=True)
class Settings:
    """What one process of the application was started with. Times carry their unit in the name.

    ``digest`` is the start of the SHA-256 of what was read, so that one can see from outside whether a process has
    the present file. Values with a credential in them are left out of ``repr``.
    """

    source: str
    digest: str
    database_url: str = field(repr=False)
    legacy_database_url: str = field(repr=False)
    rq_database_url: str = field(repr=False)
    rq_redis_url: str | None = field(repr=False)
    rq_worker_redis_url: str | None = field(repr=False)
    admin_token: str | None = field(repr=False)
    rq_enabled: bool
    rq_key_prefix: str
    database_polling_enabled: bool
    effects_file: Path
    images_dir: Path
    work_ms: int
    legacy_kind: str
    poll_interval_ms: int
    lease_seconds: int
    intake_max_pause_seconds: int

    @property
    def rq_usable(self) -> bool:
        """Whether this process may hand tasks to RQ: switched on, and it knows the Redis."""
        return self.rq_enabled and self.rq_redis_url is not None


def parse_env(text: str) -> dict[str, str]:
    """Read ``KEY=VALUE`` lines. Blank lines and ``#`` comments are skipped, one pair of quotes is taken off."""
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, separator, value = stripped.removeprefix("export ").partition("=")
        if not separator or not key.strip():
            raise SettingsError(f"line {number} is not KEY=VALUE; write one setting a line")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        values[key.strip()] = value
    return values


def load_settings(path: Path | None = None) -> Settings:
    """Read the settings from ``path``, or from the file that ``CAPTIONS_ENV_FILE`` names."""
    if path is None:
        named = os.environ.get(ENV_FILE_VARIABLE)
        if not named:
            raise SettingsError(f"{ENV_FILE_VARIABLE} is not set; set it to the path of the application's .env file")
        path = Path(named)
    try:
        content = path.read_bytes()
        values = parse_env(content.decode())
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); {ENV_FILE_VARIABLE} names it") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    return settings_from(values, source=str(path), digest=hashlib.sha256(content).hexdigest()[:16])


def settings_from(values: Mapping[str, str], source: str, digest: str = "") -> Settings:
    """Check the values and give them their types. ``source`` is named in messages."""

    def required(key: str) -> str:
        value = values.get(key, "")
        if not value:
            raise SettingsError(f"{source}: {key} is missing; add it")
        return value

    def flag(key: str, default: bool) -> bool:
        value = values.get(key, "").lower()
        if value in ("true", "1", "yes", "on"):
            return True
        if value in ("false", "0", "no", "off"):
            return False
        if value == "":
            return default
        raise SettingsError(f"{source}: {key} is {value[:40]!r}; write true or false")

    def number(key: str, default: int, least: int = 0) -> int:
        value = values.get(key, "")
        if value == "":
            return default
        # Only what int() reads for certain: it takes no superscripts, and not any number of digits.
        if not (value.isascii() and value.isdigit() and len(value) <= _MOST_DIGITS) or int(value) < least:
            raise SettingsError(f"{source}: {key} is {value[:40]!r}; write a whole number of at least {least}")
        return int(value)

    database_url = required("DATABASE_URL")
    redis_url = values.get("RQ_REDIS_URL") or None
    rq_enabled = flag("RQ_ENABLED", False)
    if rq_enabled and redis_url is None:
        raise SettingsError(f"{source}: RQ_ENABLED is true but RQ_REDIS_URL is missing; add it or switch RQ off")
    legacy_kind = values.get("LEGACY_KIND") or "guarded"
    if legacy_kind not in LEGACY_KINDS:
        raise SettingsError(f"{source}: LEGACY_KIND is {legacy_kind!r}; write one of {', '.join(LEGACY_KINDS)}")
    return Settings(
        source=source,
        digest=digest,
        database_url=database_url,
        legacy_database_url=values.get("LEGACY_DATABASE_URL") or database_url,
        rq_database_url=values.get("RQ_DATABASE_URL") or database_url,
        rq_redis_url=redis_url,
        rq_worker_redis_url=values.get("RQ_WORKER_REDIS_URL") or redis_url,
        admin_token=values.get("ADMIN_TOKEN") or None,
        rq_enabled=rq_enabled,
        rq_key_prefix=values.get("RQ_KEY_PREFIX") or "rq",
        database_polling_enabled=flag("DATABASE_POLLING_ENABLED", True),
        effects_file=Path(required("EFFECTS_FILE")),
        images_dir=Path(required("IMAGES_DIR")),
        work_ms=number("WORK_MS", 0),
        legacy_kind=legacy_kind,
        poll_interval_ms=number("POLL_INTERVAL_MS", 500, least=1),
        lease_seconds=number("LEASE_SECONDS", 60, least=1),
        intake_max_pause_seconds=number("INTAKE_MAX_PAUSE_SECONDS", 900, least=1),
    )
