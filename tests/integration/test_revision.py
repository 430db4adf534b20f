"""Files kept when a run begins and put back byte for byte, by the module as Ansible calls it."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.sluice.adapters import revision_archive
from ansible.module_utils.sluice.adapters.revision_archive import RevisionArchive
from ansible.module_utils.sluice.core.errors import SluiceError
from ansible.module_utils.testing import patch_module_args

from conftest import ROOT, PlantedSecrets

SETTINGS = b"# ours\r\nDATABASE_POLLING_ENABLED=true\r\nNAME='M\xfcller'\r\n\r\nLAST=no newline"
RUN, BACK = "captions-forward", "captions-back"


class Place:
    """An application's folder, and the module that keeps it."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.env = root / "app" / ".env"
        self.program = root / "app" / "legacy"
        self.archives = root / "archives"
        self.files = [str(self.env), str(self.program)]
        self.capsys = capsys
        (self.program / "deep").mkdir(parents=True)
        (self.program / "worker.py").write_bytes(b"print('old')\n")
        (self.program / "worker.py").chmod(0o755)
        (self.program / "deep" / "empty").touch()
        (self.program / "deep" / "\udcff").write_bytes(os.urandom(3000))
        (self.program / "link").symlink_to("deep")
        self.env.write_bytes(SETTINGS)
        self.env.chmod(0o640)
        os.utime(self.env, ns=(1_600_000_000_123_456_789, 1_600_000_000_123_456_789))

    def call(self, state: str, *, check: bool = False, run: str = RUN, **options: Any) -> dict[str, Any]:
        import queue_revision  # type: ignore[import-not-found]

        arguments = {
            "files": self.files, "archive_dir": str(self.archives), "run_id": run, "by": BACK, "state": state,
            "settings": [str(self.env)], "shown": ["RQ_ENABLED"], "_ansible_check_mode": check, **options,
        }  # fmt: skip
        self.capsys.readouterr()
        with patch_module_args(arguments), pytest.raises(SystemExit):
            queue_revision.main()
        result: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return result

    def done(self, state: str, **options: Any) -> dict[str, Any]:
        result = self.call(state, **options)
        assert not result.get("failed"), result["msg"]
        return result

    def picture(self, folder: Path | None = None) -> dict[str, tuple[Any, ...]]:
        """Every path below the application with all that must come back."""
        found: dict[str, tuple[Any, ...]] = {}
        for path in sorted((folder or self.root / "app").rglob("*")):
            status = path.lstat()
            kind = stat.S_IFMT(status.st_mode)
            content: object = (
                str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
            )
            time = status.st_mtime_ns if kind == stat.S_IFREG else None
            found[str(path)] = (kind, stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid, time, content)
        return found

    def spoil(self) -> None:
        """What a forward run and a new release may do to it."""
        self.env.write_bytes(b"DATABASE_POLLING_ENABLED=false\nRQ_ENABLED=true\nRQ_REDIS_URL=redis://a:secret-1@b\n")
        self.env.chmod(0o600)
        (self.program / "worker.py").write_bytes(b"print('new')\n")
        (self.program / "deep" / "empty").unlink()
        (self.program / "link").unlink()
        (self.program / "link").symlink_to("elsewhere")


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Place:
    return Place(tmp_path, capsys)


