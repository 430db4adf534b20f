"""A Redis snapshot that is proved to be newer than the moment it was asked for."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import redis

from ..core.errors import StoreError
from ..core.verdicts import Check, Verdict
from ..ports.preparation import Artefact, Progress, Taken
from ..ports.surroundings import Clock
from .redis_connect import place, speaking
from .redis_health import is_local
from .system_clock import SystemClock

NAME = "redis.rdb"
POLL_SECONDS = 0.2
_PIECE = 1 << 20
#: Seconds between a file's time and the server's LASTSAVE for it, both in whole seconds.
_SAME_SAVE = 2


class RedisBackup:
    """BGSAVE, awaited, then the file itself: copied when Redis runs on this host, else fetched over the wire.

    :param deadline: seconds for a snapshot that is running, and again for our own
    :param local: whether the server's files are this host's; by default told from the address
    """

    name = "redis"

    def __init__(
        self, client: redis.Redis, *, deadline: float = 600.0, clock: Clock | None = None, local: bool | None = None
    ) -> None:
        self.client = client
        self.deadline = deadline
        self.clock = clock or SystemClock()
        self.local = is_local(client) if local is None else local

    def needed_bytes(self) -> int | None:
        """The data set's size in memory; its file is smaller as a rule."""
        used = self._info().get("used_memory")
        return int(used) if used is not None else None

    def take(self, folder: Path, run_id: str, progress: Progress) -> Taken:
        """Make a snapshot and bring its file into the folder."""
        saved = self._save(progress)
        partial = folder / f"{NAME}.partial"
        partial.unlink(missing_ok=True)
        source = self._own_file(saved)
        if source is not None:
            how = f"copied from {source}"
            self._copy(source, partial)
        else:
            how = "fetched with redis-cli --rdb"
            self._fetch(partial)
        size = partial.stat().st_size
        examined = _examine(partial)
        final = folder / NAME
        partial.replace(final)
        with final.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
        progress(1, 1)
        checks = [
            Check(
                "backup_redis",
                Verdict.PASSED,
                f"{size} bytes, {how}, after LASTSAVE moved to {saved}; {examined}",
            )
        ]
        return Taken([Artefact(NAME, "snapshot of all Redis databases", size, checksum)], checks)

    def _info(self) -> dict[str, Any]:
        with speaking(self.client):
            answer = self.client.execute_command("INFO")
        return dict(answer)

    def _until(self, met: Callable[[dict[str, Any]], bool], waiting_for: str) -> dict[str, Any]:
        until = self.clock.monotonic() + self.deadline
        while not met(info := self._info()):
            if self.clock.monotonic() >= until:
                raise StoreError(
                    f"waited {self.deadline:.0f} s for {waiting_for}.",
                    where=place(self.client),
                    next_step="look at the server's log, and run the same command again.",
                )
            self.clock.wait(POLL_SECONDS)
        return info

    def _save(self, progress: Progress) -> int:
        """Snapshot; returns the new LASTSAVE (epoch seconds on the server's clock)."""
        progress(0, 1)
        self._until(
            lambda info: not int(info["rdb_bgsave_in_progress"]) and not int(info["aof_rewrite_in_progress"]),
            "a snapshot or rewrite that was already running",
        )
        before = int(self._info()["rdb_last_save_time"])
        # LASTSAVE counts whole seconds: within the same second a new snapshot would not be seen to move it.
        self._until(lambda _: self._server_second() > before, "the server's clock to pass its last snapshot")
        with speaking(self.client):
            try:
                self.client.execute_command("BGSAVE", "SCHEDULE")
            except redis.ResponseError as error:
                if "already in progress" not in str(error):
                    raise
        info = self._until(
            lambda now: (
                not int(now["rdb_bgsave_in_progress"])
                and (int(now["rdb_last_save_time"]) > before or now["rdb_last_bgsave_status"] != "ok")
            ),
            "LASTSAVE to move",
        )
        if info["rdb_last_bgsave_status"] != "ok":
            raise StoreError(
                f"the snapshot failed: rdb_last_bgsave_status is {info['rdb_last_bgsave_status']}.",
                where=place(self.client),
                next_step="look at the server's log (disk, rights, memory for the fork); then run the command again.",
            )
        return int(info["rdb_last_save_time"])

    def _server_second(self) -> int:
        with speaking(self.client):
            answer = self.client.execute_command("TIME")
        return int(answer[0])

    def _own_file(self, saved: int) -> Path | None:
        """The file just written, if it lies on this host and is of this very save."""
        if not self.local:
            return None
        try:
            with speaking(self.client):
                found = dict(self.client.config_get("dir")) | dict(self.client.config_get("dbfilename"))
        except StoreError:
            return None  # CONFIG is refused: the wire is the other way
        words = {_text(name): _text(value) for name, value in found.items()}
        path = Path(words.get("dir", "")) / words.get("dbfilename", "")
        with suppress(OSError):
            if path.is_file() and os.access(path, os.R_OK) and abs(path.stat().st_mtime - saved) <= _SAME_SAVE:
                return path
        return None

    def _copy(self, source: Path, target: Path) -> None:
        # The server replaces its file by rename, so an open file stays the one that we looked at.
        with source.open("rb") as file:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as copy:
                shutil.copyfileobj(file, copy, _PIECE)
                copy.flush()
                os.fsync(descriptor)

    def _fetch(self, target: Path) -> None:
        program = shutil.which("redis-cli")
        if program is None:
            raise StoreError(
                "the snapshot lies on another host and redis-cli is not installed here to fetch it.",
                where=place(self.client),
                next_step="install redis-tools, or attest a backup of your own.",
            )
        settings = self.client.connection_pool.connection_kwargs
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
        command = [program]
        if settings.get("path"):
            command += ["-s", str(settings["path"])]
        else:
            command += ["-h", str(settings.get("host", "localhost")), "-p", str(settings.get("port", 6379))]
        if settings.get("username"):
            command += ["--user", str(settings["username"])]
        if settings.get("password"):
            environment["REDISCLI_AUTH"] = str(settings["password"])
        if issubclass(self.client.connection_pool.connection_class, redis.SSLConnection):
            command.append("--tls")
            for word, option in (("ssl_ca_certs", "--cacert"), ("ssl_certfile", "--cert"), ("ssl_keyfile", "--key")):
                if settings.get(word):
                    command += [option, str(settings[word])]
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # redis-cli keeps this mode
        try:
            done = subprocess.run(
                [*command, "--rdb", str(target)],
                env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.deadline, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StoreError(
                f"redis-cli --rdb took longer than {self.deadline:.0f} s.",
                where=place(self.client),
                next_step="raise the deadline, or attest a backup of your own.",
            ) from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-400:]
            raise StoreError(
                f"redis-cli --rdb ended with {done.returncode}: {said}",
                where=place(self.client),
                next_step="the user needs the commands PSYNC and REPLCONF; or attest a backup of your own.",
            )
        target.chmod(0o600)


def _examine(path: Path) -> str:
    """Read the file as far as can be done here; returns how.

    :raises StoreError: it is no complete snapshot
    """
    with path.open("rb") as file:
        head = file.read(5)
        file.seek(0, os.SEEK_END)
        file.seek(max(file.tell() - 9, 0))
        tail = file.read(9)
    if head != b"REDIS" or tail[:1] != b"\xff":
        raise StoreError("the file is no complete Redis snapshot.", where=str(path), next_step="prepare again.")
    program = shutil.which("redis-check-rdb")
    if program is None:
        return "head and end of the file examined (redis-check-rdb is not installed here)"
    done = subprocess.run([program, str(path)], capture_output=True, check=False, env={"LC_ALL": "C.UTF-8"})
    text = (done.stdout + done.stderr).decode("utf-8", "replace")
    if done.returncode != 0:
        if "Can't handle RDB format version" in text:
            return "head and end of the file examined (redis-check-rdb here is older than the server)"
        raise StoreError(
            f"redis-check-rdb refuses the snapshot: {text.strip()[-300:]}", where=str(path), next_step="prepare again."
        )
    return "every record read by redis-check-rdb"


def _text(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
