"""Fallback tasks: those that went to the pollers, or stayed with them, though every task is to run in RQ.

Submitted while Redis was away and pollers were there, or due again after one of them failed. Once Redis is well they
move: the one row changes its custody by compare-and-set, and the outbox places it as it places every row of RQ's.
"""

from __future__ import annotations

import logging

from sqlalchemy import Connection, Engine, bindparam, text
from sqlalchemy.exc import OperationalError, ProgrammingError

from captions.control import read_control
from captions.database import error_code, in_transaction

AT_ONCE = 200
_NO_SUCH_TABLE = 1146
_MAY_NOT_SELECT = 1142

_WAITING = "SELECT id FROM caption_tasks WHERE custody = 'db' AND status = 'queued'"

log = logging.getLogger("captions.fallback")


def move_to_rq(engine: Engine) -> int:
    """Give RQ what waits for pollers, by priority and age, ``AT_ONCE`` at most; how many tasks.

    None below a share of 100, in an emergency, and while a run of Sluice is open. Only for pollers that claim under a
    lock: another kind may be at work on a row that looks queued. What such a poller is just claiming is passed over.
    """

    def work(connection: Connection) -> int:
        # Under the lock that a submission takes: a change of the route waits for this, and is read by the next one.
        if read_control(connection, for_submission=True).share(rq_usable=True) < 100:
            return 0
        if connection.execute(text(f"{_WAITING} LIMIT 1")).first() is None or not no_run(connection):
            return 0
        waiting = (
            connection.execute(
                text(f"{_WAITING} ORDER BY priority, created_at, id LIMIT :most FOR UPDATE SKIP LOCKED"),
                {"most": AT_ONCE},
            )
            .scalars()
            .all()
        )
        if not waiting:
            return 0
        return connection.execute(
            text(
                "UPDATE caption_tasks SET custody = 'rq', enqueued_at = NULL"
                " WHERE id IN :ids AND custody = 'db' AND status = 'queued'"
            ).bindparams(bindparam("ids", expanding=True)),
            {"ids": waiting},
        ).rowcount

    return in_transaction(engine, work)


def no_run(connection: Connection) -> bool:
    """Whether no run of Sluice is open; until this transaction ends none can take the lease, so none goes on or begins.

    What cannot be seen for want of a right is taken for a run.
    """
    try:
        leases = connection.execute(
            text("SELECT expires_at > UTC_TIMESTAMP(6) FROM sluice_lease LOCK IN SHARE MODE")
        ).scalars()
        if any(leases.all()):
            return False
        return (
            connection.execute(text("SELECT 1 FROM sluice_run WHERE open_system IS NOT NULL LIMIT 1")).first() is None
        )
    except (OperationalError, ProgrammingError) as error:
        if error_code(error) == _NO_SUCH_TABLE:
            return True
        if error_code(error) != _MAY_NOT_SELECT:
            raise
        log.warning("whether a run of Sluice is open cannot be seen: GRANT SELECT on the database to this account")
        return False
