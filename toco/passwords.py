"""Remove passwords from addresses and messages before they are printed or recorded."""

from __future__ import annotations

import re


def public_uri(text: str) -> str:
    """Remove user name, password and query from an address, or an argument that ends in one.

    Everything before the last ``@`` is removed, because a password may contain any character. If
    this ``@`` may belong to a query, the whole address is removed.

    >>> public_uri("https://me:p@ss/w:rd@host:5000/x?password=secret")
    'https://host:5000/x'
    >>> public_uri("--tracking-uri=http://me:secret@host")
    '--tracking-uri=http://host'
    """
    scheme, mark, remainder = text.partition("://")
    if not mark:
        return text
    login, _, address = remainder.rpartition("@")
    return f"{scheme}{mark}{'...' if '?' in login else address.partition('?')[0]}"


def public_text(message: str) -> str:
    """Apply ``public_uri`` to every address in a message.

    An address ends at a space, a quote or a bracket. Single quotes and round brackets do not end a
    password, where addresses may contain them unescaped.

    >>> public_text("GET http://me:secret@host/a?token=x failed, says me@host")
    'GET http://host/a failed, says me@host'
    """
    return re.sub(
        r"\w+://(?:[^\s\"<>]*@)?[^\s'\"<>()]*", lambda address: public_uri(address[0]), message
    )
