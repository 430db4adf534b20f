"""The fence around a side's Redis users: switched off, connections ended, saved so that no restart lifts it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import redis

from ..core.errors import FenceOpen, GenerationMismatch, LeaseLost, StoreError
from ..core.tasks import Lease
from ..core.verdicts import Check, Verdict
from ..ports.surroundings import Clock
from .redis_connect import place, speaking
from .system_clock import SystemClock

POLL_SECONDS = 0.1
_DEFAULT = "default"


class RedisFence:
    """See :class:`..ports.surroundings.Fence`; for the ACL users of one side.

    The token of the lease is compared in the transaction that writes: ACL commands cannot be called from Lua.
    A missing token stops :meth:`lift` only. Closing is the safe direction, also when Redis lost its data.

    :param users: the ACL users of the side's workers
    :param producer_users: users that must go on working; one that is in both lists cannot be fenced
    :param deadline: seconds to wait for ended connections to be gone
    """

    def __init__(
        self,
        client: redis.Redis,
        users: Sequence[str],
        *,
        producer_users: Sequence[str] = (),
        clock: Clock | None = None,
        deadline: float = 10.0,
    ) -> None:
        self.client = client
        self.users = tuple(dict.fromkeys(users))
        self.producers = frozenset(producer_users)
        self.clock = clock or SystemClock()
        self.deadline = deadline

    # -- ability ------------------------------------------------------------------------------------------------

    def ability(self) -> Sequence[Check]:
        """Whether every user can be switched off, durably, and nobody can come in without a user. Reads only."""
        if not self.users:
            return [_nothing_named()]
        checks = []
        for user in self.users:
            own = "give the workers a user of their own."
            checks.append(self._asked(f"{user} separate", partial(self._separate, user), own))
            made = "run playbooks/prepare.yml, which makes it."
            checks.append(self._asked(f"{user} exists", partial(self._exists, user), made))
        checks.append(
            self._asked("no way in without a user", self._no_open_door, "set a password for the user 'default'.")
        )
        checks.append(self._asked("survives a restart", self._durable, "set 'aclfile' in the configuration of Redis."))
        return checks

    def _separate(self, user: str) -> tuple[bool, str]:
        if user == _text(self._call("ACL WHOAMI")):
            return False, "it is the mover's own user: switching it off would lock us out"
        if user in self.producers:
            return False, "the producers use it too: switching it off would stop their enqueuing"
        return True, "used by the workers only, by the settings"

    def _exists(self, user: str) -> tuple[bool, str]:
        return (False, "no such ACL user") if self._rules(user) is None else (True, "in the ACL")

    def _no_open_door(self) -> tuple[bool, str]:
        flags = self._rules(_DEFAULT) or frozenset()
        if "on" in flags and "nopass" in flags:
            return False, "the user 'default' needs no password, so a worker can come back as that user"
        return True, "every user needs a password"

    def _durable(self) -> tuple[bool, str]:
        command = self._saving()
        return (True, f"kept by {command}") if command else (False, "neither an ACL file nor a configuration file")

    # -- closing and lifting ------------------------------------------------------------------------------------

    def close(self, lease: Lease) -> bool:
        """Switch every user off, end its connections, save, and wait until the connections are gone.

        :raises FenceOpen: a user cannot be switched off without harm, or connections stayed to the deadline
        :raises LeaseLost: the token kept in Redis is newer
        """
        if not self.users:
            raise FenceOpen(
                "no user is named, so nothing can be fenced.", where=place(self.client), next_step=_NAME_THEM
            )
        for user in self.users:
            separate, reading = self._separate(user)
            if not separate:
                raise FenceOpen(f"{user}: {reading}. Nothing was switched off.", where=place(self.client))
            if self._rules(user) is None:
                raise FenceOpen(
                    f"there is no ACL user {user}.", where=place(self.client), next_step="run playbooks/prepare.yml."
                )
        changed = self._switch(lease, "off")
        return self._end_connections() or changed

    def lift(self, lease: Lease) -> bool:
        """Switch every user on again.

        :raises LeaseLost: the token kept in Redis is newer
        :raises GenerationMismatch: Redis carries no token any more
        """
        return self._switch(lease, "on")

    def _switch(self, lease: Lease, wanted: str) -> bool:
        """Switch what is not yet as wanted, and save always: an earlier call may have died between the two."""
        changing = [user for user in self.users if wanted not in (self._rules(user) or ())]
        with speaking(self.client), self.client.pipeline(transaction=True) as pipe:
            key = f"sluice:{{{lease.system}}}:token"
            pipe.watch(key)
            found = pipe.get(key)
            if found is None and wanted == "on":
                raise GenerationMismatch(
                    "Redis carries no token of a run: it was emptied or replaced.",
                    where=place(self.client),
                    next_step="run playbooks/recover.yml.",
                )
            if found is not None and int(found) > lease.token:
                raise LeaseLost(
                    f"our token {lease.token} is not the newest: {int(found)} is. Nothing was written.",
                    where=place(self.client),
                    next_step="look at playbooks/status.yml; run the same command again when the other run is done.",
                )
            pipe.multi()
            for user in changing:
                pipe.execute_command("ACL SETUSER", user, wanted)
            if not changing:
                pipe.execute_command("PING")
            try:
                pipe.execute()
            except redis.WatchError:
                raise LeaseLost(
                    "the token in Redis changed meanwhile. Nothing was written.", where=place(self.client)
                ) from None
        command = self._saving()
        if command:
            self._call(command)
        return bool(changing)

    def _end_connections(self) -> bool:
        until = self.clock.monotonic() + self.deadline
        changed = False
        quiet = 0
        while True:
            left = self._connected()
            for user in sorted({user for user, _ in left}):
                changed |= int(self._call("CLIENT KILL", "USER", user)) > 0
            quiet = quiet + 1 if not left else 0
            if quiet == 2:
                return changed
            if self.clock.monotonic() >= until:
                raise FenceOpen(
                    f"after {self.deadline:.0f} s connections are still there: {_shown(left)}.",
                    where=place(self.client),
                    next_step="look at CLIENT LIST and run the same command again.",
                )
            self.clock.wait(POLL_SECONDS)

    # -- proof --------------------------------------------------------------------------------------------------

    def prove(self) -> Sequence[Check]:
        """Read that the users are off now and that none of them is connected."""
        if not self.users:
            return [_nothing_named()]
        checks = []
        for user in self.users:
            checks.append(self._asked(f"{user} switched off", partial(self._is_off, user), "close the fence."))
        names = ", ".join(self.users)
        checks.append(
            self._asked(f"no connection of {names}", self._silent, "close the fence again; it ends what is connected.")
        )
        return checks

    def _is_off(self, user: str) -> tuple[bool, str]:
        flags = self._rules(user)
        if flags is None:
            return False, "no such ACL user"
        return ("off" in flags, "off" if "off" in flags else "on")

    def _silent(self) -> tuple[bool, str]:
        left = self._connected()
        return not left, _shown(left) if left else "none"

    # -- reading ------------------------------------------------------------------------------------------------

    def _rules(self, user: str) -> frozenset[str] | None:
        """The flags of an ACL user, or None when there is no such user."""
        answer = self._call("ACL GETUSER", user)
        if answer is None:
            return None
        if not isinstance(answer, dict):
            raise StoreError("the answer to ACL GETUSER cannot be read.", where=place(self.client))
        return frozenset(_text(flag) for flag in answer["flags"])

    def _connected(self) -> list[tuple[str, str]]:
        """User and address of every connection of the side."""
        answer = self._call("CLIENT LIST")
        if not isinstance(answer, list):
            raise StoreError("the answer to CLIENT LIST cannot be read.", where=place(self.client))
        return [(entry["user"], entry["addr"]) for entry in answer if entry["user"] in self.users]

    def _saving(self) -> str:
        """The command that makes the ACL survive a restart; empty when there is none."""
        found = self._call("CONFIG GET", "aclfile")
        if any(_text(value) for value in found.values()):
            return "ACL SAVE"
        return "CONFIG REWRITE" if self._call("INFO", "server").get("config_file") else ""

    def _call(self, *words: str) -> Any:
        with speaking(self.client):
            return self.client.execute_command(*words)

    def _asked(self, name: str, question: Callable[[], tuple[bool, str]], next_step: str) -> Check:
        """A check whose question could not be answered is unknown."""
        try:
            passed, reading = question()
        except StoreError as error:
            return Check(name, Verdict.UNKNOWN, str(error), next_step)
        return Check.of(name, passed, reading, next_step)


_NAME_THEM = "name the Redis user of the workers in the settings."


def _nothing_named() -> Check:
    return Check("users named", Verdict.UNKNOWN, "no user is named, so nothing can be fenced", _NAME_THEM)


def _shown(left: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{user} from {address}" for user, address in left[:10])


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
