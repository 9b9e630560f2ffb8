"""Our stages of a model against the recorded ones: what differs by more than rounding."""

from build import close

STRICT = 1e-5                          # in the scale of a row


def close_by_row(ours, recorded):
    """The two agree to 1e-5 of the largest value in each row, or to 1e-5 if all of its values are below 1."""
    scale = recorded.abs().amax(dim=-1, keepdim=True).clamp(min=1)
    close(ours / scale, recorded / scale, STRICT)


def failing(rows):
    """The rows of `verify` that fail, or are not as close as STRICT."""
    return [row for row in rows if not (row.passed and row.difference <= STRICT * row.scale)]
