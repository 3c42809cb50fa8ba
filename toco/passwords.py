"""Addresses and messages without the passwords in them: what is printed, recorded or shown goes through here."""

from __future__ import annotations

import re


def public_uri(text: str) -> str:
    """One address, or an argument that ends in one, without user name, password and query.

    Whatever stands before the last ``@`` goes: a password may contain any character. Where that
    ``@`` may belong to a query, nothing of the address is left.

    >>> public_uri("https://me:p@ss/w:rd@host:5000/x?password=secret")
    'https://host:5000/x'
    >>> public_uri("--tracking-uri=http://me:secret@host")
    '--tracking-uri=http://host'
    """
    scheme, mark, rest = text.partition("://")
    if not mark:
        return text
    login, _, address = rest.rpartition("@")
    return f"{scheme}{mark}{'...' if '?' in login else address.partition('?')[0]}"


def public_text(message: str) -> str:
    """A message with its addresses as ``public_uri`` shows them; an address ends at a space, a quote or a bracket.

    In a password a single quote and a round bracket end nothing: addresses may hold them there as
    they are.

    >>> public_text("GET http://me:secret@host/a?token=x failed, says me@host")
    'GET http://host/a failed, says me@host'
    """
    return re.sub(
        r"\w+://(?:[^\s\"<>]*@)?[^\s'\"<>()]*", lambda address: public_uri(address[0]), message
    )
