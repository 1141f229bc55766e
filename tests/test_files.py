"""Files: read whole, written whole or not at all, and words for what the system refuses."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from profusion_cli import files as module
from profusion_cli import listener
from profusion_cli.console import Output
from profusion_cli.errors import InputError, OutputError, UsageError
from profusion_cli.files import atomic_output, check_output, check_target, locked, read_source, remove_parts, sha256_of

FULL = OSError(errno.ENOSPC, "No space left on device")
as_user = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
posix = pytest.mark.skipif(sys.platform == "win32", reason="files that are open cannot be removed there")


class Stream(io.BytesIO):
    """The bytes below a standard stream; `failure` comes out of every write."""

    failure: OSError | None = None
    terminal = False

    @property
    def buffer(self):
        return self

    def isatty(self):
        return self.terminal

    def write(self, data):
        if self.failure:
            raise self.failure
        return super().write(data)


@pytest.fixture
def stdin(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdin=stream))
    return stream


@pytest.fixture
def stdout(monkeypatch):
    stream = Stream()
    monkeypatch.setattr(module, "sys", SimpleNamespace(stdout=stream))  # pytest has sys.stdout for itself
    return stream


def test_sha256():
    assert sha256_of(b"abc") == sha256_of(memoryview(b"abc"))
    assert sha256_of(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- reading ----------------------------------------------------------------------------------


def test_a_file_that_changes_later(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"data")
    data = read_source(str(path))
    path.write_bytes(b"other")
    assert data == b"data"


def test_standard_input(stdin):
    stdin.write(b"data")
    stdin.seek(0)
    assert read_source("-") == b"data"


def test_standard_input_without_data(stdin):
    with pytest.raises(InputError, match="Standard input is empty"):
        read_source("-")
    stdin.terminal = True
    with pytest.raises(InputError, match="terminal"):
        read_source("-")


def test_a_pipe_with_a_name(tmp_path):
    """`<(command)` of a shell: a file of size 0 that has data."""
    for data in (b"data", b""):
        read, write = os.pipe()
        os.write(write, data)
        os.close(write)
        try:
            if data:
                assert read_source(f"/dev/fd/{read}") == data
            else:
                with pytest.raises(InputError, match="is empty"):
                    read_source(f"/dev/fd/{read}")
        finally:
            os.close(read)


def test_what_cannot_be_read(tmp_path):
    (tmp_path / "empty").touch()
    for name, words in (("empty", "is empty"), ("none", "There is no file"), ("", "is a folder")):
        with pytest.raises(InputError, match=words) as caught:
            read_source(str(tmp_path / name))
        assert str(tmp_path / name) in caught.value.message.replace(f"{tmp_path}'", f"{tmp_path}/'")
    with pytest.raises(InputError, match=f"cannot be read: {os.strerror(errno.ENAMETOOLONG)}"):
        read_source("a" * 300)


def test_devices_and_impossible_names():
    with pytest.raises(InputError, match="is a device"):
        read_source("/dev/zero")
    with pytest.raises(InputError, match="There is no file"):
        read_source("a\0b")


def test_a_file_of_more_than_any_input_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.touch()
    os.truncate(path, module.MAX_OTHER + 1)  # of which the disk holds nothing
    with pytest.raises(InputError, match="more than 1 GiB, and no input but a bundle"):
        read_source(str(path))
    monkeypatch.setattr(module, "MAX_OTHER", 10)
    path.write_bytes(b"PK\x03\x04 and more than ten")
    assert len(read_source(str(path))) == 22
    monkeypatch.setattr(module, "MAX_BUNDLE", 20)
    with pytest.raises(InputError, match="no bundle may be larger"):
        read_source(str(path))


def test_a_pipe_without_an_end(monkeypatch, stdin):
    """No more is read of it than an input may hold."""
    monkeypatch.setattr(module, "MAX_OTHER", 3 * module.CHUNK)
    taken = []
    monkeypatch.setattr(stdin, "read", lambda size: taken.append(size) or bytes(size), raising=False)
    with pytest.raises(InputError, match="Standard input has more than"):
        read_source("-")
    assert sum(taken) == 4 * module.CHUNK


@pytest.mark.parametrize(("patience", "told"), [(0.01, True), (60, False)])
def test_what_a_pipe_without_a_writer_waits_for(tmp_path, monkeypatch, capsys, patience, told):
    monkeypatch.setattr(listener, "PATIENCE", patience)
    path = tmp_path / "pipe"
    os.mkfifo(path)
    later = threading.Timer(0.3, path.write_bytes, (b"data",))
    later.start()
    with listener.hearing(Output()):
        assert read_source(str(path)) == b"data"
    later.join()
    assert ("Waiting for somebody to write into the pipe" in capsys.readouterr().err) == told


@as_user
def test_a_file_without_permission(tmp_path):
    (tmp_path / "a").touch(0o200)
    with pytest.raises(InputError, match=f"cannot be read: {os.strerror(errno.EACCES)}"):
        read_source(str(tmp_path / "a"))


# --- checking before the work -----------------------------------------------------------------


def test_check_output(tmp_path):
    path = tmp_path / "a"
    check_output(path, False)
    check_output(tmp_path / "new" / "newer" / "a", False)
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, True)
    path.touch()
    with pytest.raises(OutputError, match="already exists") as caught:
        check_output(path, False)
    assert "--force" in caught.value.hint
    check_output(path, True)
    with pytest.raises(OutputError, match=os.strerror(errno.ENOTDIR)):
        check_output(path / "b", True)
    with pytest.raises(OutputError, match=os.strerror(errno.ENAMETOOLONG)):
        check_output(tmp_path / ("b" * 300), False)
    with pytest.raises(OutputError, match="not a regular file"):
        check_output(Path(os.devnull), True)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_link_stays_a_link(tmp_path):
    """Writing through a link changes the file that it names."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(OutputError, match="already exists"), atomic_output(tmp_path / "link"):
        pass
    with atomic_output(tmp_path / "link", force=True) as file:
        file.write(b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@as_user
def test_check_output_in_a_folder_without_permission(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(0o500)
    with pytest.raises(OutputError, match="is not a writable folder"):
        check_output(folder / "new" / "a", False)


def test_check_target(tmp_path, stdout):
    check_target("-", False)
    check_target(str(tmp_path / "a"), False, as_json=True)
    with pytest.raises(UsageError):
        check_target("-", False, as_json=True)
    with pytest.raises(OutputError, match="is a folder"):
        check_target(str(tmp_path), False)
    stdout.terminal = True
    with pytest.raises(OutputError, match="terminal"):
        check_target("-", False)


# --- writing files ----------------------------------------------------------------------------


def test_the_file_appears_at_the_end_and_whole(tmp_path):
    path = tmp_path / "new" / "newer" / "a"
    with atomic_output(path) as file:
        file.write(b"data")
        file.seek(0)
        assert file.read() == b"data"
        assert not path.exists()
    assert path.read_bytes() == b"data"
    assert [file.name for file in path.parent.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a" * 255, "é" * 127, "脸" * 85])
def test_the_longest_names(tmp_path, name):
    path = tmp_path / name
    with atomic_output(path) as file:
        file.write(b"data")
    assert path.read_bytes() == b"data"


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="already exists"), atomic_output(path):
        pytest.fail("the block must not begin")
    assert path.read_bytes() == b"mine"
    with atomic_output(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("existing", [None, b"mine"])
@pytest.mark.parametrize(
    ("failure", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("a bug"), ValueError), (FULL, OutputError)],
)
def test_whatever_goes_wrong_leaves_nothing_behind(tmp_path, failure, raised, existing):
    path = tmp_path / "a"
    if existing:
        path.write_bytes(existing)
    with pytest.raises(raised), atomic_output(path, force=True) as file:
        file.write(b"half")
        file.flush()
        assert len(list(tmp_path.iterdir())) == (2 if existing else 1)
        raise failure
    assert [file.name for file in tmp_path.iterdir()] == (["a"] if existing else [])
    assert not existing or path.read_bytes() == existing


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
@pytest.mark.parametrize("failure", [FULL, KeyboardInterrupt()])
def test_failures_after_the_block_leave_nothing_behind(tmp_path, monkeypatch, call, failure):
    path = tmp_path / "a"
    path.write_bytes(b"mine")

    def fail(*arguments):
        raise failure

    monkeypatch.setattr(os, call, fail)
    with (
        pytest.raises(OutputError if failure is FULL else KeyboardInterrupt),
        atomic_output(path, force=True) as file,
    ):
        file.write(b"new")
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_bytes() == b"mine"


def test_a_file_that_appears_meanwhile_stays(tmp_path):
    path = tmp_path / "a"
    with pytest.raises(OutputError, match="appeared while the command ran"), atomic_output(path) as file:
        file.write(b"new")
        path.write_bytes(b"mine")
    assert path.read_bytes() == b"mine"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_file_systems_without_hard_links(tmp_path, monkeypatch):
    def link(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    with atomic_output(tmp_path / "a") as file:
        file.write(b"data")
    assert (tmp_path / "a").read_bytes() == b"data"
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_follow_the_umask(tmp_path, umask, mode, force):
    before = os.umask(umask)
    try:
        with atomic_output(tmp_path / "a", force):
            pass
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_words_for_a_full_disk(tmp_path, number):
    with pytest.raises(OutputError) as caught, atomic_output(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert caught.value.message == f"'{tmp_path / 'a'}' cannot be written: no space left on the device."
    assert caught.value.hint == "Free some space or choose another place."
    assert caught.value.exit_code == 9


def test_words_for_other_failures(tmp_path):
    with (
        pytest.raises(OutputError, match=f"written: {os.strerror(errno.EIO)}") as caught,
        atomic_output(tmp_path / "a"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.hint == "Choose another place."
    with (
        pytest.raises(OutputError, match=f"cannot be written: {os.strerror(errno.ENAMETOOLONG)}"),
        atomic_output(tmp_path / ("a" * 300)),
    ):
        pytest.fail("the block must not begin")


@posix
def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path):
    code = "import os, signal, sys; from profusion_cli.files import atomic_output\n"
    code += "with atomic_output(sys.argv[1]) as file: file.write(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=Path(module.__file__).parents[1])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_output(tmp_path / "b") as file:
        file.write(b"whole")
        file.flush()
        with atomic_output(tmp_path / "c"):  # which leaves alone what is still being written
            pass
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"b": b"whole", "c": b""}


@posix
def test_a_part_that_was_taken_for_dead_before_it_was_locked_is_made_again(tmp_path, monkeypatch):
    make = tempfile.mkstemp
    made = []

    def unlucky(*arguments):
        handle, name = make(*arguments)
        made.append(name)
        if len(made) == 1:
            remove_parts(tmp_path)
        return handle, name

    monkeypatch.setattr(tempfile, "mkstemp", unlucky)
    with atomic_output(tmp_path / "a") as file:
        file.write(b"data")
    assert len(made) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"data"


@posix
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_nothing_is_taken_for_dead_where_there_are_no_locks(tmp_path, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    (tmp_path / ".profusion-1.part").touch()
    with atomic_output(tmp_path / "a"), atomic_output(tmp_path / "b"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".profusion-1.part", "a", "b"}


# --- writing to standard output ---------------------------------------------------------------


def test_standard_output_comes_at_the_end_and_whole(stdout):
    data = os.urandom(3 << 20)
    with atomic_output("-") as file:
        file.write(data)
        file.seek(0)
        assert file.read(10) == data[:10]
        assert not stdout.getvalue()
    assert stdout.getvalue() == data


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("a bug"), FULL])
def test_standard_output_stays_empty_when_the_block_fails(stdout, failure):
    with pytest.raises(OutputError if failure is FULL else type(failure)), atomic_output("-") as file:
        file.write(b"half")
        raise failure
    assert not stdout.getvalue()


@pytest.mark.parametrize("failure", [FULL, OSError(errno.EIO, "Input/output error")])
def test_standard_output_on_a_full_disk(stdout, failure):
    stdout.failure = failure
    with pytest.raises(OutputError, match="Standard output cannot be written: ") as caught, atomic_output("-") as file:
        file.write(b"data")
    assert ("no space left" in caught.value.message) == (failure is FULL)


def test_no_room_to_spool(stdout, monkeypatch):
    def full():
        raise FULL

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with (
        pytest.raises(OutputError, match="Standard output cannot be written: no space left on the device"),
        atomic_output("-"),
    ):
        pytest.fail("the block must not begin")


def test_a_broken_pipe_is_no_failure_of_ours(stdout):
    stdout.failure = BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(BrokenPipeError) as caught, atomic_output("-") as file:
        file.write(b"data")
    assert caught.value is stdout.failure


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("size", [10, 5000, 100_000, 5 << 20])
def test_a_full_disk_in_a_process_of_its_own(size):
    """The error comes once, and the exit code stays: nothing is left in a buffer to fail again at exit."""
    code = f"""
import sys
from profusion_cli.errors import OutputError
from profusion_cli.files import atomic_output
try:
    with atomic_output("-") as file:
        file.write(bytes({size}))
except OutputError as error:
    sys.stderr.write(error.message)
    sys.exit(error.exit_code)
"""
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, cwd=Path(module.__file__).parents[1]
        )
    assert (done.returncode, done.stderr) == (9, b"Standard output cannot be written: no space left on the device.")


# Locks


def test_a_folder_is_locked_for_others_until_the_block_ends_and_nothing_is_left(tmp_path):
    code = "import sys; from pathlib import Path; from profusion_cli.files import locked\n"
    code += "with locked(Path(sys.argv[1]), 'taken', 'wait'): pass"
    other = [sys.executable, "-c", code, str(tmp_path)]
    with locked(tmp_path, "mine", ""):
        refused = subprocess.run(other, capture_output=True, text=True)
        assert refused.returncode != 0 and "OutputError: taken" in refused.stderr
        with pytest.raises(OutputError, match=r"^twice$"), locked(tmp_path, "twice", ""):
            pytest.fail("the block must not begin")
    assert not list(tmp_path.iterdir())
    subprocess.run(other, check=True)
    with pytest.raises(KeyError), locked(tmp_path, "mine", ""):
        raise KeyError
    subprocess.run(other, check=True)


def test_a_folder_that_cannot_be_written_is_told_of(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"), locked(tmp_path / "file", "mine", ""):
        pytest.fail("the block must not begin")


@pytest.mark.skipif(sys.platform == "win32", reason="locks differently")
@pytest.mark.filterwarnings("ignore:flock not supported")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_worked_on_all_the_same(tmp_path, monkeypatch, code):
    def refused(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refused)
    for _ in range(2):
        with locked(tmp_path, "mine", ""):
            (tmp_path / "work").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_one_thread_at_a_time_reads_the_mask_of_new_files(tmp_path, monkeypatch):
    """It must be set for that, and another thread would take it for what it is."""
    held, umask = [], os.umask
    monkeypatch.setattr(os, "umask", lambda mask: held.append(module._UMASK.locked()) or umask(mask))
    with atomic_output(tmp_path / "x") as file:
        file.write(b"x")
    assert held == [True, True] and not module._UMASK.locked()
