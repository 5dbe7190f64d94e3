"""LoRA tags in prompts and in models' names."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import BadInput
from models.catalog.lora_tags import BLOCKS, Strengths, read_tag, split, tags_in, without_tags


def test_tags_are_taken_out_of_prompts_and_names() -> None:
    prompt = "a ball <lora:a:0.8>, <lora:b b>red <lora:> <lyco:c:1> <hypernet:d> <em>"
    tags = ["<lora:a:0.8>", "<lora:b b>", "<lyco:c:1>", "<hypernet:d>"]
    assert tags_in(prompt) == tags
    assert without_tags(prompt) == "a ball , red <lora:>   <em>"
    assert split("sd15 <lora:a:0.8> <lora:b>") == ("sd15", ["<lora:a:0.8>", "<lora:b>"])
    assert split("/a path/with blanks.ckpt ") == ("/a path/with blanks.ckpt ", [])


@pytest.mark.parametrize(
    ("rest", "text_encoder", "unet"),
    [
        ("", 1, 1),
        (":", 1, 1),
        (":0.8", 0.8, 0.8),
        (":0.8:0.6", 0.8, 0.6),
        (":-1:0", -1, 0),
        (":te=0.5:unet=0.8", 0.5, 0.8),
        (":unet=0.8", 1, 0.8),
        (":0.8:te=0.6", 0.6, 0.6),  # the UNet follows the text encoder where it is not named
        (":0.8:0.6:te=0.1", 0.1, 0.6),
        (":0.8:lbw=NONE", 0.8, 0.8),
        (": 0.8 : te = 0.5 ", 0.5, 0.5),
    ],
)
def test_strengths_are_the_text_encoders_and_the_unets(
    rest: str, text_encoder: float, unet: float
) -> None:
    """As extra_networks_lora.py of AUTOMATIC1111 and Forge reads them."""
    for word in ("lora", "lyco", "LoRA"):
        name, strengths = read_tag(f"<{word}:a b{rest}>")
        assert (name, strengths.text_encoder, strengths.unet) == ("a b", text_encoder, unet)


def test_ranks() -> None:
    assert read_tag("<lora:a:1:1:4>")[1].ranks == read_tag("<lora:a:1:dyn=4>")[1].ranks == 4
    assert read_tag("<lora:a:1>")[1].ranks is None


@pytest.mark.parametrize(
    ("setting", "weights"),
    [
        ("lbw=ALL", {block: 1.0 for block in BLOCKS}),
        ("lbw=NONE", {}),
        ("lbw=MIDD", dict.fromkeys("BASE IN05 IN07 IN08 M00 OUT03 OUT04 OUT05 OUT06".split(), 1)),
        ("OUTS", {"BASE": 1} | {f"OUT{n:02}": 1 for n in range(7, 12)}),
        ("w=MID", {"M00": 1}),
        ("lbw=IN01", {"IN01": 1}),
        ("lbw=" + ",".join(["0.5", "2", *"0" * 15]), {"BASE": 0.5, "IN01": 2}),
        ("0,0.25" + ",0" * 24, {"IN00": 0.25}),
    ],
)
def test_block_weights(setting: str, weights: dict[str, float]) -> None:
    """As sd-webui-lora-block-weight's README and its presets have them."""
    read = dict(zip(BLOCKS, read_tag(f"<lora:a:1:{setting}>")[1].blocks, strict=True))
    assert {block: factor for block, factor in read.items() if factor} == pytest.approx(weights)


@pytest.mark.parametrize(
    ("tag", "words"),
    [
        ("<lora:a:much>", "the weight must be a number from -10 to 10, as in <lora:a:0.8>"),
        ("<lora:a:nan>", "the weight must be a number"),
        ("<lora:a:1:te=1e9>", "the weight must be a number"),
        ("<lora:a:1:1:1:1>", "cannot be read"),
        ("<lora:a:1:dyn=0>", "cannot be read"),
        ("<lora:a:1:start=3>", "the setting start is not known"),
        ("<lora:a:1:lbw=MINE>", "the block weights must be 17 or 26 numbers"),
        ("<lora:a:1:lbw=1,1>", "the block weights must be 17 or 26 numbers"),
        ("<lora:a:1:" + "R," * 16 + "R>", "the block weights must be 17 or 26 numbers"),
        ("<hypernet:a:1>", "Hypernetworks cannot be used here"),
        ("lora", "is not a LoRA tag"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tag: str, words: str) -> None:
    with pytest.raises(BadInput, match=words) as refusal:
        read_tag(tag)
    assert tag in str(refusal.value) and "\n" not in str(refusal.value)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="lora:<>=te0.5unet,dynbw1MIDR -", max_size=30))
def test_any_tag_is_read_or_refused_in_one_sentence(text: str) -> None:
    for tag in tags_in(f"<lora:{text}>"):
        try:
            assert isinstance(read_tag(tag)[1], Strengths)
        except BadInput as refusal:
            assert tag in str(refusal)
