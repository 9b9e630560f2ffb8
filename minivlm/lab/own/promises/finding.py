"""One promise, and what became of it: the row of every table, page and file that `check` writes."""

from dataclasses import asdict, dataclass

KEPT = "kept"
BROKEN = "broken"
SKIPPED = "skipped"


@dataclass(frozen=True)
class Finding:
    """A promise that is kept, broken or skipped."""

    name: str
    sentence: str                      # what is promised
    status: str = KEPT
    case: str = ""                     # broken: the smallest case found, in words
    seen: str = ""                     # broken: what the method did there; skipped: why it was not tried
    cause: str = ""                    # broken: the usual cause, and the remedy

    def data(self):
        """As plain data."""
        return asdict(self)


def skipped(names, sentences, why):
    """[Finding] of promises that were not tried."""
    return [Finding(name, sentences[name], SKIPPED, seen=why) for name in names]


def broken(findings):
    """The findings that are broken."""
    return [finding for finding in findings if finding.status == BROKEN]
