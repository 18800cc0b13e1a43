"""Builds the two compiled parts of involution; everything that is not about compiling is in pyproject.toml.

`involution._C` is a small Python module that says what was built. It is compiled without torch, so that
importing it is safe under any torch. `involution._ops` is a shared library that registers the operators
with torch's dispatcher, loaded by torch.ops.load_library. tools/build_config.py decides what is built.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.editable_wheel import editable_wheel

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import build_config  # noqa: E402
from build_config import BuildError, Decision  # noqa: E402

VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "involution/_version.py").read_text("utf-8")).group(1)

# Reading the metadata and making a source archive compile nothing and must not need torch.
COMPILING_COMMANDS = {"build", "build_ext", "bdist_wheel", "editable_wheel", "install", "develop"}


def say(message: str) -> None:
    """Tells the user what is going on: pip shows it with -v, and whenever the build fails."""
    print(f"involution: {message}", file=sys.stderr, flush=True)


def make_decision() -> Decision:
    """Finds torch and the compilers, and decides. Imports torch only if something is to be compiled."""
    mode = build_config.requested_mode(os.environ)
    no_compiling = build_config.why_no_compiling(os.environ)
    if mode == "none" or no_compiling:
        return build_config.decide(mode, None, None, no_compiling, lambda cuda: "")
    if not build_config.add_torch_to_path(os.environ):
        raise BuildError(
            "torch was not found, so there is nothing to compile against. Install "
            f"{build_config.TORCH_REQUIREMENT!r} first, leave out --no-build-isolation, or set "
            "INVOLUTION_BUILD=none to install without the extension."
        )
    import torch

    return build_config.decide(
        mode,
        torch.version.cuda,
        torch.version.hip,
        None,
        lambda cuda: build_config.find_toolkit(cuda, os.environ, sys.path),
    )


def use_found_compiler() -> None:
    """Points setuptools at the compiler that was found where the one that made Python is missing."""
    compiler = build_config.find_compiler(os.environ)
    for variable in ("CC", "CXX"):
        builtin = (sysconfig.get_config_var(variable) or variable.lower()).split()[0]
        if not os.environ.get(variable) and shutil.which(builtin) is None:
            os.environ[variable] = compiler
    if not os.environ.get("CXX") and shutil.which("c++") is None:
        os.environ["CXX"] = compiler  # torch calls c++ when CXX is unset


def gencode_flags(decision: Decision) -> list[str]:
    """nvcc's architecture flags, from TORCH_CUDA_ARCH_LIST or the default that takes its place."""
    import torch
    from torch.utils import cpp_extension

    if os.environ.get("TORCH_CUDA_ARCH_LIST"):
        # torch's own reading of the list, so that its names ("Hopper") work too.
        return cpp_extension._get_cuda_arch_flags()
    gpus = [torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count())]
    chosen = build_config.choose_architectures(build_config.nvcc_architectures(decision.toolkit.nvcc), gpus)
    seen = f"the visible GPUs {gpus}" if gpus else "want of a visible GPU"
    say(f"TORCH_CUDA_ARCH_LIST is not set; using {chosen!r} for {seen}.")
    return build_config.gencode_flags(chosen)


def threading_flags() -> list[str]:
    """The compiler's flags for torch's threads; says so where the CPU kernels will have to do without."""
    import torch

    compiler = os.environ.get("CXX") or "c++"  # as torch chooses it
    flags = build_config.openmp_flags(compiler, torch.__config__.parallel_info())
    if isinstance(flags, str):
        say(f"the CPU kernels will use one thread, because {flags}.")
        return []
    return flags


def cudart_link_arguments(home: Path) -> list[str]:
    """How to link the CUDA runtime, which the toolkit's packages for Python bring without libcudart.so."""
    for folder in (home / "lib64", home / "lib"):
        if (folder / "libcudart.so").exists():
            return [f"-L{folder}", "-lcudart"]
        for library in sorted(folder.glob("libcudart.so.*")):
            return [f"-L{folder}", f"-l:{library.name}"]
    return ["-lcudart"]


def pybind11_include() -> str:
    """The folder of pybind11's headers: the package's, or the copy inside torch where it is not installed."""
    try:
        import pybind11
    except ImportError:
        import torch

        return os.path.join(os.path.dirname(torch.__file__), "include")
    return pybind11.get_include()