def test_it_comes_back_byte_for_byte(place: Place) -> None:
    before = place.picture()
    archived = place.done("archived")
    assert (archived["changed"], archived["in_place"]) == (True, True)
    assert place.picture() == before
    assert place.done("archived")["changed"] is False

    place.spoil()
    spoiled = place.picture()
    again = place.done("archived")  # the same command again, after the settings were written
    assert (again["changed"], again["in_place"], again["digest"]) == (False, False, archived["digest"])
    assert len(again["differing"]) == 4

    checked = place.done("checked", digest=archived["digest"])
    assert (checked["changed"], checked["in_place"]) == (False, False)
    dry = place.done("restored", check=True)
    assert (dry["changed"], dry["in_place"], dry["replaced"]) == (True, False, "")
    assert place.picture() == spoiled

    restored = place.done("restored", digest=archived["digest"])
    assert (restored["changed"], restored["in_place"]) == (True, True)
    assert place.picture() == before
    assert place.env.read_bytes() == SETTINGS
    second = place.done("restored", digest=archived["digest"])
    assert (second["changed"], second["in_place"], second["differing"]) == (False, True, [])
    assert place.done("checked")["in_place"] is True

    replaced = Path(restored["replaced"])
    kept = [json.loads(line) for line in (replaced / "replaced.ndjson").read_text().splitlines()]
    assert {entry["path"]: entry["kind"] for entry in kept}[str(place.program / "link")] == "link"
    [env] = [entry for entry in kept if entry["path"] == str(place.env)]
    assert (replaced / env["digest"]).read_bytes().startswith(b"DATABASE_POLLING_ENABLED=false")


def test_nobody_else_may_read_the_archive(place: Place) -> None:
    place.archives.mkdir(mode=0o755)
    place.done("archived")
    place.spoil()
    place.done("restored")
    for path in [place.archives, *place.archives.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_owner_comes_back(place: Place) -> None:
    os.chown(place.env, 4711, 4712)
    place.done("archived")
    os.chown(place.env, 0, 0)
    result = place.done("restored")
    assert "owner 0:0 instead of 4711:4712" in result["lines"][0]
    status = place.env.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (4711, 4712, 0o640)


def test_a_mode_alone_comes_back_and_the_bytes_are_not_rewritten(place: Place) -> None:
    place.done("archived")
    inode = place.env.stat().st_ino
    place.env.chmod(0o600)
    assert place.done("restored")["differing"] == [str(place.env)]
    assert (place.env.stat().st_ino, stat.S_IMODE(place.env.stat().st_mode)) == (inode, 0o640)


def test_a_settings_file_that_was_not_there_goes_again(place: Place) -> None:
    place.env.unlink()
    before = place.picture()
    place.done("archived")
    place.env.write_bytes(b"RQ_ENABLED=true\n")
    assert place.done("restored")["changed"] is True
    assert place.picture() == before


def test_a_release_is_chosen_by_its_link(place: Place) -> None:
    """The program at the archived revision: the link leads to the old release again, which is as it was."""
    for number in ("41", "42"):
        (place.root / "releases" / number).mkdir(parents=True)
        (place.root / "releases" / number / "main.py").write_text(f"release {number}")
    current = place.root / "current"
    current.symlink_to("releases/41")
    place.files = [str(current / "main.py")]
    place.done("archived")
    current.unlink()
    current.symlink_to("releases/42")
    (place.root / "releases" / "41" / "main.py").write_text("patched")
    result = place.done("restored")
    assert result["differing"] == [str(current), str(place.root / "releases" / "41" / "main.py")]
    assert (current / "main.py").read_text() == "release 41"
    assert (place.root / "releases" / "42" / "main.py").read_text() == "release 42"


def test_what_came_since_stays(place: Place) -> None:
    """Uploads and logs below a program are nobody's to take away."""
    place.done("archived")
    (place.program / "upload.png").write_bytes(b"new")
    assert place.done("restored")["changed"] is False
    assert (place.program / "upload.png").exists()


def test_what_cannot_be_kept_is_left_out(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.program / "__pycache__").mkdir()
    (place.program / "__pycache__" / "x.pyc").write_bytes(b"x")
    listener = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(place.program)  # its path must be short
    listener.bind("s.sock")
    place.done("archived")
    text = (place.archives / RUN / "manifest.json").read_text()
    listener.close()
    assert "worker.py" in text
    assert "__pycache__" not in text and "s.sock" not in text


def test_two_runs_have_an_archive_each(place: Place) -> None:
    """A second run keeps what it finds, the target's keys included."""
    place.done("archived")
    place.spoil()
    second = place.done("archived", run="captions-second")
    assert second["changed"] is True
    place.done("restored")
    assert place.env.read_bytes() == SETTINGS
    place.done("restored", run="captions-second")
    assert b"RQ_ENABLED=true" in place.env.read_bytes()


@pytest.mark.parametrize("harm", ["gone", "manifest", "digest file", "content", "content gone", "another"])
@pytest.mark.parametrize("state", ["restored", "checked"])
def test_an_archive_that_is_not_what_was_archived_is_refused(place: Place, harm: str, state: str) -> None:
    digest = place.done("archived")["digest"]
    folder = place.archives / RUN
    content = next(path for path in (folder / "contents").iterdir() if path.stat().st_size == 3000)
    if harm == "gone":
        folder.rename(place.root / "moved")
    elif harm == "manifest":
        (folder / "manifest.json").write_text((folder / "manifest.json").read_text().replace("0", "1"))
    elif harm == "digest file":
        (folder / "manifest.sha256").write_bytes(b"\xff")
    elif harm == "content":
        content.write_bytes(b"x" * 3000)
    elif harm == "content gone":
        content.unlink()
    else:
        digest = "0" * 64
    place.spoil()
    before = place.picture()
    result = place.call(state, digest=digest)
    assert result["failed"] and "\n" not in result["msg"]
    assert "nothing was changed" in result["msg"] and "Next: " in result["msg"]
    assert place.picture() == before


def test_what_has_become_a_directory_is_refused_before_the_first_change(place: Place) -> None:
    place.done("archived")
    place.spoil()
    (place.program / "worker.py").unlink()
    (place.program / "worker.py").mkdir()
    before = place.picture()
    result = place.call("restored")
    assert "was file and is directory now; nothing was changed" in result["msg"]
    assert place.picture() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"files": []}, "no file is named"),
        ({"files": ["relative/.env"]}, "no absolute path"),
        ({"most": 100}, "more than 100 bytes in all"),
        ({"run": "../elsewhere"}, "is no run id"),
    ],
)
def test_wrong_options_keep_nothing(place: Place, options: dict[str, Any], words: str) -> None:
    result = place.call("archived", **options)
    assert result["failed"] and words in result["msg"]
    assert not list(place.archives.glob("captions*"))
    assert not list(place.archives.glob(".captions*"))


