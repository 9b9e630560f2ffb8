"""What a user can cause, and how it is said in one line."""


class UserError(Exception):
    """A request that cannot be met. Its text is one line that names the thing and the remedy."""

    def __init__(self, message=""):
        super().__init__(one_line(str(message)))


def one_line(text, word=200, line=480):
    """The text with what cannot be printed escaped, and the middle cut out of a long word and of a long line.

    one_line("a\\nb", word=9) -> "a\\\\nb"; one_line("x" * 50, word=9) -> "xx ... xx"
    """
    printable = "".join(escaped(letter) for letter in text)
    words = [shortened(part, word) for part in printable.split(" ")]
    return shortened(" ".join(words), line)


def escaped(letter):
    """The letter, or if it cannot be printed its escape: a line break is backslash and n."""
    if letter.isprintable():
        return letter
    quoted = repr(letter)
    return quoted[1:-1]


def shortened(text, length):
    """The text, or if it is longer its two ends with dots between them."""
    if len(text) <= length:
        return text
    room = length - len(" ... ")
    end = room // 2
    first = text[:end]
    last = text[-end:]
    return f"{first} ... {last}"
