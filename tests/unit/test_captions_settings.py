"""captions' settings: profiles, contradictions, unknown keys, and where they come from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from captions.settings import SettingsError, load_settings, settings_from

URL = "mysql+pymysql://u:secret@h/d"
NEEDED = {"DATABASE_URL": URL, "EFFECTS_FILE": "/e", "IMAGES_DIR": "/i"}
TOKEN = "t" * 32
SECURED = {**NEEDED, "ADMIN_TOKEN": TOKEN}
APP = Path(__file__).resolve().parents[2] / "app"


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({**NEEDED, "RQ_ENABELD": "true"}, ["RQ_ENABELD", "no setting", "RQ_ENABLED"]),
        ({**NEEDED, "RQ_TIMEOUT": "9"}, ["RQ_TIMEOUT", "no setting"]),
        ({**NEEDED, "WORKMS": "9"}, ["WORKMS", "no setting", "WORK_MS"]),
        ({**NEEDED, "PROFILE": "prod"}, ["PROFILE", "development, staging, production"]),
        (
            {**NEEDED, "RQ_REDIS_URL": "redis://h/0", "RQ_WORKER_REDIS_URL": "redis://h/1"},
            ["RQ_REDIS_URL", "RQ_WORKER_REDIS_URL", "database numbers"],
        ),
        ({**NEEDED, "ADMIN_TOKEN": TOKEN, "VIEW_TOKEN": TOKEN}, ["VIEW_TOKEN", "ADMIN_TOKEN", "same token"]),
        ({**NEEDED, "PROFILE": "staging"}, ["ADMIN_TOKEN", "PROFILE=staging"]),
        ({**SECURED, "PROFILE": "production", "ADMIN_TOKEN": "short"}, ["ADMIN_TOKEN", "5 characters"]),
        ({**SECURED, "PROFILE": "production", "VIEW_TOKEN": "short"}, ["VIEW_TOKEN", "5 characters"]),
        ({**SECURED, "PROFILE": "production", "RQ_REDIS_URL": "redis://h/0"}, ["RQ_REDIS_URL", "no password"]),
        (
            {**SECURED, "PROFILE": "production", "DATABASE_URL": "mysql+pymysql://u@h/d"},
            ["DATABASE_URL", "no password"],
        ),
        ({**SECURED, "PROFILE": "production", "LEGACY_KIND": "unguarded"}, ["LEGACY_KIND", "guarded"]),
        ({**SECURED, "PROFILE": "production", "WORK_MS": "5"}, ["WORK_MS", "must be 0"]),
    ],
)
def test_an_unknown_or_contradictory_setting_is_named(given: dict[str, str], named: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        settings_from(given, "env")
    message = str(caught.value)
    assert [word for word in named if word not in message] == []
    assert "secret" not in message
    assert TOKEN not in message


@pytest.mark.parametrize("profile", ["development", "staging", "production"])
def test_each_profile_has_settings_that_it_takes(profile: str) -> None:
    settings = settings_from({**SECURED, "PROFILE": profile}, "env")
    assert settings.profile == profile
    assert TOKEN not in repr(settings)


def test_settings_come_from_the_environment_alone() -> None:
    settings = load_settings(environment={f"CAPTIONS_{key}": value for key, value in NEEDED.items()} | {"PATH": "/bin"})
    assert (settings.source, settings.database_url) == ("the environment", URL)
    assert len(settings.digest) == 16


def test_a_settings_file_may_hold_what_belongs_to_others() -> None:
    settings_from({**NEEDED, "MAIL_HOST": "m", "ODD": "", "RETRYING": "x"}, "env")


def test_an_unknown_environment_variable_of_ours_is_named() -> None:
    environment = {f"CAPTIONS_{key}": value for key, value in NEEDED.items()} | {"CAPTIONS_MAIL_HOST": "m"}
    with pytest.raises(SettingsError, match="CAPTIONS_MAIL_HOST"):
        load_settings(environment=environment)


def test_file_and_environment_complete_each_other_and_may_not_contradict(tmp_path: Path) -> None:
    file = tmp_path / "captions.env"
    file.write_text("".join(f"{key}={value}\n" for key, value in NEEDED.items()))
    alone = load_settings(file, environment={})
    both = load_settings(environment={"CAPTIONS_ENV_FILE": str(file), "CAPTIONS_LEASE_SECONDS": "7"})
    assert (both.lease_seconds, both.digest) == (7, alone.digest)
    with pytest.raises(SettingsError, match=r"IMAGES_DIR has another value than CAPTIONS_IMAGES_DIR"):
        load_settings(file, environment={"CAPTIONS_IMAGES_DIR": "/elsewhere"})


@pytest.mark.parametrize(
    ("extra", "code", "says"),
    [
        ({}, 0, "can be used: profile development, task types caption, 0 RQ workers"),
        ({"CAPTIONS_LEGACY_KIND": "bold"}, 1, "LEGACY_KIND is 'bold'"),
        ({"CAPTIONS_TASK_MODULES": "no_such_module"}, 1, "TASK_MODULES names 'no_such_module'"),
        ({"CAPTIONS_RQ_WORKERS": "normal:1"}, 1, "RQ_WORKERS asks for workers but RQ_ENABLED is not true"),
        ({"CAPTIONS_RQ_WORKERS": "normal"}, 1, "RQ_WORKERS: 'normal' is not QUEUE+QUEUE:COUNT"),
        ({"CAPTIONS_RQ_WORKERS": "utmost:1"}, 1, "RQ_WORKERS: there is no queue 'utmost'"),
    ],
)
def test_settings_can_be_checked_before_a_reload(extra: dict[str, str], code: int, says: str) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CAPTIONS_")}
    environment |= {f"CAPTIONS_{key}": value for key, value in NEEDED.items()} | extra | {"PYTHONPATH": str(APP)}
    done = subprocess.run(
        [sys.executable, "-m", "captions.check"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
