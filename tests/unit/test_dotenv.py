"""The managed .env file: our keys exactly once, everything else byte for byte, no secret in what is shown."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from ansible.module_utils.sluice.adapters.dotenv_file import DotenvFile
from ansible.module_utils.sluice.core import dotenv
from ansible.module_utils.sluice.core.errors import SluiceError
from hypothesis import given
from hypothesis import strategies as st

OURS = ("RQ_ENABLED", "RQ_REDIS_URL", "RQ_SHARE")
FOREIGN_LINES = st.one_of(
    st.sampled_from(
        [
            "", "   ", "# RQ_ENABLED=true", "#RQ_SHARE=1", "XRQ_ENABLED=1", "RQ_ENABLED_OLD=1", "RQ_SHARE.x=3",
            "export", "export RQ_SHARE", "NAME='it is'  # why", 'TEXT="two\nRQ_ENABLED=in\nlines"', "rq_enabled=lower",
            "PATHS='C:\\'", "\tTAB = x", "odd \udcff\udc80 bytes", "RQ_SHARE: yaml", "A=\x0bRQ_ENABLED=1",
            "B=\u2028RQ_SHARE=1",
        ]
    ),
    st.text(alphabet=st.characters(blacklist_characters="\n'\"", blacklist_categories=("Cs",)), max_size=20).filter(
        lambda line: not any(key in line for key in OURS)
    ),
)  # fmt: skip
OUR_VALUES = st.one_of(
    st.sampled_from(
        ["true", "", "redis://u:p%40w@h:6379/1", "a b", "# no comment", "it's", 'say "x"', "a=b", " edge "]
    ),
    st.text(alphabet="abc 01#=:/@.-'", max_size=12),
)
OUR_LINES = st.builds(
    lambda lead, key, middle, value, tail: f"{lead}{key}{middle}{value}{tail}",
    st.sampled_from(["", "export ", "  ", "export  "]),
    st.sampled_from(OURS),
    st.sampled_from(["=", " = ", "= "]),
    st.sampled_from(["", "old", "'old value'", '"old # x"', "'over\ntwo lines'", "#x"]),
    st.sampled_from(["", "  # note", " "]),
)
CHANGES = st.dictionaries(st.sampled_from(OURS), OUR_VALUES, min_size=1)


@st.composite
def env_texts(draw: st.DrawFn) -> tuple[str, str]:
    """A text, and the same without the lines that are ours."""
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = draw(
        st.lists(st.one_of(st.tuples(FOREIGN_LINES, st.just(True)), st.tuples(OUR_LINES, st.just(False))), max_size=8)
    )
    final = draw(st.booleans())
    whole, foreign = "", ""
    for number, (line, is_foreign) in enumerate(lines):
        text = line + (end if final or number + 1 < len(lines) else "")
        whole += text
        foreign += text if is_foreign else ""
    return whole, foreign


@given(env_texts(), st.lists(CHANGES, min_size=1, max_size=4))
def test_each_key_is_there_once_after_any_runs_and_nothing_else_changes(
    texts: tuple[str, str], runs: list[dict[str, str]]
) -> None:
    text, foreign = texts
    wanted: dict[str, str] = {}
    for values in runs:
        text = dotenv.merge(text, values)
        wanted |= values
        assert dotenv.merge(text, values) == text, "a second run changes nothing"
    for key, value in wanted.items():
        assert dotenv.count(text, key) == 1
        assert dotenv.read(text)[key] == value
    rest = dotenv.remove(text, OURS)
    # The one byte that may be added: an end to a last line that had none, so that a key can follow.
    assert rest in (foreign, foreign + "\n", foreign + "\r\n")
    assert rest == foreign or not foreign.endswith("\n")


@given(env_texts())
def test_removing_takes_our_lines_and_no_others(texts: tuple[str, str]) -> None:
    text, foreign = texts
    assert dotenv.remove(text, OURS) == foreign


@given(st.lists(st.tuples(st.sampled_from(OURS), st.sampled_from(["1", "2", "x y"])), min_size=1, max_size=6))
def test_the_last_of_several_assignments_counts(pairs: list[tuple[str, str]]) -> None:
    text = "".join(f"{key}='{value}'\n" for key, value in pairs)
    assert dotenv.read(text) == dict(pairs)


@given(OUR_VALUES)
@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell")
def test_a_shell_reads_the_value_that_was_set(value: str) -> None:
    text = dotenv.merge("", {"RQ_SHARE": value})
    done = subprocess.run(["sh", "-c", f'{text}\nprintf %s "$RQ_SHARE"'], capture_output=True, check=True)
    assert done.stdout.decode() == value


def test_prefix_spacing_comment_and_line_end_stay() -> None:
    text = "# head\r\nexport RQ_SHARE = 10  # percent\r\nOTHER=1\r\nRQ_SHARE=20\r\n"
    assert dotenv.merge(text, {"RQ_SHARE": "50"}) == "# head\r\nexport RQ_SHARE = 50  # percent\r\nOTHER=1\r\n"


def test_an_equal_value_keeps_its_notation() -> None:
    text = "RQ_SHARE='10'"
    assert dotenv.merge(text, {"RQ_SHARE": "10"}) == text


def test_a_shadowed_equal_value_is_not_taken_for_the_one_that_counts() -> None:
    assert dotenv.merge("RQ_SHARE=10\nRQ_SHARE=20\n", {"RQ_SHARE": "10"}) == "RQ_SHARE=10\n"


@pytest.mark.parametrize("value", ["two\nlines", "nul\0", "back\\slash", "${HOME}", "it's $x", 'it\'s "x"'])
def test_a_value_that_readers_understand_differently_is_refused(value: str) -> None:
    with pytest.raises(SluiceError, match="RQ_SHARE"):
        dotenv.merge("", {"RQ_SHARE": value})


def test_a_key_that_is_no_name_is_refused() -> None:
    with pytest.raises(SluiceError, match="RQ SHARE"):
        dotenv.merge("", {"RQ SHARE": "1"})


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("redis://user:pa/ss@host:6379/0", "redis://***@host:6379/0"),
        ("redis://:p@ss@host/0", "redis://***@host/0"),
        ("mysql+pymysql://u:p@h/d?password=x&ssl=1", "mysql+pymysql://***@h/d?password=***&ssl=1"),
        ("http://host/path", "http://host/path"),
    ],
)
def test_the_login_of_a_url_is_masked(value: str, shown: str) -> None:
    assert dotenv.masked(value) == shown


def test_a_changed_secret_is_seen_as_changed_and_nothing_of_it_is_shown() -> None:
    before, after = dotenv.masked_change("A_TOKEN=one\nB=1\n", "A_TOKEN=two\nB=1\n", ["A_TOKEN", "B"])
    assert (before, after) == ("A_TOKEN=***\nB=1\n", "A_TOKEN=*** (changed)\nB=1\n")


# -- the file -------------------------------------------------------------------------------------------------------


def test_the_file_is_replaced_once_with_mode_0600_and_one_backup(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    old = b"APP=\xff\xfe\nSECRET_THING=hush\nRQ_REDIS_URL=redis://u:oldpass@h/0\n"
    path.write_bytes(old)
    path.chmod(0o400)
    file = DotenvFile(path)
    values = {"RQ_REDIS_URL": "redis://u:newpass@h/1", "RQ_ENABLED": "false"}
    planned = file.apply(values, run_id="r1", check_mode=True)
    assert planned.changed
    assert path.read_bytes() == old
    assert [found.name for found in tmp_path.iterdir()] == [".env"]
    done = file.apply(values, run_id="r1")
    assert (done.before, done.after) == (planned.before, planned.after)
    assert (
        path.read_bytes() == b"APP=\xff\xfe\nSECRET_THING=hush\nRQ_REDIS_URL=redis://u:newpass@h/1\nRQ_ENABLED=false\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    [backup] = [p for p in tmp_path.iterdir() if p != path]
    assert str(backup) == done.backup
    assert "r1" in backup.name
    assert backup.read_bytes() == old
    assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    for secret in ("oldpass", "newpass", "hush"):
        assert secret not in done.before + done.after
    again = file.apply(values, run_id="r1")
    assert not again.changed
    assert len(list(tmp_path.iterdir())) == 2
    more = file.apply({"RQ_ENABLED": "true"}, run_id="r1", absent=["RQ_REDIS_URL"])
    assert more.changed
    assert Path(more.backup).read_bytes().endswith(b"RQ_ENABLED=false\n")
    assert file.read()["RQ_ENABLED"] == "true"
    assert "RQ_REDIS_URL" not in file.read()


@pytest.mark.parametrize(("mode", "wanted"), [(0o400, 0o600), (0o700, 0o600), (0o660, 0o640), (0o440, 0o640)])
def test_a_wrong_mode_alone_is_a_change(tmp_path: Path, mode: int, wanted: int) -> None:
    path = tmp_path / ".env"
    path.write_text("RQ_SHARE=1\n")
    path.chmod(mode)
    assert DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r").changed
    assert stat.S_IMODE(path.stat().st_mode) == wanted
    assert not DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r").changed


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o666])
@pytest.mark.parametrize("check_mode", [True, False])
def test_a_file_that_everybody_may_read_is_refused_and_left_alone(tmp_path: Path, mode: int, check_mode: bool) -> None:
    """Who reads it by that right cannot be seen: taking it away has stopped an application."""
    path = tmp_path / ".env"
    path.write_text("RQ_SHARE=1\n")
    path.chmod(mode)
    with pytest.raises(SluiceError, match=r"everybody may read it .* Next: give the file to the application's account"):
        DotenvFile(path).apply({"RQ_SHARE": "2"}, run_id="r", check_mode=check_mode)
    # Nor is it touched when it says already what it shall: a run that was refused is taken back this way.
    assert not DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r").changed
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode)) == ("RQ_SHARE=1\n", mode)
    assert list(tmp_path.iterdir()) == [path]


def test_an_application_that_reads_its_settings_by_their_group_still_can(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("RQ_SHARE=1\n")
    path.chmod(0o640)
    done = DotenvFile(path).apply({"RQ_SHARE": "2"}, run_id="r")
    assert done.changed
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(Path(done.backup).stat().st_mode) == 0o600


def test_a_new_file_is_private_and_has_no_backup(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    done = DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r")
    assert (done.changed, done.backup) == (True, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("A=1\n")
    (tmp_path / "real").chmod(0o600)
    (tmp_path / ".env").symlink_to("real")
    DotenvFile(tmp_path / ".env").apply({"RQ_SHARE": "1"}, run_id="r")
    assert (tmp_path / ".env").is_symlink()
    assert (tmp_path / "real").read_text() == "A=1\nRQ_SHARE=1\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="giving files away needs root")
def test_the_owner_stays(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o600)
    os.chown(path, 12345, 23456)
    done = DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r")
    for file in (path, Path(done.backup)):
        assert (file.stat().st_uid, file.stat().st_gid) == (12345, 23456)


def test_a_missing_folder_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(SluiceError, match="cannot be written"):
        DotenvFile(tmp_path / "none" / ".env").apply({"RQ_SHARE": "1"}, run_id="r")


def test_a_change_made_meanwhile_is_not_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".env"
    path.write_text("A=1\n")
    path.chmod(0o600)
    real = DotenvFile._back_up

    def other_editor(self: DotenvFile, *arguments: object) -> str:
        path.write_text("A=2 by someone else\n")
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(DotenvFile, "_back_up", other_editor)
    with pytest.raises(SluiceError, match="someone else"):
        DotenvFile(path).apply({"RQ_SHARE": "1"}, run_id="r")
    assert path.read_text() == "A=2 by someone else\n"


def test_what_is_written_is_read_again_whatever_else_was_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last word: a file in which our own key would be read differently is not written."""
    monkeypatch.setattr(dotenv, "_check_kept", lambda *_: None)
    with pytest.raises(SluiceError, match="a quote is opened and not closed, so that RQ_SHARE would be read"):
        dotenv.merge("A='open\n", {"RQ_SHARE": "' #"})


