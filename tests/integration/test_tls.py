"""Connections to a database that speaks TLS, and to one that does not: taken where offered, checked where asked for."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.adapters import sql_connect

from captions.database import make_engine
from lab.stores import LOOPBACK, PrivateMariaDB, free_port
from stores_fixture import ChangedMariaDB

pytestmark = pytest.mark.real
Connect = Callable[[str], sa.Engine]


def certificate(folder: Path, name: str) -> Path:
    """A self-signed certificate of the loopback address; its key lies beside it."""
    program = shutil.which("openssl")
    if program is None:
        pytest.skip("certificates are made by openssl (Debian: openssl)")
    made = folder / f"{name}.pem"
    subprocess.run(
        [program, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}",
         "-addext", f"subjectAltName=IP:{LOOPBACK}", "-keyout", made.with_suffix(".key"), "-out", made],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


@pytest.fixture(scope="module")
def speaks_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The URL of an account that may log in by TLS alone, and the server's certificate."""
    folder = tmp_path_factory.mktemp("tls")
    made = certificate(folder, "server")
    server = ChangedMariaDB(folder, free_port(), f"--ssl-cert={made}", f"--ssl-key={made.with_suffix('.key')}")
    server.start()
    with server.connect_as_root() as root, root.cursor() as cursor:
        cursor.execute("CREATE DATABASE captions")
        cursor.execute("CREATE USER 'far'@'%' IDENTIFIED BY 'away' REQUIRE SSL")
        cursor.execute("GRANT ALL ON captions.* TO 'far'@'%'")
    yield server.url("far", "away", "captions"), made
    server.stop()


@pytest.fixture(params=[sql_connect.connect, make_engine], ids=["sluice", "captions"])
def connect(request: pytest.FixtureRequest) -> Connect:
    made: Connect = request.param
    return made


def cipher(engine: sa.Engine) -> str:
    """How the connection is encrypted; empty when it is not."""
    with engine.connect() as connection:
        return str(connection.execute(sa.text("SHOW STATUS LIKE 'Ssl_cipher'")).one()[1])


def test_tls_is_taken_where_it_is_offered(
    connect: Connect, speaks_tls: tuple[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reads_the_certificates_of_the_system(*_: object, **__: object) -> ssl.SSLContext:
        raise AssertionError("that takes 50 ms, and nothing is checked against them")

    monkeypatch.setattr(ssl, "create_default_context", reads_the_certificates_of_the_system)
    assert cipher(connect(speaks_tls[0]))


def test_without_tls_it_connects_all_the_same(connect: Connect, mariadb: PrivateMariaDB) -> None:
    with mariadb.connect_as_root() as root, root.cursor() as cursor:
        cursor.execute("CREATE USER 'near'@'%' IDENTIFIED BY 'by'")
        cursor.execute("GRANT ALL ON mysql.* TO 'near'@'%'")
    try:
        assert cipher(connect(mariadb.url("near", "by", "mysql"))) == ""
    finally:
        with mariadb.connect_as_root() as root, root.cursor() as cursor:
            cursor.execute("DROP USER 'near'@'%'")


def test_a_certificate_is_checked_where_the_url_names_who_vouches(
    connect: Connect, speaks_tls: tuple[str, Path], tmp_path: Path
) -> None:
    url, servers = speaks_tls
    assert cipher(connect(f"{url}?ssl_ca={servers}&ssl_check_hostname=true"))
    other = certificate(tmp_path, "another")
    with pytest.raises(sa.exc.OperationalError, match="certificate verify failed"):
        cipher(connect(f"{url}?ssl_ca={other}&ssl_check_hostname=true"))
