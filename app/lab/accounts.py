"""The SQL accounts of the lab and what each may do: the one place where rights are listed.

The server is reached over loopback without name resolution, so the host part is an address.
"""

from __future__ import annotations

from collections.abc import Mapping

import pymysql

from lab.stores import LOOPBACK

DATABASE = "captions"

RIGHTS: dict[str, tuple[str, ...]] = {
    # Web processes: submit, cancel, retry, place, clean up, turn the switches, and see whether a run is open.
    "captions_web": (
        "SELECT ON captions.*",
        "INSERT, UPDATE, DELETE ON captions.caption_tasks",
        "UPDATE ON captions.captions_control",
    ),
    # Polling workers.
    "captions_legacy": (
        "SELECT, UPDATE ON captions.caption_tasks",
        "SELECT ON captions.captions_control",
    ),
    # RQ workers. The lab does not make this account: preparing the migration does.
    "captions_rq": (
        "SELECT, UPDATE ON captions.caption_tasks",
        "SELECT ON captions.captions_control",
    ),
    # The mover and the plan: exactly what docs/mapping.md tells an operator to grant, so that the lab needs no more.
    "sluice": (
        "PROCESS, CREATE USER, CONNECTION ADMIN, SLAVE MONITOR ON *.*",
        "SELECT, INSERT, UPDATE, DELETE, CREATE, DROP, INDEX, TRIGGER ON `captions`.* WITH GRANT OPTION",
        "SELECT, INSERT, CREATE, DROP, ALTER, INDEX, REFERENCES, LOCK TABLES ON `captions\\_sluice\\_verify\\_%`.*",
        "SELECT ON mysql.*",
    ),
    "sluice_read": (
        "PROCESS, SLAVE MONITOR ON *.*",
        "SELECT ON `captions`.*",
        # All of it: without, the server does not show what the mover may do.
        "SELECT ON mysql.*",
    ),
}

MADE_BY_THE_LAB = ("captions_web", "captions_legacy", "sluice", "sluice_read")


def ensure_accounts(
    connection: pymysql.connections.Connection[pymysql.cursors.Cursor], passwords: Mapping[str, str]
) -> list[str]:
    """Make the accounts of ``passwords`` that are missing and give them their rights; returns those it made.

    An account that exists is left as it is: it may be locked by a fence, and that is not ours to lift.
    """
    made = []
    with connection.cursor() as cursor:
        for user, password in passwords.items():
            cursor.execute("SELECT COUNT(*) FROM mysql.global_priv WHERE User = %s AND Host = %s", (user, LOOPBACK))
            if cursor.fetchone() != (0,):
                continue
            cursor.execute("CREATE USER %s@%s IDENTIFIED BY %s", (user, LOOPBACK, password))
            for rights in RIGHTS[user]:
                what, option, rest = rights.partition(" WITH GRANT OPTION")
                # % is doubled because the driver fills in placeholders.
                cursor.execute(f"GRANT {what.replace('%', '%%')} TO %s@%s{option}{rest}", (user, LOOPBACK))
            made.append(user)
    return made