def test_a_key_that_was_assigned_twice_is_said_so_in_the_diff() -> None:
    before, after = dotenv.masked_change("A=1\nA=2\n", "A=2\n", ["A", "B"])
    assert before == "A=2\nA is assigned 2 times\n"
    assert after == "A=2\n"


def test_a_quote_that_would_take_our_line_in_is_refused() -> None:
    with pytest.raises(SluiceError, match="a quote is opened and not closed, so that A would be read differently"):
        dotenv.merge("A='open\n", {"RQ_SHARE": "' #"})


def test_half_a_surrogate_pair_is_no_value() -> None:
    with pytest.raises(SluiceError, match="RQ_SHARE has half a surrogate pair"):
        dotenv.merge("", {"RQ_SHARE": "\ud800"})


@pytest.mark.parametrize("first", ["A='x\\'", 'A="x\\"y"', "A='x\\' # note"])
def test_a_backslash_before_a_quote_hides_no_line_that_follows(first: str) -> None:
    """For a shell it escapes nothing between single quotes, and a double quote between double ones."""
    text = f"{first}\nRQ_SHARE=0\n"
    assert dotenv.read(text)["RQ_SHARE"] == "0"
    assert dotenv.merge(text, {"RQ_SHARE": "50"}) == f"{first}\nRQ_SHARE=50\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("RQ_SHARE= # none\n", ""),
        ("RQ_SHARE=#5\n", "#5"),
        ("RQ_SHARE='a\\' b\n", "'a\\' b"),
        ("RQ_SHARE='a' b\n", "'a' b"),
        ('RQ_SHARE="a" b\n', '"a" b'),
    ],
)
def test_what_a_line_of_others_says(text: str, value: str) -> None:
    """A comment needs white space before it; a quote behind which more follows is none."""
    assert dotenv.read(text) == {"RQ_SHARE": value}


@pytest.mark.parametrize(("text", "ended"), [("A=1", "A=1\n"), ("A=1\r\nB=2", "A=1\r\nB=2\r\n"), ("", "")])
def test_a_last_line_without_an_end_gets_one(text: str, ended: str) -> None:
    end = "\r\n" if "\r\n" in text else "\n"
    assert dotenv.merge(text, {"RQ_SHARE": "50"}) == f"{ended}RQ_SHARE=50{end}"


@pytest.mark.parametrize(("value", "written"), [("50", "50"), ("x y", "'x y'"), ("it's", '"it\'s"')])
def test_a_value_is_written_as_every_reader_takes_it(value: str, written: str) -> None:
    assert dotenv.merge("", {"RQ_SHARE": value}) == f"RQ_SHARE={written}\n"
