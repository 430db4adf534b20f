"""Settings of the application, read when a process starts: ``python -m captions.check`` says whether they hold.

They come from the managed ``.env`` file that ``CAPTIONS_ENV_FILE`` names, from environment variables (the same keys
with ``CAPTIONS_`` in front), or from both as long as the two do not contradict each other. The file may hold keys of
other programs; one that looks like ours and is not is an error, and so is every unknown variable with our prefix.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from captions.retries import GROWTHS, Growth, RetryPolicy

PREFIX = "CAPTIONS_"
ENV_FILE_VARIABLE = f"{PREFIX}ENV_FILE"
LEGACY_KINDS = ("guarded", "unguarded")
TOKENS = ("VIEW_TOKEN", "OPERATE_TOKEN", "ADMIN_TOKEN")
KEYS = frozenset(
    {"PROFILE", "DATABASE_URL", "LEGACY_DATABASE_URL", "RQ_DATABASE_URL", "RQ_REDIS_URL", "RQ_WORKER_REDIS_URL"}
    | {"RQ_ENABLED", "RQ_KEY_PREFIX", "DATABASE_POLLING_ENABLED", "EFFECTS_FILE", "IMAGES_DIR", "WORK_MS"}
    | {"LEGACY_KIND", "POLL_INTERVAL_MS", "LEASE_SECONDS", "INTAKE_MAX_PAUSE_SECONDS", *TOKENS}
    | {"RETRY_GROWTH", "RETRY_BASE_SECONDS", "RETRY_COUNT", "TASK_MODULES", "METRICS_DIR", "RQ_WORKERS"}
    | {"RQ_WORKER_MEMORY_MB", "USER_HEADER", "SLUICE_MAPPING"}
)

_SHORTEST_TOKEN = 32
_MOST_DIGITS = 9


@dataclass(frozen=True)
class Profile:
    """What an environment demands of its settings."""

    secured: bool  # stores with passwords, an admin token of some length, no worker that is there for tests only
    slowed: bool  # tasks may be made to take longer than they need
    retry: RetryPolicy


PROFILES = {
    # Nobody waits for a retry at a desk; elsewhere at once for what is transient, then after 1, 4 and 16 minutes.
    "development": Profile(secured=False, slowed=True, retry=RetryPolicy("fixed", 0, retries=2, at_once=0)),
    "staging": Profile(secured=True, slowed=True, retry=RetryPolicy()),
    "production": Profile(secured=True, slowed=False, retry=RetryPolicy()),
}


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
    profile: str
    database_url: str = field(repr=False)
    legacy_database_url: str = field(repr=False)
    rq_database_url: str = field(repr=False)
    rq_redis_url: str | None = field(repr=False)
    rq_worker_redis_url: str | None = field(repr=False)
    tokens: Mapping[str, str] = field(repr=False)
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
    retry: RetryPolicy
    task_modules: tuple[str, ...]
    metrics_dir: Path | None
    rq_workers: str
    rq_worker_memory_mb: int
    user_header: str | None
    sluice_mapping: Path | None

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


def load_settings(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from ``path``, or from the file that ``CAPTIONS_ENV_FILE`` names, and from the environment."""
    spoken = {
        key.removeprefix(PREFIX): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and key != ENV_FILE_VARIABLE
    }
    named = environment.get(ENV_FILE_VARIABLE)
    if path is None and named:
        path = Path(named)
    if path is None:
        if not spoken:
            raise SettingsError(f"{ENV_FILE_VARIABLE} is not set; set it to the path of the application's .env file")
        _all_known(spoken)
        lines = "".join(f"{key}={value}\n" for key, value in sorted(spoken.items()))
        return settings_from(spoken, "the environment", _digest(lines.encode()))
    try:
        content = path.read_bytes()
        values = parse_env(content.decode())
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); {ENV_FILE_VARIABLE} names it") from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from error
    _all_known(spoken)
    for key in sorted(set(values) & set(spoken)):
        if values[key] != spoken[key]:
            raise SettingsError(
                f"{path}: {key} has another value than {PREFIX}{key} in the environment; take one of them away"
            )
    return settings_from({**values, **spoken}, source=str(path), digest=_digest(content))


