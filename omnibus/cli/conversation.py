"""`omnibus chat`: a conversation with a pipeline that delivers text."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from omnibus.cli import options
from omnibus.cli.request_flags import RequestFlags, is_chat_model, request_options

if TYPE_CHECKING:
    from omnibus.cli.root import CommandSession, Wanted
    from omnibus.client.engine_thread import EngineThread
    from omnibus.wire.request import Message

_HELP = """/image FILE, /audio FILE   add a file to the next message
/clear                     forget the conversation
/help                      this list
/quit, Ctrl-D              end
Ctrl-C                     stop the answer"""


@click.command("chat")
@request_options
@click.option("--system", metavar="TEXT", help="Instructions that every turn begins with.")
@click.option(
    "--history/--no-history",
    default=None,
    help="Send the turns before, too; by default where the first stage is an LLM.",
)
@options.pipeline
@options.broker
def command(*, pipeline: Wanted, **flags: Any) -> None:
    """Talk with a pipeline: its text streams, its images, videos and sound are saved in a folder a turn.

    Ctrl-C stops the answer, Ctrl-D ends the chat, /help lists what else there is. Lines of a pipe are turns, too.
    """
    from omnibus.cli.root import load_settings, open_session  # noqa: PLC0415 commands import when they run
    from omnibus.client.engine_thread import EngineThread  # noqa: PLC0415
    from omnibus.observability.logging import configure_logging  # noqa: PLC0415

    configure_logging("warning", "console")
    settings = load_settings()
    with EngineThread(lambda: open_session(settings, "chat", pipeline), lambda _reason: None) as engine:
        _Chat(engine, **flags).run()


class _Chat:
    """The loop: a line from the person, an answer from the pipeline. The connection lives on a thread of its own."""

    def __init__(
        self, engine: EngineThread[CommandSession], *, system: str | None, history: bool | None, out: Path, **flags: Any
    ) -> None:
        from omnibus.errors import UnsupportedModality  # noqa: PLC0415
        from omnibus.wire.request import Message  # noqa: PLC0415

        self._engine, self._out = engine, out
        self._spec = engine.run(engine.session.spec())
        if "text" not in self._spec.modalities:
            raise UnsupportedModality(f"pipeline {self._spec.name!r} delivers no text: there is nothing to talk with")
        self._flags = RequestFlags(**flags)
        self._keeps_history = is_chat_model(self._spec) if history is None else history
        self._system = (Message(role="system", content=system),) if system is not None else ()
        self._before: tuple[Message, ...] = self._system
        self._turn = 0

    def run(self) -> None:
        """Until Ctrl-D, /quit or the end of a pipe."""
        is_person = sys.stdin.isatty()
        if is_person:
            with suppress(ImportError):
                import readline  # noqa: F401, PLC0415 arrow keys and the lines before
            click.echo(f"talking with {self._spec.name}; /help, Ctrl-C stops an answer, Ctrl-D ends", err=True)
        while True:
            try:
                line = input("> " if is_person else "").strip()
            except KeyboardInterrupt:
                click.echo(err=True)
                continue
            except EOFError:
                click.echo(err=True, nl=is_person)
                return
            if line in ("/quit", "/exit"):
                return
            if line:
                self._take(line)

    def _take(self, line: str) -> None:
        from omnibus.errors import OmnibusError  # noqa: PLC0415

        try:
            if line.startswith("/"):
                self._command(line)
            else:
                self._ask(line)
        except OmnibusError as error:
            click.echo(f"omnibus: {' '.join(error.message.split())}", err=True)

    def _command(self, line: str) -> None:
        from omnibus.errors import InvalidRequest  # noqa: PLC0415

        name, _, rest = line.partition(" ")
        match name, rest.strip():
            case "/help", _:
                click.echo(_HELP, err=True)
            case "/clear", _:
                self._before = self._system
            case "/image" | "/audio", file if not Path(file).is_file():
                raise InvalidRequest(f"there is no file {file!r}")
            case "/image" | "/audio", file:
                field = f"{name.removeprefix('/')}s"
                files: dict[str, Any] = {field: (*getattr(self._flags, field), Path(file))}
                self._flags = dataclasses.replace(self._flags, **files)
                click.echo(f"{file} goes with the next message", err=True)
            case _:
                raise InvalidRequest(f"there is no {name}; /help lists what there is")

    def _ask(self, line: str) -> None:
        """One turn. Ctrl-C cancels the request; what came of its answer stays in the conversation.

        Files go with this turn alone, also where it fails: a file that the model refuses would fail every turn after it.
        """
        from omnibus.cli.answer import AnswerDisplay  # noqa: PLC0415
        from omnibus.cli.submit import failure_of, follow  # noqa: PLC0415
        from omnibus.wire.request import Message  # noqa: PLC0415

        self._turn += 1
        flags, self._flags = self._flags, dataclasses.replace(self._flags, images=(), masks=(), audios=(), videos=())
        request = flags.request(self._spec, line, before=self._before)
        with closing(AnswerDisplay(self._spec, self._out / f"turn-{self._turn}")) as answer:
            try:
                result = self._engine.run(follow(self._engine.session.producer, self._spec, request, answer))
            except KeyboardInterrupt:
                result = None
                answer.say("stopped")
        if result is not None and result.failure is not None:
            click.echo(f"omnibus: {failure_of(result, self._spec)}", err=True)
            return
        if self._keeps_history:
            asked = Message(role="user", content=line) if request.messages is None else request.messages[-1]
            self._before = (*self._before, asked, Message(role="assistant", content="".join(answer.pieces)))
