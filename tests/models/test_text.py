"""Weights and chunks of prompts are AUTOMATIC1111's, on the same text encoder."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from annotators import find_annotator
from core.condition import Condition
from core.pipeline import Pipeline
from core.prompt_syntax import MOST_TOKENS
from core.request import GenerationRequest, GenerationResult
from models.networks import DiffusersNetworks
from models.text import Inversion, merges_in
from tests.models import webui_prompts
from tests.models.webui_prompts import LONG, PROMPTS
from tests.tiny_networks import MERGES, TEXT_WIDTH, tiny_networks

WEBUI = load_file(webui_prompts.FILE)
TINY = replace(tiny_networks(), text_encoder=webui_prompts.text_encoder(webui_prompts.MEAN))
"""Networks whose text encoder's output has about the mean of CLIP's."""
NO_MEAN = replace(tiny_networks(), text_encoder=webui_prompts.text_encoder(0.0))


def of(prompt: str, networks: DiffusersNetworks = TINY) -> Tensor:
    return networks.encode_text([prompt])[0]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_is_encoded_as_by_automatic1111(name: str) -> None:
    torch.testing.assert_close(of(PROMPTS[name]), WEBUI[name], rtol=1e-4, atol=1e-5)


def test_the_prompts_of_the_reference_differ() -> None:
    plain = WEBUI["plain"]
    others = [one for name, one in WEBUI.items() if name != "plain" and one.shape == plain.shape]
    assert len(others) >= 5
    assert all(not torch.allclose(one, plain, atol=0.01) for one in others)


def test_a_mean_of_zero_is_not_restored() -> None:
    torch.testing.assert_close(
        of(PROMPTS["weights"], NO_MEAN), WEBUI["no_norm"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("weight", [-5, 0, 9.9])
def test_no_weight_makes_infinite_or_huge_values(weight: float) -> None:
    for networks in (TINY, NO_MEAN):
        found = of(f"(the red ball:{weight})", networks)
        assert torch.isfinite(found).all()
        assert found.abs().max() <= 10 * of("the red ball", networks).abs().max()


def test_all_prompts_of_a_call_are_padded_with_empty_chunks() -> None:
    long, short = TINY.encode_text([LONG * 2, "the red ball"])
    assert long.shape == short.shape == (2 * 77, TEXT_WIDTH)
    torch.testing.assert_close(long, of(LONG * 2))
    torch.testing.assert_close(short, torch.cat([of("the red ball"), of("")]))


def test_a_weight_acts_on_its_own_tokens_alone() -> None:
    ratio = of("the (red:1.5) ball", NO_MEAN) / of("the red ball", NO_MEAN)
    wanted = torch.ones(77, 1)
    wanted[2] = 1.5
    torch.testing.assert_close(ratio, wanted.expand(77, TEXT_WIDTH))


def test_half_precision_stays_and_is_near() -> None:
    half = replace(TINY, text_encoder=webui_prompts.text_encoder(webui_prompts.MEAN).bfloat16())
    found = of(PROMPTS["weights"], half)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), WEBUI["weights"], rtol=0.1, atol=0.1)


# Textual inversion and LoRA tags


def with_word(vectors: Tensor) -> DiffusersNetworks:
    """Networks that know an embedding named "word"."""
    inversion = Inversion("word", vectors, "")

    def split(prompt: str) -> tuple[str | Inversion, ...]:
        before, found, after = prompt.partition("word")
        return (before, inversion, after) if found else (prompt,)

    return replace(NO_MEAN, split_prompt=split)


@pytest.mark.parametrize(
    ("prompt", "factor"), [("the (word:1.5) ball", 1.5), ("the [word] ball", 1 / 1.1)]
)
def test_brackets_weight_an_embedding(prompt: str, factor: float) -> None:
    networks = with_word(torch.randn(3, TEXT_WIDTH, generator=torch.Generator().manual_seed(1)))
    ratio = of(prompt, networks) / of("the word ball", networks)
    wanted = torch.ones(77, 1)
    wanted[2:5] = factor
    torch.testing.assert_close(ratio, wanted.expand(77, TEXT_WIDTH))


def test_an_embedding_is_not_cut_in_two() -> None:
    networks = with_word(torch.randn(4, TEXT_WIDTH, generator=torch.Generator().manual_seed(1)))
    found = of("the " * 73 + "word", networks)
    torch.testing.assert_close(found, torch.cat([of("the " * 73, networks), of("word", networks)]))


def test_an_embedding_longer_than_a_chunk_goes_on_in_the_next() -> None:
    vectors = torch.randn(80, TEXT_WIDTH, generator=torch.Generator().manual_seed(1))
    networks = with_word(vectors)
    ends = [of("word", with_word(vectors[:75])), of("word", with_word(vectors[75:]))]
    torch.testing.assert_close(of("word", networks), torch.cat(ends))
    assert networks.fit_prompt("the word") == (81, "")


def test_a_tag_inside_brackets_is_no_word() -> None:
    assert torch.equal(of("the (red <lora:a:0.5>:1.5) ball"), of("the (red :1.5) ball"))


# What fits


def test_tokens_are_counted_over_all_chunks() -> None:
    assert TINY.fit_prompt("the (red:1.5) [ball]") == (3, "")
    assert TINY.fit_prompt("the " * 100) == (100, "")
    assert TINY.fit_prompt("the BREAK ball") == (2, "")


def test_what_is_beyond_the_last_chunk_is_named_and_not_read() -> None:
    full = "red " * MOST_TOKENS
    used, dropped = TINY.fit_prompt(f"{full}(The BALL:1.2), the [end]")
    assert (used, dropped) == (MOST_TOKENS, "The BALL, the end")
    assert torch.equal(of(f"{full}the ball"), of(full))
    assert TINY.fit_prompt(full) == (MOST_TOKENS, "")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    words=st.lists(
        st.sampled_from(["the", "red", ",", "(ball:1.2)", "[red]", "BREAK", "((", ")", ":", "\\"]),
        max_size=200,
    )
)
def test_any_prompt_has_whole_chunks_and_no_token_is_lost(words: list[str]) -> None:
    prompt = " ".join(words)
    found = of(prompt)
    used, dropped = TINY.fit_prompt(prompt)
    assert torch.isfinite(found).all()
    assert len(found) % 77 == 0 and used <= len(found) // 77 * 75
    assert used >= min(MOST_TOKENS, sum(one in ("the", "red") for one in words)) or dropped


def test_merges_are_read_from_either_file_and_there_may_be_none(tmp_path: Path) -> None:
    assert merges_in(tmp_path) == []
    TINY.tokenizer.save_pretrained(tmp_path)
    assert merges_in(tmp_path) == MERGES
    lines = ["#version: 0.2", *MERGES, ""]
    (tmp_path / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "tokenizer.json").unlink()
    assert merges_in(tmp_path) == MERGES


# Requests of different lengths at the same time


@pytest.mark.slow
def test_requests_with_one_and_two_chunks_share_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each gets the picture that it gets alone."""
    monkeypatch.setattr(DiffusersNetworks, "max_batch", lambda *_: 8)
    together: list[int] = []
    batched: Callable[..., list[Tensor]] = TINY.predict_batched
    monkeypatch.setattr(
        TINY, "predict_batched", lambda calls: (together.append(len(calls)), batched(calls))[1]
    )
    pipeline = Pipeline(lambda *_, **__: TINY)
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    condition = Condition("canny", "Canny", "", find_annotator("canny"), "canny")
    requests = [
        GenerationRequest.single(
            condition,
            picture,
            prompt=prompt,
            negative_prompt=negative,
            seed=seed,
            steps=3,
            image_resolution=256,
            added_prompt="",
        )
        for seed, (prompt, negative) in enumerate(
            [("the red ball", ""), ("the BREAK (ball:1.4)", ""), ("ball", LONG * 2), ("red", "the")]
        )
    ]
    alone = [pipeline.generate(one) for one in requests]
    assert not together

    results: list[GenerationResult] = []
    with ThreadPoolExecutor(len(requests)) as threads:
        with pipeline._batcher.lease(TINY, "another", 1, lambda: None):
            running = [threads.submit(pipeline.generate, one) for one in requests]
            waiting = threading.Event()
            while len(pipeline._batcher._lease_queue) < len(requests):
                waiting.wait(0.01)
        results = [one.result() for one in running]
    assert max(together) == len(requests)
    for found, wanted in zip(results, alone, strict=True):
        difference = np.abs(found.images[0].astype(int) - wanted.images[0].astype(int))
        assert difference.max() <= 1 and not found.warnings
