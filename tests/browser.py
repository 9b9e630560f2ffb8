"""A headless Chromium whose keys a test presses: its DevTools protocol over a pipe, without another package.

    with Browser() as browser:
        browser.open(path)
        browser.press("Tab")
        assert browser.value("document.activeElement.id") == "layer"
"""

import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-extensions", "--hide-scrollbars", "--remote-debugging-pipe")
PATIENCE = 60                          # seconds until an answer is given up
KEYS = {                               # name: the code that Windows gave it
    "Tab": 9,
    "Enter": 13,
    "Space": 32,
    "PageUp": 33,
    "PageDown": 34,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}
SHIFT = 8


def browser_or_skip():
    """The path of a Chromium; the test is skipped if there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no headless browser: none of {', '.join(NAMES)} is installed (apt-get install chromium)")
    return path


class Browser:
    """One tab. What the page throws, and what its policy refuses, is collected in `complaints`."""

    def __init__(self):
        path = browser_or_skip()
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        there, self.to = os.pipe()
        self.back, here = os.pipe()
        # Chromium reads from its descriptor 3 and writes to 4; high numbers are in nobody's way
        reads = fcntl.fcntl(there, fcntl.F_DUPFD, 20)
        writes = fcntl.fcntl(here, fcntl.F_DUPFD, 20)

        def numbered():
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        command = [path, *FLAGS, f"--user-data-dir={self.profile.name}", "about:blank"]
        # its other temporary folders lie in that of its profile, which is removed
        surroundings = os.environ | {"TMPDIR": self.profile.name}
        self.process = subprocess.Popen(command, preexec_fn=numbered, pass_fds=(3, 4), stdin=subprocess.DEVNULL,
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=surroundings)
        for descriptor in (there, here, reads, writes):
            os.close(descriptor)
        self.unread = b""
        self.count = 0
        self.session = None
        self.events = []

    def __enter__(self):
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.to)
        os.close(self.back)
        self.profile.cleanup()

    @property
    def complaints(self):
        """Exceptions that nobody caught, and errors of the console: what the policy refused is among them."""
        thrown = [event["params"] for event in self.events if event["method"] == "Runtime.exceptionThrown"]
        entries = [event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"]
        return thrown + [entry for entry in entries if entry["level"] == "error"]

    def open(self, path, width=1280, height=900, dark=False):
        """Show a file in a window of that size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)
        scheme = dict(name="prefers-color-scheme", value="dark" if dark else "light")
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.read()

    def press(self, key, times=1, shift=False):
        """Press a key, by its name or its character."""
        code = dict(key=key, windowsVirtualKeyCode=KEYS.get(key, 0), modifiers=SHIFT if shift else 0)
        if len(key) == 1:
            code["text"] = key
        if key == "Space":
            code |= dict(key=" ", text=" ")
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **code)
            self.call("Input.dispatchKeyEvent", type="keyUp", **code)

    def point_at(self, selector):
        """Move the mouse to the middle of the first element that the selector means."""
        x, y = self.value(f"""(element => {{
            element.scrollIntoView({{block: "center"}});
            const box = element.getBoundingClientRect();
            return [box.x + box.width / 2, box.y + box.height / 2];
        }})(document.querySelector({json.dumps(selector)}))""")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def value(self, expression):
        """What an expression of JavaScript gives, as plain data."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def call(self, method, **params):
        """The result of one command of the protocol."""
        self.count += 1
        message = dict(id=self.count, method=method, params=params)
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.count:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def read(self):
        """The next message; events are kept."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self.unread:
            ready, _, _ = select.select([self.back], [], [], max(0, end - time.monotonic()))
            piece = os.read(self.back, 1 << 20) if ready else b""
            assert piece, f"the browser says nothing (exit status {self.process.poll()})"
            self.unread += piece
        message, self.unread = self.unread.split(b"\0", 1)
        message = json.loads(message)
        if "method" in message:
            self.events.append(message)
        return message
