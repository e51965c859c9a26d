"""A text that an earlier attempt began: what a later one repeats of it is left out, for as long as it is the same. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class FlowPrefix:
    """The text and the tokens that a flow holds already."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    _texts_done: int = 0
    _tokens_done: int = 0

    def add(self, text: str, tokens: list[int]) -> None:
        """One more chunk of the flow."""
        self.text += text
        self.tokens += tokens

    @property
    def is_passed(self) -> bool:
        """Whether all of it has been made again."""
        return self._texts_done >= len(self.text) and self._tokens_done >= len(self.tokens)

    def rest(self, text: str, tokens: list[int]) -> tuple[str, list[int]] | None:
        """The rest of a piece that a later attempt makes, behind the prefix; None when the piece is another."""
        old_text = self.text[self._texts_done : self._texts_done + len(text)]
        old_tokens = self.tokens[self._tokens_done : self._tokens_done + len(tokens)]
        if not text.startswith(old_text) or tokens[: len(old_tokens)] != old_tokens:
            return None
        self._texts_done += len(old_text)
        self._tokens_done += len(old_tokens)
        return text[len(old_text) :], tokens[len(old_tokens) :]

    def passed(self) -> tuple[str, list[int]]:
        """The part that has been made again so far."""
        return self.text[: self._texts_done], self.tokens[: self._tokens_done]
