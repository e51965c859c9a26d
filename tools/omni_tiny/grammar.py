"""The grammar of omni-tiny's prompts: scenes of one or two coloured shapes, and the sentences that describe them.

    sentence ──parse──► Scene ──symbols──► ("red", "circle", "left", "blue", "square", "END")

The right answer is computed here, from the prompt alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from omnibus.omni_tiny.vocabulary import COLOURS, END, RELATIONS, SHAPES

OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
PHRASES = {
    "left": ("left of", "to the left of", "on the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right of", "on the right side of"),
    "above": ("above", "over", "on top of"),
    "below": ("below", "under", "beneath", "underneath"),
}
OPENINGS = (
    "", "draw", "draw me", "please draw", "paint", "show", "show me", "make", "create", "i want", "i would like",
    "can you draw", "could you paint", "a picture of", "an image of", "draw a picture of", "make an image of",
)  # fmt: skip
ENDINGS = ("", "please", "for me", "now")

HELD_OUT_SHARE = 0.1
HELD_OUT_SEED = 20
_MAX_SENTENCE = 400  # characters; the longest sentence of the grammar has under 120


class UnparseableSentence(ValueError):
    """The sentence does not describe one or two coloured shapes."""


@dataclass(frozen=True, slots=True, order=True)
class Thing:
    """One coloured shape."""

    colour: str
    shape: str


@dataclass(frozen=True, slots=True)
class Scene:
    """A thing alone, or `first` standing in `relation` to `second`."""

    first: Thing
    relation: str | None = None
    second: Thing | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """The canonical description, END last: 3 symbols for one thing, 6 for two."""
        head = (self.first.colour, self.first.shape)
        if self.relation is None or self.second is None:
            return (*head, END)
        return (*head, self.relation, self.second.colour, self.second.shape, END)

    @property
    def text(self) -> str:
        """The canonical description as the thinker writes it, without END."""
        return " ".join(self.symbols[:-1])

    @property
    def mirrored(self) -> Scene:
        """The same picture described from the other thing; a thing alone is its own mirror."""
        if self.relation is None or self.second is None:
            return self
        return Scene(self.second, OPPOSITE[self.relation], self.first)


def parse(sentence: str) -> Scene:
    """Read a sentence of the grammar, whatever its case, spacing and punctuation.

    Raises UnparseableSentence for anything that the grammar does not produce.
    """
    if len(sentence) > _MAX_SENTENCE:
        raise UnparseableSentence("the sentence is too long for a scene of two shapes")
    words = " ".join(re.sub(r"[.,!?;:]", " ", sentence.lower()).split())
    match = _sentence_pattern().fullmatch(words)
    if match is None:
        raise UnparseableSentence(f"not a scene of one or two coloured shapes: {sentence!r}")
    first = Thing(match["colour1"], match["shape1"])
    if match["relation"] is None:
        return Scene(first)
    second = Thing(match["colour2"], match["shape2"])
    if first == second:
        raise UnparseableSentence(f"a scene has two different things, not twice a {first.colour} {first.shape}")
    return Scene(first, _relation_of(match["relation"]), second)


@cache
def all_scenes() -> tuple[Scene, ...]:
    """Every scene, in a fixed order: things alone, then pairs of different things."""
    things = [Thing(colour, shape) for colour in COLOURS for shape in SHAPES]
    pairs = [Scene(a, relation, b) for a in things for relation in RELATIONS for b in things if a != b]
    return (*(Scene(thing) for thing in things), *pairs)


@cache
def held_out() -> frozenset[Scene]:
    """The scenes that no training ever sees: a tenth, drawn with a fixed seed, always together with their mirrors."""
    pictures = [scene for scene in all_scenes() if scene.relation in {None, "left", "above"}]
    count = round(len(pictures) * HELD_OUT_SHARE)
    chosen = np.random.default_rng(HELD_OUT_SEED).choice(len(pictures), size=count, replace=False)
    return frozenset(scene for i in chosen for scene in (pictures[i], pictures[i].mirrored))


@cache
def training_scenes() -> tuple[Scene, ...]:
    """Every scene that may be trained on."""
    return tuple(scene for scene in all_scenes() if scene not in held_out())


def sample_prompts(count: int, seed: int, *, held_out: bool | None = None) -> list[str]:
    """Draw `count` sentences of different scenes.

    `held_out` True or False draws from that part only, None gives the first half seen and the second half held out.
    The same arguments always give the same sentences. Raises ValueError when there are fewer scenes than asked for.
    """
    if held_out is None:
        seen = sample_prompts(count - count // 2, seed, held_out=False)
        return seen + sample_prompts(count // 2, seed, held_out=True)
    pool = _sorted_held_out() if held_out else training_scenes()
    if count > len(pool):
        raise ValueError(f"{count} scenes asked for, {len(pool)} exist")
    rng = np.random.default_rng([seed, int(held_out)])
    return [phrase(pool[i], rng) for i in rng.choice(len(pool), size=count, replace=False)]


def phrase(scene: Scene, rng: np.random.Generator) -> str:
    """Phrase a scene in one of the grammar's ways."""
    parts = [_pick(OPENINGS, rng), _noun(scene.first, rng)]
    if scene.relation is not None and scene.second is not None:
        parts += [_pick(PHRASES[scene.relation], rng), _noun(scene.second, rng)]
    parts.append(_pick(ENDINGS, rng) if rng.random() < 0.3 else "")
    sentence = " ".join(part for part in parts if part)
    return sentence + _pick(("", "", "."), rng)


def _noun(thing: Thing, rng: np.random.Generator) -> str:
    article = "an" if thing.colour[0] in "aeiou" else "a"
    chosen = article if rng.random() < 0.8 else _pick(("the", "one", ""), rng)
    return f"{chosen} {thing.colour} {thing.shape}".strip()


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


@cache
def _sorted_held_out() -> tuple[Scene, ...]:
    return tuple(scene for scene in all_scenes() if scene in held_out())


def _relation_of(phrase: str) -> str:
    return next(relation for relation, phrases in PHRASES.items() if phrase in phrases)


@cache
def _sentence_pattern() -> re.Pattern[str]:
    openings, endings = _alternatives(OPENINGS), _alternatives(ENDINGS)
    relations = _alternatives([phrase for phrases in PHRASES.values() for phrase in phrases])
    noun = r"(?:(?:an|a|the|one) )?(?P<colour{n}>%s) (?P<shape{n}>%s)" % ("|".join(COLOURS), "|".join(SHAPES))  # noqa: UP031
    first, second = noun.replace("{n}", "1"), noun.replace("{n}", "2")
    return re.compile(rf"(?:(?:{openings}) )?{first}(?: (?P<relation>{relations}) {second})?(?: (?:{endings}))?")


def _alternatives(phrases: Sequence[str]) -> str:
    return "|".join(re.escape(phrase) for phrase in sorted(filter(None, phrases), key=len, reverse=True))
