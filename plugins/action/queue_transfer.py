"""Runs a queue_* module, slice by slice where it works in slices, and shows its lines as they come.

Every other plugin of this folder is a symbolic link to this file: Ansible finds an action by the module's name.
"""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ansible import constants
from ansible.errors import AnsibleError
from ansible.module_utils.common.json import Direction, get_module_encoder
from ansible.plugins.action import ActionBase

try:
    from ansible.executor.module_common import _BuiltModule
except ImportError:  # an Ansible that builds modules in another way sends archives, as it would without this file
    _BuiltModule = None

#: The modules that take the options `sliced` and `cursor`.
SLICED = frozenset(
    {
        "queue_backup",
        "queue_drain",
        "queue_recover",
        "queue_run",
        "queue_soak",
        "queue_transfer",
        "queue_validate",
        "queue_workers",
        "queue_workers_prove",
    }
)
#: Those of them that do their work in one call all the same.
IN_ONE_CALL = frozenset({"queue_backup", "queue_recover"})
#: The modules that take the option `progress_file`.
REPORTING = frozenset({"queue_backup", "queue_verify"})
#: At most one line in so many seconds, unless the step says something new only then.
LINE_SECONDS = 5.0
#: After so many seconds without a new line it is said that the module is still at work: before ten are over.
SILENT_SECONDS = 9.0
#: Seconds between two looks at a progress file that had nothing new.
LOOK_SECONDS = 1.0
#: Seconds that the end of a module waits for a look that is under way.
LAST_LOOK_SECONDS = 5.0
#: What a failed task shows without -v: its message names each check that keeps the gate closed. The message of a module
#: that could not even begin, for a package is missing on its host, is in the exception.
SHOWN_ON_FAILURE = frozenset({"changed", "exception", "failed", "msg", "verdict"})
#: How a module speaks with Ansible. It is what Ansible's own archive of a module says of itself.
PROFILE = "legacy"
#: Runs a module from the files of this project, as Ansible's archive of a module does from what is in it.
IN_PLACE = """\
import sys
sys.path[:] = [folder for folder in sys.path if folder]
import ansible.modules, ansible.module_utils
from ansible.module_utils._internal._ansiballz import _loader
ansible.modules.__path__.append({library!r})
ansible.module_utils.__path__.append({shared!r})
_loader.run_module(
    json_params={arguments!r}, profile={profile!r}, module_fqn='ansible.modules.' + {name!r}, modlib_path={library!r},
    extensions={{}},
)
"""

#: The same by a Python that has imported it all; by this one, when there is none.
BY_STANDBY = """\
import sys
sys.path.insert(0, {folder!r})
import standby
del sys.path[0]
program = {program!r}
standby.ask({address!r}, program)
exec(program)
"""
STANDBY = Path(__file__).resolve().parents[1] / "standby.py"


