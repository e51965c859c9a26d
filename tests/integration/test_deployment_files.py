"""Images, compose, units and chart in deploy/: everything that can be checked of them without a cluster."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import helm_python as helm
import kubernetes_validate
import pytest
import yaml

from omnibus.cli import cli
from omnibus.pipeline.loading import load_pipeline
from omnibus.settings import Settings
from omnibus.wire import stores

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "omnibus"
MANY: dict[str, Any] = {
    "pipeline": {"name": "omni-tiny", "spec": (DEPLOY / "pipelines" / "omni-tiny.yaml").read_text()},
    "nats": {
        "url": "tls://nats:4222", "replicas": 3,
        "credentials": {"operator": "keys-o", "orchestrator": "keys-c", "frontdoor": "keys-f", "worker": "keys-w"},
    },
    "frontdoor": {"apiKeysSecret": "callers"},
    "stages": [
        {"id": 0, "name": "thinker", "replicas": 0, "maxReplicas": 3, "lag": 4, "gpus": 1, "image": "omnibus:gpu",
         "nodeSelector": {"gpu": "h100"}, "env": {"HF_HUB_OFFLINE": "1"},
         "tolerations": [{"key": "gpu", "operator": "Exists"}]},
        {"id": 1, "name": "dit", "replicas": 2, "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "4Gi"}},
         "strategy": {"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}},
    ],
    "monitoring": {"enabled": True, "labels": {"release": "prometheus"}},
    "tracing": {"endpoint": "http://collector:4317"},
    "keda": {"enabled": True, "lanes": ["interactive", "batch"]},
}  # fmt: skip
SETS: Mapping[str, dict[str, Any]] = {
    "as it is": {},
    "everything on": MANY,
    "one stage": {"stages": [{"id": 2, "name": "talker", "replicas": 1}], "monitoring": {"enabled": True}},
}
_OTHERS = {"PodMonitor", "ScaledObject"}
"""Kinds that are not Kubernetes' own."""


def check_command(words: list[str]) -> None:
    """Parse a command line as our command would; raises click.UsageError."""
    command, context = cli.get_command(click.Context(cli), words[0]), click.Context(cli, info_name="omnibus")
    assert command is not None, words
    rest = words[1:]
    if isinstance(command, click.Group):
        command, rest = command.get_command(context, rest[0]), rest[1:]
        assert command is not None, words
    command.make_context(words[0], rest, parent=context)


def rendered(values: dict[str, Any]) -> list[dict[str, Any]]:
    with helm.Chart.load(CHART) as chart:
        texts = chart.render(values, name="demo", namespace="prod").values()
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def containers(objects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for one in objects:
        yield from one.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ())


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_chart_renders_what_kubernetes_takes_when_values_are_valid(values: dict[str, Any]) -> None:
    report = helm.lint(CHART, values, strict=True)
    assert not report["errors"], report
    objects = rendered(values)
    for one in objects:
        if one["kind"] not in _OTHERS:
            kubernetes_validate.validate(one, "1.33", strict=True)
    assert len({(one["kind"], one["metadata"]["name"]) for one in objects}) == len(objects)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_chart_runs_commands_and_settings_that_exist(values: dict[str, Any]) -> None:
    found = list(containers(rendered(values)))
    assert {one["args"][0] for one in found} == {"pipeline", "frontdoor", "orchestrator", "worker"}
    for one in found:
        check_command(one["args"])
        ours = {entry["name"] for entry in one["env"] if entry["name"].startswith("OMNIBUS_")}
        assert {name.removeprefix("OMNIBUS_").lower() for name in ours} <= Settings.model_fields.keys()


def test_each_role_has_its_own_credentials_and_no_others() -> None:
    secrets = {}
    for one in rendered(MANY):
        pod = one.get("spec", {}).get("template", {}).get("spec")
        if pod:
            names = {volume["secret"]["secretName"] for volume in pod["volumes"] if "secret" in volume}
            secrets.setdefault(pod["containers"][0]["args"][0], set()).update(names)
    assert secrets == {
        "pipeline": {"keys-o"}, "orchestrator": {"keys-c"}, "frontdoor": {"keys-f", "callers"}, "worker": {"keys-w"},
    }  # fmt: skip


