"""Flags of a request on the command line, and the Request that they make."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from omnibus.frontdoor.stage_params import StageParams
    from omnibus.pipeline.spec import PipelineSpec
    from omnibus.wire.request import Lane, Message, Part, Request


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestFlags:
    """The values of the flags."""

    modalities: str | None = None
    params: tuple[str, ...] = ()
    size: str | None = None
    seed: int | None = None
    images: tuple[Path, ...] = ()
    masks: tuple[Path, ...] = ()
    audios: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()
    deadline: float | None = None
    lane: Lane = "interactive"
    stream: bool = True
    complete: bool = False

    def request(self, spec: PipelineSpec, prompt: str, *, before: Sequence[Message] = ()) -> Request:
        """The request for a prompt, after the turns of a chat `before` it; raises RequestError for what has no effect.

        A chat model is sent a chat of one turn, as by `/v1/chat/completions`: it would only go on with a bare prompt.
        """
        from omnibus.errors import InvalidRequest  # noqa: PLC0415 commands import when they run
        from omnibus.wire.request import Message, Request  # noqa: PLC0415

        modalities = tuple(part.strip() for part in self.modalities.split(",")) if self.modalities else None
        parts = self._media()
        if self.complete and parts:
            raise InvalidRequest("--complete sends the prompt alone: a model sees files in a chat only", param="prompt")
        is_chat = before or parts or (is_chat_model(spec) and not self.complete)
        messages = (*before, Message(role="user", content=_content(prompt, parts))) if is_chat else None
        return Request(
            prompt=None if messages else prompt,
            messages=messages,
            modalities=modalities,
            sampling_params=self._params(spec, modalities),
            stream=self.stream,
            deadline=self.deadline,
            lane=self.lane,
        )

    def _media(self) -> list[Part]:
        if not (self.images or self.masks or self.audios or self.videos):
            return []
        from omnibus.media import pictures, sound, video  # noqa: PLC0415
        from omnibus.wire.request import AudioPart, ImagePart, VideoPart  # noqa: PLC0415

        images = [(path, None) for path in self.images] + [(path, "mask") for path in self.masks]
        return [
            *(_read(path, pictures.media_type, ImagePart, argument=argument) for path, argument in images),
            *(_read(path, sound.media_type, AudioPart) for path in self.audios),
            *(_read(path, video.media_type, VideoPart) for path in self.videos),
        ]

    def _params(self, spec: PipelineSpec, modalities: tuple[str, ...] | None) -> StageParams:
        from omnibus.frontdoor.stage_params import overridden, stage_params  # noqa: PLC0415

        image = {} if self.size is None else {"size": self.size}
        return overridden(spec, stage_params(spec, modalities, image=image, seed=self.seed), self._by_stage(), None)

    def _by_stage(self) -> dict[str, dict[str, Any]]:
        from omnibus.pipeline.yaml_document import parse_yaml  # noqa: PLC0415

        given: dict[str, dict[str, Any]] = {}
        for text in self.params:
            target, _, value = text.partition("=")
            stage, _, name = target.partition(".")
            given.setdefault(stage.strip(), {})[name.strip()] = parse_yaml(value.strip() or "null", "--param").values
        return given


def request_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that RequestFlags is made of."""
    return functools.reduce(lambda decorated, option: option(decorated), reversed(_OPTIONS), command)


def is_chat_model(spec: PipelineSpec) -> bool:
    """Whether the pipeline writes text, and requests start at a stage with a chat template."""
    from omnibus.pipeline.engines import engine_kind  # noqa: PLC0415

    first = [stage for stage in spec.stages if not stage.input_sources]
    return "text" in spec.modalities and any(engine_kind(stage.engine).has_chat_template for stage in first)


def _content(prompt: str, parts: Sequence[Part]) -> str | tuple[Part, ...]:
    from omnibus.wire.request import TextPart  # noqa: PLC0415

    return (*parts, TextPart(text=prompt)) if parts else prompt


def _read(path: Path, media_type: Callable[[bytes], str], part: Callable[..., Part], **more: Any) -> Part:
    """A file as a part; raises InvalidRequest, naming the file, where it is of another kind or cannot be read."""
    from omnibus.errors import InvalidRequest  # noqa: PLC0415

    try:
        data = path.read_bytes()
        return part(data=data, media_type=media_type(data), **more)
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be read: {error.strerror}") from error
    except InvalidRequest as error:
        raise InvalidRequest(f"{path}: {error.message}") from error


def _check_params(_context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]) -> tuple[str, ...]:
    for text in given:
        if not re.fullmatch(r"\s*[^.=\s]+\s*\.\s*[^=\s]+\s*=.*", text, re.DOTALL):
            raise click.BadParameter(f"{text!r} is not of the form STAGE.NAME=VALUE, such as thinker.temperature=0.7")
    return given


def _check_size(_context: click.Context, _parameter: click.Parameter, given: str | None) -> str | None:
    if given is not None and not re.fullmatch(r"[1-9]\d*x[1-9]\d*", given):
        raise click.BadParameter(f"{given!r} is not of the form WIDTHxHEIGHT, such as 512x512")
    return given


_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_OPTIONS = (
    click.option("--modalities", "-m", metavar="LIST", help="Outputs wanted, such as text,image; by default all."),
    click.option("--image", "images", multiple=True, type=_FILE, help="A picture for the model; may be repeated."),
    click.option("--mask", "masks", multiple=True, type=_FILE,
                 help="A picture that is white, or transparent, where the first --image is to be painted anew."),
    click.option("--audio", "audios", multiple=True, type=_FILE, help="A sound for the model; may be repeated."),
    click.option("--video", "videos", multiple=True, type=_FILE, help="A video for the model; may be repeated."),
    click.option("--size", metavar="WIDTHxHEIGHT", callback=_check_size, help="Size of the images that are made."),
    click.option("--seed", type=int, help="Seed of every stage that draws random numbers."),
    click.option("--param", "params", multiple=True, metavar="STAGE.NAME=VALUE", callback=_check_params,
                 help="A parameter of a stage, such as thinker.temperature=0.7; may be repeated."),
    click.option("--out", "-o", default="out", type=click.Path(file_okay=False, path_type=Path), show_default=True,
                 help="Where images, videos and sound are saved."),
    click.option("--deadline", type=float, metavar="SECONDS", help="How long the request may take."),
    click.option("--lane", type=click.Choice(["interactive", "batch"]), default="interactive", show_default=True,
                 help="Which queue of each stage."),
)  # fmt: skip
