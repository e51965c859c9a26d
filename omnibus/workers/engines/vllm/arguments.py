"""From a stage's `engine_args` to vLLM's AsyncEngineArgs: what is ours, what is vLLM's, and the defaults on CPU."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import msgspec

from omnibus.errors import PipelineError
from omnibus.pipeline.files import suggestion
from omnibus.pipeline.spec import StageSpec

ENVIRONMENT: Mapping[str, str] = {
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",  # else it warns at each start of how memory is bound
    "TORCH_LOGS": "-torch._library.triton",  # the logger that warns, at each start, where there is no Triton
}
"""Set before `import vllm` where the operator has not set them."""

CPU_ENVIRONMENT: Mapping[str, str] = {
    # One thread an engine, bound nowhere: with vLLM's own binding, two busy engines on two cores crawl.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    # Keeps the model inside EngineCore; otherwise vLLM gives it a third process, for a core binding that is off anyway.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
"""The same, where vLLM is the build for CPU."""

CPU_DEFAULTS: Mapping[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "distributed_executor_backend": "uni",
    # vLLM's own default counts in whole GiB, and touches all of them.
    "kv_cache_memory_bytes": 256 << 20,
}
"""Where there is no GPU; anything a stage sets wins."""
Role = Literal["prefill", "decode"]
_OURS = frozenset({
    "chat_template", "chat_template_kwargs", "hidden_states", "interleaved", "kv_cache", "lora_modules", "role",
    "tool_call_parser", "trust_request_chat_template",
})  # fmt: skip
_OF_VLLMS_SERVER = frozenset({"enable_auto_tool_choice"})
"""Arguments of its HTTP server that say here what happens anyway."""


def with_spare_slot(engine_args: Mapping[str, Any], adapters: int) -> dict[str, Any]:
    """`engine_args` with a LoRA slot more than `max_loras`, and than there are adapters; for vLLM on CPU.

    There (vLLM 0.32, `lora.ops.torch_ops`) a request without an adapter is given the last slot's when others of its batch
    have one: the slot -1 is looked up as it is. Slots are filled from the first on, so the last stays empty and adds nothing.
    """
    if not engine_args.get("enable_lora"):
        return dict(engine_args)
    return {**engine_args, "max_loras": max(engine_args.get("max_loras", 1), adapters) + 1}


def environment() -> dict[str, str]:
    """Environment variables to set before vLLM is imported, unless they are set already."""
    try:
        importlib.metadata.distribution("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return dict(ENVIRONMENT)
    return {**ENVIRONMENT, **CPU_ENVIRONMENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmArguments:
    """A stage's arguments, sorted."""

    hidden_states: tuple[int, ...] = ()
    """Layers whose hidden states are an output."""
    lora_modules: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters by the name that requests use: folder, package: or hub name."""
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the chat template, such as `enable_thinking`."""
    chat_template: str | None = None
    """A template's file, or its text, over the model's own."""
    trust_request_chat_template: bool = False
    tool_call_parser: str | None = None
    """vLLM's parser that finds calls of tools in what the model writes."""
    skip_tokenizer: bool = False
    """Token ids in, token ids out; no text."""
    encodes: bool = False
    """Nothing is generated (vLLM's `runner: pooling`): the states of the prompt's tokens are the output."""
    scores: bool = False
    """A pair of texts is read, and its score is the output: the stage delivers `score`."""
    kv_cache: tuple[int, ...] = ()
    """Layers whose keys and values are an output."""
    role: Role | None = None
    """Half of a generation; None: all of it."""
    interleaved: bool = False
    """Each part of an input that comes in parts is answered before the next one is read."""
    engine: Mapping[str, Any]
    """For AsyncEngineArgs, as they are."""

    @property
    def hands_over(self) -> bool:
        """Whether KV comes or goes by our own connector, not by one that `kv_transfer_config` names."""
        return self.role is not None and not self.engine.get("kv_transfer_config")

    @property
    def moves_files(self) -> bool:
        """Whether EngineCore has our own connector."""
        return self.hands_over or bool(self.kv_cache)


@cache
def known_arguments() -> frozenset[str]:
    """Every argument that the installed vLLM and we know; empty where there is no vLLM.

    Read from its source: importing it would take seconds.
    """
    package = importlib.util.find_spec("vllm")
    if package is None or package.origin is None:
        return frozenset()
    file = Path(package.origin).with_name("engine") / "arg_utils.py"
    if not file.is_file():
        return frozenset()
    classes = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.ClassDef)]
    fields = (node for one in classes if one.name in ("EngineArgs", "AsyncEngineArgs") for node in one.body)
    names = {
        field.target.id for field in fields if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    }
    return frozenset(names | _OURS | _OF_VLLMS_SERVER) if names else frozenset()


