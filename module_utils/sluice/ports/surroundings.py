"""What surrounds the two stores: time, fences, route, intake, worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..core.tasks import Lease
from ..core.verdicts import Check


class Clock(Protocol):
    """Time, so that services can be tested without waiting."""

    def now(self) -> float:
        """Seconds since the epoch, UTC."""

    def monotonic(self) -> float:
        """Seconds that never run backwards."""

    def wait(self, seconds: float) -> None:
        """Let ``seconds`` pass."""


class Fence(Protocol):
    """Makes a side unable to claim, start or commit work, in the store itself."""

    def ability(self) -> Sequence[Check]:
        """Whether every claimer of the side can be fenced, and how. Reads only."""

    def close(self, lease: Lease) -> bool:
        """Lock the side's accounts and close their connections; True when something changed."""

    def prove(self) -> Sequence[Check]:
        """Read from the store that the fence holds now: accounts locked, no session, no open transaction."""

    def lift(self, lease: Lease) -> bool:
        """Give the side its accounts back; True when something changed."""


@dataclass(frozen=True, slots=True)
class RouteState:
    """The share of new submissions that goes to the target (0 to 100), and whether legacy polling is on."""

    share: int
    polling: bool | None


class Router(Protocol):
    """Which side gets new submissions."""

    def read(self) -> RouteState:
        """The route as the application's transactions read it."""

    def set_share(self, lease: Lease, share: int) -> bool:
        """Change the share behind a barrier: when it returns, no submission under the old share is still under way."""

    def set_polling(self, lease: Lease, on: bool) -> bool:
        """Allow or forbid legacy polling where the application reads it."""

    def set_emergency(self, lease: Lease, on: bool) -> bool:
        """Send every submission to the source, whatever the share says."""


@dataclass(frozen=True, slots=True)
class IntakeState:
    """Whether submissions are accepted; ``remaining`` is seconds until a pause ends by itself."""

    open: bool
    remaining: float | None


class IntakeGate(Protocol):
    """Whether submissions are accepted."""

    def read(self) -> IntakeState:
        """As the application's transactions read it."""

    def set_open(self, lease: Lease, open_: bool, seconds: float) -> bool:
        """Open intake, or pause it with a deadline in ``seconds``; True when something changed."""


@dataclass(frozen=True, slots=True)
class WorkerProcess:
    """One supervised process. ``state`` is the supervisor's word.

    ``exit`` is its last exit status: 0 ended by itself and in order, negative ended by a signal, None not known.
    ``alive``: it runs, or its supervisor will start it again by itself.
    ``leftover``: it runs without the worker that started it. ``unknown``: whether it is the group's cannot be read.
    """

    name: str
    host: str
    pid: int
    state: str
    exit: int | None
    alive: bool
    leftover: bool = False
    unknown: bool = False

    @property
    def graceful(self) -> bool:
        """True when it is proved that the process ended by itself with status 0, so after its task in hand."""
        return not self.alive and self.exit == 0


class Supervisor(Protocol):
    """Starts and stops the worker processes of a side."""

    def list(self, group: str) -> Sequence[WorkerProcess]:
        """The group's processes now."""

    def start(self, group: str) -> bool:
        """Start the group; True when something was started."""

    def request_stop(self, group: str) -> bool:
        """Ask the group to finish its current work and end; returns at once. True when something was running."""

    def reload(self, group: str) -> bool:
        """Let the group read its configuration again without dropping work; True when it was asked to."""

    def kill(self, group: str) -> Sequence[WorkerProcess]:
        """End what is left of the group by force, leftovers too; returns what had to be killed."""

    def leftovers(self, group: str) -> Sequence[WorkerProcess]:
        """What dead workers of the group left running, and what cannot be read and may be such (``unknown``)."""

    def ask_leftovers(self, group: str) -> bool:
        """Ask those of them to end that know how to; the others finish by themselves. True when one was asked.

        For once in a drain: some take a second request for the order to drop their work.
        """
