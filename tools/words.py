"""Words that messages share."""


def some(names, most=3):
    """List the first names, and count the others: a, b, c and 4 more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
