"""``scripts/hosts make|up|down|status|submit|able``: the test hosts of this checkout."""

from __future__ import annotations

import argparse
import sys

from hosts.group import Group
from hosts.kernel import HostsError, why_not


def main() -> int:
    """Exit status 0 when it was done; 3 when this machine cannot carry test hosts, or they are down."""
    parser = argparse.ArgumentParser(prog="scripts/hosts", description="The test hosts of this checkout.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="make|up|down|status|submit|able")
    verbs.add_parser("make", help="make what the first start needs, in advance")
    verbs.add_parser("up", help="start them anew, with the application installed and nothing submitted")
    verbs.add_parser("down", help="remove them; the base is kept for the next start")
    verbs.add_parser("status", help="say which run")
    verbs.add_parser("able", help="say whether this machine can carry them, and if not why")
    users = verbs.add_parser("submit", help="seed a backlog and start users that submit until the hosts go down")
    users.add_argument("--count", type=int, default=300, help="tasks in the backlog (300)")
    arguments = parser.parse_args()
    verb: str = arguments.verb
    reason = why_not()
    if verb == "able" or reason:
        print(reason or "this machine can carry test hosts")
        return 3 if reason else 0
    try:
        group = Group()
        if verb == "status":
            return group.status()
        if verb == "submit":
            from hosts.site import Site

            site = Site()
            site.seed(arguments.count)
            site.start_users()
            return 0
        {"make": group.make, "up": group.up, "down": group.down}[verb]()
    except (HostsError, LookupError, OSError, ValueError) as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
