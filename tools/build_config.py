"""Decides what to build: with CUDA, for the CPU alone, or nothing, and against which torch.

Nothing here imports torch or setuptools, so that the build backend can ask before either is there and
the tests can run every decision against made-up folders and environments.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MODES = ("auto", "cuda", "cpu", "none")

# The first release in which an operator with registered derivatives composes with nested torch.func transforms.
OLDEST_TORCH = (2, 6)
TORCH_REQUIREMENT = "torch>=2.6"


class BuildError(Exception):
    """The build that was asked for is impossible; the message says why and what would make it possible."""


# --- What was asked for ---------------------------------------------------------------------------------


def requested_mode(environ: Mapping[str, str]) -> str:
    """The value of INVOLUTION_BUILD, "auto" when it is unset or empty."""
    mode = environ.get("INVOLUTION_BUILD", "").strip().lower() or "auto"
    if mode not in MODES:
        raise BuildError(f"INVOLUTION_BUILD is {mode!r}, but must be one of {', '.join(MODES)}.")
    return mode


# --- The torch that will load the extension -------------------------------------------------------------

# Run by another interpreter, or by this one without its build isolation: says where torch is, if anywhere.
_PROBE = """
import importlib.util, json, sys, sysconfig
from importlib.metadata import PackageNotFoundError, version
try:
    torch = version("torch") if importlib.util.find_spec("torch") else None
except PackageNotFoundError:
    torch = None
print(json.dumps({"abi": sysconfig.get_config_var("SOABI"), "torch": torch, "path": sys.path}))
"""


def probe(python: str | os.PathLike[str], environ: Mapping[str, str]) -> list[str] | None:
    """The sys.path of another interpreter if it has a usable torch and our binary interface, else None."""
    # pip isolates a build through PYTHONPATH and PYTHONNOUSERSITE alone; without them the interpreter sees
    # what it sees at run time: its site-packages, and the system's or the user's where those are on.
    hidden = {"PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME", "PYTHONSAFEPATH"}
    clean = {name: value for name, value in environ.items() if name not in hidden}
    try:
        # From the root folder, since -c puts the working folder, here the source tree, first on sys.path.
        result = subprocess.run(
            [python, "-c", _PROBE],
            env=clean,
            cwd=os.sep,
            capture_output=True,
            timeout=60,
            check=True,
        )
        answer = json.loads(result.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if answer["torch"] is None or answer["abi"] != sysconfig.get_config_var("SOABI"):
        return None
    release = re.match(r"(\d+)\.(\d+)", answer["torch"])
    if release is None or (int(release[1]), int(release[2])) < OLDEST_TORCH:
        return None
    return [entry for entry in answer["path"] if entry]


def candidate_pythons(environ: Mapping[str, str]) -> list[Path]:
    """Interpreters whose torch may be the one that will load the extension, the likeliest first."""
    own = Path(sys.executable)
    if "PIP_BUILD_TRACKER" in environ:
        return [own]  # pip runs the build with the very interpreter that it installs for
    # uv and `python -m build` run it in an environment made for it, and leave few traces of the user's.
    folders = [Path(folder) for folder in environ.get("PATH", "").split(os.pathsep) if folder]
    environments = [Path(environ["VIRTUAL_ENV"])] if environ.get("VIRTUAL_ENV") else []
    environments += [folder.parent for folder in folders]
    if "UV" in environ:  # without an active environment uv takes the nearest .venv
        start = Path(environ.get("PWD") or os.getcwd())
        environments += [folder / ".venv" for folder in (start, *start.parents)]
    here = os.path.realpath(sys.prefix)
    for environment in environments:
        if (environment / "pyvenv.cfg").is_file() and os.path.realpath(environment) != here:
            return [own, environment / "bin" / "python"]
    return [own, *(folder / "python" for folder in folders if (folder / "python").exists())]


def importable(module: str) -> bool:
    """Whether this process could import a module as it is."""
    return importlib.util.find_spec(module) is not None


def find_torch(environ: Mapping[str, str]) -> list[str] | None:
    """The sys.path entries that lead to the torch of the environment that is installed into, or None."""
    if importable("torch"):  # no isolation, or torch became a build requirement
        return list(sys.path)
    for python in dict.fromkeys(candidate_pythons(environ)):
        if (path := probe(python, environ)) is not None:
            return path
    return None


def add_torch_to_path(environ: Mapping[str, str]) -> bool:
    """Makes torch importable here, behind everything that is importable already; False if there is none."""
    path = find_torch(environ)
    if path is None:
        return False
    # Behind, never in front: the build's own setuptools and ninja stay the ones that are used.
    sys.path.extend(entry for entry in path if entry not in sys.path)
    return True


# --- Compilers ------------------------------------------------------------------------------------------


def find_compiler(environ: Mapping[str, str]) -> str | None:
    """The command of the C++ compiler: CXX, or the first of the usual names on PATH."""
    commands = [environ["CXX"]] if environ.get("CXX") else ["c++", "g++", "clang++"]
    for command in commands:
        if shutil.which(shlex.split(command)[0], path=environ.get("PATH")):
            return command
    return None


def why_no_compiling(environ: Mapping[str, str]) -> str | None:
    """Why no extension can be compiled at all, or None where one can."""
    if find_compiler(environ) is None:
        looked = f"CXX={environ['CXX']}" if environ.get("CXX") else "c++, g++ or clang++ on PATH"
        return f"no C++ compiler was found ({looked})"
    headers = sysconfig.get_path("include")
    if not os.path.exists(os.path.join(headers, "Python.h")):
        return f"Python.h is not in {headers}, so this Python's development headers are not installed"
    return None


def openmp_flags(compiler: str, parallel_info: str) -> list[str] | str:
    """What makes at::parallel_for share work among torch's threads, or the reason why one thread does it all.

    It is a template of torch's headers, and where the code that calls it is compiled without OpenMP it runs
    everything in the calling thread, without a word. The runtime is the one that torch has loaded already, so
    nothing is linked.

    Args:
        compiler: The command of the C++ compiler.
        parallel_info: torch.__config__.parallel_info().
    """
    backend = re.search(r"ATen parallel backend: (.+)", parallel_info)
    if backend is None or "OpenMP" not in backend[1]:
        return []  # torch's own threads need no flag
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "openmp.cpp")
        source.write_text("#include <omp.h>\nint threads() { return omp_get_max_threads(); }\n", "utf-8")
        command = [*shlex.split(compiler), "-fopenmp", "-c", str(source), "-o", str(source.with_suffix(".o"))]
        try:
            compiled = subprocess.run(command, capture_output=True, timeout=60).returncode == 0
        except (OSError, subprocess.SubprocessError):
            compiled = False
    return ["-fopenmp"] if compiled else f"{compiler} does not compile with -fopenmp"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder and the version of its nvcc, such as (13, 0)."""

    home: Path
    version: tuple[int, int]

    @property
    def nvcc(self) -> Path:
        """The compiler."""
        return self.home / "bin" / "nvcc"

    def __str__(self) -> str:
        return f"CUDA {self.version[0]}.{self.version[1]} in {self.home}"


