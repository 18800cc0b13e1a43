"""Builds the programs of tests/host, with sanitizers, and keeps what did not change.

An object is named after a hash of its source, all project headers that it includes, the flags and the
compiler, so that a second run of the tests compiles nothing.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HOST = ROOT / "tests" / "host"
# What makes a plan of a CUDA launch.
PLAN_SOURCES = [ROOT / "csrc" / "cuda" / name for name in ("plan.cpp", "layout.cpp", "layout_rows.cpp")]
BUILD = ROOT / "build" / "host"
INCLUDE_DIRS = (HOST, ROOT / "csrc")
RUNTIME = (HOST / "scheduler.cpp", HOST / "fiber.cpp", HOST / "context.cpp")  # what every program needs

FLAGS = (
    "-std=c++17 -O1 -g1 -Wall -Wextra -Wno-unknown-pragmas -D_GLIBCXX_ASSERTIONS "
    "-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer "
    # AddressSanitizer reports what these would find, and they take a quarter of the compiler's time. Another quarter
    # goes into its own checks where each is inlined; called, they slow the programs by a tenth.
    "-fno-sanitize=null,object-size,vptr,pointer-overflow --param asan-instrumentation-with-call-threshold=0"
).split()

# Leaks are not what is looked for, and finding them needs ptrace, which containers often forbid.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}


@functools.cache
def why_unavailable() -> str | None:
    """The reason for which nothing can be built here, or None."""
    compiler = _compiler()
    if compiler is None:
        return "no C++ compiler (g++) to run the CUDA kernels on the host with"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "main.cpp")
        source.write_text("int main() { return 0; }\n")
        program = Path(folder, "main")
        command = [compiler, *FLAGS, str(source), "-o", str(program)]
        compiled = subprocess.run(command, capture_output=True, text=True)
        if compiled.returncode != 0:
            return f"{compiler} cannot build with sanitizers: {compiled.stderr.strip()[-300:]}"
        ran = subprocess.run([program], env=environment(), capture_output=True, text=True)
        if ran.returncode != 0:
            return f"a program with sanitizers does not run here: {ran.stderr.strip()[-300:]}"
    return None


def environment() -> dict[str, str]:
    """For running what build() returns."""
    return {**os.environ, **ENVIRONMENT}


def build(program: str, sources: Iterable[Path]) -> Path:
    """Compiles what changed, as many files at a time as there are cores, and links `program`."""
    with _locked():
        compiled = _objects([*sources, *RUNTIME])
        digest = _digest(object.name.encode() for object in compiled)
        target = BUILD / f"{program}-{digest}"
        if not target.exists():
            _compile([*FLAGS, *map(str, compiled)], target)
    return target


def objects(sources: Iterable[Path]) -> list[Path]:
    """The object files of `sources` and of what every program needs, for a program that is linked elsewhere."""
    with _locked():
        return _objects([*sources, *RUNTIME])


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Processes of a parallel test run wait for the first one's work."""
    reason = why_unavailable()
    if reason is not None:
        raise RuntimeError(reason)
    BUILD.mkdir(parents=True, exist_ok=True)
    with open(BUILD / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _objects(sources: Sequence[Path]) -> list[Path]:
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(_object, sources))


def _object(source: Path) -> Path:
    headers = sorted(_included(source))
    contents = (path.read_bytes() for path in [source, *headers])
    target = BUILD / f"{source.stem}-{_digest([_toolchain(), *contents])}.o"
    if not target.exists():
        include = [f"-I{folder}" for folder in INCLUDE_DIRS]
        _compile([*FLAGS, *include, "-x", "c++", "-c", str(source)], target)
    return target


def _compile(arguments: Sequence[str], target: Path) -> None:
    """Runs the compiler for `target`, which takes the place of its own earlier versions once it is whole."""
    unfinished = target.with_name(target.name + ".unfinished")
    command = [_compiler() or "g++", *arguments, "-o", str(unfinished)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")
    name = target.name.rpartition("-")[0]
    for earlier in BUILD.glob(f"{name}-????????????????{target.suffix}"):
        earlier.unlink()
    unfinished.rename(target)


def _included(source: Path) -> set[Path]:
    """The headers that `source` includes with quotes, directly or not."""
    found: set[Path] = set()
    pending = [source]
    while pending:
        path = pending.pop()
        for name in re.findall(r'^\s*#\s*include\s+"([^"]+)"', path.read_text(), re.MULTILINE):
            candidates = ((folder / name).resolve() for folder in (path.parent, *INCLUDE_DIRS))
            header = next((candidate for candidate in candidates if candidate.is_file()), None)
            if header is not None and header not in found:
                found.add(header)
                pending.append(header)
    return found


@functools.cache
def _toolchain() -> bytes:
    version = subprocess.run([_compiler() or "g++", "--version"], capture_output=True, check=True)
    return version.stdout + " ".join(FLAGS).encode()


def _compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]
