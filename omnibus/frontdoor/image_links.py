"""Images of an answer as links: each is kept as a file of the caller's, and readable by its link without a key."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from fastapi import Request as HttpRequest

from omnibus.client.request_events import Output
from omnibus.errors import InvalidRequest
from omnibus.files.file_links import FileLink
from omnibus.files.file_record import IMAGE_OUTPUT, PREFIX
from omnibus.frontdoor.context import FrontDoorContext
from omnibus.frontdoor.data_urls import file_name
from omnibus.frontdoor.retention import lifetime
from omnibus.frontdoor.submitting import DEFERRED, Head

LINK_PATH: Final = "/v1/files/{file_id}/content/{token}"


async def check_links(context: FrontDoorContext, http: HttpRequest) -> None:
    """Raises QuotaExceeded where the caller's files leave no room for an image, InvalidRequest where links would lead nowhere."""
    if DEFERRED in http.scope["state"] and not context.options.public_url:
        raise InvalidRequest("a line of a batch has no address to link to: take b64_json", param="response_format")
    await context.files.check_room(http.scope["state"]["tenant"])


async def image_links(context: FrontDoorContext, http: HttpRequest, head: Head, outputs: Sequence[Output]) -> list[str]:
    """A link to each image, stored now.

    The file of an image has an id of its request's and its number's: an answer that is made again stores nothing twice.
    """
    tenant, kept = http.scope["state"]["tenant"], lifetime(http.scope, context.options.image_link_lifetime)
    base, links = context.options.public_url or str(http.base_url), list[str]()
    for output in outputs:
        for item in output.items:
            file_id = _file_id(head, len(links))
            await context.files.add_once(
                tenant, file_id, _whole(item), filename=file_name(f"image-{len(links)}", output.media_type),
                purpose=IMAGE_OUTPUT, lifetime=kept,
            )  # fmt: skip
            link = FileLink(tenant=tenant, file_id=file_id, media_type=output.media_type)
            token = await context.file_links.add(link, kept)
            links.append(base.rstrip("/") + LINK_PATH.format(file_id=file_id, token=token))
    return links


def _file_id(head: Head, number: int) -> str:
    digest = hashlib.sha256(f"{head.rid} {number}".encode()).hexdigest()
    return f"{PREFIX}{head.created * 1000:012x}{digest[:20]}"


async def _whole(data: bytes) -> AsyncIterator[bytes]:
    yield data
