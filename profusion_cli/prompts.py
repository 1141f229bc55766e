"""Prompts with the placeholder S*: where it stands, whose it is, and the prompt's text twin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from profusion_cli.errors import InputError
from profusion_cli.texts import NO_TEXT_HINT, is_text

PLACEHOLDER = "S*"
EACH = -1
MOST = 1000
"""Prompts that one may stand for."""
_CHOICE = re.compile(r"\{([^{}|]*(?:\|[^{}|]*)+)\}")
_FOREIGN = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|\(\([^()]*\)\)|\[[^\[\]]*\]|<\w+:[^<>]*>|\bBREAK\b")


@dataclass(frozen=True)
class Prompt:
    """A prompt cut at its placeholders.

    Args:
        text: the prompt as typed.
        pieces: text between the placeholders, and subject numbers (from 0) in their place; `EACH`
            stands for every subject in turn.
    """

    text: str
    pieces: tuple[str | int, ...]

    @property
    def bare(self) -> bool:
        """No subject is named."""
        return all(isinstance(piece, str) for piece in self.pieces)

    @property
    def joint(self) -> bool:
        """Several subjects are named within this one prompt (S1*, S2*, ...)."""
        return EACH not in self.pieces and len({p for p in self.pieces if isinstance(p, int)}) > 1

    def named(self, subject: int) -> tuple[str | int, ...]:
        """The pieces with `EACH` read as this subject."""
        return tuple(subject if piece == EACH else piece for piece in self.pieces)

    def only(self, subject: int, class_words: Sequence[str]) -> tuple[str | int, ...]:
        """The pieces with this subject's placeholder alone; other subjects become their class words."""
        return tuple(
            class_words[piece] if isinstance(piece, int) and piece != subject else piece
            for piece in self.named(subject)
        )

    def twin(self, class_words: Sequence[str]) -> str:
        """The text twin C: the prompt with each placeholder replaced by its class word."""
        everyone = " and ".join(dict.fromkeys(class_words))
        return "".join(
            piece if isinstance(piece, str) else everyone if piece == EACH else class_words[piece]
            for piece in self.pieces
        )


def alternatives(text: str) -> list[str]:
    """The prompts that one with choices stands for: "S* in a {red|blue} hat" is two; all choices are combined.

    Raises:
        InputError: more than `MOST`.
    """
    texts, done = [text], []
    while texts:
        one = texts.pop(0)
        found = _CHOICE.search(one)
        if found is None:
            done.append(one)
            continue
        texts[:0] = [one[: found.start()] + choice + one[found.end() :] for choice in found[1].split("|")]
        if len(texts) + len(done) > MOST:
            raise InputError(f"The prompt '{text}' stands for more than {MOST} prompts.", "Give it fewer choices.")
    return list(dict.fromkeys(done))


def foreign_marks(text: str) -> list[str]:
    """What other tools read as weights and commands, and is plain text here: "(hat:1.2)", "[hat]", "<lora:x:1>"."""
    return _FOREIGN.findall(text)


def placeholder_pattern(placeholder: str) -> re.Pattern[str]:
    """Matches the placeholder, plain or numbered (S*, S1*, S2*), as a token of its own."""
    stem, star = (placeholder[:-1], r"\*") if placeholder.endswith("*") else (placeholder, "")
    before = r"(?<![\w*])"
    return re.compile(rf"{before}{re.escape(stem)}(\d{{0,4}}){star}(?![\w*])")


def parse_prompt(text: str, placeholder: str = PLACEHOLDER, subjects: int = 1, bare: bool = False) -> Prompt:
    """Find the placeholders of a prompt.

    Args:
        text: for example "S* in anime style", or "S1* beside S2*".
        placeholder: matched as a token of its own, any number of times.
        subjects: how many subjects there are.
        bare: a prompt may name none of them.

    Raises:
        InputError: no text in UTF-8, no placeholder unless it may be bare, a number with no subject, a subject that is
            never named, or plain and numbered placeholders mixed.
    """
    if not is_text(text):
        raise InputError(f"The prompt '{text}' is not text in UTF-8.", NO_TEXT_HINT)
    pieces: list[str | int] = []
    position = 0
    for match in placeholder_pattern(placeholder).finditer(text):
        pieces.append(text[position : match.start()])
        number = match.group(1)
        if number and not 1 <= int(number) <= subjects:
            raise InputError(
                f"The prompt '{text}' names {match.group(0)}, but there {_count(subjects)}.",
                f"Use '{placeholder}', or pass a bundle for every numbered subject.",
            )
        pieces.append(int(number) - 1 if number else EACH)
        position = match.end()
    pieces.append(text[position:])
    named = {piece for piece in pieces if isinstance(piece, int)}
    if named or not bare:
        _check_named(named, text, placeholder, subjects)
    if subjects == 1:
        pieces = [0 if piece == EACH else piece for piece in pieces]
    return Prompt(text, tuple(piece for piece in pieces if piece != ""))


def _check_named(named: set[int], text: str, placeholder: str, subjects: int) -> None:
    """A prompt names each of its subjects, all of them in one way; one may be called either way."""
    if not named:
        raise InputError(
            f"The prompt '{text}' has no placeholder {placeholder}, so the subject would not be in the picture.",
            f"Write it where the subject belongs, as in '{placeholder} in anime style' (quote it for the shell).",
        )
    if subjects == 1:
        return
    if EACH in named and len(named) > 1:
        raise InputError(
            f"The prompt '{text}' mixes '{placeholder}' with numbered placeholders.",
            "Use the plain placeholder for every subject in turn, or number all of them.",
        )
    if EACH not in named and len(named) < subjects:
        missing = min(set(range(subjects)) - named) + 1
        raise InputError(
            f"The prompt '{text}' never names subject {missing} of {subjects}.",
            f"Name every subject, or use '{placeholder}' for each in turn, or leave out its bundle.",
        )


def _count(subjects: int) -> str:
    return "is only one subject" if subjects == 1 else f"are only {subjects} subjects"
