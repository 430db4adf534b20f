"""Backups before anything moves: space first, each part verified by reading it back, all of it in one manifest."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..core.errors import SluiceError
from ..core.figures import size
from ..core.verdicts import Check, Gate, Verdict
from ..ports.preparation import Artefact, Attested, BackupPart, Progress, Taken, unheard
from ..ports.surroundings import Clock

GATE = "backups"
MANIFEST = "manifest.json"
#: Free space must be this many times the estimated size: the estimate is from statistics, and the dump grows meanwhile.
SPACE_FACTOR = 2.0
_LAYOUT = 1
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}\Z")


@dataclass(frozen=True, slots=True)
class Kept:
    """One part as the manifest keeps it. ``taken_at`` is epoch seconds."""

    part: str
    taken_at: float
    artefacts: Sequence[Artefact]
    checks: Sequence[Check]


@dataclass(frozen=True, slots=True)
class Backups:
    """The outcome: the gate, the folder, what is in it, and whether anything was written now."""

    gate: Gate
    folder: str
    kept: Sequence[Kept]
    changed: bool


def estimate(
    parts: Sequence[BackupPart],
    directory: Path,
    *,
    attested: Mapping[str, Attested] | None = None,
    max_age_hours: float = 24.0,
) -> Gate:
    """What can be said without writing: attested backups, and the space that the others need."""
    words = attested or {}
    checks = [_attestation(name, word, max_age_hours) for name, word in sorted(words.items())]
    to_take = [part for part in parts if part.name not in words]
    if to_take:
        checks.append(_space(to_take, directory))
    return Gate(GATE, checks)


def back_up(
    parts: Sequence[BackupPart],
    directory: Path,
    run_id: str,
    *,
    clock: Clock,
    attested: Mapping[str, Attested] | None = None,
    max_age_hours: float = 24.0,
    reuse_seconds: float = 3600.0,
    progress: Progress = unheard,
    begins: Callable[[str], None] = lambda _: None,
) -> Backups:
    """Back up every part that is not attested into ``directory/run_id`` and verify all of it.

    A part that an earlier call of the same run finished, not longer than ``reuse_seconds`` ago, is kept when its files
    still have their checksums; so an interrupted preparation goes on with the next part.

    :param begins: told the name of each part that is taken now, before its progress
    :raises SluiceError: the folder cannot be made or written
    """
    if not _RUN_ID.match(run_id):
        raise SluiceError(f"'{run_id}' cannot be the name of a folder.", where="backup")
    if not directory.is_absolute():
        raise SluiceError("the backup directory must be an absolute path.", where=str(directory))
    words = attested or {}
    to_take = [part for part in parts if part.name not in words]
    folder = directory / run_id
    try:
        found, damage = _load(folder)
        kept = {entry.part: entry for entry in found if _usable(folder, entry, clock.now(), reuse_seconds)}
        missing = [part for part in to_take if part.name not in kept]
        checks = list(estimate(missing, directory, attested=words, max_age_hours=max_age_hours).checks)
        blocked = any(check.name == "backup_space" and check.verdict is not Verdict.PASSED for check in checks)
        changed = False
        if to_take and not blocked:
            _private_folder(folder)
        for part in to_take:
            if part.name in kept:
                checks += kept[part.name].checks
                continue
            if blocked:
                checks.append(
                    Check(f"backup_{part.name}", Verdict.UNKNOWN, "not taken: the space for it is not proved",
                          "make space, or attest a backup of your own")
                )  # fmt: skip
                continue
            changed = True
            begins(part.name)
            try:
                taken = part.take(folder, run_id, progress)
            except SluiceError as error:
                checks.append(Check(f"backup_{part.name}", Verdict.FAILED, str(error), error.next_step))
                continue
            kept[part.name] = Kept(part.name, clock.now(), taken.artefacts, taken.checks)
            checks += taken.checks
            _save(folder, run_id, list(kept.values()))
        entries = [kept[part.name] for part in to_take if part.name in kept]
        if entries:
            checks.append(verify(folder))
        elif damage:
            checks.append(Check("backup_manifest", Verdict.FAILED, damage))
    except OSError as error:
        raise SluiceError(
            f"the backup cannot be written ({error.strerror}).",
            where=str(error.filename or folder),
            next_step="check rights and free space there, and run the same command again.",
        ) from error
    return Backups(Gate(GATE, checks), str(folder), entries, changed)


def verify(folder: Path) -> Check:
    """Re-read the manifest and compare every file with it: size, checksum, mode."""
    name = "backup_manifest"
    entries, damage = _load(folder)
    if damage or not entries:
        return Check(name, Verdict.FAILED, damage or f"{folder / MANIFEST} is missing", "prepare again")
    faults = [fault for entry in entries for artefact in entry.artefacts if (fault := _fault(folder, artefact))]
    if faults:
        return Check(name, Verdict.FAILED, "; ".join(faults), "prepare again")
    files = [artefact for entry in entries for artefact in entry.artefacts]
    total = sum(artefact.bytes for artefact in files)
    return Check(name, Verdict.PASSED, f"{len(files)} files, {size(total)}, checksums re-read, in {folder}")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _attestation(name: str, word: Attested, max_age_hours: float) -> Check:
    check = f"backup_{name}"
    if not word.reference.strip():
        return Check(check, Verdict.FAILED, "attested without saying where the backup is", "name its path or reference")
    reading = f"attested by setting: {word.reference}, {word.age_hours:g} h old (at most {max_age_hours:g} h)"
    if word.age_hours < 0:
        return Check(check, Verdict.FAILED, reading, "an age cannot be negative")
    young = word.age_hours <= max_age_hours
    return Check.of(check, young, reading, "make a newer backup and attest that, or let prepare make one")


def _space(parts: Sequence[BackupPart], directory: Path) -> Check:
    name = "backup_space"
    needed = 0
    for part in parts:
        try:
            estimated = part.needed_bytes()
        except SluiceError as error:
            return Check(name, Verdict.UNKNOWN, f"size of {part.name}: {error}", error.next_step)
        if estimated is None:
            return Check(
                name, Verdict.UNKNOWN, f"the size of {part.name} cannot be read", "attest a backup of your own"
            )
        needed += estimated
    place = directory
    while not place.exists() and place != place.parent:
        place = place.parent
    free = shutil.disk_usage(place).free
    reading = f"{size(free)} free in {place}, {size(needed)} estimated times {SPACE_FACTOR:g}"
    return Check.of(name, free >= needed * SPACE_FACTOR, reading, "free space there or set another backup directory")


def _private_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise SluiceError(
            "the folder is a link or belongs to someone else.",
            where=str(folder),
            next_step="set another backup directory.",
        )
    folder.chmod(0o700)


def _usable(folder: Path, entry: Kept, now: float, reuse_seconds: float) -> bool:
    fresh = 0 <= now - entry.taken_at <= reuse_seconds
    good = bool(entry.checks) and all(check.verdict is Verdict.PASSED for check in entry.checks)
    return fresh and good and not any(_fault(folder, artefact) for artefact in entry.artefacts)


def _fault(folder: Path, artefact: Artefact) -> str:
    path = folder / artefact.name
    if not path.is_file() or path.is_symlink():
        return f"{path} is missing"
    status = path.stat()
    if status.st_mode & 0o077:
        return f"{path} can be read by others (mode {status.st_mode & 0o777:04o})"
    if status.st_size != artefact.bytes or digest(path) != artefact.sha256:
        return f"{path} is not what was written"
    return ""


def _save(folder: Path, run_id: str, entries: Sequence[Kept]) -> None:
    data = {"layout": _LAYOUT, "run_id": run_id, "parts": [asdict(entry) for entry in entries]}
    descriptor, name = tempfile.mkstemp(prefix=f".{MANIFEST}.", dir=folder)  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(descriptor)
    Path(name).replace(folder / MANIFEST)
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _load(folder: Path) -> tuple[list[Kept], str]:
    """The manifest's entries, or none and what is wrong with it. Nothing there yet is not wrong."""
    path = folder / MANIFEST
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["layout"] != _LAYOUT or data["run_id"] != folder.name:
            return [], f"{path} is of another run or another Sluice"
        return [_entry(item) for item in data["parts"]], ""
    except FileNotFoundError:
        return [], ""
    except (ValueError, KeyError, TypeError) as error:
        return [], f"{path} cannot be understood ({error})"


