"""Has the modules of a playbook freeze themselves at an arrow, when a test puts this folder on PYTHONPATH.

A module is a process of its own that Ansible starts from an archive; this is the one way into it from outside. When
such a process has imported the steps of the change window, both ends that it will use are wrapped as in
``faults.mover``. The archive stays what it is. SLUICE_TEST_FREEZE is ARROW:SIDE:NTH, SLUICE_TEST_LEASE_SECONDS
and SLUICE_TEST_SILENCE_SECONDS are the lease of such a module and how long MariaDB bears with its open transaction, so
that a test need not wait for the real ones to pass.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from collections.abc import Sequence
from functools import cached_property
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

STEPS = "ansible.module_utils.sluice.shell.steps.movement"


class WatchedLoader(Loader):
    """Loads the steps as they would be loaded, then has their systems watched."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """As the loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """As the loader does, then watch."""
        self._loader.exec_module(module)
        watch()


class StepsFinder(MetaPathFinder):
    """Finds the steps where they are, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Their specification with another loader; None for every other module."""
        if fullname != STEPS:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = WatchedLoader(spec.loader)
        return spec


def watch() -> None:
    """Put the trap around both ends of every system that a step of this process is given."""
    from ansible.module_utils.sluice.adapters import sql_connect
    from ansible.module_utils.sluice.services import run
    from ansible.module_utils.sluice.shell import stores

    from faults.mover import Trap, Trapped, Traps, watch_commits

    run.LEASE_SECONDS = float(os.environ["SLUICE_TEST_LEASE_SECONDS"])
    sql_connect.SILENCE_SECONDS = int(os.environ["SLUICE_TEST_SILENCE_SECONDS"])
    traps = Traps([Trap.parse(os.environ["SLUICE_TEST_FREEZE"], signal.SIGSTOP)])
    plain: Any = stores.System

    class WatchedSystem(plain):  # type: ignore[misc]
        """A system whose arrows are watched."""

        @cached_property
        def engine(self) -> Any:
            engine = super().engine
            watch_commits(engine, traps)
            return engine

        @cached_property
        def source(self) -> Any:
            return Trapped(super().source, traps)

        @cached_property
        def target(self) -> Any:
            return Trapped(super().target, traps)

    stores.System = WatchedSystem


if "SLUICE_TEST_FREEZE" in os.environ:
    sys.meta_path.insert(0, StepsFinder())
