"""``scripts/lab up|down|status|reset|env``: one line of output for each thing done."""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import json
import os
import shlex
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import create_engine

from captions.schema import create_schema
from captions.settings import LEGACY_KINDS
from lab.accounts import DATABASE, ensure_accounts
from lab.images import make_images
from lab.layout import Layout
from lab.state import Options, State, new_state, read_state, write_state
from lab.stores import (
    LOOPBACK,
    PrivateMariaDB,
    PrivateRedis,
    StoreError,
    remove_run_directory,
    wait_for,
    write_private,
)
from lab.supervision import Supervisor, end_leftovers, write_config

_START_SECONDS = 60


def say(line: str) -> None:
    """One line, at once."""
    print(f"lab: {line}", flush=True)


class Lab:
    """The lab of one checkout."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.supervisor = Supervisor(layout)

    def up(self, changes: dict[str, object]) -> None:
        """Start what does not run; harmless when all of it runs. ``changes`` are options given by name."""
        began = time.monotonic()
        layout = self.layout
        for directory in (layout.directory, layout.logs, layout.backups, layout.effects_file.parent):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        previous = read_state(layout.state_file)
        state = previous or new_state(layout)
        state = dataclasses.replace(state, options=dataclasses.replace(state.options, **changes))  # type: ignore[arg-type]
        _check(state.options)
        write_state(layout.state_file, state)
        make_images(layout.images)
        layout.effects_file.touch(mode=0o640)
        settings_changed = self._write_env(state, changes)
        self._write_mover_env(state)
        mariadb, redis = self._stores(state)
        self._start_stores(state, mariadb, redis)
        self._prepare_database(state, mariadb)
        self._write_connection_settings(state)
        if settings_changed and previous is not None:
            self._have_settings_read()
        self._start("web", "web processes")
        wait_for(
            "the web application",
            lambda: self._health(state) is not None,
            _START_SECONDS,
            lambda: self.supervisor.alive("web"),
            layout.logs / "web.log",
        )
        if state.options.mover and state.options.legacy_kind == "guarded":
            self._start("mover", "the mover of fallback tasks")
        if state.options.legacy:
            self._start("legacy", f"{state.options.legacy_kind} polling workers")
        say(f"up at {self._app_url(state)} in {time.monotonic() - began:.1f} s; RQ workers are defined, not started")

    def down(self) -> None:
        """Stop everything that the lab started and wait for it."""
        if self.supervisor.running:
            self.supervisor.shut_down()
            say("stopped every process")
        else:
            say("no supervisord runs")
        self._end_leftovers()
        remove_run_directory(self.layout.directory)
        remove_run_directory(self.layout.mariadb)

    def reset(self, changes: dict[str, object]) -> None:
        """Down, forget all data but the ports and passwords, and up again with the default options."""
        state = read_state(self.layout.state_file)
        self.down()
        for entry in self.layout.directory.iterdir() if self.layout.directory.exists() else ():
            if entry.name == "lock":
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        say("removed all data")
        if state is not None:
            write_state(self.layout.state_file, dataclasses.replace(state, options=Options()))
        self.up(changes)

    def status(self) -> int:
        """Print what runs; 0 when the lab is up, 3 when it is not."""
        state = read_state(self.layout.state_file)
        if state is None or not self.supervisor.running:
            say("down; 'scripts/lab up' starts it")
            return 3
        rows = [("PROCESS", "STATE", "PID", "SINCE")]
        for process in self.supervisor.processes():
            name = process.name if process.group == process.name else f"{process.group}:{process.name}"
            since = process.description.partition("uptime ")[2] or "-"
            rows.append((name, process.state.lower(), str(process.pid or "-"), since))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        for row in rows:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        health = self._health(state)
        print()
        if health is None:
            print(f"captions    {self._app_url(state)}  does not answer")
            return 1
        print(f"captions    {self._app_url(state)}  {health['status']}, RQ {'on' if health['rq_enabled'] else 'off'}")
        stats = self._get(state, "/admin/stats")
        counts = ", ".join(f"{count} {name}" for name, count in stats["by_status"].items()) or "none"
        print(f"tasks       {counts}")
        print(
            f"switches    intake {stats['intake']['intake']}, {stats['route']['effective_share']} % of users to RQ,"
            f" polling {'on' if stats['polling']['effective'] else 'off'}"
        )
        print(f"MariaDB     {LOOPBACK}:{state.db_port}, database {DATABASE}")
        print(f"Redis       {LOOPBACK}:{state.redis_port}, database 0")
        return 0

    def env(self) -> int:
        """Print the connection settings as shell assignments."""
        state = read_state(self.layout.state_file)
        if state is None:
            print("lab: there is none yet; 'scripts/lab up' makes it", file=sys.stderr)
            return 3
        for name, value in self._connection_settings(state).items():
            print(f"{name}={shlex.quote(value)}")
        return 0

    # --- parts of up ---------------------------------------------------------------------------------------------

    def _stores(self, state: State) -> tuple[PrivateMariaDB, PrivateRedis]:
        return (
            PrivateMariaDB(self.layout.mariadb, state.db_port),
            PrivateRedis(self.layout.redis, state.redis_port, state.redis_password),
        )

    def _start_stores(self, state: State, mariadb: PrivateMariaDB, redis: PrivateRedis) -> None:
        if not self.supervisor.running:
            self._end_leftovers()
            fresh = not mariadb.data.is_dir()
            mariadb.initialise()
            redis.initialise()
            if fresh:
                say("initialised MariaDB and Redis")
            write_config(self.layout, state, mariadb, redis)
            self.supervisor.start_daemon()
            say(f"started supervisord, MariaDB on port {state.db_port}, Redis on port {state.redis_port}")
        elif write_config(self.layout, state, mariadb, redis):
            self.supervisor.reload_config()
            say("took over changed options")
        for store in (mariadb, redis):
            self.supervisor.start_group(store.name)
            wait_for(
                store.name,
                store.answers,
                _START_SECONDS,
                lambda name=store.name: self.supervisor.alive(name),  # type: ignore[misc]
                self.layout.logs / f"{store.name}.log",
            )

    def _end_leftovers(self) -> None:
        ended = end_leftovers(self.layout)
        if ended:
            say(f"ended {ended} process(es) whose supervisord was gone")

    def _prepare_database(self, state: State, mariadb: PrivateMariaDB) -> None:
        connection = mariadb.connect_as_root()
        with connection:
            connection.cursor().execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}")
            engine = create_engine(mariadb.root_url(DATABASE))
            create_schema(engine)
            engine.dispose()
            made = ensure_accounts(connection, state.db_passwords)
        if made:
            say(f"made the tables and the accounts {', '.join(made)}")

    def _have_settings_read(self) -> None:
        """Web processes are replaced one by one, workers finish their task and start again."""
        running = {process.group for process in self.supervisor.processes() if process.state == "RUNNING"}
        if "web" in running:
            self.supervisor.signal("web", "HUP")
        for group in ("legacy", "rqworkers", "mover"):
            if group in running:
                self.supervisor.stop_group(group)
                self.supervisor.start_group(group)
        if running & {"web", "legacy", "rqworkers"}:
            say("had the application read its changed settings")

    def _start(self, group: str, what: str) -> None:
        started = self.supervisor.start_group(group)
        if started:
            say(f"started {what}: {', '.join(started)}")

    def _write_env(self, state: State, changes: dict[str, object]) -> bool:
        """Write the application's settings once; later only the lines of options that were given. Changed or not."""
        path = self.layout.env_file
        kept = {"LEGACY_KIND": state.options.legacy_kind, "WORK_MS": str(state.options.work_ms)}
        if not path.exists():
            web = self._db_url(state, "captions_web")
            lines = [
                "# Settings of captions. Each process reads them when it starts.",
                f"DATABASE_URL={web}",
                f"LEGACY_DATABASE_URL={self._db_url(state, 'captions_legacy')}",
                f"ADMIN_TOKEN={state.admin_token}",
                f"EFFECTS_FILE={self.layout.effects_file}",
                f"IMAGES_DIR={self.layout.images}",
                f"METRICS_DIR={self.layout.metrics}",
                "",
                "# How tasks are worked on.",
                *(f"{key}={value}" for key, value in kept.items()),
                "DATABASE_POLLING_ENABLED=true",
                "POLL_INTERVAL_MS=250",
                "LEASE_SECONDS=30",
            ]
            write_private(path, "\n".join(lines) + "\n")
            return True
        given = {key: value for key, value in kept.items() if key.lower() in changes}
        old = path.read_text(encoding="utf-8")
        lines = old.splitlines()
        for key, value in given.items():
            place = next((number for number, line in enumerate(lines) if line.startswith(f"{key}=")), None)
            if place is None:
                lines.append(f"{key}={value}")
            else:
                lines[place] = f"{key}={value}"
        new = "\n".join(lines) + "\n"
        if not given or new == old:
            return False
        write_private(path, new)
        return True

    def _write_mover_env(self, state: State) -> None:
        _, redis = self._stores(state)
        lines = [
            "# Settings of captions' mover: its accounts are Sluice's.",
            f"DATABASE_URL={self._db_url(state, 'sluice')}",
            f"RQ_REDIS_URL={redis.url()}",
            f"SLUICE_MAPPING={self.layout.mapping}",
            f"EFFECTS_FILE={self.layout.effects_file}",
            f"IMAGES_DIR={self.layout.images}",
        ]
        write_private(self.layout.mover_env_file, "\n".join(lines) + "\n")

    def _write_connection_settings(self, state: State) -> None:
        # A JSON string is a YAML string, whatever is in it.
        lines = [f"{name.lower()}: {json.dumps(value)}" for name, value in self._connection_settings(state).items()]
        write_private(self.layout.vars_file, "---\n" + "\n".join(lines) + "\n")

    # --- connection settings -------------------------------------------------------------------------------------

    def _connection_settings(self, state: State) -> dict[str, str]:
        layout = self.layout
        _, redis = self._stores(state)
        return {
            "SLUICE_LAB_DB_URL": self._db_url(state, "sluice"),
            "SLUICE_LAB_DB_READ_URL": self._db_url(state, "sluice_read"),
            "SLUICE_LAB_REDIS_URL": redis.url(),
            "SLUICE_LAB_APP_URL": self._app_url(state),
            "SLUICE_LAB_TOKEN": state.admin_token,
            "SLUICE_LAB_ENV_FILE": str(layout.env_file),
            "SLUICE_LAB_EFFECTS_FILE": str(layout.effects_file),
            "SLUICE_LAB_ACCEPTED_FILE": str(layout.accepted_file),
            "SLUICE_LAB_PROBER_FILE": str(layout.prober_file),
            "SLUICE_LAB_SUPERVISOR_SOCKET": str(layout.supervisor_socket),
            "SLUICE_LAB_SUPERVISOR_CONFIG": str(layout.supervisor_config),
            "SLUICE_LAB_IMAGES": str(layout.images),
            "SLUICE_LAB_DIR": str(layout.directory),
            "SLUICE_LAB_BACKUP_DIR": str(layout.backups),
        }

    def _db_url(self, state: State, user: str) -> str:
        mariadb, _ = self._stores(state)
        return mariadb.url(user, state.db_passwords[user], DATABASE)

    def _app_url(self, state: State) -> str:
        return f"http://{LOOPBACK}:{state.web_port}"

    def _health(self, state: State) -> dict[str, str] | None:
        try:
            with urllib.request.urlopen(f"{self._app_url(state)}/health", timeout=5) as answer:
                return dict(json.load(answer))
        except (urllib.error.URLError, OSError):
            return None

    def _get(self, state: State, path: str) -> dict[str, dict[str, str]]:
        request = urllib.request.Request(self._app_url(state) + path)
        request.add_header("Authorization", f"Bearer {state.admin_token}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return dict(json.load(answer))


def _check(options: Options) -> None:
    if options.legacy_kind == "unguarded" and options.legacy > 1:
        raise StoreError(
            "unguarded workers run the same task at once: use --legacy 1 (or 0) with --legacy-kind unguarded"
        )


@contextmanager
def _one_at_a_time(directory: Path) -> Iterator[None]:
    """Two commands on the same lab wait for each other."""
    directory.mkdir(exist_ok=True, mode=0o700)
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _count(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 600_000:
        raise argparse.ArgumentTypeError("must be from 0 to 600000")
    return value


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lab", description="The lab of this checkout.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="up|down|status|reset|env")
    for verb, what in (("up", "start the lab, or what is missing of it"), ("reset", "down, wipe all data, up")):
        command = verbs.add_parser(verb, help=what)
        command.add_argument("--legacy-kind", choices=LEGACY_KINDS, help="how polling workers claim (guarded)")
        command.add_argument("--legacy", type=_count, metavar="N", help="polling workers (2; 1 if unguarded)")
        command.add_argument("--rq", type=_count, metavar="N", help="RQ workers, defined and not started (2)")
        command.add_argument(
            "--rq-simple",
            action=argparse.BooleanOptionalAction,
            help="RQ workers run tasks without forking (they fork)",
        )
        command.add_argument(
            "--mover",
            action=argparse.BooleanOptionalAction,
            help="a process that moves the pollers' tasks to RQ when all users are RQ's (there is one)",
        )
        command.add_argument("--work-ms", type=_count, metavar="N", help="least time a task takes, milliseconds (0)")
    verbs.add_parser("down", help="stop everything the lab started")
    verbs.add_parser("status", help="what runs, in a table")
    verbs.add_parser("env", help="connection settings as shell assignments")
    arguments = parser.parse_args()
    lab = Lab(Layout(Path(__file__).resolve().parents[2]))
    try:
        if arguments.verb == "env":
            return lab.env()
        if arguments.verb == "status":
            return lab.status()
        with _one_at_a_time(lab.layout.directory):
            if arguments.verb == "down":
                lab.down()
            else:
                names = [field.name for field in dataclasses.fields(Options)]
                changes = {name: value for name in names if (value := getattr(arguments, name)) is not None}
                if changes.get("legacy_kind") == "unguarded":
                    changes.setdefault("legacy", 1)
                (lab.up if arguments.verb == "up" else lab.reset)(changes)
    except StoreError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
