"""Characters that look like those of a shape expression and are others."""

from __future__ import annotations

import unicodedata

# Letters of other scripts that look like ours, and every kind of dash and of nothing.
_LOOKALIKES = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2044\u2215\uff0f", "/"), **dict.fromkeys("\u00d7\u2217\uff0a", "*"),
    **dict(zip("\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458\u0455\u04bb\u0501\u051b",
               "aeopcyxijshdq", strict=True)),
    **dict(zip("\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0405\u0406",
               "ABEKMHOPCTXSI", strict=True)),
    **dict(zip("\u03b1\u03bf\u03c1\u03bd\u03b9\u0391\u0392\u0395\u039a\u039c\u039f\u03a4",
               "aopviABEKMOT", strict=True)),
}


def character_hint(char: str) -> str | None:
    """Says what `char` was probably meant to be, or None.

    >>> character_hint("\\u2011"), character_hint("\\u0455"), character_hint(" ")
    ("did you mean '-'?", "did you mean 's'?", 'leave it out')
    """
    plain = _LOOKALIKES.get(char) or unicodedata.normalize("NFKC", char)
    digit = unicodedata.digit(char, None)
    if digit is not None:
        return f"write the digit {digit}"
    if char.isspace() or unicodedata.category(char) in ("Cf", "Cc", "Zs"):
        return "leave it out"
    return f"did you mean '{plain}'?" if plain != char and plain.isascii() else None