def sort_arguments(stage: StageSpec) -> VllmArguments:
    """Take our own keys out; raises PipelineError for a wrong value of one, and for a name that nobody knows."""
    given = dict(stage.engine_args)
    _check_names(given)
    arguments = VllmArguments(
        hidden_states=_taken(given, "hidden_states", tuple[int, ...], ()),
        lora_modules=_taken(given, "lora_modules", dict[str, str], {}),
        chat_template_kwargs=_taken(given, "chat_template_kwargs", dict[str, Any], {}),
        chat_template=_taken(given, "chat_template", str | None, None),
        trust_request_chat_template=_taken(given, "trust_request_chat_template", bool, False),
        tool_call_parser=_taken(given, "tool_call_parser", str | None, None),
        kv_cache=_taken(given, "kv_cache", tuple[int, ...], ()),
        role=_taken(given, "role", Role | None, None),
        interleaved=_taken(given, "interleaved", bool, False),
        skip_tokenizer=bool(given.get("skip_tokenizer_init", False)),
        encodes=given.get("runner") == "pooling",
        scores="score" in stage.final_types,
        engine=given,
    )
    has_parser = arguments.tool_call_parser is not None
    if given.pop("enable_auto_tool_choice", has_parser) is not has_parser:
        message = "a stage takes tools where it names a tool_call_parser, and only there"
        raise PipelineError(message, field="engine_args.enable_auto_tool_choice")
    if arguments.scores and not arguments.encodes:
        raise PipelineError("a stage that delivers `score` needs `runner: pooling`", field="engine_args.runner")
    if arguments.interleaved and (arguments.role is not None or arguments.encodes):
        raise PipelineError("needs a stage that reads its input and generates text", field="engine_args.interleaved")
    if arguments.hidden_states:
        _check_states(given)
    _check_handover(arguments, given)
    if arguments.lora_modules:
        given.setdefault("enable_lora", True)
    return arguments


def _check_names(given: Mapping[str, Any]) -> None:
    known = known_arguments()
    for name in given if known else ():
        if name not in known:
            hint = suggestion(name, known)
            raise PipelineError(f"vLLM has no such argument{hint}", field=f"engine_args.{name}")


def _check_states(given: Mapping[str, Any]) -> None:
    """Refuse what does not go together with hidden states as an output."""
    if "speculative_config" in given:
        raise PipelineError(
            "cannot be combined with hidden_states, which sets it", field="engine_args.speculative_config"
        )
    if given.get("enable_prompt_embeds"):
        # vLLM's extraction asks for the ids of prompt tokens; without them the whole EngineCore dies.
        raise PipelineError("cannot be combined with hidden_states in vLLM", field="engine_args.enable_prompt_embeds")
    if given.get("runner") == "pooling":
        raise PipelineError(
            "cannot be combined with hidden_states: a pooling runner generates nothing", field="engine_args.runner"
        )


def _check_handover(arguments: VllmArguments, given: Mapping[str, Any]) -> None:
    """Refuse what does not go together with keys and values as an output, and with half a generation."""
    role = arguments.role
    quantized = str(given.get("kv_cache_dtype", "")).startswith("fp8")
    if arguments.kv_cache and (role == "prefill" or arguments.encodes or _is_parallel(given) or quantized):
        raise PipelineError(
            "needs a stage that generates text, on one device, with a KV cache that is not quantized",
            field="engine_args.kv_cache",
        )
    if role is not None and (arguments.encodes or given.get("enable_prompt_embeds")):
        raise PipelineError("needs a stage that generates text from token ids", field="engine_args.role")
    if role is not None and _is_parallel(given) and not given.get("kv_transfer_config"):
        message = "our connector hands over the KV of one device: name one of vLLM's in kv_transfer_config, such as NixlConnector"
        raise PipelineError(message, field="engine_args.role")


def _is_parallel(given: Mapping[str, Any]) -> bool:
    return any(given.get(f"{way}_parallel_size", 1) not in (None, 1) for way in ("tensor", "pipeline", "data"))


def _taken(given: dict[str, Any], name: str, kind: Any, default: Any) -> Any:
    """An argument of ours, which vLLM does not get."""
    try:
        return msgspec.convert(given.pop(name, default), kind)
    except msgspec.ValidationError as error:
        raise PipelineError(str(error), field=f"engine_args.{name}") from error
