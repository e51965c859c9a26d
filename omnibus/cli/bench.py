"""`omnibus bench`: a small load on a running front door, and what its callers saw."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options

if TYPE_CHECKING:
    from omnibus.cli.chat_load import LoadFigures

_PROMPT = "Say in one sentence what a queue is for."


@click.command("bench")
@click.argument("prompt", default=_PROMPT)
@click.option("--url", metavar="URL", help="The front door; by default the one of the settings, 127.0.0.1:8000.")
@click.option("--model", metavar="NAME", help="The pipeline, where several are served.")
@click.option(
    "-n", "--requests", "count", type=click.IntRange(1), default=100, show_default=True, help="Requests in all."
)
@click.option(
    "-c",
    "--concurrency",
    "width",
    type=click.IntRange(1, 1024),
    default=8,
    show_default=True,
    help="In flight at a time.",
)
@click.option(
    "-m", "--modalities", metavar="LIST", help="Outputs wanted, such as text,audio; by default those of the pipeline."
)
@click.option("--max-tokens", type=click.IntRange(1), metavar="N", help="Tokens of each answer, at most.")
@click.option("--timeout", type=click.FloatRange(min=0, min_open=True), default=120.0, show_default=True, metavar="SECONDS",
              help="After which a request counts as failed.")  # fmt: skip
@click.option(
    "--api-key",
    metavar="KEY",
    envvar="OMNIBUS_API_KEY",
    help="Sent as bearer token; OMNIBUS_API_KEY hides it from others.",
)
@options.as_json
def command(*, url: str | None, api_key: str | None, as_json: bool, **load: Any) -> int:
    """Send streamed chats to a running front door, as fast as they are answered, and show what callers saw.

    A closed loop: so many clients, each sending its next request when its last is answered. Client and server share this
    machine's CPUs where they both run here. Exit code 1 when a request failed.
    """
    from omnibus.cli.chat_load import run_load  # noqa: PLC0415 commands import when they run
    from omnibus.cli.root import ask, load_settings  # noqa: PLC0415

    settings = load_settings()
    where = url or f"http://{settings.host}:{settings.port}"
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    sizes = {"count": load.pop("count"), "width": load.pop("width"), "timeout": load.pop("timeout")}
    found = ask(run_load(where, _body(**load), headers=headers, **sizes))
    if as_json:
        click.echo(
            json.dumps({"url": where, "requests": sizes["count"], "concurrency": sizes["width"], **found.as_json()})
        )
    else:
        _show(found)
    return 1 if found.failed else 0


def _body(*, prompt: str, model: str | None, modalities: str | None, max_tokens: int | None) -> bytes:
    wanted = [one.strip() for one in (modalities or "").split(",") if one.strip()]
    given = {"model": model, "max_tokens": max_tokens, "modalities": wanted or None}
    return json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in given.items() if value is not None},
        }
    ).encode()


def _show(found: LoadFigures) -> None:
    from omnibus.cli.tables import make_table, show  # noqa: PLC0415

    facts = found.as_json()
    head = ("", "p50 ms", "p90 ms", "p99 ms", "most ms")
    rows = [
        (name.replace("_", " "), *(f"{its[one] * 1000:.1f}" for one in ("p50", "p90", "p99", "max")))
        for name, its in facts["seconds"].items()
        if its is not None
    ]
    tokens = f", {facts['tokens_per_second']:.1f} tokens/s" if facts["tokens_per_second"] else ""
    click.echo(
        f"{facts['done']} done in {facts['wall_seconds']:.2f} s: {facts['requests_per_second']:.2f} requests/s{tokens}"
    )
    if rows:
        show(make_table(head, rows))
    for reason, times in facts["failures"].items():
        click.echo(f"{times} failed: {reason}", err=True)
