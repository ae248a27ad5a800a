"""What a process does beside computing: files, connections, words."""

import contextlib
import io
import os
import pathlib
import sys
import tempfile

WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Event, and how many of its arguments are paths that it changes.
CHANGES = {"os.mkdir": 1, "os.rename": 2, "os.remove": 1, "os.rmdir": 1}
OUTSIDE = (
    "os.system",
    "os.posix_spawn",
    "socket.bind",
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "subprocess.Popen",
    "urllib.Request",
)
# Of TensorFlow, for any model: the Python that it makes of Python.
OF_BACKENDS = "__autograph_generated_file"


class Audit:
    """Notes what happens in it that has no place in a training.

    Files that are written by C libraries past Python are seen by what the
    folders of `watched` hold before and after.

    Args:
        allowed: Paths of folders that may be written in.
        watched: Paths of folders that may not change.
    """

    def __init__(self, allowed, watched=()):
        self.allowed = [pathlib.Path(p).resolve() for p in allowed]
        self.watched = watched
        self.found, self._on = [], False
        sys.addaudithook(self._see)

    @contextlib.contextmanager
    def __call__(self, name, *also):
        """Notes under `name`; `also` are further folders to write in."""
        self._places = [*self.allowed, *(pathlib.Path(p) for p in also)]
        before = [_content(folder) for folder in self.watched]
        errors, self._name = io.StringIO(), name
        with tempfile.TemporaryFile(dir=self.allowed[0]) as output:
            with _into(output), contextlib.redirect_stderr(errors):
                self._on = True
                try:
                    yield
                finally:
                    self._on = False
            output.seek(0)
            words = output.read().decode() + errors.getvalue()
        if words:
            self._note(f"said {words[:300]!r}")
        for folder, files in zip(self.watched, before):
            if _content(folder) != files:
                self._note(f"changed {_content(folder) ^ files}")

    def _note(self, what):
        self.found.append(f"{self._name}: {what}")

    def _see(self, event, arguments):
        if not self._on:
            return
        if event in OUTSIDE:
            self._note(f"{event} {arguments!r:.200}")
        elif event == "open" and arguments[2] and arguments[2] & WRITE:
            self._check(event, arguments[0])
        elif event in CHANGES and arguments[-1] < 0:  # in no open folder
            for path in arguments[: CHANGES[event]]:
                self._check(event, path)

    def _check(self, event, path):
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # an open file
        name = os.fsdecode(path)
        if name == os.devnull or OF_BACKENDS in name:
            return
        resolved = pathlib.Path(os.path.realpath(name))
        if not any(resolved.is_relative_to(a) for a in self._places):
            self._note(f"{event} {name}")


def _content(folder):
    paths = pathlib.Path(folder).rglob("*")
    return {str(p) for p in paths if OF_BACKENDS not in p.name}


@contextlib.contextmanager
def _into(file):
    """Sends what is written to the standard output into a file."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(file.fileno(), 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
