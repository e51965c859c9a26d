"""Settings of a process."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from omnibus.cli.frontdoor_processes import processes
from omnibus.cli.metrics_port import sharing
from omnibus.settings import Settings

pytestmark = pytest.mark.unit


def test_settings_come_from_the_environment_when_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_NATS_URL", "nats://a:4222,nats://b:4222")
    monkeypatch.setenv("OMNIBUS_STATE_DIR", "~/omni")
    monkeypatch.setenv("OMNIBUS_API_KEYS", "one, two,")
    monkeypatch.setenv("OMNIBUS_NATS_REPLICAS", "3")
    settings = Settings()
    assert settings.nats_url == "nats://a:4222,nats://b:4222"
    assert settings.state_dir == Path.home() / "omni"
    assert settings.api_keys == ("one", "two")
    assert settings.nats_replicas == 3


def test_settings_stay_on_loopback_when_nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMNIBUS_HOST", "OMNIBUS_NATS_URL", "OMNIBUS_STATE_DIR", "OMNIBUS_API_KEYS"):
        monkeypatch.delenv(name, raising=False)
    settings = Settings()
    assert (settings.host, settings.nats_url, settings.api_keys) == ("127.0.0.1", None, ())
    assert settings.state_dir == Path.home() / ".local" / "state" / "omnibus"


@pytest.mark.parametrize(("name", "value"), [("OMNIBUS_NATS_REPLICAS", "2"), ("OMNIBUS_NATS_PROFILE", "quick")])
def test_settings_are_refused_when_a_value_makes_no_sense(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError):
        Settings()


@pytest.mark.parametrize(
    "value", ["https://a.example, https://b.example", '["https://a.example", "https://b.example"]']
)
def test_lists_are_read_with_commas_and_as_json(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("OMNIBUS_ALLOWED_ORIGINS", value)
    assert Settings().allowed_origins == ("https://a.example", "https://b.example")


def test_a_child_has_the_same_front_door_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        host="127.0.0.2", port=81, keep_alive=9, allowed_origins="https://a.example,*", allow_credentials=True
    )  # type: ignore[arg-type]
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)
    child = Settings()
    assert child.environment().items() >= settings.environment().items()
    assert (child.allowed_origins, child.allow_credentials) == (("https://a.example", "*"), True)


def test_a_front_door_among_several_starts_no_more_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNIBUS_FRONTDOORS", "3")
    settings = Settings(state_dir=tmp_path, port=81, api_keys="secret")  # type: ignore[arg-type]
    found = sharing(processes(settings, {}), tmp_path / "metrics")
    assert [one.name for one in found] == ["frontdoor-0", "frontdoor-1", "frontdoor-2"]
    for one in found:
        for name, value in one.env.items():
            monkeypatch.setenv(name, value)
        child = Settings()
        assert (child.frontdoors, child.share_port, child.port, child.metrics_name) == (1, True, 81, one.name)
        assert child.metrics_dir == tmp_path / "metrics"
        assert "secret" not in "".join(one.env.values())
    (alone,) = processes(settings.model_copy(update={"frontdoors": 1}), {})
    assert (alone.name, alone.env["OMNIBUS_SHARE_PORT"]) == ("frontdoor", "False")
