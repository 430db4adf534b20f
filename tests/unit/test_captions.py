"""captions without its stores: what a caption says, who goes to RQ, how settings are read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from captions.caption import UnreadableImage, describe_image
from captions.control import Control, bucket_of
from captions.effects import EffectsFile
from captions.schema import statements
from captions.settings import SettingsError, parse_env, settings_from
from lab.images import BROKEN, make_images

NEEDED = {"DATABASE_URL": "mysql+pymysql://u:secret@h/d", "EFFECTS_FILE": "/e", "IMAGES_DIR": "/i"}


def picture(path: Path, size: tuple[int, int], colour: tuple[int, int, int]) -> Path:
    Image.new("RGB", size, colour).save(path)
    return path


def test_a_caption_says_size_colour_and_brightness(tmp_path: Path) -> None:
    assert describe_image(picture(tmp_path / "r.png", (40, 30), (220, 20, 20))) == (
        "A dark image of 40 by 30 pixels, mostly red (brightness 79)."
    )
    assert "bright image of 7 by 200 pixels, mostly white (brightness 255)" in describe_image(
        picture(tmp_path / "w.png", (7, 200), (255, 255, 255))
    )


def test_a_caption_names_the_colour_that_covers_most(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 30), (20, 40, 220))
    image.paste((250, 230, 20), (0, 0, 30, 18))
    image.save(tmp_path / "two.png")
    assert "mostly yellow" in describe_image(tmp_path / "two.png")


def test_the_lab_images_differ_and_their_captions_are_repeatable(tmp_path: Path) -> None:
    names = make_images(tmp_path)
    captions = [describe_image(tmp_path / name) for name in names]
    assert len(set(captions)) == len(names)
    assert captions == [describe_image(tmp_path / name) for name in make_images(tmp_path)]


@pytest.mark.parametrize("name", [BROKEN, "absent.png"])
def test_an_image_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    make_images(tmp_path)
    with pytest.raises(UnreadableImage, match=name):
        describe_image(tmp_path / name)


def test_a_user_keeps_one_bucket_and_the_buckets_are_even() -> None:
    # Fixed values: a change of the formula would move users between the sides.
    assert [bucket_of(user) for user in (1, 2, 42, 1000000)] == [83, 37, 88, 53]
    counts = [0] * 100
    for user in range(1, 50_001):
        counts[bucket_of(user)] += 1
    assert min(counts) > 350
    assert max(counts) < 650


@pytest.mark.parametrize(
    ("rq_usable", "emergency", "expected"), [(True, False, 25), (False, False, 0), (True, True, 0), (False, True, 0)]
)
def test_the_share_counts_only_with_rq_and_without_emergency(rq_usable: bool, emergency: bool, expected: int) -> None:
    control = Control(25, False, None, 0.0, emergency, True, frozenset(), None)
    assert control.share(rq_usable) == expected


@pytest.mark.parametrize(
    ("well", "polling", "expected"), [(True, True, 25), (True, False, 25), (False, True, 0), (False, False, 25)]
)
def test_without_redis_new_tasks_are_for_the_pollers_where_there_are_any(
    well: bool, polling: bool, expected: int
) -> None:
    control = Control(25, False, None, 0.0, False, polling, frozenset(), None)
    assert control.share(True, well) == expected


def test_effects_are_whole_lines_that_append(tmp_path: Path) -> None:
    effects = EffectsFile(tmp_path / "effects.jsonl", "rq", "w1")
    effects.started("t1")
    effects.ended("t1", "A caption")
    start, end = [json.loads(line) for line in (tmp_path / "effects.jsonl").read_text().splitlines()]
    assert {**start, "at": 0} == {
        "event": "start", "task": "t1", "side": "rq", "worker": "w1", "pid": os.getpid(), "at": 0,
    }  # fmt: skip
    assert (end["event"], end["caption"]) == ("end", "A caption")
    assert end["at"] >= start["at"] > 1_600_000_000


def test_settings_without_rq_keys_are_those_of_an_untouched_system() -> None:
    settings = settings_from(NEEDED, "env")
    assert not settings.rq_enabled
    assert not settings.rq_usable
    assert settings.database_polling_enabled
    assert settings.legacy_database_url == settings.rq_database_url == NEEDED["DATABASE_URL"]
    assert "secret" not in repr(settings)


def test_env_files_may_have_comments_quotes_and_equals_signs() -> None:
    assert parse_env("# c\n\nA=1\nexport B = 'two words'\nC=\"x=y\"\nD=\n") == {
        "A": "1", "B": "two words", "C": "x=y", "D": "",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"RQ_ENABLED": "maybe"}, "RQ_ENABLED"),
        ({"RQ_ENABLED": "true"}, "RQ_REDIS_URL"),
        ({"LEGACY_KIND": "careful"}, "LEGACY_KIND"),
        ({"WORK_MS": "-1"}, "WORK_MS"),
        ({"LEASE_SECONDS": "0"}, "LEASE_SECONDS"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^env: .*{named}"):
        settings_from({**NEEDED, **change}, "env")


def test_a_line_that_is_no_setting_is_named() -> None:
    with pytest.raises(SettingsError, match="line 2"):
        parse_env("A=1\nnonsense\n")


def test_the_schema_is_two_tables_later_columns_and_the_control_row() -> None:
    first_words = [" ".join(statement.split()[:6]) for statement in statements()]
    assert first_words == [
        "CREATE TABLE IF NOT EXISTS caption_tasks",
        "CREATE TABLE IF NOT EXISTS captions_control",
        "ALTER TABLE caption_tasks ADD COLUMN IF",
        "ALTER TABLE captions_control ADD COLUMN IF",
        "INSERT IGNORE INTO captions_control (id) VALUES",
    ]
