"""From a prompt to the text encoder's output: tokens, chunks of 75, weights.

Chunks and weights are AUTOMATIC1111's (modules/sd_hijack_clip.py and sd_emphasis.py, option
"Original"); tests/models/webui_prompts.py holds what it makes of some prompts. Two rules differ:

- All prompts of a call are padded to the same number of chunks with empty ones, as with its option
  "Pad prompt/negative prompt to be same length".
- Where the mean of an output is as good as zero it is not restored, as with its option "No norm":
  the quotient of two such means is arbitrary, even in its sign. CLIP's mean lies far enough from
  zero, Diorama's does not.
"""

import copy
import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.prompt_syntax import CHUNK_TOKENS, MOST_CHUNKS, Piece, read_weights
from models.engine.layers import to_be_run
from models.engine.unet import OnDevice

COMMA_REACH = 20
"""A full chunk ends behind its last comma, if that is so near; AUTOMATIC1111's default."""
NO_MEAN = 0.02
"""A mean of less than so many standard deviations is as good as zero. Diorama's are up to 0.007."""


@dataclass(frozen=True, eq=False)
class Inversion:
    """A textual inversion embedding: token vectors that replace its name in a prompt."""

    name: str
    vectors: Tensor
    """(tokens, width) of the text encoder."""
    hash: str
    """Of its file; empty for one from a LoRA file."""


PromptParts = tuple[str | Inversion, ...]

_TOKENIZER_LOCK = threading.Lock()
"""A fast tokenizer keeps its padding as state and panics when two threads call it at once."""


@dataclass(frozen=True, eq=False)
class _Token:
    number: int
    weight: float
    text: str
    """Its own, and that of its piece after it."""
    piece: int
    """Which of the prompt's pieces it is of, from 0."""
    vector: Tensor | None = None
    """(width,), instead of the number's."""


_Chunk = list[_Token]


def fit_prompt(tokenizer: Any, parts: PromptParts) -> tuple[int, str]:
    """Return how many tokens of a prompt are read, and the text that is not."""
    chunks = _chunks(tokenizer, parts)
    read, dropped = chunks[:MOST_CHUNKS], [one for chunk in chunks[MOST_CHUNKS:] for one in chunk]
    firsts = [one for n, one in enumerate(dropped) if n == 0 or one.piece != dropped[n - 1].piece]
    return sum(map(len, read)), "".join(one.text for one in firsts).strip()


@torch.no_grad()
def encode_text(
    tokenizer: Any,
    text_encoder: nn.Module,
    on_device: OnDevice,
    device: torch.device,
    prompts: tuple[PromptParts, ...],
) -> Tensor:
    """Return the weighted last hidden states (B, 77 * chunks, D)."""
    prompt_chunks = [_chunks(tokenizer, parts)[:MOST_CHUNKS] for parts in prompts]
    count = max(map(len, prompt_chunks))
    empty: _Chunk = []
    rows = [row for one in prompt_chunks for row in [*one, *[empty] * (count - len(one))]]
    tokens = torch.tensor([_numbers(tokenizer, row) for row in rows], device=device)
    vectors = [
        {position: one.vector for position, one in enumerate(row, 1) if one.vector is not None}
        for row in rows
    ]
    with on_device(text_encoder):
        dtype = next(text_encoder.parameters()).dtype
        text_encoder = to_be_run(text_encoder)
        if any(vectors):
            text_encoder = _with_vectors(text_encoder, vectors)
        embeddings: Tensor = text_encoder(tokens)[0].to(dtype)
    for index, row in enumerate(rows):
        if any(one.weight != 1 for one in row):
            embeddings[index] = _weighted(embeddings[index], [one.weight for one in row])
    return embeddings.reshape(len(prompts), -1, embeddings.shape[2])


def _weighted(embedding: Tensor, weights: Sequence[float]) -> Tensor:
    """Multiply a chunk's embedding (77, D) by its tokens' weights, and restore its mean."""
    exact = embedding.float()
    factors = torch.ones(len(exact))
    factors[1 : len(weights) + 1] = torch.tensor(weights)
    weighted = exact * factors.to(exact.device)[:, None]
    least = NO_MEAN * float(exact.std())
    before, after = float(exact.mean()), float(weighted.mean())
    if min(abs(before), abs(after)) >= least and before * after > 0:
        weighted *= before / after
    return weighted.to(embedding)


