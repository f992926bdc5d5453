"""The real cloud server in a process of its own, on loopback, for as long as it is needed."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from edge_runtime.errors import EnvironmentFailure


class ServerProcess:
    """`costeer serve` as a context manager; `url` is where it answers."""

    def __init__(self, model: str, *, patience_s: float = 180.0) -> None:
        self._model, self._patience_s = model, patience_s
        self._port = _free_port()
        self.url = f"ws://127.0.0.1:{self._port}"
        self._said = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __exit__
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ServerProcess:
        command = [sys.executable, "-m", "costeer", "serve", "--model", self._model]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        self._process = subprocess.Popen(command, stdout=self._said, stderr=self._said)
        return self

    def wait(self, tell: Callable[[float], None] = lambda seconds: None) -> None:
        """Return when the server answers; `tell` is called with the seconds so far.

        Raises `EnvironmentFailure` with the server's own last line when it ends instead.
        """
        assert self._process is not None
        began = time.monotonic()
        while (waited := time.monotonic() - began) < self._patience_s:
            if self._process.poll() is not None:
                raise EnvironmentFailure("server", f"it did not start: {self._last_line()}")
            with socket.socket() as probe:
                probe.settimeout(1.0)
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            tell(waited)
            time.sleep(0.1)
        raise EnvironmentFailure("server", "it did not start in time", got=f"{waited:.0f} s")

    def __exit__(self, *_: object) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._said.close()

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "no reason given")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
