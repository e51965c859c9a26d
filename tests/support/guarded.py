"""A nats-server under the configuration for production, with the credentials of every role."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omnibus.broker.listening import free_port
from omnibus.broker.nats_access import Access
from omnibus.broker.server_binary import find_binary
from tests.support.served import omnibus

PIPELINE = """
name: guarded
deadline: 60s
heartbeat_timeout: 2s
stages:
- {stage_id: 0, name: first, engine: sim, slots: 2, engine_args: {hang_on: {rid: ^hang}}}
- {stage_id: 1, name: second, engine: python, model: "tests.support.whoami:answer", input_sources: [0], lb_policy: round-robin,
   final_output: true, final_output_type: text, engine_args: {outputs: {text: text}}}
"""


class Guarded:
    """A server with production.conf, and the folder with everybody's credentials."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.keys, self.port = folder, folder / "keys", free_port()
        self.file = folder / "guarded.yaml"
        self.file.write_text(PIPELINE)
        self.config = self.keys / "production.conf"
        self.server: subprocess.Popen[bytes] | None = None
        self.url = f"tls://127.0.0.1:{self.port}"

    def environment(self) -> dict[str, str]:
        return {"OMNIBUS_NATS_CREDENTIALS": str(self.keys), "OMNIBUS_STATE_DIR": str(self.folder / "none")}

    def reload(self, text: str) -> None:
        """Have the server take over another configuration."""
        self.config.write_text(text)
        assert self.server is not None
        self.server.send_signal(signal.SIGHUP)

    def access(self, user: str) -> Access:
        return Access(credentials=self.keys / f"{user}.nk")


@contextmanager
def guarded_server(folder: Path) -> Iterator[Guarded]:
    """Run one with everything that it needs in a folder."""
    made = Guarded(folder)
    given = omnibus("nats", "credentials", "all", "-p", str(made.file), "--dir", str(made.keys), nats="")
    assert given.returncode == 0, given.stderr
    command = [find_binary(None), "-c", made.config, "-a", "127.0.0.1", "-p", str(made.port)]
    with (made.folder / "nats.log").open("wb") as log:
        server = made.server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield made
    finally:
        server.terminate()
        server.wait(20)