def _numbers(tokenizer: Any, chunk: _Chunk) -> list[int]:
    """Return a chunk's 77 token numbers."""
    row = [tokenizer.bos_token_id, *(one.number for one in chunk), tokenizer.eos_token_id]
    return row + [tokenizer.pad_token_id] * (CHUNK_TOKENS + 2 - len(row))


def merges_in(folder: Path) -> list[str]:
    """Return the merges of CLIP's tokenizer, "a b" each, the first first; [] if none are here."""
    whole, merges = folder / "tokenizer.json", folder / "merges.txt"
    if merges.is_file():
        lines = merges.read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.strip() and not line.startswith("#version")]
    if not whole.is_file():
        return []
    found = json.loads(whole.read_text(encoding="utf-8"))["model"]["merges"]
    return [one if isinstance(one, str) else " ".join(one) for one in found]


# Tokens and chunks


def _chunks(tokenizer: Any, parts: PromptParts) -> list[_Chunk]:
    """Return a prompt's chunks of at most 75 tokens; at least one."""
    comma = tokenizer.convert_tokens_to_ids(",</w>")
    chunks: list[_Chunk] = []
    before = 0
    *broken, last = read_weights(parts)
    for section in broken:
        chunks += _split(_words(tokenizer, section, before), comma)
        before += len(section)
    final = _split(_words(tokenizer, last, before), comma)
    return chunks + (final if final != [[]] or not chunks else [])


def _words(tokenizer: Any, pieces: Sequence[Piece[Inversion]], before: int) -> list[_Chunk]:
    """Return the tokens of pieces, those together that one chunk must hold."""
    words: list[_Chunk] = []
    for index, piece in enumerate(pieces, before):
        content, weight = piece.content, piece.weight
        if isinstance(content, str):
            with _TOKENIZER_LOCK:
                encoding = tokenizer(
                    content, add_special_tokens=False, return_offsets_mapping=True, verbose=False
                )
            starts = [0, *(start for start, _ in encoding["offset_mapping"][1:])]
            words += [
                [_Token(number, weight, content[start:], index)]
                for number, start in zip(encoding["input_ids"], starts, strict=False)
            ]
        else:
            stand_in = tokenizer.eos_token_id
            tokens = [_Token(stand_in, weight, content.name, index, one) for one in content.vectors]
            firsts = range(0, len(tokens), CHUNK_TOKENS)
            words += [tokens[first : first + CHUNK_TOKENS] for first in firsts]
    return words


def _split(words: Sequence[_Chunk], comma: int) -> list[_Chunk]:
    """Fill chunks with words; one that is full ends behind its last comma, if that is near."""
    chunks: list[_Chunk] = [[]]
    last_comma: int | None = None
    for word in words:
        length = len(chunks[-1])
        if word[0].number == comma and word[0].vector is None:
            last_comma = length
        elif (
            length == CHUNK_TOKENS and last_comma is not None and length - last_comma <= COMMA_REACH
        ):
            chunks[-1:] = [chunks[-1][: last_comma + 1], chunks[-1][last_comma + 1 :]]
            last_comma = None
        if len(chunks[-1]) + len(word) > CHUNK_TOKENS:
            chunks.append([])
            last_comma = None
        chunks[-1] += word
    return chunks


# Textual inversion


class _TokenVectors(nn.Module):
    """A text encoder's token embedding, with other vectors at some positions of each chunk."""

    def __init__(self, table: nn.Module, replacements: Sequence[Mapping[int, Tensor]]) -> None:
        super().__init__()
        self.table = table
        self.replacements = replacements

    def forward(self, tokens: Tensor) -> Tensor:
        embedded: Tensor = self.table(tokens)
        for row, vectors in enumerate(self.replacements):
            for position, vector in vectors.items():
                embedded[row, position] = vector.to(embedded)
        return embedded


def _with_vectors(network: nn.Module, replacements: Sequence[Mapping[int, Tensor]]) -> nn.Module:
    """Return a copy of a text encoder for these chunks only; it shares every weight."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    changed: Any = copy.deepcopy(network, shared)
    changed.set_input_embeddings(_TokenVectors(changed.get_input_embeddings(), replacements))
    copied: nn.Module = changed
    return copied
