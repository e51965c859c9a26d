"""`nats request SUBJECT BODY` of NATS' own command line, which is not installed here: prints the answer."""

from __future__ import annotations

import asyncio
import os
import sys

import nats


async def request(subject: str, body: str) -> str:
    """The answer to one message, of the server that NATS_URL names."""
    client = await nats.connect(os.environ["NATS_URL"])
    try:
        return (await client.request(subject, body.encode(), timeout=10)).data.decode()
    finally:
        await client.close()


if __name__ == "__main__":
    verb, subject, body = sys.argv[1:]
    assert verb == "request"
    print(asyncio.run(request(subject, body)))
