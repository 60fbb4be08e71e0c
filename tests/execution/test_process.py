"""The temporary folder of a process."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from lowbit.execution.process import use_own_temporary_folder

SOCKET = "/pymp-12345678/listener-12345678"  # what multiprocessing makes there


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch):
    """A short folder that stands for /tmp; pytest's are too long."""
    folder = tempfile.mkdtemp(dir="/tmp", prefix="t")
    monkeypatch.setattr(tempfile, "tempdir", folder)
    monkeypatch.setenv("TMPDIR", folder)
    monkeypatch.setattr(atexit, "register", lambda *_, **__: None)
    monkeypatch.setattr("socket.gethostname", lambda: 64 * "h")
    use_own_temporary_folder.cache_clear()
    yield Path(folder)
    use_own_temporary_folder.cache_clear()
    shutil.rmtree(folder)


def test_sockets_of_workers_fit_into_the_folder_of_a_process(temporary: Path):
    """A path of a socket has at most 107 bytes; a worker without its socket waits for ever."""
    for _ in range(3):  # several runs in one process, as `-m` has them
        use_own_temporary_folder()
    (mine,) = temporary.iterdir()
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(mine)
    use_own_temporary_folder.cache_clear()
    use_own_temporary_folder()  # a child's would lie in its parent's
    assert len(tempfile.gettempdir() + SOCKET) <= 107


def test_the_folder_of_a_process_that_was_killed_goes(temporary: Path):
    use_own_temporary_folder()
    (mine,) = temporary.iterdir()
    dead = mine.with_name(mine.name.replace(f"-{os.getpid()}-", "-4194999-"))
    dead.mkdir()
    tempfile.tempdir = str(temporary)
    use_own_temporary_folder.cache_clear()
    use_own_temporary_folder()
    assert not dead.exists()
    assert mine.exists()


def test_a_folder_with_a_long_name_is_used_as_it_is(temporary: Path):
    tempfile.tempdir = str(temporary / (60 * "x"))
    Path(tempfile.tempdir).mkdir()
    use_own_temporary_folder()
    assert not list(Path(tempfile.tempdir).iterdir())