def test_a_circle_of_links_is_refused(place: Place) -> None:
    (place.root / "a").symlink_to("b")
    (place.root / "b").symlink_to("a")
    assert "leads in a circle" in place.call("archived", files=[str(place.root / "a")])["msg"]


def test_a_path_listed_later_is_named(place: Place) -> None:
    place.done("archived")
    place.files.append(str(place.root / "app" / "more"))
    result = place.done("checked")
    assert result["in_place"] is False
    assert "not in the archive" in " ".join(result["lines"])


def test_a_dry_run_writes_nothing(place: Place) -> None:
    before = place.picture(place.root)
    result = place.done("archived", check=True)
    assert result["changed"] is True
    assert place.picture(place.root) == before


def test_a_diff_shows_keys_and_no_secret(place: Place, planted_secrets: PlantedSecrets) -> None:
    was, is_now = planted_secrets.plant("before"), planted_secrets.plant("after")
    place.env.write_text(f"MAIL={was}\nRQ_ENABLED=false\nSAME={was}\n")
    printed = [place.done("archived")]
    place.env.write_text(f"MAIL={is_now}\nRQ_ENABLED=true\nSAME={was}\nRQ_REDIS_URL=redis://u:{is_now}@h\n")
    printed += [place.done("checked"), place.done("restored")]
    planted_secrets.assert_absent(json.dumps(printed), "the results")
    diff = printed[-1]["diff"]
    assert "MAIL=***\n" in diff["before"] and "MAIL=*** (changed)\n" in diff["after"]
    assert "RQ_ENABLED=true\n" in diff["before"] and "RQ_ENABLED=false" in diff["after"]
    assert "RQ_REDIS_URL=***" in diff["before"] and "RQ_REDIS_URL" not in diff["after"]
    assert "SAME" not in diff["before"]


