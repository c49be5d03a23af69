"""What Windows lacks is not asked for: seen in the source, since nothing of it runs there in these tests."""

from __future__ import annotations

import ast
import os
import socket
import time
from pathlib import Path

import pytest

from SegGuidedMMRegLib.jobs import results

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    path for folder in ("SegGuidedMMRegLib", "SegGuidedMMReg") for path in (ROOT / folder).rglob("*.py")
)
POSIX_ONLY = {
    "signal": {"SIGKILL", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGCHLD", "SIGALRM", "alarm",
               "pthread_kill", "pause", "sigwait"},
    "os": {"fork", "getuid", "geteuid", "getpgid", "setsid", "killpg", "statvfs", "sched_getaffinity",
           "sysconf", "nice", "mkfifo"},
}  # fmt: skip
MODULES = {"fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix"}
AFTER_LINUX_ALONE = {("environment.py", "sysconf")}
"""Calls that come after a look into /proc, or in a block that bears it when they fail."""


def asked_for(path: Path) -> set[tuple[str, str]]:
    """(module, name) of what only POSIX has, where the file does not ask first whether it is there."""
    text = path.read_text(encoding="utf-8")
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module, name = node.value.id, node.attr
            is_looked_for = f'hasattr({module}, "{name}")' in text or (path.name, name) in AFTER_LINUX_ALONE
            if name in POSIX_ONLY.get(module, ()) and not is_looked_for:
                found.add((module, name))
        if isinstance(node, ast.Import):
            found |= {("import", each.name) for each in node.names if each.name in MODULES}
    return found


def test_what_only_posix_has_is_seen(tmp_path):
    """The look below would find something."""
    path = tmp_path / "a.py"
    path.write_text("import os, signal, fcntl\nos.getuid()\nx = -signal.SIGKILL\n")
    assert asked_for(path) == {("os", "getuid"), ("signal", "SIGKILL"), ("import", "fcntl")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_what_only_posix_has_is_not_asked_for(path):
    assert asked_for(path) == set()


def test_where_processes_cannot_be_asked_what_is_unfinished_goes_after_a_day(tmp_path, monkeypatch):
    """On Windows the question itself would be Ctrl-C."""
    monkeypatch.setattr(results, "_CAN_ASK", False)
    monkeypatch.setattr(os, "kill", lambda *_: pytest.fail("a process was asked"))
    host = socket.gethostname().replace("--", "-")
    young, old = (tmp_path / f".unfinished--{host}--{pid}--abc" for pid in (1, 2))
    for folder in (young, old):
        folder.mkdir()
    long_ago = time.time() - 25 * 3600
    os.utime(old, (long_ago, long_ago))
    results.remove_unfinished(tmp_path)
    assert young.is_dir()
    assert not old.exists()
