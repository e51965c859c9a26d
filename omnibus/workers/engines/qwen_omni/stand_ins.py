"""Parts of a whole Qwen-Omni in which one stage runs transformers' own `generate`: what runs in other stages has a stand-in.

The stand-in of the thinker returns what the thinker's stage made, that of the vocoder takes the codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import numpy as np
import torch

from omnibus.errors import CheckpointMissing, EngineRejected
from omnibus.workers.engines.checkpoints import loading, resolve_model
from omnibus.workers.engines.protocol import StageInput

SAMPLE_RATE = 24_000
"""Samples a second of all these models; no config of theirs says it."""
_ARGUMENTS = {
    "max_tokens": "talker_max_new_tokens",
    "temperature": "talker_temperature",
    "top_k": "talker_top_k",
    "top_p": "talker_top_p",
    "repetition_penalty": "talker_repetition_penalty",
    "speaker": "speaker",
}
"""Arguments of `generate` by the names that requests have for them."""
Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True, slots=True)
class Thought:
    """The outputs of a thinker's stage for one prompt."""

    prompt: list[int]
    answer: list[int]
    states: torch.Tensor
    """(T, 2, H): the embeddings, and the layer that the talker listens to; T = prompt + answer - 1."""

    @classmethod
    def of(cls, stage_input: StageInput) -> Self:
        """Read them from the only source; raises EngineRejected for an answer that there is nothing to speak of."""
        (made,) = stage_input.sources.values()
        answer = [int(token) for token in made["token_ids"]]
        if len(answer) < 2:
            raise EngineRejected("the answer is empty: there is nothing to speak", param="prompt")
        states = torch.from_numpy(np.array(made["hidden_states"], np.float32))
        return cls([int(token) for token in made["prompt_token_ids"]], answer, states)

    def check_speakable(self, *unspeakable: int) -> None:
        """Raise EngineRejected for a prompt with one of these tokens: pictures and video have positions that no output tells."""
        if not set(unspeakable).isdisjoint(self.prompt):
            what = "this model does not speak about pictures and video here: ask for text alone"
            raise EngineRejected(what, param="modalities")


class OwnParts:
    """Has weights converted as in the whole model, of which a class has parts under the same names."""

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether transformers leaves the weights as they are stored: it would, of a class that is not its own."""
        return False


class ReplayedThinker(torch.nn.Module):  # type: ignore[misc]  # torch has no types here
    """Stands for the thinker: `generate` returns a thought. Of its weights it has the embeddings, which talkers look up."""

    def __init__(self, config: Any, layer: int, norm: torch.nn.Module | None = None) -> None:
        """`layer` is the place at which the talker looks for its layer, `norm` what that goes through before."""
        super().__init__()
        self.model = torch.nn.Module()
        self.model.embed_tokens = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        if norm is not None:
            self.model.norm = norm
        self.generation_config = SimpleNamespace(eos_token_id=None)
        self.thought: Thought | None = None
        self._layer = layer

    @property
    def device(self) -> torch.device:
        return self.get_input_embeddings().weight.device

    def get_input_embeddings(self) -> torch.nn.Embedding:
        table: torch.nn.Embedding = self.model.embed_tokens
        return table

    def generate(self, **_arguments: Any) -> SimpleNamespace:
        """The sequence, and for each step the layers of what it was fed."""
        assert self.thought is not None
        prompt, table = self.thought.prompt, self.get_input_embeddings().weight
        embedded, heard = self.thought.states.to(table.device, table.dtype)[None].unbind(2)
        if hasattr(self.model, "norm"):
            heard = self.model.norm(heard)
        steps = [slice(0, len(prompt)), *(slice(at, at + 1) for at in range(len(prompt), embedded.shape[1]))]
        states = tuple((embedded[:, step], *[heard[:, step]] * self._layer) for step in steps)
        sequences = torch.tensor([prompt + self.thought.answer], device=table.device)
        return SimpleNamespace(sequences=sequences, hidden_states=states)


class CodesTaker(torch.nn.Module):  # type: ignore[misc]
    """Stands for the vocoder: takes the codes, and makes no sound."""

    dtype = torch.float
    codes: torch.Tensor

    def forward(self, codes: torch.Tensor, **_arguments: Any) -> torch.Tensor:
        self.codes = codes
        return codes.new_zeros(0, dtype=torch.float)

    def chunked_decode(self, codes: torch.Tensor, **arguments: Any) -> torch.Tensor:
        return self(codes, **arguments)


def load_parts(kind: type[Model], checkpoint: str, device: str | None, dtype: str | None) -> Model:
    """Load the weights that a class has parts for, of the whole model's checkpoint; raises CheckpointMissing.

    By default on a GPU where there is one, in the checkpoint's precision there and in float32 on CPU.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model, precision = resolve_model(checkpoint), dtype or ("float32" if device == "cpu" else "auto")
    with loading(model):
        loaded, info = kind.from_pretrained(model, dtype=precision, output_loading_info=True)
    if info["missing_keys"]:
        raise CheckpointMissing(f"the checkpoint {checkpoint!r} is incomplete: it lacks {min(info['missing_keys'])}")
    made: Model = loaded.to(device).eval()
    return made


def talker_arguments(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of `generate` from a request's parameters; sets the seed. Raises EngineRejected for others."""
    unknown = next((name for name in sampling if name not in _ARGUMENTS and name != "seed"), None)
    if unknown is not None:
        raise EngineRejected(
            f"unknown parameter {unknown!r}: a talker takes seed, {', '.join(_ARGUMENTS)}", param=unknown
        )
    if sampling.get("seed") is not None:
        torch.manual_seed(int(sampling["seed"]))
    given = {_ARGUMENTS[name]: value for name, value in sampling.items() if name != "seed"}
    if given.get("talker_temperature") == 0:
        return {**given, "talker_do_sample": False, "talker_temperature": 1.0}
    return given
