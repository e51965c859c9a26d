"""vLLM's bench client (`vllm.benchmarks.serve`) as one process for many runs: its imports take longer than a run.

`python -m bench.peers.vllm_client` reads a JSON list of flags a line, and writes the client's result as JSON a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omnibus.lineage import terminate_alive_proc
from omnibus.workers.engines.vllm.arguments import environment

_STOP = 20.0


class VllmClient:
    """The running client."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process, self._log = process, log

    def run(self, *flags: str) -> dict[str, Any]:
        """The result of one run of the client with these flags; raises RuntimeError with the end of its log."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(flags) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"vLLM's bench client ended:\n{self._log.read_text(errors='replace')[-3000:]}")
        result: dict[str, Any] = json.loads(line)
        if result.get("failed"):
            raise RuntimeError(f"{result['failed']} requests failed:\n{self._log.read_text(errors='replace')[-3000:]}")
        return result


@contextmanager
def running(folder: Path) -> Iterator[VllmClient]:
    """Start the client; it imports vLLM at its first run."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "client.log"
    with log.open("w") as err:
        process = subprocess.Popen(
            (sys.executable, "-m", "bench.peers.vllm_client"),
            env={**environment(), **os.environ, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=err,
            text=True,
        )
    try:
        yield VllmClient(process, log)
    finally:
        terminate_alive_proc(process, _STOP)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _serve() -> None:
    from vllm.benchmarks.serve import add_cli_args, main  # noqa: PLC0415 only the child needs it
    from vllm.utils.argparse_utils import FlexibleArgumentParser  # noqa: PLC0415

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        flags: Sequence[str] = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            result = main(parser.parse_args(flags))
        plain = {name: value for name, value in result.items() if isinstance(value, int | float | str)}
        answers.write(json.dumps(plain) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
