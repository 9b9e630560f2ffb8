"""What a user can cause, and how it is said in one line."""


class UserError(ValueError):
    """A request that cannot be met. Its text is one line that names the thing and the remedy."""

    def __init__(self, message=""):
        super().__init__(one_line(str(message)))


def one_line(text, word=200, line=480):
    """The text with what cannot be printed escaped, and the middle cut out of a long word and of a long line.

    one_line("a\\nb", word=9) -> "a\\\\nb"; one_line("x" * 50, word=9) -> "xx ... xx"
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return _cut(" ".join(_cut(part, word) for part in escaped.split(" ")), line)


def _cut(text, length):
    if len(text) <= length:
        return text
    end = (length - len(" ... ")) // 2
    return f"{text[:end]} ... {text[-end:]}"