def _all_known(spoken: Mapping[str, str]) -> None:
    for key in sorted(set(spoken) - KEYS):
        raise SettingsError(f"the environment: {PREFIX}{key} is no setting; known are {', '.join(sorted(KEYS))}")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def settings_from(values: Mapping[str, str], source: str, digest: str = "") -> Settings:
    """Check the values, alone and against each other, and give them their types. ``source`` is named in messages."""

    def choice(key: str, choices: tuple[str, ...]) -> str:
        value = values.get(key) or choices[0]
        if value not in choices:
            raise SettingsError(f"{source}: {key} is {value!r}; write one of {', '.join(choices)}")
        return value

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

    for key in sorted(set(values) - KEYS):
        if like := _like_ours(key):
            raise SettingsError(f"{source}: {key} is no setting of captions; nearest is {like}")
    profile = choice("PROFILE", tuple(PROFILES))
    usual = PROFILES[profile].retry
    growth = cast("Growth", choice("RETRY_GROWTH", (usual.growth, *(g for g in GROWTHS if g != usual.growth))))
    database_url = required("DATABASE_URL")
    redis_url = values.get("RQ_REDIS_URL") or None
    settings = Settings(
        source=source,
        digest=digest,
        profile=profile,
        database_url=database_url,
        legacy_database_url=values.get("LEGACY_DATABASE_URL") or database_url,
        rq_database_url=values.get("RQ_DATABASE_URL") or database_url,
        rq_redis_url=redis_url,
        rq_worker_redis_url=values.get("RQ_WORKER_REDIS_URL") or redis_url,
        tokens={key: value for key in TOKENS if (value := values.get(key))},
        rq_enabled=flag("RQ_ENABLED", False),
        rq_key_prefix=values.get("RQ_KEY_PREFIX") or "rq",
        database_polling_enabled=flag("DATABASE_POLLING_ENABLED", True),
        effects_file=Path(required("EFFECTS_FILE")),
        images_dir=Path(required("IMAGES_DIR")),
        work_ms=number("WORK_MS", 0),
        legacy_kind=choice("LEGACY_KIND", LEGACY_KINDS),
        poll_interval_ms=number("POLL_INTERVAL_MS", 500, least=1),
        lease_seconds=number("LEASE_SECONDS", 60, least=1),
        intake_max_pause_seconds=number("INTAKE_MAX_PAUSE_SECONDS", 900, least=1),
        retry=RetryPolicy(
            growth,
            number("RETRY_BASE_SECONDS", int(usual.base_seconds)),
            number("RETRY_COUNT", usual.retries),
            usual.at_once,
        ),
        metrics_dir=Path(values["METRICS_DIR"]) if values.get("METRICS_DIR") else None,
        rq_workers=values.get("RQ_WORKERS", ""),
        rq_worker_memory_mb=number("RQ_WORKER_MEMORY_MB", 500, least=50),
        user_header=values.get("USER_HEADER") or None,
        sluice_mapping=Path(values["SLUICE_MAPPING"]) if values.get("SLUICE_MAPPING") else None,
        task_modules=tuple(name for part in values.get("TASK_MODULES", "").split(",") if (name := part.strip())),
    )
    for contradiction in _contradictions(settings):
        raise SettingsError(f"{source}: {contradiction}")
    return settings


def _like_ours(key: str) -> str | None:
    """The known key that an unknown one was meant for, None when it may well be another program's."""
    near = get_close_matches(key, sorted(KEYS), n=1, cutoff=0.8)
    first = key.partition("_")[0] + "_"
    family = [known for known in sorted(KEYS) if known.startswith(first)]
    return next(iter([*near, *family]), None)


def _contradictions(settings: Settings) -> list[str]:
    """What cannot be true together, or not in this profile; each names the keys."""
    found = []
    if settings.rq_enabled and settings.rq_redis_url is None:
        found.append("RQ_ENABLED is true but RQ_REDIS_URL is missing; add it or switch RQ off")
    if settings.rq_redis_url and settings.rq_worker_redis_url:
        web, worker = urlsplit(settings.rq_redis_url), urlsplit(settings.rq_worker_redis_url)
        if (web.path.strip("/") or "0") != (worker.path.strip("/") or "0"):
            found.append("RQ_REDIS_URL and RQ_WORKER_REDIS_URL name two database numbers; workers would find no task")
    for one, other in combinations(settings.tokens, 2):
        if settings.tokens[one] == settings.tokens[other]:
            found.append(f"{one} and {other} are the same token; each role needs its own")
    profile = PROFILES[settings.profile]
    where = f"with PROFILE={settings.profile}"
    if profile.secured:
        urls = {
            "DATABASE_URL": settings.database_url,
            "LEGACY_DATABASE_URL": settings.legacy_database_url,
            "RQ_DATABASE_URL": settings.rq_database_url,
            "RQ_REDIS_URL": settings.rq_redis_url,
            "RQ_WORKER_REDIS_URL": settings.rq_worker_redis_url,
        }
        found += [
            f"{key} has no password, which {where} it must" for key, url in urls.items() if url and not _password(url)
        ]
        if "ADMIN_TOKEN" not in settings.tokens:
            found.append(f"ADMIN_TOKEN is missing; {where} it must be there")
        found += [
            f"{key} has {len(token)} characters; {where} it needs at least {_SHORTEST_TOKEN}"
            for key, token in settings.tokens.items()
            if len(token) < _SHORTEST_TOKEN
        ]
        if settings.legacy_kind == "unguarded":
            found.append(f"LEGACY_KIND is unguarded, which is for tests; {where} it must be guarded")
    if settings.work_ms and not profile.slowed:
        found.append(f"WORK_MS is {settings.work_ms}, which is for tests; {where} it must be 0")
    return found


def _password(url: str) -> str | None:
    return urlsplit(url).password


def load_or_exit() -> Settings:
    """The settings; the process ends with one line on what is wrong when they cannot be used."""
    try:
        return load_settings()
    except SettingsError as error:
        raise SystemExit(f"captions: {error}") from error
