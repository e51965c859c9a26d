"""The preset `smollm2` on its real weights: converted once, and its answers compared with transformers' own, token by token."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import transformers
from openai import OpenAI

from omnibus.pipeline.loading import load_pipeline
from omnibus.workers.engines.checkpoints import resolve_model
from tests.support.served import omnibus
from tests.support.terminal import Terminal
from tools.serving import Serving, serving

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(900),
    # torch and transformers use each other's deprecated names while they are imported.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
TOKENS = 48
Chat = list[dict[str, str]]
CHATS: dict[str, Chat] = {
    "a fact": [{"role": "user", "content": "What is the capital of France?"}],
    "an explanation": [{"role": "user", "content": "Explain in two sentences why the sky is blue."}],
    "a role": [
        {"role": "system", "content": "You are a pirate. Answer in one sentence."},
        {"role": "user", "content": "Who are you?"},
    ],
    "three turns": [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Nice to meet you, Ada!"},
        {"role": "user", "content": "What is my name?"},
    ],
    "other scripts": [{"role": "user", "content": "Translate to English: 'guten Morgen', 'bonjour', '日本'."}],
}


@pytest.fixture(scope="module")
def cache(scratch: Path) -> Iterator[Path]:
    """A cache of this module, where nothing is converted yet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNIBUS_CACHE_DIR", str(scratch / "cache"))
        yield scratch / "cache" / "checkpoints"


@pytest.fixture(scope="module")
def smollm2(cache: Path, scratch: Path) -> Iterator[Serving]:
    flags = ("--port", "0", "--nats-port", "0")
    with serving("smollm2", *flags, state_dir=scratch / "smollm2", timeout=800.0) as served:  # it converts first
        yield served


@pytest.fixture(scope="module")
def client(smollm2: Serving) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{smollm2.url}/v1", api_key="any", max_retries=0, timeout=120.0) as made:
        yield made


@pytest.fixture(scope="module")
def reference(client: OpenAI) -> tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]:
    """The model and the tokenizer that transformers loads from the converted folder."""
    del client  # by which it is there
    torch.set_num_threads(1)
    folder = resolve_model(load_pipeline("smollm2").stages[0].model)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def test_half_made_conversion_is_dropped_when_it_is_interrupted(cache: Path, tmp_path: Path) -> None:
    state = {"OMNIBUS_STATE_DIR": str(tmp_path), "OMNIBUS_CACHE_DIR": str(cache.parent)}
    with Terminal("serve", "smollm2", "--port", "0", "--nats-port", "0", cwd=tmp_path, **state) as terminal:
        terminal.read_until("de-quantizing GGUF tensors", 600.0)  # a bar, on a terminal
        terminal.interrupt()
        terminal.wait()
    assert [file.name for file in cache.iterdir() if not file.name.endswith((".lock", ".part"))] == []


def test_conversion_is_logged_when_nobody_watches(smollm2: Serving, cache: Path) -> None:
    log = smollm2.log.read_text()
    assert "checkpoint.converted" in log
    assert "GGUF tensors" not in log
    (folder,) = (file for file in cache.iterdir() if file.is_dir())
    assert "quantization_config" not in (folder / "config.json").read_text()


@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
def test_answer_is_that_of_transformers_token_by_token(
    chat: Chat, client: OpenAI, reference: tuple[transformers.PreTrainedModel, transformers.PreTrainedTokenizerFast]
) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=chat, temperature=0.0, max_tokens=TOKENS)
    pieces = client.chat.completions.create(
        model="smollm2", messages=chat, temperature=0.0, max_tokens=TOKENS, stream=True
    )
    streamed = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)

    model, tokenizer = reference
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        made = model.generate(**prompt, max_new_tokens=TOKENS, do_sample=False)
    ids = made[0, prompt["input_ids"].shape[1] :].tolist()
    text = tokenizer.decode(ids, skip_special_tokens=True)
    assert answer.choices[0].message.content == text
    assert streamed == text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt["input_ids"].shape[1], len(ids))
    assert answer.choices[0].finish_reason == ("stop" if ids[-1] == tokenizer.eos_token_id else "length")


def test_answer_is_right_when_the_fact_is_a_simple_one(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="smollm2", messages=CHATS["a fact"], temperature=0.0, max_tokens=16)
    assert "Paris" in (answer.choices[0].message.content or "")


@pytest.mark.parametrize("words", [("submit", "What is the capital of France?"), ("chat",)], ids=["submit", "chat"])
def test_command_line_has_a_question_answered_when_the_model_is_one_for_chats(
    words: tuple[str, ...], smollm2: Serving, tmp_path: Path
) -> None:
    greedy = ("--param", "llm.temperature=0", "--param", f"llm.max_tokens={TOKENS}")
    stdin = "" if len(words) > 1 else "What is the capital of France?\n"
    asked = omnibus(*words, *greedy, "-o", str(tmp_path), nats=smollm2.nats_url, stdin=stdin, timeout=120.0)
    assert "The capital of France is Paris." in asked.stdout
