"""Run pip, and explain its failures in one sentence. Standard library only."""

import os
import re
import subprocess
import sys
import time
from typing import Sequence

from tood.utils.errors import UserError

# Patterns in pip's output and their meanings, of which the first that matches is reported.
FAILURES = [
    (
        r"THESE PACKAGES DO NOT MATCH THE HASHES",
        "A package from the index does not have the SHA-256 that is expected of it; nothing of it "
        "was run. Use another index, or install Detectron2 yourself.",
    ),
    (
        r"No space left on device|Errno 28|Disk quota exceeded",
        "There is no disk space left for the environment; free some, or set TMPDIR to a larger "
        "disk if only the temporary folder is full.",
    ),
    (
        r"NewConnectionError|ConnectTimeoutError|ReadTimeoutError|ProxyError|NameResolutionError"
        r"|Temporary failure in name resolution|Failed to establish a new connection"
        r"|Connection (refused|reset|aborted)|Network is unreachable|CERTIFICATE_VERIFY_FAILED",
        "No package index could be reached; connect this machine to one, or name one with "
        "PIP_INDEX_URL.",
    ),
    (
        r"No matching distribution found for (\S+)",
        "The package index has no {match} for Python {python}; use another Python, or another "
        "index with PIP_INDEX_URL.",
    ),
]


def pip_install(python: str, packages: Sequence[str]) -> None:
    """Install packages, whose modules :func:`compile_modules` compiles."""
    run_pip([python, "-m", "pip", "install", "--no-compile", *packages])


def compile_modules(python: str) -> None:
    """Compile the modules that are installed, on all cores; pip uses one. Those that cannot be
    compiled, as templates, are ignored, as pip does.
    """
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    folder = run([python, "-c", code]).stdout.strip()
    run([python, "-m", "compileall", "-q", "-j", "0", folder])


def run_pip(command: Sequence[str]) -> None:
    """Run pip and print its large downloads; raise UserError if it fails."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1")
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env=environment, **pipes)
    output = []
    for line in process.stdout:
        output.append(line)
        # Large files take a while.
        if re.search(r"Downloading .*\(\d{2,}[.\d]* MB\)|Successfully installed", line):
            print("    " + line.strip()[:100], flush=True)
    if process.wait() != 0:
        raise UserError(explain("".join(output)))


def explain(output: str) -> str:
    """Return what a failure of pip means, by its output, in one sentence."""
    for pattern, sentence in FAILURES:
        match = re.search(pattern, output)
        if match:
            return sentence.format(
                match=match.group(match.lastindex or 0), python=sys.version.split()[0]
            )
    errors = [line for line in output.splitlines() if "error" in line.lower()]
    return f"pip failed: {last_line(chr(10).join(errors) or output)}"


def run(command: Sequence[str], **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def say(message: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {message}", flush=True)
