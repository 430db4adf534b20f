"""A site for each test: accounts of its own on the session's servers, removed at the end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
import redis
import sqlalchemy as sa

from conftest import PlantedSecrets
from lab.accounts import RIGHTS
from lab.stores import LOOPBACK, PrivateMariaDB, PrivateRedis
from modules.site import FakeApplication, Site
from stores_fixture import CAPTIONS_MAPPING

_numbers = itertools.count(1)


@pytest.fixture
def site(
    mariadb: PrivateMariaDB,
    redis_server: PrivateRedis,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
    planted_secrets: PlantedSecrets,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Site]:
    """Captions between a real MariaDB and a real Redis; the mover has the rights of the lab's accounts and no more."""
    number = next(_numbers)
    database = str(sa.make_url(database_url).database)
    users = {word: f"m{number}_{word}" for word in ("legacy", "web", "rq", "sluice", "sluice_read")}
    passwords = {word: planted_secrets.plant(word) for word in ("sluice", "sluice_read", "redis")}
    with mariadb.connect_as_root() as root, root.cursor() as cursor:
        for word in ("legacy", "web", "sluice", "sluice_read"):
            role = word if word.startswith("sluice") else f"captions_{word}"
            password = passwords.get(word, "a-password-of-the-application")
            cursor.execute("CREATE USER %s@%s IDENTIFIED BY %s", (users[word], LOOPBACK, password))
            for rights in RIGHTS[role]:
                what, option, rest = rights.partition(" WITH GRANT OPTION")
                what = what.replace(" captions.", f" {database}.").replace("`captions`", f"`{database}`")
                what = what.replace("`captions\\_", f"`{database}\\_").replace("%", "%%")
                cursor.execute(f"GRANT {what} TO %s@%s{option}{rest}", (users[word], LOOPBACK))
    admin = redis_server.client()
    admin.acl_setuser(
        "mover", enabled=True, reset=True, passwords=f"+{passwords['redis']}", keys="*", channels="*",
        categories=["+@all"],
    )  # fmt: skip
    admin.config_resetstat()
    mapping = tmp_path / "mapping.yml"
    text = CAPTIONS_MAPPING.read_text()
    mapping.write_text(
        text.replace("captions_legacy@", f"{users['legacy']}@").replace("captions_web@", f"{users['web']}@")
    )
    folder = tmp_path / "written"
    folder.mkdir()
    engine = sa.create_engine(database_url, isolation_level="READ COMMITTED")
    application = FakeApplication(engine, admin)
    accounts = {word: f"{users[word]}@{LOOPBACK}" for word in users} | {"rq_user": f"m{number}_rq"}
    yield Site(
        engine=engine,
        client=admin,
        db_url=mariadb.url(users["sluice"], passwords["sluice"], database),
        read_url=mariadb.url(users["sluice_read"], passwords["sluice_read"], database),
        redis_url=f"redis://mover:{quote(passwords['redis'], safe='')}@{LOOPBACK}:{redis_server.port}/0",
        mapping_file=mapping,
        folder=folder,
        accounts=accounts,
        application=application,
        capsys=capsys,
    )
    application.close()
    engine.dispose()
    with mariadb.connect_as_root() as root, root.cursor() as cursor:
        for user in users.values():
            cursor.execute("DROP USER IF EXISTS %s@%s", (user, LOOPBACK))
    forget(admin, "mover", accounts["rq_user"])


def forget(admin: redis.Redis, *users: str) -> None:
    """Remove the Redis users of a test and what it set."""
    for user in users:
        admin.acl_deluser(user)
    admin.config_set("maxmemory-policy", "noeviction")
    admin.close()
