"""The application's files on its hosts: kept when a run begins, put back when it is taken back."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...adapters.revision_archive import Archive, Difference, Kept, RevisionArchive
from ...core import dotenv
from ...core.errors import SluiceError
from ..runner import Given, Result

#: So many differing paths are named in lines; all of them are in the result.
_NAMED = 20


def revision(given: Given) -> Result:
    """Keep the files as the run found them, put them back, or say whether they are as they were. Touches no store."""
    params = given.params
    kept = RevisionArchive(Path(params["archive_dir"]), params["run_id"], most=params["most"])
    if params["state"] == "archived":
        return _archived(given, kept)
    archive = kept.load(params["digest"])
    differences = kept.differences(archive)
    result = _described(archive, differences)
    result["diff"] = _diff(archive, differences, params)
    lines = [f"{_shown(one.kept.path)}: {one.what}" for one in differences[:_NAMED]]
    if len(differences) > _NAMED:
        lines.append(f"and {len(differences) - _NAMED} more")
    missing = _not_kept(archive, params["files"])
    lines += [f"{path}: not in the archive, so nothing is known of it" for path in missing]
    if params["state"] == "checked":
        word = "are as they were" if not differences else f"{len(differences)} are not as they were"
        return {**result, "in_place": not (differences or missing), "lines": [*lines, _summary(archive, word)]}
    word = "are as they were" if not differences else f"{len(differences)} would be put back"
    replaced = None
    if differences and not given.check_mode:
        replaced = kept.restore(archive, differences, params["by"] or params["run_id"])
        again = kept.differences(archive)
        if again:
            raise SluiceError(
                f"was put back and differs again ({again[0].what}): somebody else writes it.",
                where=_shown(again[0].kept.path),
                next_step="find out who, and run the same command again.",
            )
        word = f"{len(differences)} put back; what was there is in {replaced}"
    in_place = not missing and (not differences or not given.check_mode)
    return {
        **result,
        "changed": bool(differences),
        "in_place": in_place,
        "replaced": str(replaced or ""),
        "lines": [*lines, _summary(archive, word)],
    }


def _archived(given: Given, kept: RevisionArchive) -> Result:
    files = given.params["files"]
    if not files:
        raise SluiceError(
            "no file is named, so nothing could be put back later.",
            where="queue_archived_files",
            next_step="name the application's settings file and the program of its legacy workers.",
        )
    made = kept.made
    if given.check_mode and not made:
        paths, size = kept.survey(files)
        return {"changed": True, "in_place": True, "lines": [f"{paths:,} paths, {size:,} bytes would be kept"]}
    archive = kept.load() if made else kept.make(files)
    differences = kept.differences(archive)
    missing = _not_kept(archive, files)
    lines = [f"{path}: listed after the archive of this run was made, and not in it" for path in missing]
    word = "were kept before" if made else "are kept now"
    return {
        **_described(archive, differences),
        "changed": not made,
        "in_place": not (differences or missing),
        "lines": [*lines, _summary(archive, word)],
    }


def _described(archive: Archive, differences: Sequence[Difference]) -> Result:
    return {
        "changed": False,
        "archive": str(archive.folder),
        "digest": archive.digest,
        "paths": len(archive.entries),
        "bytes": archive.size,
        "differing": [_shown(one.kept.path) for one in differences],
    }


def _summary(archive: Archive, word: str) -> str:
    return f"{len(archive.entries):,} paths, {archive.size:,} bytes in {archive.folder}: {word}"


def _not_kept(archive: Archive, files: Sequence[str]) -> list[str]:
    return [path for path in files if path not in archive.listed]


def _shown(path: str) -> str:
    """A path fit for a log, whatever bytes are in it."""
    return os.fsencode(path).decode("utf-8", "replace")


def _diff(archive: Archive, differences: Sequence[Difference], params: Any) -> Result:
    """Properties of every differing path; of settings files also the keys. Only values that may be shown are."""
    before: list[str] = []
    after: list[str] = []
    settings = {os.path.realpath(path) for path in params["settings"]}
    for one in differences:
        for lines, entry in ((before, one.now), (after, one.kept)):
            lines.append(f"{_shown(entry.path)}: {_properties(entry)}\n")
        if os.path.realpath(one.kept.path) in settings:
            was = _text(Path(one.now.path)) if one.now.kind == "file" else ""
            will = _text(archive.content(one.kept)) if one.kept.kind == "file" else ""
            for lines, text in zip((before, after), _keys(was, will, params["shown"]), strict=True):
                lines.append(text)
    where = str(archive.folder)
    return {"before": "".join(before), "after": "".join(after), "before_header": "now", "after_header": where}


def _keys(before: str, after: str, shown: Collection[str]) -> tuple[str, str]:
    old, new = dotenv.read(before), dotenv.read(after)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    return dotenv.masked_change(before, after, keys, [key for key in keys if key not in shown])


def _properties(entry: Kept) -> str:
    if entry.kind == "absent":
        return "absent"
    content = f" {entry.size} bytes {entry.digest[:12]}" if entry.kind == "file" else ""
    leads = f" to {_shown(entry.target)}" if entry.kind == "link" else ""
    return f"{entry.kind}{leads}{content} mode {entry.mode:04o} owner {entry.uid}:{entry.gid}"


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8", "surrogateescape")
