"""JSON of files that anyone may have written."""

import json
from typing import Any

# levels of arrays and objects; no file that is read here has ten
DEEPEST = 100


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is no JSON, or is nested more than DEEPEST levels deep.

    Differs from json.loads: nesting beyond Python's recursion is a ValueError, as all other damage is, and what is
    returned can be walked over by functions that call themselves.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        # Without the cause, which has a thousand frames.
        raise ValueError("it is nested too deeply") from None
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return value
    raise ValueError("it is nested too deeply")
