"""Files of a host, kept byte for byte at the beginning of a run, and put back as they were.

``<directory>/<run>/`` holds ``manifest.json`` (each path with kind, mode, owner, time and digest), its SHA-256 in
``manifest.sha256``, and each content once under its digest in ``contents/``. It is there as a whole or not at all.
``<directory>/<run>/replaced-<other run>/`` keeps what a restore found in place of it. Extended attributes are not kept.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..core.errors import SluiceError

_CHUNK = 1 << 20
_MANIFEST, _DIGEST, _CONTENTS = "manifest.json", "manifest.sha256", "contents"
#: Made again by whoever needs them, and judged by the time of their source.
_SKIPPED = frozenset({"__pycache__"})
_LINKS = 40


@dataclass(frozen=True, slots=True)
class Kept:
    """One path as it was. ``kind`` is file, directory, link or absent; ``digest`` is the SHA-256 of a file's bytes."""

    path: str
    kind: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    modified_ns: int = 0
    size: int = 0
    digest: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive that was found whole: every content has its digest. ``digest`` is that of the manifest."""

    folder: Path
    digest: str
    listed: Sequence[str]
    entries: Sequence[Kept]

    def content(self, entry: Kept) -> Path:
        """Where the bytes of a file are."""
        return self.folder / _CONTENTS / entry.digest

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.entries)


@dataclass(frozen=True, slots=True)
class Difference:
    """A path that is not as it was kept. ``now`` is what is there; ``what`` says it for people."""

    kept: Kept
    now: Kept
    what: str


class RevisionArchive:
    """The archive of one run's files on this host.

    :param directory: where the archives of all runs lie
    :param run_id: the run that began when the files were as they shall be again
    :param most: bytes that one archive may hold
    """

    def __init__(self, directory: Path, run_id: str, *, most: int) -> None:
        if not run_id or run_id != Path(run_id).name or run_id.startswith("."):
            raise SluiceError(f"'{run_id}' is no run id.", where=str(directory), next_step="give the id of the run.")
        self.directory = directory
        self.folder = directory / run_id
        self.most = most

    @property
    def made(self) -> bool:
        """Whether the run has an archive here, whole or not."""
        return os.path.lexists(self.folder)

    def load(self, digest: str = "") -> Archive:
        """The archive, each content compared with its digest.

        :param digest: what the caller kept of it elsewhere; empty when nothing
        :raises SluiceError: it is missing, or not what was archived
        """
        try:
            text = (self.folder / _MANIFEST).read_bytes()
            said = (self.folder / _DIGEST).read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise SluiceError(
                "there is no archive of this run.",
                where=str(self.folder),
                next_step="put it back from a backup of this host, or restore the files by hand; nothing was changed.",
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise _unusable(self.folder, f"cannot be read ({error})") from error
        found = hashlib.sha256(text).hexdigest()
        if found != said or (digest and found != digest):
            raise _unusable(self.folder, "its manifest is not the one that was archived")
        try:
            manifest: dict[str, Any] = json.loads(text)
            archive = Archive(self.folder, found, manifest["listed"], [Kept(**entry) for entry in manifest["entries"]])
        except (ValueError, TypeError, KeyError) as error:
            raise _unusable(self.folder, "its manifest is of another version") from error
        for entry in archive.entries:
            try:
                whole = entry.kind != "file" or _digest(archive.content(entry)) == entry.digest
            except OSError:
                whole = False
            if not whole:
                raise _unusable(self.folder, f"the content kept of {entry.path} does not match its digest")
        return archive

    def make(self, files: Sequence[str]) -> Archive:
        """Keep the files; an archive of this run that is there already stays as it is.

        :raises SluiceError: a file cannot be read, changes meanwhile, or there is no room
        """
        _private(self.directory)
        with _alone(self.directory):
            if self.made:
                return self.load()
            partial = self.directory / f".{self.folder.name}.partial"
            contents = partial / _CONTENTS
            try:
                if partial.exists():  # of a command that was killed
                    shutil.rmtree(partial)
                partial.mkdir(mode=0o700)
                contents.mkdir(mode=0o700)
                entries = list(self._keep(files, contents))
                manifest = {"listed": list(files), "entries": [asdict(entry) for entry in entries]}
                text = json.dumps(manifest, indent=1, sort_keys=True).encode()
                _write(partial / _MANIFEST, text)
                _write(partial / _DIGEST, f"{hashlib.sha256(text).hexdigest()}\n".encode())
                for folder in (contents, partial):
                    _sync(folder)
                partial.rename(self.folder)
                _sync(self.directory)
            except OSError as error:
                shutil.rmtree(partial, ignore_errors=True)
                raise SluiceError(
                    f"the files cannot be kept ({error.strerror}: {error.filename or partial}).",
                    where=str(self.directory),
                    next_step="check rights and free space there, and run the same command again.",
                ) from error
            except SluiceError:
                shutil.rmtree(partial, ignore_errors=True)
                raise
        return self.load()

    def survey(self, files: Sequence[str]) -> tuple[int, int]:
        """How many paths and bytes an archive of these files would hold. Reads only."""
        entries = list(self._keep(files, None))
        return len(entries), sum(entry.size for entry in entries)

    def differences(self, archive: Archive) -> Sequence[Difference]:
        """What is not as it was kept. Times do not count, nor files that came into a kept directory since."""
        found = []
        for entry in archive.entries:
            now = _look(entry.path)
            what = _difference(entry, now)
            if what:
                found.append(Difference(entry, now, what))
        return found

    def restore(self, archive: Archive, differences: Sequence[Difference], by: str) -> Path | None:
        """Put each differing path back, in one step each, after keeping what is there; where that was kept, if any.

        :param by: the run that restores, for the name of the folder
        :raises SluiceError: a path cannot be written, or has another kind than it had
        """
        if not differences:
            return None
        for one in differences:
            self._possible(one)
        replaced = archive.folder / f"replaced-{Path(by).name}"
        with _alone(self.directory):
            try:
                _private(replaced)
                for one in differences:
                    _keep_replaced(replaced, one)
                    _put_back(archive, one)
            except OSError as error:
                raise SluiceError(
                    f"cannot be put back ({error.strerror}).",
                    where=str(error.filename2 or error.filename or archive.folder),
                    next_step="check rights and free space there, and run the same command again.",
                ) from error
        return replaced

    def _possible(self, one: Difference) -> None:
        was, is_now = one.kept.kind, one.now.kind
        fits = {("directory", "directory"), ("directory", "absent"), ("absent", "absent")}
        if (was, is_now) in fits or ("directory" not in (was, is_now) and is_now != "other"):
            return
        raise SluiceError(
            f"was {was} and is {is_now} now; nothing was changed.",
            where=one.kept.path,
            next_step="move away what is there, and run the same command again.",
        )

    def _keep(self, files: Sequence[str], contents: Path | None) -> Iterator[Kept]:
        """What there is of the files; copied when ``contents`` is given. Each path once, directories before theirs."""
        seen: set[str] = set()
        total = 0
        for path in _below(files):
            if path in seen:
                continue
            seen.add(path)
            entry = _look(path, contents)
            if entry.kind == "other":
                continue  # sockets and pipes are made by those who use them
            total += entry.size
            if total > self.most:
                raise SluiceError(
                    f"the files to keep have more than {self.most:,} bytes in all.",
                    where=path,
                    next_step="list the program and its settings alone, or raise queue_revision_most.",
                )
            yield entry


def _below(files: Sequence[str]) -> Iterator[str]:
    """Each listed path without links in it, all below a directory, and the links on the way to it: they choose it.

    Links below a directory are kept and not followed.
    """
    for listed in files:
        for path in _way(Path(listed)):
            yield str(path)
            if path.is_symlink() or not path.is_dir():
                continue
            for folder, folders, names in os.walk(path, onerror=_refuse):
                here = Path(folder)
                folders[:] = sorted(set(folders) - _SKIPPED)
                yield from (str(here / name) for name in [*folders, *sorted(names)])
                folders[:] = [name for name in folders if not (here / name).is_symlink()]


def _way(listed: Path) -> Iterator[Path]:
    """The links that lead to a path, and the place to which they lead."""
    if not listed.is_absolute():
        raise SluiceError("is no absolute path.", where=str(listed), next_step="correct queue_archived_files.")
    place, rest, links = Path("/"), list(listed.parts[1:]), 0
    while rest:
        step = place / rest.pop(0)
        if step.name == "..":
            place = place.parent
        elif step.is_symlink():
            yield step
            links += 1
            if links > _LINKS:
                raise SluiceError("is a link that leads in a circle.", where=str(listed), next_step="correct the link.")
            target = step.readlink()
            place = Path("/") if target.is_absolute() else place
            rest = [*(part for part in target.parts if part != "/"), *rest]
        else:
            place = step
    yield place


def _refuse(error: OSError) -> None:
    raise SluiceError(
        f"cannot be read ({error.strerror}).", where=str(error.filename), next_step="check the path and its rights."
    ) from error


def _look(path: str, contents: Path | None = None) -> Kept:
    """A path as it is now, its bytes copied on the way when a folder for them is given."""
    try:
        status = os.lstat(path)
        common = (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns)
        if stat.S_ISLNK(status.st_mode):
            return Kept(path, "link", *common, target=str(Path(path).readlink()))
        if stat.S_ISDIR(status.st_mode):
            return Kept(path, "directory", *common)
        if not stat.S_ISREG(status.st_mode):
            return Kept(path, "other", *common)
        digest = _digest(Path(path)) if contents is None else _copy(path, contents)
        if _version(os.lstat(path)) != _version(status):
            raise SluiceError(
                "someone else changed the file while it was being read.",
                where=path,
                next_step="run the same command again.",
            )
    except (FileNotFoundError, NotADirectoryError):
        return Kept(path, "absent")
    except OSError as error:
        if contents is not None and error.filename != path:
            raise  # it is the archive that cannot be written
        _refuse(error)
        raise
    return Kept(path, "file", *common, size=status.st_size, digest=digest)


def _version(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_mtime_ns, status.st_size


def _difference(kept: Kept, now: Kept) -> str:
    if kept.kind != now.kind:
        return f"was {kept.kind}, is {now.kind}"
    if kept.kind == "absent":
        return ""
    found = []
    if kept.digest != now.digest:
        found.append("content")
    if kept.target != now.target:
        found.append("where the link leads")
    if kept.mode != now.mode and kept.kind != "link":
        found.append(f"mode {now.mode:04o} instead of {kept.mode:04o}")
    if (kept.uid, kept.gid) != (now.uid, now.gid):
        found.append(f"owner {now.uid}:{now.gid} instead of {kept.uid}:{kept.gid}")
    return ", ".join(found)


def _keep_replaced(replaced: Path, one: Difference) -> None:
    """Keep what is there beside a line that says what it was; a second restore of the run keeps more, not less."""
    copied = ""
    if one.now.kind == "file":
        copied = one.now.digest
        if not (replaced / copied).exists():
            _place(Path(one.now.path), replaced / copied, 0o600)
    line = json.dumps({**asdict(one.now), "digest": copied}, sort_keys=True)
    descriptor = os.open(replaced / "replaced.ndjson", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(descriptor)
    _sync(replaced)


def _put_back(archive: Archive, one: Difference) -> None:
    kept, path = one.kept, Path(one.kept.path)
    if kept.kind == "absent":
        path.unlink(missing_ok=True)
        _sync(path.parent)
    elif kept.kind == "directory":
        path.mkdir(mode=0o700, exist_ok=True)
        _own(path, kept)
        path.chmod(kept.mode)
    elif kept.kind == "link":
        _link(path, kept)
    elif one.now.kind == "file" and one.now.digest == kept.digest:
        _own(path, kept)
        path.chmod(kept.mode)  # last: a change of owner takes special bits away
    else:
        _place(archive.content(kept), path, kept.mode, kept)


def _link(path: Path, kept: Kept) -> None:
    temporary = _beside(path)
    try:
        temporary.symlink_to(kept.target)
        _own(temporary, kept)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def _beside(path: Path) -> Path:
    """The name of what is about to replace a path; what a killed command left under it is removed."""
    temporary = path.with_name(f".{path.name}.put-back")
    temporary.unlink(missing_ok=True)
    return temporary


def _own(path: Path, kept: Kept) -> None:
    now = path.lstat()
    if (now.st_uid, now.st_gid) != (kept.uid, kept.gid):
        os.chown(path, kept.uid, kept.gid, follow_symlinks=False)


def _copy(path: str, contents: Path) -> str:
    """Copy a file under its digest; the digest."""
    digest = hashlib.sha256()
    descriptor, name = tempfile.mkstemp(dir=contents)
    with os.fdopen(descriptor, "wb") as copy, open(path, "rb") as file:  # noqa: PTH123  a path that is kept as text
        for chunk in _chunks(file):
            digest.update(chunk)
            copy.write(chunk)
        copy.flush()
        os.fsync(descriptor)
    Path(name).rename(contents / digest.hexdigest())
    return digest.hexdigest()


def _place(source: Path, target: Path, mode: int, kept: Kept | None = None) -> None:
    """Make ``target`` a copy of ``source`` in one step, with the mode, and the owner and time that were kept."""
    temporary = _beside(target)
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as copy, source.open("rb") as file:
            for chunk in _chunks(file):
                copy.write(chunk)
            copy.flush()
            if kept is not None:
                _own(temporary, kept)
            os.fchmod(descriptor, mode)
            if kept is not None:
                os.utime(descriptor, ns=(kept.modified_ns, kept.modified_ns))
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK):
        yield chunk


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def _sync(folder: Path) -> None:
    """A rename is durable only with its folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) != 0o700:
            folder.chmod(0o700)
    except OSError as error:
        raise SluiceError(
            f"cannot be made ({error.strerror}).", where=str(folder), next_step="check queue_archive_dir."
        ) from error


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One at a time: an orphan of a killed command may still be writing."""
    descriptor = os.open(directory / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise SluiceError(
            "another command is at work in this archive.",
            where=str(directory),
            next_step="let it end, then run the same command again.",
        ) from None
    else:
        yield
    finally:
        os.close(descriptor)


def _unusable(folder: Path, reason: str) -> SluiceError:
    return SluiceError(
        f"the archive cannot be used: {reason}; nothing was changed.",
        where=str(folder),
        next_step="put it back from a backup of this host, or restore the files by hand.",
    )
