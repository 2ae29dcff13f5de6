"""A finding: how bad it is, where it was found, what it is, and how to mend it."""

from dataclasses import dataclass

from projects.bevformer.messages import printable

OK, WARNING, BROKEN = "ok", "warning", "broken"


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: OK; WARNING, what works but may surprise; BROKEN, what does not work.
        where: package, file or config key.
        what: what was found.
        remedy: what to do about it; empty for OK.
    """

    level: str
    where: str
    what: str
    remedy: str = ""

    def line(self):
        """The finding on one line."""
        text = f"[{self.level}] {self.where}: {self.what}"
        return printable(" ".join((f"{text}. {self.remedy}" if self.remedy else text).split()))


def ok(where, what):
    """A check that passed."""
    return Finding(OK, where, what)


def warning(where, what, remedy):
    """Something that works but may surprise."""
    return Finding(WARNING, where, what, remedy)


def broken(where, what, remedy):
    """Something that does not work."""
    return Finding(BROKEN, where, what, remedy)


def error_line(error):
    """An exception in one line, without torch's or mmcv's tail of context."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"