def _output(command: Sequence[str | os.PathLike[str]]) -> str:
    try:
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return result.stdout


def toolkit_folders(environ: Mapping[str, str], site_folders: Iterable[str] = ()) -> Iterator[Path]:
    """Folders that may hold a CUDA toolkit, the most likely first."""
    named = [environ[variable] for variable in ("CUDA_HOME", "CUDA_PATH") if environ.get(variable)]
    if named:
        # Whoever names a toolkit wants that one, or to hear that it is not there.
        yield from map(Path, named)
        return
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    if nvcc:
        yield Path(nvcc).parent.parent
        yield Path(nvcc).resolve().parent.parent
        # It may be a script that starts the real one, which says where it lies.
        says = _output([nvcc, "--dryrun", "-E", "-x", "cu", os.devnull])
        if here := re.search(r"^#\$ _HERE_=(.+)$", says, re.M):
            yield Path(here[1]).parent
    yield Path("/usr/local/cuda")
    for folder in site_folders:  # the toolkit's packages on the Python package index
        yield from sorted(Path(folder).glob("nvidia/cu[0-9]*"), reverse=True)


def toolkit_at(home: Path) -> Toolkit | None:
    """The toolkit in a folder, which must hold the compiler and the runtime's headers."""
    # Packages often bring one without the other, and a compiler without headers fails late and obscurely.
    if not (home / "bin" / "nvcc").is_file() or not (home / "include" / "cuda_runtime.h").is_file():
        return None
    release = re.search(r"release (\d+)\.(\d+)", _output([home / "bin" / "nvcc", "--version"]))
    return Toolkit(home, (int(release[1]), int(release[2]))) if release else None


def find_toolkit(cuda: str, environ: Mapping[str, str], site_folders: Iterable[str] = ()) -> Toolkit | str:
    """The first toolkit of the CUDA generation that torch was built with, or the reason why there is none."""
    folders = list(dict.fromkeys(toolkit_folders(environ, site_folders)))
    toolkits = [toolkit for toolkit in map(toolkit_at, folders) if toolkit]
    for toolkit in toolkits:
        if toolkit.version[0] == int(cuda.split(".")[0]):
            return toolkit
    if toolkits:
        wanted = f"torch was built with CUDA {cuda}, which needs a toolkit of the same generation"
        return f"{wanted}, not {toolkits[0]}"
    looked = ", ".join(map(str, folders))
    return f"no CUDA toolkit with bin/nvcc and include/cuda_runtime.h was found (looked in {looked})"


