"""`/v1/models`."""

from __future__ import annotations

from typing import Literal

from omnibus.frontdoor.schemas.common import Answer


class Model(Answer):
    """A deployed pipeline under the name that it is served by."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    """The pipeline's own name."""
    modalities: list[str]
    """What it can deliver."""


class ModelList(Answer):
    object: Literal["list"]
    data: list[Model]
