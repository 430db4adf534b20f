"""Playbooks run with the documented rights and no more, at ``-vvv --diff``, and let none of the lab's secrets out.

The command lines of all processes of the machine are read over and over while they run: the secrets are the lab's own
and random, so whoever shows one has it from there.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from faults import ROOT
from faults.playbook_lab import SHORT, Outcome, PlaybookLab, end_family, lab_in
from faults.scene import FULL
from lab.accounts import DATABASE, RIGHTS
from lab.stores import LOOPBACK, program, write_private
from rights import documented

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600 if FULL else 1800)]
_SAMPLE_SECONDS = 0.005
_TRIAL_KEYS = "~sluice:try:captions:*"
#: In an order in which each of them has something to do; SLUICE_TEST_FULL=1 runs them all.
_EVERY_DAY = ("plan", "prepare", "migrate", "status", "planned-rollback")
_ALL = (
    *("plan", "prepare", "hybrid", "stop", "migrate", "validate", "status", "holds", "assess", "planned-rollback"),
    *("prepare", "migrate", "emergency-rollback"),
)
_PLAYBOOKS = _ALL if FULL else _EVERY_DAY
_FOR: dict[str, dict[str, Any]] = {
    "hybrid": {"queue_soak_seconds": 2, "queue_soak_sample_min": 4},
    "emergency-rollback": {"queue_run_reason": "a test"},
}
#: The one that is run as AWX runs it, and leaves artifacts.
_BY_RUNNER = "prepare"


class CommandLines(threading.Thread):
    """Reads ``/proc/*/cmdline`` over and over until it is ended."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: set[bytes] = set()
        self._over = threading.Event()

    def run(self) -> None:
        """Look until ended."""
        while not self._over.wait(_SAMPLE_SECONDS):
            for process in Path("/proc").iterdir():
                if process.name.isdigit():
                    try:
                        self.seen.add((process / "cmdline").read_bytes())
                    except OSError:
                        continue  # it has ended

    def end(self) -> set[bytes]:
        """All that was seen."""
        self._over.set()
        self.join()
        return self.seen


@dataclass
class Watched:
    """A lab whose playbooks were run, what they printed, and what was seen of them."""

    lab: PlaybookLab
    before: set[Path]
    outcomes: dict[str, Outcome] = field(default_factory=dict, repr=False)
    command_lines: set[bytes] = field(default_factory=set, repr=False)
    mover_password: str = field(default="", repr=False)
    refusals: dict[str, Outcome] = field(default_factory=dict)

    @property
    def secrets(self) -> dict[str, str]:
        """Every password of the lab by its name."""
        state = self.lab.state
        found = {f"sql_{user}": password for user, password in state.db_passwords.items()}
        found |= {"redis_default": state.redis_password, "redis_mover": self.mover_password, "token": state.admin_token}
        found["sql_root"] = self.lab.mariadb.root_password
        for file in (self.lab.layout.directory / "passwords").iterdir():
            found[file.name] = file.read_text().split()[0]
        return found

    def leaked(self, text: bytes) -> list[str]:
        """Names of the secrets in it: plain, quoted for a URL, or in base64."""
        return [
            name for name, value in self.secrets.items()
            if any(form in text for form in (value.encode(), quote(value, safe="").encode(),
                                             base64.b64encode(value.encode()).rstrip(b"=")))
        ]  # fmt: skip

    @property
    def written(self) -> list[Path]:
        """Files and directories below the backups, where reports, archives and evidence go as well."""
        return sorted(self.lab.layout.backups.rglob("*"))


def in_the_lab(language: str, first_line: str) -> list[str]:
    """The lines of the page's block that begins so, filled in for the lab."""
    return documented(language, first_line, {"database": DATABASE, "mover": LOOPBACK, "system": "captions"})


def _shims(lab: PlaybookLab) -> tuple[Path, Path]:
    """A folder of programs that note how they were called and become the real ones, and the notes.

    A dump of a small table is over before anybody looks.
    """
    folder, called = lab.directory / "shims", lab.directory / "called"
    folder.mkdir()
    called.touch()
    for name in ("mariadb-dump", "mariadb"):
        shim = folder / name
        shim.write_text(f"#!/bin/sh\necho \"$0 $*\" >> '{called}'\nexec '{program(name)}' \"$@\"\n")
        shim.chmod(0o700)
    return folder, called


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The way out and the way back, each with every word that Ansible can be made to say."""
    # Slow enough that a task waits while the way home is tried.
    with lab_in(tmp_path_factory.mktemp("secret"), work_ms=1000) as lab:
        seen = Watched(lab, set(lab.layout.backups.rglob("*")), mover_password=secrets.token_hex(16))
        (mover,) = [
            line for line in in_the_lab("text", "ACL SETUSER sluice ") if line.startswith("ACL SETUSER sluice ")
        ]
        mover = mover.replace("<password>", seen.mover_password)
        words = yaml.safe_load(lab.layout.vars_file.read_text(encoding="utf-8"))
        words["sluice_lab_redis_url"] = f"redis://sluice:{seen.mover_password}@{LOOPBACK}:{lab.state.redis_port}/0"
        write_private(lab.layout.vars_file, yaml.safe_dump(words))
        lab.seed(60, delayed_share=0.3, delay=600)
        seen.refusals = _with_one_right_less(lab, mover.split())
        shims, called = _shims(lab)
        looking = CommandLines()
        looking.start()
        try:
            for name in _PLAYBOOKS:
                with_shims = {
                    "PATH": f"{shims}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
                }
                if name == _BY_RUNNER and name not in seen.outcomes:
                    outcome = _by_runner(lab, name, with_shims)
                else:
                    outcome = lab.start_with(with_shims, name, "-vvv", "--diff", **_FOR.get(name, {})).wait()
                seen.outcomes[name if name not in seen.outcomes else f"{name} again"] = outcome
                if outcome.status:
                    break
        finally:
            seen.command_lines = looking.end() | set(called.read_bytes().splitlines())
        yield seen


def _by_runner(lab: PlaybookLab, name: str, environment: dict[str, str]) -> Outcome:
    """Run a playbook by ansible-runner, as AWX does: every event and the command itself are kept as artifacts."""
    private = lab.directory / "runner"
    (private / "project").mkdir(parents=True)
    given = private / "given.json"
    given.write_text(json.dumps({"lab_directory": str(lab.layout.directory), **SHORT}))
    inventory = ROOT / "inventories" / "lab" / "hosts.yml"
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ansible-runner")), "run", str(private)),
            *("-p", str(ROOT / "playbooks" / f"{name}.yml"), "--inventory", str(inventory), "--ident", "kept"),
            f"--cmdline=-vvv --diff -e @{given}",
        ],
        env={**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=420)
    finally:
        end_family(process.pid)
        process.wait()
    return Outcome(process.returncode, output)


def _with_one_right_less(lab: PlaybookLab, mover: list[str]) -> dict[str, Outcome]:
    """What prepare says when something of the documented rights was forgotten; afterwards the mover has them all."""
    said = {}
    redis: Any = lab.redis  # its execute_command is not typed
    redis.execute_command(*mover)
    lab.sql(f"REVOKE TRIGGER ON captions.* FROM sluice@'{LOOPBACK}'")
    said["TRIGGER"] = lab.run("prepare")
    lab.sql(f"GRANT TRIGGER ON captions.* TO sluice@'{LOOPBACK}'")
    try:
        redis.execute_command("ACL", "DELUSER", "sluice")
        redis.execute_command(*[word for word in mover if word != _TRIAL_KEYS])
        said[_TRIAL_KEYS] = lab.run("prepare")
        redis.execute_command("ACL", "DELUSER", "sluice")
        redis.execute_command(*mover)
    finally:
        redis.close()
    return said


def test_one_right_less_is_refused_in_words(watched: Watched) -> None:
    watched.refusals["TRIGGER"].refused("TRIGGER ON `captions`.*")
    watched.refusals[_TRIAL_KEYS].refused("keys", "Next: give the ACL user")


def test_the_documented_rights_suffice(watched: Watched) -> None:
    for outcome in watched.outcomes.values():
        outcome.done()
    assert len(watched.outcomes) == len(_PLAYBOOKS)
    assert watched.lab.phase == "cleaned"


def test_no_secret_in_a_command_line(watched: Watched) -> None:
    shown = watched.command_lines
    for word in (b"ansible-playbook", b"supervisord", b"shims/mariadb-dump", b"shims/mariadb "):
        assert any(word in line for line in shown), f"{word!r} was not seen, so the look proves nothing"
    found = {name for line in shown for name in watched.leaked(line)}
    assert not found, f"in command lines: {sorted(found)}"


def test_no_secret_in_what_is_printed(watched: Watched) -> None:
    for name, outcome in watched.outcomes.items():
        assert "EXEC" in outcome.output, f"{name} was not run at -vvv"
        assert "invocation" in outcome.output
        found = watched.leaked(outcome.output.encode())
        assert not found, f"{name} printed {found}"


def test_no_secret_in_artifacts(watched: Watched) -> None:
    """Of ansible-runner: each event with its task's arguments and result, the command with its environment, facts."""
    kept = [path for path in (watched.lab.directory / "runner" / "artifacts").rglob("*") if path.is_file()]
    events = [path for path in kept if path.parent.name == "job_events"]
    assert any(b"queue_accounts" in path.read_bytes() and b"invocation" in path.read_bytes() for path in events)
    assert any(path.name == "command" for path in kept), kept
    for path in kept:
        found = watched.leaked(path.read_bytes())
        assert not found, f"{path.relative_to(watched.lab.directory)} has {found}"


def test_no_secret_in_logs(watched: Watched) -> None:
    logs = [*watched.lab.layout.logs.iterdir(), *watched.lab.layout.directory.glob("*.log")]
    assert len(logs) > 5
    for path in logs:
        found = watched.leaked(path.read_bytes())
        assert not found, f"{path.name} has {found}"


def test_no_secret_in_reports_archives_and_dumps(watched: Watched) -> None:
    lab = watched.lab
    # Copies of the settings, byte for byte and for the way back, are what they are: see their mode.
    settings = [path for path in watched.written if path.is_file() and b"DATABASE_URL=" in _plain(path)]
    assert settings, "no copy of the settings: look at what this test leaves out"
    others = [path for path in watched.written if path.is_file() and path not in settings]
    for kind in ("tables.sql.gz", "redis.rdb", "evidence.json", ".jobs.ndjson.gz", "manifest.json", ".md"):
        assert any(path.name.endswith(kind) for path in others), f"no {kind}: {[path.name for path in others]}"
    for path in others:
        found = watched.leaked(_plain(path)) + watched.leaked(path.read_bytes())
        assert not found, f"{path.relative_to(lab.layout.directory)} has {found}"
    for path in watched.written:
        assert not watched.leaked(str(path).encode())
    dump = "".join(str(row) for table in ("sluice_run", "sluice_event", "sluice_task", "sluice_meta")
                   for row in lab.sql(f"SELECT * FROM {table}"))  # fmt: skip
    assert not watched.leaked(dump.encode()), "in the ledger"


def _plain(path: Path) -> bytes:
    """What a file says, unpacked."""
    if path.suffix == ".gz":
        return gzip.decompress(path.read_bytes())
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return b"\n".join(archive.read(name) for name in archive.namelist())
    return path.read_bytes()


def test_what_is_written_is_for_its_owner_alone(watched: Watched) -> None:
    lab = watched.lab
    assert len(watched.written) > 5
    open_to_others = {
        str(path.relative_to(lab.layout.directory)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in (*watched.written, lab.layout.backups, *(lab.layout.directory / "passwords").rglob("*"),
                     *lab.layout.directory.glob("*captions.env*"), lab.layout.state_file, lab.layout.vars_file)
        if stat.S_IMODE(path.stat().st_mode) != (0o700 if path.is_dir() else 0o600)
    }  # fmt: skip
    assert not open_to_others


def test_the_lab_grants_what_the_page_says() -> None:
    """Both accounts of Sluice have the documented grants, neither more nor fewer, in words."""
    lines = in_the_lab("sql", "CREATE USER sluice@")
    for user in ("sluice", "sluice_read"):
        account = f" TO {user}@'{LOOPBACK}'"
        said = [line.removeprefix("GRANT ").removesuffix(";").replace(account, "")
                for line in lines if line.startswith("GRANT ") and account in line]  # fmt: skip
        assert tuple(said) == RIGHTS[user], f"docs/mapping.md and lab/accounts.py differ about {user}"


def test_the_server_has_what_the_page_says(watched: Watched) -> None:
    """The same by what the server says of them, after all that was run."""
    for user in ("sluice", "sluice_read"):
        rows = [str(row[0]) for row in watched.lab.sql("SHOW GRANTS FOR %s@%s", user, LOOPBACK)]
        has = {_grant(row) for row in rows} - {("*.*", frozenset({"USAGE"}), False)}
        assert has == {_grant(f"GRANT {what} TO x{option}") for what, option, _ in
                       (rights.partition(" WITH GRANT OPTION") for rights in RIGHTS[user])}  # fmt: skip


def _grant(line: str) -> tuple[str, frozenset[str], bool]:
    """Scope, privileges, and whether they may be passed on."""
    found = re.match(r"GRANT (.+?) ON (\S+) TO ", line)
    assert found, line
    return found[2].replace("`", ""), frozenset(found[1].split(", ")), line.endswith("WITH GRANT OPTION")
