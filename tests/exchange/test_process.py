"""What services need of the system around them."""

import os
import resource
import socket
import sys
from pathlib import Path

import pytest

from exchange.process import notify, raise_open_files, say


def test_notify_writes_to_the_socket_that_systemd_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert heard.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(f"\0brier-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@brier-test-{os.getpid()}")
        notify("STOPPING=1")
        assert heard.recv(100) == b"STOPPING=1"


def test_a_reader_that_has_gone_is_no_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    say("a line")
    assert capsys.readouterr().out == "a line\n"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        say("nobody reads this")
        monkeypatch.undo()
        os.dup2(os.open(os.devnull, os.O_WRONLY), pipe.fileno())


def test_open_files_are_raised_as_far_as_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [100, 1_000]

    def change(what: int, wanted: tuple[int, int]) -> None:
        assert what == resource.RLIMIT_NOFILE
        limits[:] = wanted

    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr(resource, "setrlimit", change)
    assert raise_open_files(80) == 80
    assert limits == [100, 1_000]
    assert raise_open_files(500) == 500
    assert limits == [500, 1_000]
    assert raise_open_files(5_000) == 1_000
    assert limits == [1_000, 1_000]
    limits[:] = 100, resource.RLIM_INFINITY
    assert raise_open_files(5_000) == 5_000
    limits[:] = resource.RLIM_INFINITY, resource.RLIM_INFINITY
    assert raise_open_files(9_000) == 9_000
