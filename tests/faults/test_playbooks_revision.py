"""``prepare.yml`` keeps the settings before it writes them; the role puts them back byte for byte, killed or not."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.playbook_lab import PlaybookLab, lab_in
from oracle.patience import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
FOREIGN = b"# ours\r\nODD='a b'\r\nUMLAUT=\xff\nLAST=no newline"
BACK = """
- name: "1/1 | Put the files back"
  hosts: app
  gather_facts: false
  any_errors_fatal: true
  tasks:
    - name: Put the files back
      ansible.builtin.import_role:
        name: queue_revision
      vars:
        queue_revision_state: "{{ wanted }}"
    - name: Say what the ledger would keep
      ansible.builtin.debug:
        var: queue_revision_evidence
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaybookLab]:
    with lab_in(tmp_path_factory.mktemp("rv")) as made:
        yield made


def test_what_a_run_changed_comes_back(lab: PlaybookLab, tmp_path: Path) -> None:
    env = lab.layout.env_file
    with env.open("ab") as file:
        file.write(FOREIGN)
    before, inode = env.read_bytes(), env.stat().st_ino
    folder = lab.layout.backups / "revisions"

    dry = lab.run("prepare", "--check").done()
    assert "would be kept" in dry.output
    assert not folder.exists()

    # Killed as soon as the settings are being written; the same command goes on with the archive that is there.
    run = lab.start("prepare")
    until(lambda: env.stat().st_ino != inode or run.process.poll() is not None, "the settings are written")
    run.end()
    until(lambda: env.read_bytes() != before, "the settings were written")
    (archive,) = (path for path in folder.iterdir() if path.name != ".lock")
    manifest = (archive / "manifest.json").read_bytes()
    lab.run("prepare").done()
    assert lab.phase == "prepared"
    assert [path.name for path in folder.iterdir() if path.name != ".lock"] == [archive.name]
    assert (archive / "manifest.json").read_bytes() == manifest
    assert b"RQ_REDIS_URL" in env.read_bytes()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    book = tmp_path / "back.yml"
    book.write_text(BACK)
    given = {
        "queue_run_owner": "nobody", "queue_run_id": "back", "queue_revision_run": archive.name,
        "queue_revision_shown": ["RQ_ENABLED"],
    }  # fmt: skip
    secret = next(line for line in env.read_text(errors="replace").splitlines() if line.startswith("RQ_REDIS_URL"))
    checked = lab.run(str(book), wanted="checked", **given).done()
    assert f"{env}: content" in checked.output
    assert checked.changed == 0
    dry = lab.run(str(book), "--check", "--diff", wanted="restored", **given).done()
    assert "1 would be put back" in dry.output and "RQ_REDIS_URL=***" in dry.output
    assert secret.partition("=")[2].strip("'\"") not in dry.output
    assert env.read_bytes() != before
    restored = lab.run(str(book), wanted="restored", **given).done()
    assert restored.changed == 1
    assert f"archive: {archive}" in restored.output
    assert env.read_bytes() == before
    assert lab.run(str(book), wanted="restored", **given).done().changed == 0

    kept = next(archive.glob("contents/*"))
    kept.write_bytes(b"spoiled")
    lab.run(str(book), wanted="restored", **given).refused("does not match its digest", "nothing was changed")
    assert env.read_bytes() == before
    assert os.access(archive / "replaced-back" / "replaced.ndjson", os.R_OK)
