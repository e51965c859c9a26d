"""Prompts of vLLM-Omni, and sampling parameters, made of jobs."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

from vllm.renderers.params import ChatParams
from vllm_omni.config.stage_config import StageExecutionType

from omnibus.errors import EngineError, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import ImagePart
from omnibus.workers.engines.media import decode_image
from omnibus.workers.engines.protocol import Job
from omnibus_vllm_omni.parameters import stage_parameters
from omnibus_vllm_omni.stage_outputs import attach_payload, from_values
from omnibus_vllm_omni.topology import Part, input_function, load_function

NEGATIVE = "negative_prompt"
"""A parameter of ours that vLLM-Omni has in the prompt."""
VALUES = "omni"
"""The value of an input processor that has further keys of a prompt, such as `additional_information`."""


class Prompts:
    """The inputs of one engine."""

    def __init__(self, stage: StageSpec, omni: Any, part: Part | None) -> None:
        self._stage, self._omni = stage, omni
        self._first = part.stages[0] if part is not None else None
        self._draws = self._first is None or self._first.execution_type is StageExecutionType.DIFFUSION
        self._sounds = [
            one.final_output_type == "audio" for one in (part.stages if part is not None else (None,)) if one
        ]
        # The function that makes the first stage's input, where stages before it are elsewhere.
        path = input_function(self._first) if self._first is not None and self._first.input_sources else None
        self._process = load_function(path) if path is not None else None

    async def of(self, job: Job) -> tuple[Any, list[Any]]:
        """The prompt, and parameters for each stage of theirs; raises EngineRejected, or EngineError for what they make."""
        sampling = dict(job.sampling)
        negative = sampling.pop(NEGATIVE, None) if self._draws else None
        defaults = self._omni.default_sampling_params_list
        sounds = self._sounds if len(self._sounds) == len(defaults) else [False] * len(defaults)
        parameters = stage_parameters(defaults, sounds, sampling)
        if job.stage_input.sources and self._stage.input_processor is None:
            prompt = self._from_sources(job, parameters)
        else:
            prompt = await self._from_request(job)
        return ({**prompt, NEGATIVE: negative} if negative is not None else prompt), parameters

    async def _from_request(self, job: Job) -> dict[str, Any]:
        given, more = job.engine_input, dict(job.engine_input.values.get(VALUES, {}))
        if given.token_ids is not None:
            return {"prompt_token_ids": [int(token) for token in given.token_ids], **more}
        if given.messages is None:
            return {"prompt": given.text or "", **more}
        rendered = await (self._plain(job) if self._draws else self._chat(job))
        return {**rendered, **more}

    async def _plain(self, job: Job) -> dict[str, Any]:
        """The prompt of a stage without a chat template: all text of a conversation, and its pictures."""
        messages = job.engine_input.messages or ()
        parts = [part for message in messages if not isinstance(message.content, str) for part in message.content or ()]
        files = [part for part in parts if not hasattr(part, "text")]
        if any(not isinstance(file, ImagePart) for file in files) or job.stage_input.request.mm_processor_kwargs:
            raise EngineRejected("this stage takes text and pictures", param="messages")
        prompt: dict[str, Any] = {"prompt": job.stage_input.request.text()}
        if files:
            pictures = await asyncio.to_thread(lambda: [decode_image(file) for file in files])
            prompt["multi_modal_data"] = {"image": pictures if len(pictures) > 1 else pictures[0]}
        return prompt

    async def _chat(self, job: Job) -> dict[str, Any]:
        from omnibus.workers.engines.vllm.prompts import (  # noqa: PLC0415 imports more of vLLM
            _conversation as conversation,
        )

        chat = await asyncio.to_thread(conversation, job.engine_input.messages)
        # vLLM 0.30 takes the mere key for files in the prompt.
        processing = dict(job.stage_input.request.mm_processor_kwargs)
        extras = {"mm_processor_kwargs": processing} if processing else None
        params = ChatParams(chat_template_kwargs={"add_generation_prompt": True})
        _, (rendered,) = await self._omni.renderer.render_chat_async([chat], params, prompt_extras=extras)
        if self._omni.model_config.is_multimodal_model:
            return dict(rendered)
        return {"prompt_token_ids": list(rendered["prompt_token_ids"])}

    def _from_sources(self, job: Job, parameters: list[Any]) -> dict[str, Any]:
        request = job.stage_input.request
        original = {"prompt": request.text(), "mm_processor_kwargs": dict(request.mm_processor_kwargs)}
        sources = list(job.stage_input.sources.values())
        outputs = [from_values(job.rid, values, original) for values in sources]
        try:
            prompt = self._processed(outputs, original, parameters)
            for values in sources:
                if (packed := values.get("payload")) is not None:
                    codes = self._first is not None and self._first.execution_type is StageExecutionType.LLM_GENERATION
                    attach_payload(prompt, packed, generates_codes=codes)
        except Exception as error:  # of the model's own function
            raise EngineError(
                f"stage {self._stage.name!r}: no input was made of the stages before it: {error}"
            ) from error
        return prompt

    def _processed(self, outputs: list[Any], original: Mapping[str, Any], parameters: list[Any]) -> dict[str, Any]:
        if self._process is None or self._first is None:
            (completion,) = outputs[0].outputs
            return {"prompt": completion.text} if self._draws else {"prompt_token_ids": completion.token_ids}
        takes = inspect.signature(self._process).parameters
        more = {"sampling_params": parameters[0]} if "sampling_params" in takes else {}
        made = self._process(outputs, original, self._first.requires_multimodal_data, **more)
        made = made[0] if isinstance(made, list) else made
        if made is None:
            raise ValueError("the process function of the stage made nothing")
        return dict(made)
