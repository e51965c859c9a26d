"""The folder of users of a nats-server, read from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from omnibus.broker.credentials_folder import CredentialsFolder
from omnibus.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "user",
    [
        {"name": "w1", "role": "worker", "nkey": "UA"},
        {"name": "w1", "role": "worker", "nkey": "UA", "permissions": None},
        {"name": "w1", "role": "worker", "nkey": "UA", "publish": ["a"], "subscribe": ["b"], "answers": False},
    ],
)
def test_no_user_is_given_to_a_server_when_a_file_does_not_say_what_one_may_do(
    tmp_path: Path, user: dict[str, Any]
) -> None:
    """To a server a user without permissions is one who may do everything."""
    (tmp_path / "users.json").write_text(json.dumps([user]))
    with pytest.raises(ConfigError, match=r"users\.json"):
        CredentialsFolder(tmp_path).users()
