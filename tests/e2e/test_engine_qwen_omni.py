"""Talkers and vocoders of Qwen's omni models: sample by sample what transformers' own `generate` of the whole model makes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnibus.errors import CheckpointMissing, EngineRejected
from omnibus.pipeline.spec import StageSpec
from omnibus.wire.request import Request
from omnibus.workers.engines.protocol import Finished, Job, Outputs, StageInput
from omnibus.workers.engines.python import PythonEngine
from tests.support import tiny_omni
from tests.support.jobs import run_job
from tests.support.tiny_omni import IMAGE, PROMPT, SPEAKER

pytestmark = [
    pytest.mark.e2e,
    # torch and transformers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`:UserWarning"),
]
GREEDY = {"temperature": 0.0, "max_tokens": 60}
WHOLE = {
    "thinker_max_new_tokens": 12, "thinker_do_sample": False, "talker_do_sample": False, "talker_max_new_tokens": 60,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("qwen3-omni")
    return folder, tiny_omni.make_qwen3_omni(folder)


@pytest.fixture(scope="module")
def qwen25(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("qwen25-omni")
    return folder, tiny_omni.make_qwen25_omni(folder)


def thought(model: Any, layer: int, prompt: list[int], *, normed: bool = True) -> Outputs:
    """The outputs of a thinker's stage, by transformers alone; of a last layer as it is before its norm."""
    ids = torch.tensor([prompt])
    made = model.thinker.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, eos_token_id=tiny_omni.END,
        output_hidden_states=True, return_dict_in_generate=True,
    )  # fmt: skip
    raw: list[torch.Tensor] = []
    if not normed:
        hook = model.thinker.model.norm.register_forward_pre_hook(lambda _norm, given: raw.append(given[0]))
        with torch.no_grad():
            model.thinker(input_ids=made.sequences[:, :-1])
        hook.remove()
    first, last = (torch.cat([step[at] for step in made.hidden_states], 1)[0] for at in (0, layer))
    states = torch.stack([first, raw[-1][0] if raw else last], 1).detach().numpy()
    return {"prompt_token_ids": prompt, "token_ids": made.sequences[0, len(prompt) :].tolist(), "hidden_states": states}


async def outputs(
    name: str, checkpoint: Path, sources: Mapping[str, Outputs], **sampling: Any
) -> tuple[list[Any], Outputs]:
    """What a stage of this class makes: items before the last, and its outputs."""
    stage = StageSpec(
        stage_id=1, name="stage", engine="python", model=f"omnibus.workers.engines.qwen_omni.{name}",
        input_sources=(0,), engine_args={"checkpoint": str(checkpoint)},
    )  # fmt: skip
    request = Request(prompt="", stream=bool(sampling.pop("stream", False)))
    engine = PythonEngine(stage)
    await engine.start()
    try:
        given = StageInput(rid="r", request=request, sources=sources)
        before, last = await run_job(engine, Job(rid="r", stage_input=given, engine_input=None, sampling=sampling))
        assert isinstance(last, Finished)
        return before, last.outputs
    finally:
        await engine.close()


async def test_qwen3_speaks_as_the_whole_model_does(qwen3: tuple[Path, Any]) -> None:
    folder, model = qwen3
    sequence, wave = model.generate(
        input_ids=torch.tensor([PROMPT]),
        speaker="Ethan",
        return_audio=True,
        thinker_eos_token_id=tiny_omni.END,
        **WHOLE,
    )
    made = thought(model, 2, PROMPT)
    assert [*PROMPT, *made["token_ids"]] == sequence[0].tolist()

    chunks, talker = await outputs("qwen3:Qwen3Talker", folder, {"thinker": made}, **GREEDY)
    assert [len(chunk.outputs["codes"]) for chunk in chunks][:-1] == [25] * (len(chunks) - 1)
    _, vocoder = await outputs("qwen3:Qwen3Vocoder", folder, {"talker": talker})

    assert vocoder["sample_rate"] == 24_000
    np.testing.assert_array_equal(vocoder["audio"], wave.reshape(-1).numpy())


async def test_qwen3_sound_has_no_seams_when_it_leaves_in_pieces(qwen3: tuple[Path, Any]) -> None:
    folder, _ = qwen3
    codes = np.random.default_rng(3).integers(0, 64, (64, 4))
    _, whole = await outputs("qwen3:Qwen3Vocoder", folder, {"talker": {"codes": codes}})
    pieces, joined = await outputs("qwen3:Qwen3Vocoder", folder, {"talker": {"codes": codes}}, stream=True)

    assert len(pieces) == 3
    assert joined["audio"].shape == whole["audio"].shape
    np.testing.assert_allclose(joined["audio"], whole["audio"], atol=0.01 * np.abs(whole["audio"]).max())


async def test_qwen25_speaks_as_the_whole_model_does_from_the_same_noise(qwen25: tuple[Path, Any]) -> None:
    folder, model = qwen25
    ids = torch.tensor([PROMPT])
    torch.manual_seed(7)
    sequence, wave = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), speaker=SPEAKER, thinker_eos_token_id=tiny_omni.END, **WHOLE
    )
    made = thought(model, -1, PROMPT, normed=False)
    assert [*PROMPT, *made["token_ids"]] == sequence[0].tolist()

    _, talker = await outputs("qwen25:Qwen25Talker", folder, {"thinker": made}, **GREEDY)
    _, vocoder = await outputs("qwen25:Qwen25Vocoder", folder, {"talker": talker}, seed=7)

    assert vocoder["audio"].shape == wave.shape
    np.testing.assert_allclose(vocoder["audio"], wave.numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda made: {**made, "prompt_token_ids": [IMAGE, *made["prompt_token_ids"][1:]]}, "ask for text alone"),
        (lambda made: {**made, "token_ids": made["token_ids"][:1]}, "nothing to speak"),
    ],
)
async def test_what_cannot_be_spoken_is_refused(
    qwen3: tuple[Path, Any], change: Callable[[Outputs], Outputs], says: str
) -> None:
    folder, model = qwen3
    with pytest.raises(EngineRejected, match=says):
        await outputs("qwen3:Qwen3Talker", folder, {"thinker": change(thought(model, 2, PROMPT))}, **GREEDY)


@pytest.mark.parametrize(("name", "value"), [("speaker", "Nobody"), ("max_tokenz", 3)])
async def test_parameter_is_refused_when_no_talker_knows_it(qwen3: tuple[Path, Any], name: str, value: Any) -> None:
    folder, model = qwen3
    with pytest.raises(EngineRejected) as raised:
        await outputs("qwen3:Qwen3Talker", folder, {"thinker": thought(model, 2, PROMPT)}, **{name: value})
    assert raised.value.param == name


async def test_checkpoint_without_speakers_is_named(qwen25: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = qwen25
    for file in folder.iterdir():
        if file.name != "spk_dict.pt":
            (tmp_path / file.name).symlink_to(file)
    with pytest.raises(CheckpointMissing, match=r"spk_dict\.pt"):
        await outputs("qwen25:Qwen25Vocoder", tmp_path, {"talker": {}})
