"""Pairs of texts for a cross encoder, which gives each a score: prompts by vLLM's own processor of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from vllm import PoolingParams
from vllm.entrypoints.pooling.scoring.io_processor import CrossEncoderIOProcessor
from vllm.entrypoints.pooling.typing import ScoringRenderParams
from vllm.entrypoints.pooling.utils import enable_scoring_api
from vllm.exceptions import VLLMClientError
from vllm.renderers.chat_utils import ChatTemplateConfig
from vllm.v1.engine.async_llm import AsyncLLM

from omnibus.errors import EngineRejected, StageStartError
from omnibus.wire.request import Message
from omnibus.workers.engines.vllm.sampling_params import rejected

SIDES = ("query", "document")
"""Roles of the two turns of a pair."""


class PairScoring:
    """Makes prompts of pairs, the way that the model was trained on them."""

    def __init__(self, llm: AsyncLLM, template: str | None) -> None:
        """`template` is a chat template for the two turns, of the models that need one. Raises StageStartError."""
        self._llm = llm
        try:
            self._processor = CrossEncoderIOProcessor(
                llm.vllm_config, llm.renderer, ChatTemplateConfig(chat_template=template)
            )
        except (ValueError, TypeError) as error:
            raise StageStartError(f"this model scores no pairs: {error}") from error

    async def check(self) -> None:
        """Raises StageStartError for a model that gives no score."""
        tasks, model = await self._llm.get_supported_tasks(), self._llm.model_config
        if model.get_pooling_task(tasks) != "classify" or not enable_scoring_api(tasks, model):
            known = ", ".join(sorted(tasks))
            raise StageStartError(f"this model scores no pairs: it needs one label to classify by, and does {known}")

    async def prompt(self, messages: Sequence[Message] | None) -> tuple[Any, PoolingParams]:
        """The prompt of a pair and the parameters of its run; raises EngineRejected for what is no pair."""
        texts = [turn.content for turn in messages or () if isinstance(turn.content, str)]
        if tuple(turn.role for turn in messages or ()) != SIDES or len(texts) != len(SIDES):
            raise EngineRejected(
                "this stage scores pairs: give two turns of text, a query and a document", param="messages"
            )
        tokens = replace(self._llm.renderer.default_cmpl_tok_params, max_output_tokens=0)
        try:
            made = await self._processor.render_async(
                ScoringRenderParams(
                    data_1=texts[0],
                    data_2=texts[1],
                    chat_template=self._processor.chat_template,
                    max_tokens_per_query=0,
                    max_tokens_per_doc=0,
                    tok_params=tokens,
                    prompt_extras=None,
                    skip_mm_cache=False,
                    params=PoolingParams(task="classify"),
                    lora_requests=None,
                    priorities=0,
                )
            )
        except (VLLMClientError, ValueError, TypeError, LookupError) as error:
            raise rejected(error, "messages") from error
        return made["prompts"], made["params"]
