"""`omnibus demo`: one sentence through an omni-tiny that this command starts and stops."""

from __future__ import annotations

from contextlib import AsyncExitStack, closing
from pathlib import Path

import click

PROMPT = "draw a red circle left of a blue square"
PIPELINE = "omni-tiny"


@click.command("demo")
@click.option("--out", "-o", default="out/demo", type=click.Path(file_okay=False, path_type=Path), show_default=True,
              help="Where image, audio and video are saved.")  # fmt: skip
@click.argument("prompt", default=PROMPT)
def command(out: Path, prompt: str) -> None:
    """Start omni-tiny, send PROMPT, show the text, save image, audio and video, and stop everything."""
    from omnibus.cli.root import ask  # noqa: PLC0415 commands import when they run

    ask(_demo(prompt, out))


async def _demo(prompt: str, out: Path) -> None:
    from rich.console import Console  # noqa: PLC0415 commands import when they run

    from omnibus.cli.answer import AnswerDisplay  # noqa: PLC0415
    from omnibus.cli.root import load_settings  # noqa: PLC0415
    from omnibus.cli.submit import follow  # noqa: PLC0415
    from omnibus.client.embedded_pipeline import EmbeddedOptions, embedded  # noqa: PLC0415
    from omnibus.client.producer import Producer  # noqa: PLC0415
    from omnibus.pipeline.loading import load_pipeline  # noqa: PLC0415
    from omnibus.wire.request import Request  # noqa: PLC0415

    spec = load_pipeline(PIPELINE)
    async with AsyncExitStack() as stack:
        with Console(stderr=True).status(f"starting the engines of {PIPELINE}"):
            connection = await stack.enter_async_context(embedded(spec, load_settings(), EmbeddedOptions()))
        producer = await stack.enter_async_context(Producer(connection))
        with closing(AnswerDisplay(spec, out)) as answer:
            request = Request(prompt=prompt, stream=True, modalities=spec.modalities)
            result = await follow(producer, spec, request, answer)
        result.raise_for_state()