def write_build_info(folder: Path, torch_version: str, decision: Decision, architectures: list[str]) -> None:
    """Writes the header that tells csrc/python.cpp what was built."""

    def literal(value: str | None) -> str:
        return "nullptr" if value is None else json.dumps(value)

    cuda = ".".join(map(str, decision.toolkit.version)) if decision.toolkit else None
    reason = decision.no_cuda_reason
    sentence = f"The extension has no CUDA kernels because {reason}." if reason else None
    lines = [
        "// Written by setup.py.",
        f"constexpr const char* kVersion = {literal(VERSION)};",
        f"constexpr const char* kTorch = {literal(torch_version)};",
        f"constexpr const char* kCuda = {literal(cuda)};",
        f"constexpr const char* kArchitectures = {literal(' '.join(architectures))};",
        f"constexpr const char* kNoCudaReason = {literal(sentence)};",
    ]
    header, text = folder / "build_info.h", "\n".join(lines) + "\n"
    if not header.exists() or header.read_text(encoding="utf-8") != text:  # else compile nothing
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(text, encoding="utf-8")


def compiled_parts(decision: Decision) -> tuple[list[Extension], dict]:
    """The two extensions, and the setuptools commands that build them."""
    use_found_compiler()
    if decision.toolkit:
        os.environ["CUDA_HOME"] = str(decision.toolkit.home)  # torch reads it when it is imported
    import torch
    from torch.utils import cpp_extension

    cuda = decision.build == "cuda"
    architectures = gencode_flags(decision) if cuda else []
    # A folder for each torch, Python and mode, so that no object file made with another torch's headers is
    # taken for current (installers may give headers old dates) and going back and forth costs nothing.
    flavour = f"{torch.__version__}-{sysconfig.get_config_var('SOABI')}-{decision.build}"
    build_folder = ROOT / "build" / f"torch-{flavour}"
    described = build_config.architectures_of(architectures)
    write_build_info(build_folder, str(torch.__version__), decision, described)

    os.chdir(ROOT)
    # The CPU kernels take longest, so that they are begun first.
    cuda_backend = {*glob("csrc/*_cuda.cpp")}
    sources = sorted(glob("csrc/cpu/*.cpp"))
    sources += sorted({*glob("csrc/*.cpp")} - cuda_backend - {"csrc/python.cpp"})
    make_extension = cpp_extension.CppExtension
    # No -std: each torch passes the standard that its headers need. No fast-math.
    flags = {"cxx": ["-O3", "-g0", *threading_flags()]}
    link_arguments = []
    if cuda:
        make_extension = cpp_extension.CUDAExtension
        sources += sorted(cuda_backend) + sorted(glob("csrc/cuda/*.cu")) + sorted(glob("csrc/cuda/*.cpp"))
        # -lineinfo changes no code; it lets profilers and compute-sanitizer name source lines.
        flags["nvcc"] = ["-O3", "-lineinfo", *architectures]
        link_arguments = cudart_link_arguments(decision.toolkit.home)
    ops = make_extension(
        "involution._ops",
        sources,
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args=flags,
        extra_link_args=link_arguments,
        depends=sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/**/*.cuh", recursive=True)),
    )
    # torch_python would tie the library to a Python process, and C++ programs load it too; the CUDA runtime
    # is linked above, by the name that it has in this toolkit.
    ops.libraries = [library for library in ops.libraries if library not in ("torch_python", "cudart")]
    info = Extension(
        "involution._C",
        ["csrc/python.cpp"],
        include_dirs=[str(build_folder), pybind11_include()],
        extra_compile_args={"cxx": ["-O2", "-g0", "-fvisibility=hidden"]},
        language="c++",
    )

    class BuildExtension(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            self.build_temp = str(build_folder)
            # ninja knows which objects are current. Without it nothing does: setuptools sees neither changed
            # flags nor a changed torch, so everything is compiled again.
            self.force = True

        def get_export_symbols(self, ext: Extension) -> list[str]:
            return [] if ext is ops else super().get_export_symbols(ext)  # _ops has no PyInit

    return [info, ops], {"build_ext": BuildExtension}


class EditableWheel(editable_wheel):
    """An editable install, which leaves its libraries in the source tree, clears those of the one before."""

    def run(self) -> None:
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        for name in ("_C", "_ops"):
            (ROOT / "involution" / f"{name}{suffix}").unlink(missing_ok=True)
        super().run()


def what_is_built(decision: Decision) -> str:
    """In words, with the torch that it is built against."""
    if decision.build == "none":
        return "no extension"
    import torch

    kernels = f"CUDA kernels ({decision.toolkit})" if decision.toolkit else "no CUDA kernels"
    return f"the extension with {kernels} against torch {torch.__version__} in {Path(torch.__file__).parent}"


def main() -> None:
    extensions: list[Extension] = []
    commands: dict = {"editable_wheel": EditableWheel}
    if COMPILING_COMMANDS.intersection(sys.argv):
        try:
            decision = make_decision()
            why = f", because {decision.no_cuda_reason}" if decision.no_cuda_reason else ""
            say(f"building {what_is_built(decision)}{why}.")
            if decision.build != "none":
                extensions, compiling = compiled_parts(decision)
                commands |= compiling
        except BuildError as error:
            raise SystemExit(f"involution: {error}") from None
    setup(version=VERSION, ext_modules=extensions, cmdclass=commands)


main()
