"""What a style fills into the prompts, in place of what another one has filled in."""

from models.catalog.cards import Style

NO_STYLE = Style("{prompt}")


def restyled(
    prompt: str, added: str, negative: str, old: Style, new: Style
) -> tuple[str, str, str]:
    """Return prompt, added prompt and negative prompt in a new style; other words stay.

    Example:
        >>> restyled("a ball", "", "blurry", NO_STYLE, Style("a sketch of {prompt}, ink", "photo"))
        ('a sketch of a ball', 'ink', 'blurry, photo')
    """
    return (
        new.before + prompt.removeprefix(old.before),
        _swapped(added, old.after, new.after),
        _swapped(negative, old.negative, new.negative),
    )


def _swapped(text: str, old: str, new: str) -> str:
    """Return a text with `new` in place of `old`, at its end if `old` is not there."""
    before, found, after = text.rpartition(old) if old else (text, "", "")
    if not found:
        before, after = text, ""
    if not found and not new:
        return text
    parts = (part.strip().strip(",").strip() for part in (before, new, after))
    return ", ".join(filter(None, parts))


def what_it_adds(style: Style) -> str:
    """Return a sentence about a style; "" for one that adds nothing."""
    prompts = [part for part in (style.before.strip(), style.after) if part]
    told = [f"“{' … '.join(prompts)}” to the prompt"] if prompts else []
    told += [f"“{style.negative}” to the negative prompt"] if style.negative else []
    return f"Adds {' and '.join(told)}." if told else ""