def test_stages_are_scaled_by_the_consumers_that_their_pipeline_has() -> None:
    spec = load_pipeline(str(DEPLOY / "pipelines" / "omni-tiny.yaml"))
    objects = rendered(MANY)
    scaled = [one["spec"] for one in objects if one["kind"] == "ScaledObject"]
    triggers = [trigger["metadata"] for one in scaled for trigger in one["triggers"]]
    assert {one["stream"] for one in triggers} == {stores.work_stream(spec.name)}
    lanes = ("interactive", "batch")
    assert [one["consumer"] for one in triggers] == [
        stores.stage_consumer(stage, lane) for stage in (0, 1) for lane in lanes
    ]
    by_name = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    for one in scaled:  # which sets the number, so that the chart must not
        assert "replicas" not in by_name[one["scaleTargetRef"]["name"]]["spec"]
    assert [one["minReplicaCount"] for one in scaled] == [0, 2]


def test_chart_serves_the_stages_of_the_shipped_pipeline() -> None:
    spec = load_pipeline(str(DEPLOY / "pipelines" / "omni-tiny.yaml"))
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert [(one["id"], one["name"]) for one in values["stages"]] == [(one.stage_id, one.name) for one in spec.stages]


@pytest.mark.parametrize(
    "wrong",
    [
        {"stages": []},
        {"stages": [{"name": "no id"}]},
        {"stages": [{"id": 0, "name": "a b"}]},
        {"nats": {"url": "http://nats"}},
        {"nats": {"url": "nats://nats", "replicas": 2}},
        {"keda": {"lanes": ["fast"]}},
        {"stages": [{"id": 0, "name": "a", "strategy": {"type": "Slowly"}}]},
        {"tracing": {"endpoint": "collector:4317"}},
        {"frontdor": {"replicas": 2}},
    ],
    ids=str,
)
def test_chart_refuses_values_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmValuesError):
        rendered(wrong)


def test_compose_runs_commands_that_exist_and_mounts_files_that_exist() -> None:
    folder = DEPLOY / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    spec, targets = load_pipeline(str(DEPLOY / "pipelines" / "omni-tiny.yaml")), set[str]()
    ours = {name: one for name, one in services.items() if one["image"].startswith("omnibus:")}
    assert {one.name for one in spec.stages} <= ours.keys()
    for one in ours.values():
        check_command(one["command"])
    for one in services.values():
        for volume in one.get("volumes", ()):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (folder / source).exists(), source
        targets |= {one["build"]["target"]} if "build" in one else set()
    assert targets == {"slim", "cpu"}
    scraped = yaml.safe_load((folder / "prometheus.yaml").read_text())["scrape_configs"][0]["static_configs"][0][
        "targets"
    ]
    assert {target.split(":")[0] for target in scraped} == ours.keys() - {"deploy"}


def test_spans_of_compose_come_to_where_grafana_finds_them() -> None:
    folder = DEPLOY / "compose"
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    collector, tempo = (yaml.safe_load((folder / f"{name}.yaml").read_text()) for name in ("collector", "tempo"))
    (pipeline,) = collector["service"]["pipelines"].values()
    for part in ("receivers", "processors", "exporters"):
        assert set(pipeline[part]) == collector[part].keys()
    ports = {its["endpoint"].rpartition(":")[2] for its in collector["receivers"]["otlp"]["protocols"].values()}
    sent = {
        one["environment"]["OMNIBUS_OTLP_ENDPOINT"] for one in services.values() if one["image"].startswith("omnibus:")
    }
    assert {(urlsplit(one).hostname, str(urlsplit(one).port)) for one in sent} <= {
        ("collector", port) for port in ports
    }
    (exporter,) = collector["exporters"].values()
    host, _, port = exporter["endpoint"].partition(":")
    assert host in services
    assert tempo["distributor"]["receivers"]["otlp"]["protocols"]["grpc"]["endpoint"].endswith(f":{port}")
    sources = yaml.safe_load((folder / "grafana" / "datasource.yaml").read_text())["datasources"]
    assert f"http://tempo:{tempo['server']['http_listen_port']}" in {one["url"] for one in sources}


