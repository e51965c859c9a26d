"""The stages of the checks that are our own code: they run in the replicas."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

import numpy as np

from omnibus.workers.engines.protocol import StageInput


class StatesComparison:
    """Compares the hidden states of the stage before with those of transformers' own forward pass; returns JSON."""

    def __init__(self, checkpoint: str, layers: Sequence[int]) -> None:
        import torch  # noqa: PLC0415 in the replica alone: other stages of this file do without
        import transformers  # noqa: PLC0415

        self._layers, self._torch = list(layers), torch
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype="auto")
        self._model = model.to(device).eval()

    def __call__(self, stage_input: StageInput) -> str:
        (outputs,) = stage_input.sources.values()
        states = np.asarray(outputs["hidden_states"], np.float32)
        ids = [*outputs["prompt_token_ids"], *outputs["token_ids"]][: len(states)]
        with self._torch.inference_mode():
            made = self._model(
                self._torch.tensor([ids], device=self._model.device), output_hidden_states=True
            ).hidden_states
        expected = np.stack([made[layer][0].float().cpu().numpy() for layer in self._layers], axis=1)
        difference = float(np.abs(states - expected).max() / np.abs(expected).max())
        return json.dumps({"shape": states.shape, "nbytes": states.nbytes, "difference": difference})


def make_tensor(stage_input: StageInput) -> dict[str, object]:
    """A tensor on the device of as many bytes as the prompt says, and the moment at which it was whole."""
    import torch  # noqa: PLC0415

    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = torch.arange(int(stage_input.request.text()) // 4, dtype=torch.float32, device=device)
    if device == "cuda":
        torch.cuda.synchronize()
    return {"tensor": tensor, "made": {"at": time.monotonic(), "device": device}}


def take_tensor(stage_input: StageInput) -> str:
    """The seconds from the tensor's making to its arrival here, as JSON; raises ValueError for another tensor."""
    now = time.monotonic()
    (outputs,) = stage_input.sources.values()
    array, count = outputs["tensor"], int(stage_input.request.text()) // 4
    if array.shape != (count,) or not np.array_equal(array[::509], np.arange(0, count, 509, dtype=np.float32)):
        raise ValueError(f"another tensor came: {array.dtype}, {array.shape}")
    return json.dumps({"seconds": now - outputs["made"]["at"], "device": outputs["made"]["device"]})
