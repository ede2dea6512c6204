"""Links to the documentation, for messages that need more than a sentence."""

from __future__ import annotations

__all__ = ["see"]

#: Address in front of every path. Without a public one, links are paths in the repository.
_ROOT = ""


def see(page: str) -> str:
    """Return ``see PAGE`` for a file of the repository, with ``#heading`` at the end if needed.

    Example:
        >>> see("docs/how-to/read-khat.md")
        'see docs/how-to/read-khat.md'
    """
    return f"see {_ROOT}{page}"
