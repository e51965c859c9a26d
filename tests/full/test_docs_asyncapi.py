"""The AsyncAPI document is one by the schema of AsyncAPI's own project."""

from __future__ import annotations

import json
import subprocess
import tarfile

import jsonschema
import pytest

from tools.site.asyncapi import document

pytestmark = pytest.mark.integration

SPECS = "@asyncapi/specs@6.11.1"


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> object:
    """The schema of AsyncAPI 3.0.0, out of the npm package that has it."""
    folder = tmp_path_factory.mktemp("asyncapi")
    packed = subprocess.run(
        ["npm", "pack", "--json", SPECS], cwd=folder, check=True, capture_output=True, text=True, timeout=100
    )
    with tarfile.open(folder / json.loads(packed.stdout)[0]["filename"]) as package:
        found = package.extractfile("package/schemas/3.0.0.json")
        assert found is not None
        return json.load(found)


def _faults(schema: object, described: dict[str, object]) -> list[str]:
    validator = jsonschema.Draft7Validator(schema)  # type: ignore[arg-type]
    found = jsonschema.exceptions.best_match(validator.iter_errors(json.loads(json.dumps(described))))
    return [] if found is None else [f"{found.json_path}: {found.message}"]


def test_document_is_valid(schema: object) -> None:
    assert _faults(schema, document()) == []


def test_document_is_refused_when_an_operation_does_something_else(schema: object) -> None:
    broken = document()
    next(iter(broken["operations"].values()))["action"] = "publish"
    assert _faults(schema, broken)


def test_every_reference_leads_somewhere() -> None:
    described = document()
    text = json.dumps(described)
    for part in {part.split('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        place: object = described
        for step in part.split("/"):
            assert isinstance(place, dict), part
            place = place[step]
