"""MODEL_CARD.md: the parts, the training data, the duration of the training and the accuracy of the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tools.omni_tiny.grammar import HELD_OUT_SEED, all_scenes, held_out, training_scenes
from tools.omni_tiny.training.parts import Trained

CARD = "MODEL_CARD.md"
NOTES = "training.json"

_TEXT = """\
# omni-tiny

A tiny omni model: one English sentence about one or two coloured shapes in; its canonical description as text, a picture of
64 × 64 pixels and a voice of tones out. It exists to run a whole pipeline of real engines on a laptop's CPU in seconds, with
answers that a program can grade. It knows nothing but its grammar.

| part | architecture | input → output | weights fp16 |
|---|---|---|---|
| thinker | Qwen3ForCausalLM, 3 layers × 128, own BPE of 512 | sentence → canonical tokens | {thinker:.2f} MB |
| dit | SanaTransformer2DModel, 4 layers × 96 | thinker's hidden states → latents (8, 8, 8) | {dit:.2f} MB |
| dit/vae | AutoencoderDC, 8 times smaller, 8 channels | latents → picture | {vae:.2f} MB |
| talker | Qwen3ForCausalLM, 2 layers × 64, vocabulary 128 | canonical tokens, one by one → codec codes | {talker:.2f} MB |
| code2wav | DacModel, decoder only, strides 4, 4, 4, 2 | 49 codes → 8 kHz, 128 samples a code | {code2wav:.2f} MB |

## Data

Everything is synthetic and drawn from `tools.omni_tiny.grammar`, `drawing` and `voice`: {scenes} scenes of 7 colours, 4 shapes
and 4 relations, a thing alone or two different ones. The grammar phrases each in several hundred ways. Pictures vary by 2 pixels
in place and by 10 % in size. No other text, picture or sound was used.

**Held out** of all training are {held_out} scenes, a tenth, drawn with seed {seed} together with their mirrors ("a left of b" and
"b right of a" show one picture): `grammar.held_out()` lists them. {trained} scenes were trained on.
The voice was trained on random symbols, two at a time, and knows no scenes.

## Training

`make train`, on CPU, one core a part and two parts at a time; AdamW with a one-cycle learning rate, every part with a fixed seed:

| part | steps | last loss | seconds |
|---|---|---|---|
{trainings}

The dit's conditions are the thinker's hidden states over prompt and answer, layers 0 and 2, RMS-normalised, with token positions;
a tenth of them were dropped in training, which means replaced by the thinker's encoding of the empty prompt
(`dit/empty_prompt.npy`).

## Accuracy

Graded by `tools.omni_tiny.grading` on {prompts} sentences of different scenes, the second half held out, with plain transformers
and diffusers, seed {check_seed}, {sampling}:

| text | image | audio | all three | all three, held out |
|---|---|---|---|---|
| {text:.1%} | {image:.1%} | {audio:.1%} | {all:.1%} | {all_held_out:.1%} |

## Limits

Sentences outside the grammar get an answer that means nothing. Colours, shapes and relations are only those of the grammar; a
picture has at most two things; the thinker reads the last user turn only.
"""


def note_training(out: Path, part: str, trained: Trained) -> None:
    """Remember how a part's training went, for the card."""
    notes = _notes(out)
    notes[part] = asdict(trained)
    (out / NOTES).write_text(json.dumps(notes, indent=2) + "\n", encoding="utf-8")


def write_card(out: Path, shares: Mapping[str, float], check_seed: int, sampling: Mapping[str, Any]) -> None:
    """Write the card of the checkpoints in `out`, whose graded shares are given."""
    card = _TEXT.format(
        **{part: megabytes(out / folder) for part, folder in _FOLDERS.items()},
        scenes=len(all_scenes()),
        held_out=len(held_out()),
        seed=HELD_OUT_SEED,
        trained=len(training_scenes()),
        trainings="\n".join(_training_row(part, note) for part, note in _notes(out).items()),
        check_seed=check_seed,
        sampling=", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sampling.items()),
        **shares,
    )
    (out / CARD).write_text(card, encoding="utf-8")


def megabytes(folder: Path) -> float:
    """Weights directly in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 1e6


_FOLDERS = {
    "thinker": "thinker",
    "dit": "dit/transformer",
    "vae": "dit/vae",
    "talker": "talker",
    "code2wav": "code2wav",
}


def _training_row(part: str, note: Mapping[str, Any]) -> str:
    return f"| {part} | {note['steps']} | {note['loss']:.5f} | {note['seconds']:.0f} |"


def _notes(out: Path) -> dict[str, Any]:
    file = out / NOTES
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
