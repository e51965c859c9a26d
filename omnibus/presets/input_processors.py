"""Input processors of the shipped pipelines: each makes a stage's input of the request or of the stage before. numpy only."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from omnibus.errors import EmptyPrompt, EngineError, EngineRejected
from omnibus.wire.request import Message
from omnibus.workers.engines.protocol import MAIN, EngineInput, StageInput

REWRITING = (
    "You turn a user's request into one prompt for a model that draws pictures. Keep what was asked for: subjects, their number, "
    "colours, places, and any words that shall be written in the picture, in quotation marks. Add what was left open: setting, "
    "light, composition, style. Answer with the prompt alone, at most 120 words."
)
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)

# Qwen-Image was trained on the states that this template gives; diffusers' QwenImagePipeline uses it too.
QWEN_IMAGE_TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial relationships "
    "of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
QWEN_IMAGE_DROPPED = 34
"""Tokens of the template before the prompt, whose states the model does not see."""

LLASA_TASK = "Convert the text to speech:<|TEXT_UNDERSTANDING_START|>{}<|TEXT_UNDERSTANDING_END|>"
"""The prompt that Llasa was trained on, word by word."""
SPEECH_CODES = 65_536
"""Codes of X-Codec2's one codebook."""
_SPEECH_TOKEN = re.compile(r"<\|s_(\d{1,5})\|>")


def rewriter_input(stage_input: StageInput) -> EngineInput:
    """Make a chat that asks for a better prompt. Raises EmptyPrompt."""
    prompt = _prompt(stage_input)
    return EngineInput(messages=(Message(role="system", content=REWRITING), Message(role="user", content=prompt)))


def rewritten_prompt(stage_input: StageInput) -> EngineInput:
    """Take the prompt that the stage `rewriter` wrote, without its thoughts; the user's own where there is none."""
    better = _THOUGHTS.sub("", _output(stage_input, "rewriter", "text")).strip()
    return EngineInput(text=better or _prompt(stage_input))


def encoder_input(stage_input: StageInput) -> EngineInput:
    """The prompt in Qwen-Image's template; a negative one may be blank. Raises EmptyPrompt."""
    prompt = _prompt(stage_input) if stage_input.role == MAIN else stage_input.request.text()
    return EngineInput(text=QWEN_IMAGE_TEMPLATE.format(prompt))


def encoded_prompt(stage_input: StageInput) -> EngineInput:
    """`prompt_embeds` and `negative_prompt_embeds` (T, H) float32 of Qwen-Image: the states of the stage `encoder`.

    Those of each prompt from the prompt on; the negative one is the encoder's companion, where it has one.
    """
    values = {"prompt_embeds": _states_of_prompt(_output(stage_input, "encoder", "last_hidden_state"))}
    negative = stage_input.companions.get("encoder", {}).get("negative")
    if negative is not None:
        values["negative_prompt_embeds"] = _states_of_prompt(negative["last_hidden_state"])
    return EngineInput(values=values)


def _states_of_prompt(encoded: Any) -> np.ndarray:
    states = np.asarray(encoded, np.float32)
    if states.ndim != 2 or len(states) <= QWEN_IMAGE_DROPPED:
        raise EngineError(f"expected states of shape (T, H) with T > {QWEN_IMAGE_DROPPED}, got {states.shape}")
    return states[QWEN_IMAGE_DROPPED:]


def llasa_input(stage_input: StageInput) -> EngineInput:
    """Llasa's chat, with the answer begun: the text to be read goes in, speech tokens go on. Raises EmptyPrompt."""
    return EngineInput(
        messages=(
            Message(role="user", content=LLASA_TASK.format(_prompt(stage_input))),
            Message(role="assistant", content="<|SPEECH_GENERATION_START|>"),
        )
    )


def speech_codes(stage_input: StageInput) -> EngineInput:
    """`codes` (T,) int64 of the speech tokens that the stage `llasa` wrote. Raises EngineRejected when there are none."""
    written = _SPEECH_TOKEN.findall(_output(stage_input, "llasa", "text"))
    codes = np.asarray([int(code) for code in written], np.int64)
    if not codes.size:
        raise EngineRejected("the model produced no speech token", param="prompt")
    if codes.max() >= SPEECH_CODES:
        raise EngineError(f"speech token {codes.max()} is outside the codebook of {SPEECH_CODES}")
    return EngineInput(values={"codes": codes})


def _prompt(stage_input: StageInput) -> str:
    text = stage_input.request.text()
    if not text.strip():
        raise EmptyPrompt(param="prompt")
    return text


def _output(stage_input: StageInput, stage: str, name: str) -> Any:
    try:
        return stage_input.sources[stage][name]
    except KeyError as error:
        raise EngineError(f"stage {stage!r} left no output {name!r}") from error
