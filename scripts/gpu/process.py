"""Child processes that cannot outlive their time."""

import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time


class Failed(Exception):
    """A part did not do its job; the text is for the report."""


class NotRun(Exception):
    """A part has nothing to run; the text says why."""


def tail(text, lines=40):
    return "\n".join(text.strip().splitlines()[-lines:])


def headline(text):
    """First and last line: what happened, and why."""
    lines = text.strip().splitlines() or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]}: {lines[-1].strip()}"


def kill(child):
    """Ends a child and everything it started."""
    if child.poll() is None:
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()


class Shell:
    """Runs commands and keeps their whole output in a log."""

    def __init__(self, log):
        self.log = open(log, "a", errors="replace")

    def note(self, text):
        self.log.write(text.rstrip() + "\n")
        self.log.flush()

    def try_call(self, command, limit, env=None, cwd=None):
        """Exit status (None: ran past the limit), output with errors, output alone."""
        command, start = [str(c) for c in command], time.monotonic()
        with (
            tempfile.TemporaryFile("w+", errors="replace") as out,
            tempfile.TemporaryFile("w+", errors="replace") as errors,
        ):
            try:
                child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=errors,
                    cwd=cwd,
                    env=os.environ | (env or {}),
                    process_group=0,
                )
            except OSError as error:
                raise Failed(f"{command[0]}: {error}") from None
            try:
                status = child.wait(max(limit, 0.1))
            except subprocess.TimeoutExpired:
                status = None
            finally:
                kill(child)
            out.seek(0), errors.seek(0)
            text, complaints = out.read(), errors.read()
        self.note(
            f"\n$ {' '.join(command)}\n{text}{complaints}[{'past its time' if status is None else status}, "
            f"{time.monotonic() - start:.1f} s]"
        )
        return status, text + complaints, text

    def call(self, command, limit, env=None, cwd=None):
        """Standard output of a command that succeeds."""
        status, everything, text = self.try_call(command, limit, env, cwd)
        if status is None:
            raise Failed(f"ran past its {limit:.0f} s\n{tail(everything)}")
        if status:
            raise Failed(f"exit {status}\n{tail(everything)}")
        return text


class Worker:
    """A process that answers lines with one JSON object each."""

    def __init__(self, shell, command, env=None):
        self.shell, self.errors = shell, tempfile.TemporaryFile("w+", errors="replace")
        self.child = subprocess.Popen(
            [str(c) for c in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=os.environ | (env or {}),
            process_group=0,
        )
        shell.note(f"\n$ {' '.join(map(str, command))} &")
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.child.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def ask(self, text):
        try:
            self.child.stdin.write(text + "\n")
            self.child.stdin.flush()
        except OSError:
            pass  # It has ended: the next answer says so.

    def answer(self, limit):
        end = time.monotonic() + limit
        while True:
            try:
                line = self.lines.get(timeout=max(end - time.monotonic(), 0.1))
            except queue.Empty:
                raise Failed(f"no answer in {limit:.0f} s\n{self.complaints()}") from None
            if line is None:
                raise Failed(f"ended by itself\n{self.complaints()}")
            self.shell.note(line)
            if line.startswith("{"):
                return json.loads(line)

    def complaints(self):
        self.errors.seek(0)
        return tail(self.errors.read())

    def stop(self):
        kill(self.child)
        self.shell.note(self.complaints())
