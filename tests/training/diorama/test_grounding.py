"""Grounding: which phrase tokens and pixels belong to, and the attention loss."""

import numpy as np
import torch
from torch import nn

from training.diorama.dataset import Pictures, render_scenes
from training.diorama.grounding import AttentionRecorder, Grounding
from training.diorama.world import make_scene, phrases
from training.train_base import make_tokenizer, tokens


def test_equal_things_share_a_phrase():
    things = make_scene(0).things
    assert list(phrases([things[0], things[0]])) == [things[0].words]
    assert phrases([things[0], things[0]])[things[0].words].startswith("two ")


def test_tokens_and_pixels_of_a_thing_have_the_same_phrase(tmp_path):
    render_scenes(6, 64, tmp_path)
    data = Pictures(tmp_path)
    tokenizer = make_tokenizer(data.captions)
    ids = tokens(tokenizer, data.captions)
    grounding = Grounding(data, tokenizer, ids)
    visible = data.things()
    assert visible.shape == (6, 32, 32)
    for row, seed in enumerate(data.seeds):
        things = make_scene(seed).things
        by_words = phrases(things)
        for number in range(1, int(grounding.token_phrases[row].max()) + 1):
            words = tokenizer.decode(ids[row][grounding.token_phrases[row] == number]).strip()
            assert words in by_words.values()
            named = [k for k, thing in enumerate(things) if by_words[thing.words] == words]
            mask = grounding.pixel_phrases[row].numpy() == number
            assert (mask == np.isin(visible[row], named)).all()
        assert int(grounding.token_phrases[row].max()) >= 1


class _Attention(nn.Module):
    """One head whose queries and keys are its inputs."""

    heads = 1

    def __init__(self) -> None:
        super().__init__()
        self.to_q, self.to_k = nn.Identity(), nn.Identity()


def _loss(query: torch.Tensor, key: torch.Tensor) -> float:
    """The loss of a picture whose left half is phrase 1, named by the second token of three."""
    network = nn.ModuleDict({"attn2": _Attention()})
    recorder = AttentionRecorder(network)
    network["attn2"].to_q(query)
    network["attn2"].to_k(key)
    token_phrases = torch.tensor([[0, 1, 0]])
    pixel_phrases = torch.zeros(1, 32, 32, dtype=torch.int8)
    pixel_phrases[:, :, :16] = 1
    loss = float(recorder.loss(token_phrases, pixel_phrases))
    network["attn2"].to_q(query)  # the first pass is forgotten
    network["attn2"].to_k(key)
    assert float(recorder.loss(token_phrases, pixel_phrases)) == loss
    return loss


def test_attention_to_the_right_words_has_no_loss():
    # Two by two pixels: the left ones point along x, the right ones along y.
    query = torch.tensor([[[40.0, 0], [0, 40.0], [40.0, 0], [0, 40.0]]])
    right = torch.tensor([[[0, 1.0], [1.0, 0], [0, 1.0]]])
    wrong = torch.tensor([[[1.0, 0], [0, 1.0], [1.0, 0]]])
    assert _loss(query, right) < 0.01
    assert _loss(query, wrong) > 5
    # Uniform attention: 1/3 to the thing's word, 2/3 to the rest.
    even = -(np.log(1 / 3) + np.log(2 / 3)) / 2
    assert abs(_loss(query * 0, right) - even) < 0.01


def test_passes_without_gradients_are_not_recorded():
    network = nn.ModuleDict({"attn2": _Attention()})
    recorder = AttentionRecorder(network)
    with torch.no_grad():
        network["attn2"].to_q(torch.zeros(1, 4, 2))
    assert recorder._queries == []
