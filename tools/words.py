"""Words that messages share."""


def some(names, most=3):
    """List the first names, and count the others: a, b, c and 4 more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number, noun, verb=""):
    """Count things, with a verb if there is one, both given as for one thing: 1 photo has, 3 photos have; 2 classes."""
    if number != 1:
        noun += "es" if noun.endswith("s") else "s"
        verb = {"is": "are", "has": "have", "was": "were"}.get(verb, verb.removesuffix("s"))
    return f"{number} {noun} {verb}".rstrip()
