"""The Node client of examples/, installed from its lock file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

_EXAMPLE = Path(__file__).parents[2] / "examples" / "node"


def install_client(folder: Path) -> Path:
    """Copy the example to a folder, away from the source tree, and install what it needs."""
    for file in ("package.json", "package-lock.json", "omnibus.mjs", "submit.mjs"):
        shutil.copy(_EXAMPLE / file, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, capture_output=True, timeout=110)
    return folder


def ask_from_node(client: Path, *words: str, nats: str, pipeline: str) -> subprocess.CompletedProcess[str]:
    """Run the example's `submit.mjs` to its end."""
    command = ["node", "submit.mjs", "--nats", nats, "--pipeline", pipeline, *words]
    return subprocess.run(command, cwd=client, capture_output=True, text=True, timeout=60, check=False)
