"""Counts in messages."""


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a count with its noun: '1 note', '2 notes'.

    Args:
        count: how many there are.
        noun: of one, such as 'note' or 'array is'.
        many: the same of none or several where it is more than the noun and an s, such as 'arrays are'.
    """
    return f"{count} {noun if count == 1 else many or f'{noun}s'}"