def by_standby(program: str, shared: Path) -> str:
    """A program that has the one on standby run ``program``. It is started first, once for all of the playbook.

    :param shared: the folder of the package ``sluice``
    """
    # Ansible makes this folder for each run of a playbook, for its user alone, and removes it afterwards.
    address = Path(constants.DEFAULT_LOCAL_TMP) / "standby"
    if not address.exists():
        # That it does not start, or cannot import, is said by the Python that works in its place.
        subprocess.run(
            [sys.executable, str(STANDBY), str(address), str(os.getppid()), str(shared)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    return BY_STANDBY.format(folder=str(STANDBY.parent), program=program, address=str(address))


class Watch:
    """Shows lines while a module works in one call: its newest one, or that it is still at work."""

    def __init__(self, newest: Callable[[], str], show: Callable[[str], None], alone: Callable[[], bool]) -> None:
        """Prepare to watch.

        :param newest: the module's newest line; empty when there is none, or none that can be read
        :param alone: whether whoever would see the lines is gone
        """
        self._newest = newest
        self._show = show
        self._alone = alone
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(LAST_LOOK_SECONDS)  # a look that hangs shows nothing any more; it need not be waited for

    def _watch(self) -> None:
        begun = at = time.monotonic()
        shown = ""
        pause = LINE_SECONDS
        while not self._over.wait(pause) and not self._alone():
            line = self._newest()
            now = time.monotonic()
            pause = LOOK_SECONDS
            if line and line != shown:
                text = shown = line
            elif now - at >= SILENT_SECONDS:
                text = f"{shown}, still at work after {now - begun:.0f} s".removeprefix(", ")
            else:
                continue
            if self._over.is_set() or self._alone():
                return
            self._show(text)
            at, pause = now, LINE_SECONDS


class ActionModule(ActionBase):
    """The action of every queue_* module."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Call the module until it returns no cursor; its last result is the task's."""
        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if self._task.action in SLICED:
            arguments["sliced"] = True
        shown = 0.0
        playbook = os.getppid()
        while True:
            with self._watched(arguments, playbook):
                result = self._execute_module(module_args=arguments, task_vars=task_vars)
            cursor = result.pop("cursor", None)
            if not cursor or result.get("failed"):
                return self._last(result)
            if time.monotonic() - shown >= LINE_SECONDS:
                self._show(result.get("lines", [])[:1])
                shown = time.monotonic()
            if os.getppid() != playbook:
                # A kill leaves this process behind; going on would keep the lease from the same command typed again.
                raise AnsibleError("ansible-playbook is gone. Next: run the same command again.")
            arguments["cursor"] = cursor

    def _configure_module(
        self, module_name: str, module_args: dict[str, Any], task_vars: dict[str, Any]
    ) -> tuple[Any, str]:
        """Build what Ansible runs. On the host and with the Python of the playbook that names the module's own file.

        An archive of it would have to be built for each module, and compiled again at each of its many calls.
        """
        path = self._shared_loader_obj.module_loader.find_plugin(module_name, ".py")
        shared = Path(path or "").parent.parent / "module_utils"
        known = _BuiltModule is not None and bool(path) and (shared / "sluice").is_dir()
        if not known or not self._in_place(task_vars):
            archive: tuple[Any, str] = super()._configure_module(module_name, module_args, task_vars)
            return archive
        encoder = get_module_encoder(PROFILE, Direction.CONTROLLER_TO_MODULE)
        program = IN_PLACE.format(
            arguments=json.dumps({"ANSIBLE_MODULE_ARGS": module_args}, cls=encoder).encode(),
            library=str(Path(path).parent),
            name=module_name,
            profile=PROFILE,
            shared=str(shared),
        )
        built = _BuiltModule(
            b_module_data=by_standby(program, shared).encode(),
            module_style="new",
            shebang=f"#!{sys.executable}",
            serialization_profile=PROFILE,
        )
        return built, path

    def _in_place(self, task_vars: Mapping[str, Any]) -> bool:
        """Whether the module would run on this host, as this user, with the Python that runs the playbook."""
        if self._connection.transport not in ("local", "ansible.builtin.local") or self._connection.become:
            return False
        if self._task.delegate_to:
            task_vars = task_vars["ansible_delegated_vars"][self._task.delegate_to]
        return bool(self._templar.template(task_vars.get("ansible_python_interpreter")) == sys.executable)

    @contextmanager
    def _watched(self, arguments: dict[str, Any], playbook: int) -> Iterator[None]:
        """Show lines while the module works, unless it works in slices and ends before there is anything to say."""
        name = self._task.action
        if name in SLICED - IN_ONE_CALL:
            yield
            return
        newest = self._newest_line(arguments) if name in REPORTING else lambda: ""
        with Watch(newest, lambda line: self._show([line]), lambda: os.getppid() != playbook):
            yield

    def _newest_line(self, arguments: dict[str, Any]) -> Callable[[], str]:
        """Name a file in the task's temporary folder, which Ansible removes, and read it by commands of their own."""
        shell = self._connection._shell
        path = shell.join_path(shell.tmpdir or self._make_tmp_path(), "progress")
        arguments["progress_file"] = path
        command = f"tail -n 1 {shell.quote(path)}"
        # Connections keep what belongs to the command at hand in themselves; that of the module must stay its own.
        connection = copy.copy(self._connection)

        def newest() -> str:
            try:
                code, out, err = connection.exec_command(command, in_data=None, sudoable=False)
            except (AnsibleError, OSError) as error:
                self._display.vvv(f"progress cannot be read: {error}")
                return ""
            if code:
                self._display.vvv(f"progress cannot be read: {err.decode(errors='replace').strip()}")
            text = out.decode(errors="replace")
            # A line without its end is being written; the next look finds it whole.
            return text.strip() if not code and text.endswith("\n") else ""

        return newest

    def _last(self, result: dict[str, Any]) -> dict[str, Any]:
        """Show the lines; keep what a playbook uses, and leave walls of data to -v."""
        self._show(result.get("lines", []))
        if self._display.verbosity:
            return result
        if result.get("failed"):
            return {key: value for key, value in result.items() if key in SHOWN_ON_FAILURE or key.startswith("_")}
        return {key: value for key, value in result.items() if key != "lines"}

    def _show(self, lines: list[str]) -> None:
        host = self._host()
        for line in lines:
            self._display.display(f"  {host}{line}".rstrip())

    def _host(self) -> str:
        """The host's name before each line, when the play has more than one."""
        variables: Mapping[str, Any] = self._templar.available_variables
        several = len(variables.get("ansible_play_hosts_all") or ()) > 1
        return f"{variables['inventory_hostname']}: " if several else ""