def _entry(item: Mapping[str, object]) -> Kept:
    artefacts, checks = item["artefacts"], item["checks"]
    if not isinstance(artefacts, list) or not isinstance(checks, list):
        raise TypeError("a part without lists")
    return Kept(
        str(item["part"]),
        float(str(item["taken_at"])),
        [Artefact(str(a["name"]), str(a["what"]), int(a["bytes"]), str(a["sha256"])) for a in artefacts],
        [Check(str(c["name"]), Verdict(c["verdict"]), str(c["reading"]), str(c["next_step"])) for c in checks],
    )


class Files:
    """Configuration files, copied byte for byte. A file that is not there is said, and is no fault when it may be."""

    def __init__(self, name: str, paths: Sequence[Path], *, optional: bool = False) -> None:
        self._name = name
        self.paths = tuple(paths)
        self.optional = optional

    @property
    def name(self) -> str:
        """The part's word."""
        return self._name

    def needed_bytes(self) -> int | None:
        """The sum of the sizes of the files that are there."""
        return sum(path.stat().st_size for path in self.paths if path.is_file())

    def take(self, folder: Path, run_id: str, progress: Progress) -> Taken:
        """Copy each file under a number and its own name."""
        artefacts: list[Artefact] = []
        absent: list[str] = []
        for number, path in enumerate(self.paths, start=1):
            try:
                content = path.read_bytes()
            except FileNotFoundError:
                absent.append(str(path))
                continue
            except OSError as error:
                raise SluiceError(f"cannot be read ({error.strerror}).", where=str(path)) from error
            copy = folder / f"{self._name}.{number}.{path.name.lstrip('.')}"
            copy.unlink(missing_ok=True)
            descriptor = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            checksum = hashlib.sha256(content).hexdigest()
            artefacts.append(Artefact(copy.name, f"copy of {path}", len(content), checksum))
            progress(number, len(self.paths))
        reading = f"{len(artefacts)} files copied" + (f"; not there: {', '.join(absent)}" if absent else "")
        good = bool(artefacts or self.optional) and (self.optional or not absent)
        return Taken(artefacts, [Check.of(f"backup_{self._name}", good, reading, "correct the paths")])
