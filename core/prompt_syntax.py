r"""Weights, BREAK and long prompts, as AUTOMATIC1111 reads them; and which rules are not read.

- (x) multiplies a weight by 1.1, [x] divides it by 1.1, (x:1.3) multiplies it by 1.3; they may be
  nested, and an unclosed bracket ends with the prompt. \(, \), \[, \] and \\ are the
  characters themselves.
- A text encoder reads 75 tokens at a time: a longer prompt goes on in a further chunk, and BREAK
  begins one at once.

What a weight does to the text encoder's output stands in models/text.py.

Sources: AUTOMATIC1111/stable-diffusion-webui's wiki, "Features": "Attention/emphasis", "BREAK
keyword" and "Infinite prompt length"; its modules/prompt_parser.py for nested and unclosed
brackets. (x)1.2 and (x)++ are InvokeAI's (compel).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Other = TypeVar("Other")

CHUNK_TOKENS = 75
"""Tokens of a prompt that the text encoder reads at a time, without the start and end token."""
MOST_CHUNKS = 8
"""Chunks of a prompt that are read; the rest is left out, and that is said."""
MOST_TOKENS = CHUNK_TOKENS * MOST_CHUNKS
STEP = 1.1
"""The factor of a pair of brackets without a number."""
MAX_WEIGHT = 10.0
"""A larger number behind a colon, as in (at 10:45), is no weight but words; nor do nested brackets
make a larger one."""
SHOWN = 30
"""Characters of an example in the note."""

_SIGN = re.compile(
    r"""
    \\(?P<escaped>[()\[\]\\]?)
    | (?P<open>[(\[])
    | :\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*\)
    | (?P<close>[)\]])
    | \s*\b(?P<chunk>BREAK)\b\s*
    """,
    re.VERBOSE,
)
_FACTORS = {"(": STEP, "[": 1 / STEP}
_UNREAD = re.compile(
    r"""
    (?<!\\)\([^()]+\)(?:\+{1,9}|-{1,9}|\d+\.\d+)(?!\w)   # (x)++, (x)1.2
    | (?<!\\)\[[^\[\]]*(?:\|[^\[\]]*|:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*)\]  # [a|b], [a:b:0.5], [a:5]
    | (?<!\\)\([^()]*:\s*[-+]?\d{2,}(?:\.\d*)?\s*\)      # (x:45)
    | \bAND\b
    """,
    re.VERBOSE,
)


@dataclass(frozen=True)
class Piece(Generic[Other]):
    """A part of a prompt with one weight: text, or something that stands for words."""

    content: str | Other
    weight: float = 1.0


def read_weights(parts: Iterable[str | Other]) -> list[list[Piece[Other]]]:
    """Return the pieces of a prompt, in a list for each chunk that BREAK begins; at least one.

    The prompt comes in parts: texts, and whatever else stands between them, which brackets in the
    texts weight too. Neighbouring texts of the same weight are one piece.

    Example:
        >>> [(piece.content, piece.weight) for piece in read_weights(["a (red:1.5) ball"])[0]]
        [('a ', 1.0), ('red', 1.5), (' ball', 1.0)]
    """
    reading = _Reading[Other]()
    for part in parts:
        if not isinstance(part, str):
            reading.add(part)
            continue
        end = 0
        for sign in _SIGN.finditer(part):
            if text := part[end : sign.start()]:
                reading.add(text)
            reading.follow(sign)
            end = sign.end()
        if text := part[end:]:
            reading.add(text)
    # In AUTOMATIC1111's order: what is rounded alike has one weight, and so is one text.
    for bracket, first in sorted(reading.opened):
        reading.multiply(first, _FACTORS[bracket])
    return reading.sections()


class _Reading(Generic[Other]):
    """What was read of a prompt."""

    def __init__(self) -> None:
        self.contents: list[str | Other | None] = []
        """None for BREAK."""
        self.weights: list[float] = []
        """One for each of the contents."""
        self.opened: list[tuple[str, int]] = []
        """Brackets not yet closed, and how many contents stand before each."""

    def add(self, content: str | Other | None) -> None:
        self.contents.append(content)
        self.weights.append(1.0)

    def follow(self, sign: re.Match[str]) -> None:
        """Do what a sign says; a bracket that closes none is text."""
        wanted = "[" if sign["close"] == "]" else "("
        index = next(
            (n for n in reversed(range(len(self.opened))) if self.opened[n][0] == wanted), None
        )
        if sign["escaped"] is not None:
            self.add(sign["escaped"])
        elif sign["open"]:
            self.opened.append((sign["open"], len(self.contents)))
        elif sign["chunk"]:
            self.add(None)
        elif index is None:
            self.add(sign[0])
        else:
            _, first = self.opened.pop(index)
            factor = float(sign["number"] or _FACTORS[wanted])
            if abs(factor) > MAX_WEIGHT:
                self.add(sign[0].removesuffix(")"))
                factor = _FACTORS[wanted]
            self.multiply(first, factor)

    def multiply(self, first: int, factor: float) -> None:
        """Multiply the weights from one on."""
        self.weights[first:] = [
            max(-MAX_WEIGHT, min(weight * factor, MAX_WEIGHT)) for weight in self.weights[first:]
        ]

    def sections(self) -> list[list[Piece[Other]]]:
        """Return the pieces, split at each BREAK, neighbouring texts of one weight joined."""
        sections: list[list[Piece[Other]]] = [[]]
        for content, weight in zip(self.contents, self.weights, strict=True):
            if content is None:
                sections.append([])
                continue
            last = sections[-1][-1] if sections[-1] else None
            if (
                last is not None
                and isinstance(last.content, str)
                and isinstance(content, str)
                and last.weight == weight
            ):
                sections[-1][-1] = Piece(last.content + content, weight)
            else:
                sections[-1].append(Piece(content, weight))
        return sections


def unapplied_note(*prompts: str) -> str:
    """Return a sentence if prompts hold rules that are not applied here; "" otherwise."""
    for prompt in prompts:
        # In capitals throughout, AND is a word like the others.
        found = _UNREAD.search(prompt if not prompt.isupper() else prompt.lower())
        if found:
            shown = found[0] if len(found[0]) <= SHOWN else f"{found[0][:SHOWN]}..."
            return f"Of the rules in prompts, {shown} is not applied here: it is plain words."
    return ""