# --- The decision ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Decision:
    """What to build ("cuda", "cpu" or "none"), why there will be no CUDA kernels, and with which toolkit."""

    build: str
    no_cuda_reason: str | None = None
    toolkit: Toolkit | None = None


def decide(
    mode: str,
    torch_cuda: str | None,
    torch_hip: str | None,
    why_no_compiling: str | None,
    find_toolkit: Callable[[str], Toolkit | str],
) -> Decision:
    """Turns what was asked for and what is there into what is built.

    Args:
        mode: The value of INVOLUTION_BUILD.
        torch_cuda: torch.version.cuda.
        torch_hip: torch.version.hip.
        why_no_compiling: Why no compiler can be used, or None.
        find_toolkit: Called with torch_cuda when a toolkit is wanted; gives it or says why there is none.

    Raises:
        BuildError: What was asked for is impossible.
    """
    if mode == "none":
        return Decision("none", "INVOLUTION_BUILD=none asked for no extension")
    if why_no_compiling:
        if mode != "auto":
            raise BuildError(f"INVOLUTION_BUILD={mode} needs a compiler, but {why_no_compiling}.")
        return Decision("none", why_no_compiling)
    if mode == "cpu":
        return Decision("cpu", "INVOLUTION_BUILD=cpu asked for no CUDA kernels")
    toolkit: Toolkit | str
    if torch_hip:
        toolkit = f"this torch was built for ROCm {torch_hip}, for which there are no kernels"
    elif not torch_cuda:
        toolkit = "this torch was built without CUDA"
    else:
        toolkit = find_toolkit(torch_cuda)
    if isinstance(toolkit, Toolkit):
        return Decision("cuda", None, toolkit)
    if mode == "cuda":
        raise BuildError(f"INVOLUTION_BUILD=cuda cannot be done: {toolkit}.")
    return Decision("cpu", toolkit)


# --- Architectures --------------------------------------------------------------------------------------


def nvcc_architectures(nvcc: Path) -> list[tuple[int, int]]:
    """The compute capabilities that a CUDA compiler knows, in ascending order."""
    listed = re.findall(r"compute_(\d+)(\d)\b", _output([nvcc, "--list-gpu-arch"]))
    return sorted({(int(major), int(minor)) for major, minor in listed})


def choose_architectures(known: Sequence[tuple[int, int]], gpus: Sequence[tuple[int, int]]) -> str:
    """The TORCH_CUDA_ARCH_LIST to use when the user sets none.

    With GPUs in sight: theirs. Without, as in a container build: code for one capability runs on every later
    one of its generation, so the first of each generation from 8 (Ampere, the oldest with asynchronous
    copies) covers all of them at the least compile time. Either way PTX of the newest lets later GPUs compile
    for themselves. Generation 11 is embedded boards, which see their own GPU when they build.

    Args:
        known: What nvcc can compile for, ascending.
        gpus: The capabilities of the visible GPUs.
    """
    if not known:
        raise BuildError(
            "nvcc --list-gpu-arch names no architecture; set TORCH_CUDA_ARCH_LIST, for example to 9.0."
        )
    if gpus:
        # A GPU newer than the compiler gets the newest there is for it, as PTX.
        chosen = {max((arch for arch in known if arch <= gpu), default=known[0]) for gpu in gpus}
    else:
        first = {major: (major, minor) for major, minor in reversed(known) if major >= 8 and major != 11}
        chosen = set(first.values()) or {known[-1]}
    return ";".join(f"{major}.{minor}" for major, minor in sorted(chosen)) + "+PTX"


def gencode_flags(architectures: str) -> list[str]:
    """Flags for nvcc from a list of architectures as choose_architectures writes it."""
    flags = []
    for architecture in architectures.split(";"):
        number = architecture.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if architecture.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def architectures_of(flags: Iterable[str]) -> list[str]:
    """The architectures in nvcc's flags, in TORCH_CUDA_ARCH_LIST's notation: ["8.0", "9.0+PTX"]."""
    joined = " ".join(flags)
    real = set(re.findall(r"code=sm_(\d+)(\d[a-z]?)\b", joined))
    ptx = set(re.findall(r"code=compute_(\d+)(\d[a-z]?)\b", joined))
    ordered = sorted(real | ptx, key=lambda number: (int(number[0]), number[1]))
    return [f"{major}.{minor}" + ("+PTX" if (major, minor) in ptx else "") for major, minor in ordered]
