"""The style sheets, as they come out of what Gradio does to them."""

import re
from pathlib import Path

import pytest

from apps.web import html

OF_NONE = {"border-radius", "border-collapse", "border-spacing", "outline-offset"}
"""Named like a part of a shorthand, but none."""
SHEETS = sorted(Path(html.__file__).parent.rglob("*.css"))


@pytest.mark.parametrize("sheet", SHEETS, ids=lambda sheet: sheet.name)
def test_no_rule_refines_a_shorthand_that_holds_a_variable(sheet: Path) -> None:
    """Gradio writes the rules out again, and a browser then leaves such a shorthand out."""
    text = re.sub(r"/\*.*?\*/", "", sheet.read_text(encoding="utf-8"), flags=re.DOTALL)
    rules = re.findall(r"\{([^{}]+)\}", text)
    assert rules
    for rule in rules:
        pairs = [tuple(map(str.strip, one.split(":", 1))) for one in rule.split(";") if ":" in one]
        for at, (name, value) in enumerate(pairs):
            parts = {later for later, _ in pairs[at + 1 :] if later.startswith(f"{name}-")}
            assert "var(" not in value or not parts - OF_NONE, rule
