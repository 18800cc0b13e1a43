"""What was built, and the loading of it.

Two files may lie beside this one: `_C`, a module that says what was built and can be imported under any
torch, and `_ops`, the library of operators, which fits only the torch that it was compiled against.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import shlex
from pathlib import Path

import torch

from involution._version import __version__

# Where CMake finds involutionConfig.cmake, as torch.utils.cmake_prefix_path is for torch.
cmake_prefix_path = str(Path(__file__).resolve().parent / "share" / "cmake")


def build_info() -> dict[str, object]:
    """Says what this installation of involution was built with.

    Returns:
        A dictionary with these keys:

        - ``version``: the version of involution.
        - ``extension``: the path of the library of operators, or None where nothing was compiled.
        - ``torch``: the version of torch that it was compiled against, or None.
        - ``cuda``: the version of nvcc that compiled the CUDA kernels, or None where there are none.
        - ``architectures``: what they were compiled for, such as ``["8.0", "9.0+PTX"]``; PTX is for GPUs
          newer than that.
        - ``no_cuda_reason``: why there are no CUDA kernels, as a sentence, or None where there are.
        - ``compiler``: the C++ compiler, or None.
        - ``cpu_capability``: the instruction set that the native CPU kernels use on this machine, ``"avx512"``,
          ``"avx2"`` or ``"default"``, or None where there are no native kernels. The environment variable
          ``INVOLUTION_CPU_CAPABILITY`` asks for another.
        - ``cpu_parallel``: whether these kernels use torch's threads, or one alone because the compiler had no
          OpenMP; None where there are no native kernels.
    """
    info = _compiled_info()
    if info is None:
        return {
            "version": __version__,
            "extension": None,
            "torch": None,
            "cuda": None,
            "architectures": [],
            "no_cuda_reason": "involution was installed without its extension, because INVOLUTION_BUILD=none "
            "asked for that or because the installation found no C++ compiler.",
            "compiler": None,
            "cpu_capability": None,
            "cpu_parallel": None,
        }
    loaded = hasattr(torch.ops.involution, "cpu_capability")
    return {
        **info,
        "extension": _path_of("_ops"),
        "cpu_capability": torch.ops.involution.cpu_capability() if loaded else None,
        "cpu_parallel": torch.ops.involution.cpu_parallel() if loaded else None,
    }


def library_path() -> str:
    """The path of the compiled library of operators, for programs that have torch but not Python's involution.

    In Python ``torch.ops.load_library(path)`` and in C++ linking or ``dlopen`` register its operators,
    ``involution::involution``, ``involution::involution_transpose``, ``involution::local_correlation`` and
    ``involution::fused_involution``, of which the last has its derivatives from Python's involution. It fits the torch
    that it was compiled against (:func:`build_info`) and no other. With ``involution.cmake_prefix_path`` in
    CMake's ``CMAKE_PREFIX_PATH``, ``find_package(involution)`` gives the target ``involution::ops``.

    Raises:
        RuntimeError: involution was installed without it.
    """
    library = _path_of("_ops")
    if library is None:
        raise RuntimeError(
            "involution was installed without its compiled library of operators, because INVOLUTION_BUILD=none asked "
            f"for that or because the installation found no C++ compiler. Build it: {rebuild_command()}"
        )
    return library


def load_extension() -> bool:
    """Loads the library of operators into torch.

    Returns:
        True if it was loaded, False if involution was installed without it.

    Raises:
        ImportError: It is there, but cannot be used with this torch, or only half of it is there.
    """
    info = _compiled_info()
    if info is None:
        return False
    if info["torch"] != str(torch.__version__):
        raise ImportError(
            f"The involution extension was built against torch {info['torch']}, but this is torch "
            f"{torch.__version__}, which cannot load it. Build it again: {rebuild_command()}"
        )
    library = _path_of("_ops")
    if library is None:
        raise ImportError(
            f"The involution extension lacks its library of operators, involution._ops. "
            f"Build it again: {rebuild_command()}"
        )
    try:
        torch.ops.load_library(library)
    except OSError as error:
        raise ImportError(
            f"The involution extension {library} cannot be loaded: {error}. "
            f"Build it again: {rebuild_command()}"
        ) from error
    return True


def rebuild_command() -> str:
    """The command that compiles the extension against the torch that is installed now."""
    # Without isolation the build needs no network, but a setuptools that can read pyproject.toml.
    isolation = " --no-build-isolation" if _installed_setuptools() >= 77 else ""
    if _noted("INSTALLER") == "uv":
        install = f"uv pip install --no-deps --reinstall{isolation}"
    else:
        install = f"python -m pip install --no-deps --force-reinstall{isolation}"
    root = Path(__file__).resolve().parents[1]
    if (root / "setup.py").is_file():
        return f"{install} -e {shlex.quote(str(root))}"
    return f"{install} {shlex.quote(_origin())}"


def _compiled_info() -> dict[str, object] | None:
    """What `_C` says, or None where nothing was compiled. A `_C` that is there but broken raises."""
    if _path_of("_C") is None:
        return None
    return importlib.import_module("involution._C").build_info()


def _path_of(name: str) -> str | None:
    spec = importlib.util.find_spec(f"involution.{name}")
    return spec.origin if spec else None


def _installed_setuptools() -> int:
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def _noted(name: str) -> str:
    """What the installer of involution noted in one of its files, if it did."""
    try:
        text = importlib.metadata.distribution("involution").read_text(name)
    except importlib.metadata.PackageNotFoundError:
        text = None
    return (text or "").strip()


def _origin() -> str:
    """What to install: the folder or the repository that this came from, if the installer noted one."""
    source = json.loads(_noted("direct_url.json") or "{}")
    if "dir_info" in source:
        return source["url"]
    if "vcs_info" in source:
        vcs = source["vcs_info"]
        return f"{vcs['vcs']}+{source['url']}@{vcs['commit_id']}"
    return "PATH_OF_THE_SOURCE_TREE"
