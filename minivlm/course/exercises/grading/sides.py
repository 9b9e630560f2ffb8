"""The two sides that a check calls by name: code of this process, and a student's, in its own process (process.py).

Both have the same methods, so that a check can ask either for the same.
"""

from minivlm.course.exercises.grading import calls
from minivlm.course.exercises.problem import Stopped, Wrong
from minivlm.course.exercises.stub import STUB
from pruning.errors import one_line


class Side:
    """Functions and classes of one file. A subclass defines `ask`."""

    def begin(self):
        """A check begins."""

    def ask(self, of, options, wanted, gradient=False):
        """calls.results of the file. Wrong if a call fails."""
        raise NotImplementedError

    def call(self, name, *args):
        """What a function gives."""
        return self.ask(None, {}, [(name, args)])[0]

    def make(self, of, **options):
        """An object of a class, whose methods can be called."""
        return Made(self, of, options)

    def in_turn(self, of, *wanted, **options):
        """What each of the calls (name, *args) on one object gives; the name of an attribute gives its value."""
        return self.ask(of, options, [(name, args) for name, *args in wanted])


class Made:
    """An object of a side. Each call makes it anew, since methods are pure functions."""

    def __init__(self, side, of, options):
        self.side = side
        self.of = of
        self.options = options

    def __getattr__(self, name):
        def method(*args):
            return self.side.ask(self.of, self.options, [(name, args)])[0]
        return method

    def get(self, name):
        """The value of an attribute."""
        return self.side.ask(self.of, self.options, [(name, ())])[0]

    def gradients(self, name, *args):
        """(the value of a method, the gradients of its sum of squares by every tensor given and every weight)"""
        return self.side.ask(self.of, self.options, [(name, args)], True)[0]


class Ours(Side):
    """A module of this process."""

    def __init__(self, module):
        self.module = module

    def ask(self, of, options, wanted, gradient=False):
        try:
            return calls.results(self.module, of, options, wanted, gradient)
        except Exception as error:
            raise failure(calls.described(error, self.module.__file__), wanted) from None


def failure(error, wanted):
    """What to raise for an exception of one of these calls, as calls.described describes it: Wrong or Stopped."""
    kind = error["kind"]
    message = one_line(error["message"])
    names = " or ".join(dict.fromkeys(name for name, _ in wanted))
    place = f" (line {error['line']})" if error["line"] else ""
    if kind == "NotImplementedError" and (not message or STUB in message):
        name = message.partition(":")[0] or names
        return Stopped(f"{name} is not written yet")
    if kind == "MemoryError" or "DefaultCPUAllocator" in message:
        return Wrong(f"{names} asks for more memory than it may have{place}")
    if kind == "SystemExit":
        return Wrong(f"{names} exits the program{place}")
    words = ": ".join(filter(None, [kind, message]))
    return Wrong(f"{names} raises {words}{place}")
