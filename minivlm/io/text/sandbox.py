"""What runs in the process that renders chat templates: lines of JSON in, lines of JSON out.

It imports neither torch nor minivlm. render.py starts it, by its path, and ends it.
"""

import json
import sys
from datetime import datetime
from functools import lru_cache

LONGEST_TEXT = 4_000_000               # characters that a template may write
MEMORY = 2 ** 30                       # bytes of the process, where the system can limit them


def serve(questions, answer):
    """Answer each line of JSON, {"template", "variables"}, with {"text"} or {"error"}."""
    for line in questions:
        question = json.loads(line)
        try:
            result = dict(text=_rendered(question["template"], question["variables"]))
        except MemoryError:
            result = dict(error="it takes too much memory")
        except Exception as error:                 # a template can raise whatever Python can
            sentence = " ".join(str(error).split())[:200]
            result = dict(error=f"{type(error).__name__}: {sentence}")
        answer(json.dumps(result))


def _rendered(template, variables):
    """The text, written piece by piece until it is too long."""
    pieces = []
    length = 0
    for piece in _compiled(template).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST_TEXT:
            raise ValueError(f"it writes more than {LONGEST_TEXT} characters")
    return "".join(pieces)


@lru_cache(4)
def _compiled(template):
    return _environment().from_string(template)


def _environment():
    """jinja2's sandbox with what templates on the hub rely on: the settings that transformers documents."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message):
        raise TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form):
        return datetime.now().strftime(form)

    extensions = [loopcontrols, _generation()]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = tojson             # jinja2's own escapes <, > and & for web pages
    environment.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return environment


def _generation():
    """The tag {% generation %}, which marks what an assistant says: its inside is rendered as if it were not there."""
    from jinja2.ext import Extension
    from jinja2.nodes import Scope

    class Generation(Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            return Scope(parser.parse_statements(["name:endgeneration"], drop_needle=True)).set_lineno(line)
    return Generation


def _limit_memory():
    try:
        import resource
    except ImportError:                            # Windows: the time alone is limited
        return
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (OSError, ValueError):                  # a stricter limit is set already, or the system has none
        pass


if __name__ == "__main__":
    import signal
    signal.signal(signal.SIGINT, signal.SIG_IGN)       # Ctrl-C is for the process that asks
    _limit_memory()
    serve(sys.stdin, lambda line: print(line, flush=True))
