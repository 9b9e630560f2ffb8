"""Chat templates of strangers, rendered where they can do no harm: jinja2's sandbox, inside a process of its own.

A checkpoint's template is a program. The sandbox (sandbox.py) keeps it away from everything but its variables. The
process bounds what it uses: it is ended when a text takes too long, and its memory is limited. It is started once, and
answers one line of JSON with another.

    render("{{ messages[0]['content'] }}!", {"messages": [{"role": "user", "content": "Hi"}]}) -> "Hi!"
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

from pruning.base import UserError

# by its path: as a module it would import the package minivlm, and with it torch
COMMAND = [sys.executable, str(Path(__file__).with_name("sandbox.py"))]
LONGEST_TEMPLATE = 500_000             # characters; released ones have some thousands
SECONDS = 20                           # that a text may take, with the start of the process


class _Process:
    """The process that renders: started when it is first needed, and again after it was ended or this one was
    forked."""

    def __init__(self):
        self.running = None
        self.owner = None
        self.lock = threading.Lock()

    def ask(self, question):
        """The answer to a line; "" if none came in time."""
        with self.lock:
            if self.running is None or self.owner != os.getpid():
                self._start()
            timer = threading.Timer(SECONDS, self.running.kill)
            timer.start()
            answer = ""
            try:
                self.running.stdin.write(question + "\n")
                self.running.stdin.flush()
                answer = self.running.stdout.readline()
            except OSError:                        # it has ended already
                pass
            finally:
                timer.cancel()
                if not answer.endswith("\n"):      # ended, or not waited for (Ctrl-C): its answer is nobody's
                    self._end()
            return answer

    def _start(self):
        self.running = subprocess.Popen(COMMAND, encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL)
        self.owner = os.getpid()

    def _end(self):
        self.running.kill()
        self.running.wait()
        self.running = None


_process = _Process()


def render(template, variables, name="the chat template"):
    """The text that a jinja template makes of JSON values.

    Raises UserError, which begins with `name`, where it makes none.
    """
    if len(template) > LONGEST_TEMPLATE:
        raise UserError(f"{name} has {len(template)} characters, and at most {LONGEST_TEMPLATE} are read: choose a "
                        f"--template")
    line = _process.ask(json.dumps(dict(template=template, variables=variables)))
    if not line.endswith("\n"):
        raise UserError(f"{name} takes more than {SECONDS} seconds, or too much memory: choose a --template")
    answer = json.loads(line)
    if "error" in answer:
        raise UserError(f"{name} cannot be used ({answer['error']}): choose a --template")
    return answer["text"]
