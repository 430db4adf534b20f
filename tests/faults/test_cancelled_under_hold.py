"""Tasks that users cancel while a mover holds them, in a table whose only word for a hold is the status itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from ansible.module_utils.sluice.core import mapping as mappings

from stores_fixture import Ends, open_ends

pytestmark = pytest.mark.real

MAPPING = {
    "system": "mails",
    "source": {
        "table": "mails",
        "columns": {"id": "id", "created": "created"},
        "places": {
            "ready": {"column": "state", "equals": "new"},
            "leased": {"column": "state", "equals": "sending"},
            "claimed": {"column": "state", "equals": "moving"},
            "moved": {"column": "state", "equals": "handed over"},
            "cancelled": {"column": "state", "equals": "cancelled"},
        },
        "order": ["created"],
        "hold": {
            "kind": "columns",
            "token_column": "token",
            "claim": {"state": "moving", "token": "$token"},
            "moved": {"state": "handed over"},
            "back": {"state": "new", "token": 0},
        },
        "claimers": [{"name": "mailer", "kind": "guarded", "account": "mailer@127.0.0.1", "processes": 1}],
    },
    "target": {"kind": "rq", "default_queue": "mails", "function": "mails.send", "args": ["id"], "serializer": "json"},
}


@pytest.fixture
def mails(database_url: str, redis_url: str) -> Iterator[Ends]:
    """Three new mails."""
    engine = sa.create_engine(database_url)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE mails (id VARCHAR(36) PRIMARY KEY, state VARCHAR(20) NOT NULL,"
            " token BIGINT NOT NULL DEFAULT 0, created DATETIME(6) NOT NULL) ENGINE=InnoDB"
        )
        for name in ("a", "b", "c"):
            connection.exec_driver_sql("INSERT INTO mails VALUES (%s, 'new', 0, UTC_TIMESTAMP(6))", (name,))
    engine.dispose()
    made = open_ends(database_url, redis_url, mappings.parse(MAPPING))
    yield made
    made.engine.dispose()


def states(ends: Ends) -> dict[str, str]:
    with ends.engine.connect() as connection:
        return {row.id: row.state for row in connection.exec_driver_sql("SELECT id, state FROM mails")}


def cancel(ends: Ends, task: str) -> None:
    with ends.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE mails SET state = 'cancelled' WHERE id = %s", (task,))


def test_a_release_does_not_undo_the_cancellation(mails: Ends) -> None:
    claim = mails.source.claim(mails.lease, 10)
    assert [task.id for task in claim.tasks] == ["a", "b", "c"]
    cancel(mails, "b")
    released = mails.source.release(mails.lease, claim.tasks, ["", "", ""], 1)
    assert [task.id for task in released.lost] == ["b"]
    assert states(mails) == {"a": "handed over", "b": "cancelled", "c": "handed over"}
    assert list(mails.ledger.ended_meanwhile(mails.lease)) == ["b"]


def test_neither_a_resume_nor_an_undo_touches_it(mails: Ends) -> None:
    mails.source.claim(mails.lease, 10)
    cancel(mails, "b")
    later = mails.again()
    assert [task.id for task in later.source.claim(later.lease, 10).tasks] == ["a", "c"]
    assert later.source.put_back(later.lease) == 2
    assert states(mails) == {"a": "new", "b": "cancelled", "c": "new"}
    later.engine.dispose()
