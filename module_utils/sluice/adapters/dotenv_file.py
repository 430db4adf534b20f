"""An application's ``.env`` file on disk: changed in one step, backed up, never readable by everybody."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core import dotenv
from ..core.errors import SluiceError

#: Of a new file, of every backup, and of a file that others than owner and group could read.
MODE = 0o600
#: Of a file that its group could read and others could not: an application under another account reads it that way.
GROUP_MODE = 0o640


@dataclass(frozen=True, slots=True)
class FileChange:
    """What was done, or would be done in check mode. ``before`` and ``after`` show our keys only, secrets masked."""

    path: str
    changed: bool
    before: str
    after: str
    backup: str = ""  # the path of the backup copy; empty when none was made


class DotenvFile:
    """The managed keys of one file. A symbolic link is followed: the file behind it is replaced, the link stays."""

    def __init__(self, path: Path, secret_keys: Collection[str] = ()) -> None:
        self.path = path
        self.secret_keys = frozenset(secret_keys)

    def read(self) -> dict[str, str]:
        """The values in the file; empty when there is no file."""
        found = self._load(self.path.resolve())
        return {} if found is None else dotenv.read(found[0])

    def apply(
        self,
        values: Mapping[str, str],
        *,
        run_id: str,
        absent: Collection[str] = (),
        check_mode: bool = False,
    ) -> FileChange:
        """Set ``values`` and take ``absent`` out; the file is replaced only when its content or its mode must change.

        :raises SluiceError: the file cannot be read or written, everybody may read it, or someone else changed it
            meanwhile
        """
        both = sorted(set(values) & set(absent))
        if both:
            raise SluiceError(f"{', '.join(both)}: asked to be set and to be absent.", where=str(self.path))
        target = self.path.resolve()
        found = self._load(target)
        old, status = found if found is not None else ("", None)
        new = dotenv.merge(dotenv.remove(old, absent), values)
        if new != old and status is not None and status.st_mode & stat.S_IRWXO:
            raise SluiceError(
                f"everybody may read it (mode {stat.S_IMODE(status.st_mode):04o}), and it is to hold a password. "
                "Whether the application reads it by that right cannot be seen; taking it away could stop it.",
                where=str(target),
                next_step="give the file to the application's account or group, take away what others may "
                "(chmod o= FILE), see that the application still starts, and run the same command again.",
            )
        before, after = dotenv.masked_change(old, new, [*values, *absent], self.secret_keys)
        mode = _mode(status)
        wrong_mode = status is not None and stat.S_IMODE(status.st_mode) != mode
        if wrong_mode and status is not None:
            before = f"mode {stat.S_IMODE(status.st_mode):04o}\n{before}"
            after = f"mode {mode:04o}\n{after}"
        changed = new != old or wrong_mode
        if check_mode or not changed:
            return FileChange(str(self.path), changed, before, after)
        try:
            if new == old:
                target.chmod(mode)
                return FileChange(str(self.path), True, before, after)
            backup = self._back_up(target, old, status, run_id) if status is not None else ""
            self._replace(target, new, status)
        except OSError as error:
            raise SluiceError(
                f"cannot be written ({error.strerror}).",
                where=str(error.filename or target),
                next_step="check the rights on its folder and the free space, and run the same command again.",
            ) from error
        return FileChange(str(self.path), True, before, after, backup)

    def _load(self, target: Path) -> tuple[str, os.stat_result] | None:
        try:
            with target.open("rb") as file:
                status = os.fstat(file.fileno())
                return file.read().decode("utf-8", "surrogateescape"), status
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SluiceError(
                f"cannot be read ({error.strerror}).", where=str(self.path), next_step="check the path and its rights."
            ) from error

    def _back_up(self, target: Path, old: str, status: os.stat_result, run_id: str) -> str:
        """Keep the bytes of before beside the file, under the run's id; a further change of the run gets a number."""
        number = 1
        while True:
            ending = "" if number == 1 else f".{number}"
            copy = target.with_name(f"{target.name}.{run_id}{ending}.bak")
            try:
                descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
            except FileExistsError:
                number += 1
                continue
            _fill(descriptor, old, status, MODE)
            return str(copy)

    def _replace(self, target: Path, new: str, status: os.stat_result | None) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        temporary = Path(name)
        try:
            _fill(descriptor, new, status, _mode(status))
            self._still(target, status)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)  # a rename is durable only with its folder
        finally:
            os.close(folder)

    def _still(self, target: Path, status: os.stat_result | None) -> None:
        try:
            now: os.stat_result | None = target.stat()
        except FileNotFoundError:
            now = None
        if _version(now) != _version(status):
            raise SluiceError(
                "someone else changed the file while it was being edited; it was left alone.",
                where=str(target),
                next_step="run the same command again.",
            )


def _version(status: os.stat_result | None) -> tuple[int, int, int] | None:
    return None if status is None else (status.st_ino, status.st_mtime_ns, status.st_size)


def _mode(status: os.stat_result | None) -> int:
    """What the file's mode is to be."""
    old = MODE if status is None else stat.S_IMODE(status.st_mode)
    if old & stat.S_IRWXO:
        return old  # the application may read it by that right
    return GROUP_MODE if old & stat.S_IRGRP else MODE


def _fill(descriptor: int, text: str, status: os.stat_result | None, mode: int) -> None:
    """Write, give the file its owner and mode, and bring it to disk."""
    with os.fdopen(descriptor, "wb") as file:
        file.write(text.encode("utf-8", "surrogateescape"))
        file.flush()
        if status is not None:
            mine = os.fstat(descriptor)
            if (mine.st_uid, mine.st_gid) != (status.st_uid, status.st_gid):
                os.fchown(descriptor, status.st_uid, status.st_gid)
        os.fchmod(descriptor, mode)  # last: who is given a file must not be able to read it before it is theirs
        os.fsync(descriptor)
