"""What to say of a name that does not exist: the nearest one, and all that do."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str]) -> str:
    """Returns " did you mean 'x'?" for the nearest known name; nothing if none is near."""
    near = get_close_matches(str(name), list(known), n=1, cutoff=0.4)
    return f" did you mean '{near[0]}'?" if near else ""


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """Returns the whole sentence, such as "unknown camera 'wrst'; did you mean 'wrist'? ..."."""
    known = list(known)
    return f"unknown {what} '{name}';{nearest(name, known)} known: {', '.join(known)}"