def test_images_install_extras_that_the_package_has_from_files_that_are_sent() -> None:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    extras = {one for group in re.findall(r"'\.\[([\w,]+)\]'", text) for one in group.split(",")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert extras <= project["optional-dependencies"].keys()
    minor = re.search(r"vllm-openai:v(\d+\.\d+)", text)
    assert minor is not None
    assert project["optional-dependencies"]["vllm"][0].startswith(f"vllm>={minor[1]}")
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE) for word in line.split()}
    assert copied == sent
    assert all((ROOT / one).exists() for one in sent)


_OF_SLIM = {"libc.so.6", "libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1", "libgcc_s.so.1", "libstdc++.so.6"}
"""Libraries that the slim image of Python has: those of glibc and of GCC."""


def test_cpu_image_has_the_libraries_that_its_vllm_is_linked_against() -> None:
    package = importlib.util.find_spec("vllm")
    assert package is not None
    assert package.origin is not None
    linked = "".join(
        subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout
        for file in Path(package.origin).parent.glob("*.so")
    )
    of_system = set(re.findall(r"^\s*(\S+) => /(?:usr/)?lib", linked, re.MULTILINE)) - _OF_SLIM
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    stage = text[text.index(" AS cpu") : text.index(" AS gpu")]
    installed = {word for line in re.findall(r"apt-get install (.+)", stage) for word in line.split()}
    assert {name.replace(".so.", "") for name in of_system} <= installed, of_system


def test_services_of_a_cluster_set_no_variables_of_ours() -> None:
    """A Service called omnibus-nats would set OMNIBUS_NATS_PORT to an address, which no process could start with."""
    pods = [one["spec"]["template"]["spec"] for one in rendered(MANY) if one["kind"] in ("Deployment", "Job")]
    assert len(pods) == 5
    assert all(pod["enableServiceLinks"] is False for pod in pods)


@pytest.mark.parametrize("values", SETS.values(), ids=SETS)
def test_pods_are_ready_when_what_they_run_says_so_on_the_port_that_it_opens(values: dict[str, Any]) -> None:
    """Else a rolling update ends the old replicas of a stage while the new ones still load."""
    served = [one for one in containers(rendered(values)) if one["args"][0] != "pipeline"]
    paths = {one["args"][0]: one["readinessProbe"]["httpGet"]["path"] for one in served}
    assert paths == {"worker": "/health", "orchestrator": "/health", "frontdoor": "/ready"}
    for one in served:
        (port,) = one["ports"]
        assert one["readinessProbe"]["httpGet"]["port"] == port["name"]
        flag = "--port" if one["args"][0] == "frontdoor" else "--metrics-port"
        assert one["args"][one["args"].index(flag) + 1] == str(port["containerPort"])
        assert {"name": "OMNIBUS_METRICS_HOST", "value": "0.0.0.0"} in one["env"]


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_units_run_commands_that_exist(unit: Path) -> None:
    started = re.findall(r"^ExecStart=\S+/omnibus (.+)$", unit.read_text(), re.MULTILINE)
    assert len(started) == 1
    check_command(shlex.split(started[0].replace("%i", "thinker").replace("${PIPELINE}", "omni-tiny")))


@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_units_can_write_temporary_files_and_caches_when_the_system_is_read_only(unit: Path) -> None:
    text = unit.read_text()
    lines = text.splitlines()
    assert "ProtectSystem=strict" not in lines or "PrivateTmp=true" in lines
    kept = {
        f"/var/lib/{name}"
        for names in re.findall(r"^StateDirectory=(.+)$", text, re.MULTILINE)
        for name in names.split()
    }
    places = dict(re.findall(r"(HOME|TMPDIR|OMNIBUS_STATE_DIR)=(\S+)", text))
    assert set(places.values()) <= kept
    assert "omnibus worker" not in text or places.keys() >= {"HOME", "TMPDIR"}, "what a unit's workers share"
