"""Weights and other rules that other tools read in prompts; here they are plain words.

(x:1.2), ((x)), [x], [a:b:0.5], BREAK and AND are AUTOMATIC1111's (modules/prompt_parser.py), whose
single (x) is left out, as people put ordinary words in parentheses; (x)1.2 and (x)++ are
InvokeAI's (compel).
"""

import re

SHOWN = 30
"""Characters of an example in the note."""
RULE = re.compile(
    r"""
    (?<!\\)\(\s*\([^()]+\)\s*\)                      # ((x))
    | (?<!\\)\([^()]*:\s*[-+]?(?:\d+\.?\d*|\.\d+)\s*\)  # (x:1.2)
    | (?<!\\)\([^()]+\)(?:\+{1,9}|-{1,9}|\d+\.\d+)(?!\w)  # (x)++, (x)1.2
    | (?<!\\)\[[^\[\]]+\]                            # [x]
    | \bBREAK\b
    | \bAND\b
    """,
    re.VERBOSE,
)


def unapplied_note(*prompts: str) -> str:
    """Return a sentence if prompts hold rules that are not applied here; "" otherwise."""
    for prompt in prompts:
        # In capitals throughout, BREAK and AND are words like the others.
        found = RULE.search(prompt if not prompt.isupper() else prompt.lower())
        if found:
            shown = found[0] if len(found[0]) <= SHOWN else f"{found[0][:SHOWN]}..."
            return f"Weights and rules in prompts, such as {shown}, are taken as plain words here."
    return ""
