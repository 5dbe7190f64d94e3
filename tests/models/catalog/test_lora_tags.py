"""LoRA tags in prompts and in models' names."""

from models.catalog.lora_tags import split, tags_in, without_tags


def test_tags_are_taken_out_of_prompts_and_names() -> None:
    prompt = "a ball <lora:a:0.8>, <lora:b b>red <lora:>"
    assert tags_in(prompt) == ["<lora:a:0.8>", "<lora:b b>"]
    assert without_tags(prompt, ["<lora:a:0.8>"]) == "a ball , <lora:b b>red <lora:>"
    assert split("sd15 <lora:a:0.8> <lora:b>") == ("sd15", ["<lora:a:0.8>", "<lora:b>"])
    assert split("/a path/with blanks.ckpt ") == ("/a path/with blanks.ckpt ", [])
