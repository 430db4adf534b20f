"""Worker processes as systemd units, through ``systemctl``."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..core.errors import StoreError
from ..ports.surroundings import Clock, WorkerProcess
from .processes import Leftover, Processes, ancestors, ask, end, family_ends_in, left_behind, unproved
from .system_clock import SystemClock

#: Runs an argument list and gives (return code, standard output, standard error).
Runner = Callable[[Sequence[str]], tuple[int, str, str]]

_PROPERTIES = (
    "Id", "LoadState", "ActiveState", "SubState", "MainPID", "ExecMainCode", "ExecMainStatus", "Result", "FragmentPath",
    "ControlPID", "ControlGroup",
)  # fmt: skip
#: What systemctl leaves out when it is empty, or when it is an old one.
_PERHAPS = frozenset({"FragmentPath", "ControlPID", "ControlGroup"})
_ALIVE = frozenset({"active", "reloading", "activating", "deactivating", "refreshing", "maintenance"})
_CODE_EXITED = 1
_SIGKILL = 9
_ADMIN_UNITS = "/etc/systemd/system/"
_POLL_SECONDS = 0.2
_ANSWER_SECONDS = 60


def run_command(arguments: Sequence[str]) -> tuple[int, str, str]:
    """Run one command without a shell and wait for it.

    :raises StoreError: the program is not there, or does not end
    """
    try:
        done = subprocess.run(list(arguments), capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StoreError(
            f"{arguments[0]} cannot be run: {error}.", where="systemd", next_step="run this on a host with systemd."
        ) from error
    return done.returncode, done.stdout, done.stderr


class SystemdWorkers:
    """See :class:`..ports.surroundings.Supervisor`.

    A stop or a kill also masks the units, durably, so that neither a boot nor a colleague starts them again; a start
    unmasks. systemd cannot mask a unit whose own file lies in /etc/systemd/system: that one is stopped only, and the
    fence at the store is what holds.

    What a unit's dead main process left running (``KillMode=process`` or ``mixed``, or until its stop has ended) is
    still in the unit's control group.

    :param units: group -> unit names, e.g. ``{"legacy": ["captions-legacy@1.service"]}``
    :param deadline: seconds to wait for killed units to be gone
    :param cgroups: where the control groups are mounted
    """

    def __init__(
        self,
        units: Mapping[str, Sequence[str]],
        host: str,
        *,
        runner: Runner = run_command,
        clock: Clock | None = None,
        deadline: float = 15.0,
        processes: Processes | None = None,
        cgroups: Path = Path("/sys/fs/cgroup"),
    ) -> None:
        self.units = {group: tuple(_full(name) for name in names) for group, names in units.items()}
        self.host = host
        self.runner = runner
        self.clock = clock or SystemClock()
        self.deadline = deadline
        self.processes = processes or Processes()
        # The older layouts have a hierarchy of systemd's own beside those of the controllers.
        self.cgroups = cgroups / "systemd" if (cgroups / "systemd").is_dir() else cgroups

    def list(self, group: str) -> Sequence[WorkerProcess]:
        """The group's units now, one process each.

        :raises StoreError: systemd does not answer, or knows no such unit
        """
        return [self._process(unit) for unit in self._show(group)]

    def start(self, group: str) -> bool:
        """Unmask and start what does not run.

        :raises StoreError: a unit did not start
        """
        units = self._show(group)
        masked = [unit["Id"] for unit in units if unit["LoadState"] == "masked"]
        if masked:
            self._systemctl("unmask", "--", *masked)
        resting = [unit["Id"] for unit in units if unit["ActiveState"] not in ("active", "reloading")]
        if resting:
            self._systemctl("start", "--", *resting)
        return bool(masked or resting)

    def request_stop(self, group: str) -> bool:
        """Mask the units that can be masked, and ask what runs to stop; returns at once."""
        units = self._show(group)
        self._mask(units)
        running = [unit["Id"] for unit in units if unit["ActiveState"] in _ALIVE - {"deactivating"}]
        if running:
            self._systemctl("stop", "--no-block", "--", *running)
        return bool(running)

    def reload(self, group: str) -> bool:
        """Let what runs read its configuration again: a reload where the unit has one, else a restart.

        :raises StoreError: nothing of the group runs, so nothing could read anything
        """
        running = [unit["Id"] for unit in self._show(group) if unit["ActiveState"] in ("active", "reloading")]
        if not running:
            raise StoreError(f"nothing of '{group}' runs.", where=self._place(), next_step="start it.")
        self._systemctl("reload-or-restart", "--", *running)
        return True

    def kill(self, group: str) -> Sequence[WorkerProcess]:
        """Mask the units, SIGKILL every process of them, leftovers too, until they are gone; returns those killed.

        :raises StoreError: a unit or a process outlived the signal
        """
        self._mask(self._show(group))
        killed = [process for process in self.list(group) if process.alive]
        if killed:
            self._kill_units(group, [process.name for process in killed])
        where = f"{self._place()}, group '{group}'"
        return [*killed, *end(lambda: self._leftovers(group), self.processes, self.clock, self.deadline, where)]

    def leftovers(self, group: str) -> Sequence[WorkerProcess]:
        """What is in the units' control groups and was not started by their main processes of now.

        :raises StoreError: systemd does not answer, or knows no such unit
        """
        return [one.worker for one in self._leftovers(group)]

    def ask_leftovers(self, group: str) -> bool:
        """SIGTERM to the leftovers that have a handler for it; a horse has none, and finishes its job."""
        return ask(self._leftovers(group), self.processes)

    def _mask(self, units: Sequence[Mapping[str, str]]) -> None:
        maskable = [
            u["Id"] for u in units if u["LoadState"] != "masked" and not u["FragmentPath"].startswith(_ADMIN_UNITS)
        ]
        if maskable:
            self._systemctl("mask", "--", *maskable)

    def _kill_units(self, group: str, names: Sequence[str]) -> None:
        self._systemctl("stop", "--no-block", "--", *names)  # so that Restart= does not start it again
        self._systemctl("kill", "--signal=KILL", "--", *names)
        until = self.clock.monotonic() + self.deadline
        while left := [process.name for process in self.list(group) if process.alive]:
            if self.clock.monotonic() >= until:
                raise StoreError(
                    f"{', '.join(left)} outlived SIGKILL for {self.deadline:.0f} s.",
                    where=self._place(),
                    next_step="look at 'systemctl status' on that host; a process may wait for a disk.",
                )
            self.clock.wait(_POLL_SECONDS)

    def _leftovers(self, group: str) -> Sequence[Leftover]:
        """First the processes, then the units: what systemd starts in between is not taken for a leftover."""
        groups = {unit["Id"]: unit["ControlGroup"] for unit in self._show(group)}
        inside: dict[str, set[int]] = {}
        found: list[Leftover] = []
        for name, path in groups.items():
            try:
                inside[name] = self._pids(name, path)
            except OSError as error:
                found.append(unproved(self.host, f"what {name} may have left: {error.filename} cannot be read"))
        if not any(inside.values()):
            return found
        among = self.processes.all()
        mine = ancestors(os.getpid(), among)
        for unit in self._show(group):
            kept = {int(unit[key] or 0) for key in ("MainPID", "ControlPID")} - {0}
            if not kept and unit["ActiveState"] in _ALIVE - {"deactivating"}:
                continue  # it runs without a main process that systemd knows: all of them are the unit's own
            for pid in sorted(inside.get(unit["Id"], set()) - mine):
                process = self.processes.look(pid)
                if process is not None and not family_ends_in(pid, kept, among):
                    found.append(left_behind(unit["Id"], self.host, process))
        return found

    def _pids(self, name: str, path: str) -> set[int]:
        """The processes in a unit's control group and below it."""
        if not self.cgroups.is_dir():
            raise FileNotFoundError(2, "not mounted", str(self.cgroups))
        # A unit that systemd has forgotten names no control group; what it left is still in the one of its name.
        places = [self.cgroups / path.lstrip("/")] if path else [*_named(self.cgroups, name)]
        pids: set[int] = set()
        for place in places:
            for folder, _, files in os.walk(place):
                if "cgroup.procs" in files:
                    pids |= _numbers(Path(folder) / "cgroup.procs")
        return pids

    def _show(self, group: str) -> Sequence[Mapping[str, str]]:
        names = self.units.get(group, ())
        if not names:
            raise StoreError(
                f"no unit is named for the group '{group}'.",
                where=self._place(),
                next_step="name its units in the inventory.",
            )
        answer = self._systemctl("show", f"--property={','.join(_PROPERTIES)}", "--", *names)
        blocks = [
            dict(line.partition("=")[::2] for line in block.splitlines()) for block in answer.strip().split("\n\n")
        ]
        if len(blocks) != len(names) or any(set(_PROPERTIES) - set(block) - _PERHAPS for block in blocks):
            raise StoreError("the answer of systemctl show cannot be read.", where=self._place())
        missing = [block["Id"] for block in blocks if block["LoadState"] not in ("loaded", "masked")]
        if missing:
            raise StoreError(
                f"there is no such unit, or it cannot be loaded: {', '.join(missing)}.",
                where=self._place(),
                next_step="correct the units in the inventory.",
            )
        return [{**dict.fromkeys(_PERHAPS, ""), **block} for block in blocks]

    def _process(self, unit: Mapping[str, str]) -> WorkerProcess:
        alive = unit["ActiveState"] in _ALIVE
        return WorkerProcess(
            name=unit["Id"],
            host=self.host,
            pid=int(unit["MainPID"]),
            state=f"{unit['ActiveState']} ({unit['SubState']})",
            exit=None if alive else _exit(unit),
            alive=alive,
        )

    def _systemctl(self, *arguments: str) -> str:
        code, output, error = self.runner(["systemctl", "--no-ask-password", *arguments])
        if code != 0:
            raise StoreError(
                f"systemctl {arguments[0]} ended with {code}: {error.strip() or 'no message'}.",
                where=self._place(),
                next_step="check the unit names and that this account may manage units.",
            )
        return output

    def _place(self) -> str:
        return f"systemd of {self.host}"


def _numbers(file: Path) -> set[int]:
    """The process ids in a control group; 0 stands for one in another namespace."""
    try:
        return {int(line) for line in file.read_text(encoding="ascii").split()} - {0}
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return set()  # the group was removed meanwhile, so it was empty
        raise


def _named(folder: Path, name: str) -> Iterator[Path]:
    """Control groups of a unit's name, below slices only: a container's have the same names inside its scope."""
    for entry in sorted(folder.iterdir()):
        if entry.name == name:
            yield entry
        elif entry.name.endswith(".slice") and entry.is_dir():
            yield from _named(entry, name)


def _full(name: str) -> str:
    return name if "." in name else f"{name}.service"


def _exit(unit: Mapping[str, str]) -> int | None:
    """The last exit status: negative for a signal, also one that hit a child after the stop took too long."""
    code, status = int(unit["ExecMainCode"]), int(unit["ExecMainStatus"])
    if code == 0:
        return None  # systemd never saw it end, e.g. since the last boot
    if code != _CODE_EXITED:
        return -status
    if status == 0 and unit["Result"] != "success":
        return -_SIGKILL
    return status