def test_a_file_that_changes_while_it_is_read_is_not_kept_half(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def chunks(file: Any) -> Iterator[bytes]:
        yield file.read()
        if file.name == str(place.env):
            place.env.write_bytes(b"LATER=1\n")

    monkeypatch.setattr(revision_archive, "_chunks", chunks)
    assert "someone else changed the file" in place.call("archived")["msg"]
    assert not (place.archives / RUN).exists()


def test_one_command_at_a_time(place: Place) -> None:
    place.archives.mkdir()
    with revision_archive._alone(place.archives), pytest.raises(SluiceError, match="another command is at work"):
        RevisionArchive(place.archives, RUN, most=1 << 20).make(place.files)


KILLED = """
    import os, signal, sys
    import ansible.module_utils
    ansible.module_utils.__path__.append(sys.argv[1])
    from pathlib import Path
    from ansible.module_utils.sluice.adapters import revision_archive as archives

    count, last = 0, int(sys.argv[5])

    def counted(event, arguments):
        global count
        if event in ("os.rename", "os.chmod", "os.remove", "os.mkdir", "os.symlink", "os.utime"):
            count += 1
            if count > last:
                os.kill(os.getpid(), signal.SIGKILL)

    kept = archives.RevisionArchive(Path(sys.argv[2]), "captions-forward", most=1 << 20)
    archive = kept.load() if sys.argv[4] == "restore" else None
    sys.addaudithook(counted)
    if archive is None:
        kept.make(sys.argv[3].split(":"))
    else:
        kept.restore(archive, kept.differences(archive), "captions-back")
"""


def until_not_killed(place: Place, what: str, meanwhile: Callable[[], None]) -> int:
    """Kill -9 before the first write to the file system, the second, and so on; how many there are."""
    for number in range(100):
        arguments = [str(ROOT / "module_utils"), str(place.archives), ":".join(place.files), what, str(number)]
        code = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), *arguments], check=False).returncode
        if code == 0:
            return number
        assert code == -signal.SIGKILL
        meanwhile()
    raise AssertionError("it never ended")


@pytest.mark.slow
def test_a_kill_at_every_write_of_an_archive_leaves_none_or_all(place: Place) -> None:
    def meanwhile() -> None:
        # Before the last rename there is none; what the killed one left is no obstacle to the next.
        if (place.archives / RUN).exists():
            RevisionArchive(place.archives, RUN, most=1 << 20).load()

    assert until_not_killed(place, "archive", meanwhile) >= 7
    assert place.done("archived")["changed"] is False
    assert [path.name for path in place.archives.iterdir() if path.name != ".lock"] == [RUN]


@pytest.mark.slow
def test_a_kill_at_every_write_of_a_restore_is_answered_by_the_same_command(place: Place) -> None:
    """Every path is always as it was or as it is to be, and what was there is kept before it goes."""
    before = place.picture()
    place.done("archived")
    place.spoil()
    spoiled = place.picture()

    def meanwhile() -> None:
        now = place.picture()
        for path in before.keys() | spoiled.keys():
            contents = {picture[path][-1] for picture in (before, spoiled) if path in picture}
            assert path not in now or now[path][-1] in contents, path
        assert place.env.exists() and (place.program / "worker.py").exists()

    assert until_not_killed(place, "restore", meanwhile) >= 8
    assert place.done("restored")["changed"] is False
    assert place.picture() == before  # and nothing beside it
    kept = (place.archives / RUN / f"replaced-{BACK}" / "replaced.ndjson").read_text()
    assert '"digest": ""' in kept and str(place.env) in kept
