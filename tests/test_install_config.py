"""What is built, and against what: the decisions of the build, without building."""

from __future__ import annotations

import os
import sys
import sysconfig
import venv
from pathlib import Path

import backend
import build_config
import pytest
from build_config import BuildError, Decision, Toolkit, decide

ROOT = Path(__file__).resolve().parents[1]

TOOLKIT = Toolkit(Path("/cuda"), (13, 0))


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(home: Path, release: str = "13.0", headers: bool = True) -> Path:
    executable(home / "bin" / "nvcc", f'echo "Cuda compilation tools, release {release}, V{release}.88"')
    if headers:
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
    return home


@pytest.mark.parametrize(
    ("environ", "mode"),
    [
        ({}, "auto"),
        ({"INVOLUTION_BUILD": ""}, "auto"),
        ({"INVOLUTION_BUILD": " CUDA "}, "cuda"),
        ({"INVOLUTION_BUILD": "none"}, "none"),
    ],
)
def test_mode_comes_from_the_environment(environ, mode):
    assert build_config.requested_mode(environ) == mode


def test_an_unknown_mode_is_refused_with_the_known_ones():
    with pytest.raises(
        BuildError, match="INVOLUTION_BUILD is 'gpu', but must be one of auto, cuda, cpu, none"
    ):
        build_config.requested_mode({"INVOLUTION_BUILD": "gpu"})


def found(cuda):
    return TOOLKIT


def missing(cuda):
    return "no toolkit was found"


def never(cuda):
    raise AssertionError("a toolkit was looked for")


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "torch_hip", "no_compiling", "toolkit", "expected"),
    [
        ("auto", "13.2", None, None, found, Decision("cuda", None, TOOLKIT)),
        ("auto", "13.2", None, None, missing, Decision("cpu", "no toolkit was found")),
        ("auto", None, None, None, never, Decision("cpu", "this torch was built without CUDA")),
        ("auto", "13.2", None, "no compiler", never, Decision("none", "no compiler")),
        ("cuda", "13.2", None, None, found, Decision("cuda", None, TOOLKIT)),
        ("cpu", "13.2", None, None, never, Decision("cpu", "INVOLUTION_BUILD=cpu asked for no CUDA kernels")),
        ("none", "13.2", None, None, never, Decision("none", "INVOLUTION_BUILD=none asked for no extension")),
    ],
)
def test_decision(mode, torch_cuda, torch_hip, no_compiling, toolkit, expected):
    assert decide(mode, torch_cuda, torch_hip, no_compiling, toolkit) == expected


def test_a_rocm_torch_gets_no_cuda_kernels():
    decision = decide("auto", None, "6.4", None, never)
    assert decision.build == "cpu"
    assert "ROCm 6.4" in decision.no_cuda_reason


@pytest.mark.parametrize(
    ("mode", "torch_cuda", "no_compiling", "toolkit", "message"),
    [
        ("cuda", "13.2", None, missing, "INVOLUTION_BUILD=cuda cannot be done: no toolkit was found."),
        ("cuda", None, None, never, "this torch was built without CUDA."),
        (
            "cuda",
            "13.2",
            "no compiler was found",
            never,
            "INVOLUTION_BUILD=cuda needs a compiler, but no comp",
        ),
        (
            "cpu",
            None,
            "no compiler was found",
            never,
            "INVOLUTION_BUILD=cpu needs a compiler, but no compiler",
        ),
    ],
)
def test_the_impossible_is_refused(mode, torch_cuda, no_compiling, toolkit, message):
    with pytest.raises(BuildError, match=message):
        decide(mode, torch_cuda, None, no_compiling, toolkit)


def test_compiler_is_cxx_or_on_path(tmp_path):
    executable(tmp_path / "clang++", "")
    assert build_config.find_compiler({"PATH": str(tmp_path)}) == "clang++"
    assert build_config.find_compiler({"PATH": str(tmp_path / "empty")}) is None
    assert build_config.find_compiler({"PATH": str(tmp_path), "CXX": "clang++ -m64"}) == "clang++ -m64"
    reason = build_config.why_no_compiling({"PATH": str(tmp_path), "CXX": "icpx"})
    assert reason == "no C++ compiler was found (CXX=icpx)"


def test_openmp_is_used_where_torch_uses_it(tmp_path):
    openmp, other = "ATen parallel backend: OpenMP", "ATen parallel backend: native thread pool"
    script = 'case "$*" in *-fopenmp*) exit 0;; esac\nexit 1'
    knows, refuses = tmp_path / "knows", tmp_path / "refuses"
    executable(knows, script)
    executable(refuses, "exit 1")
    assert build_config.openmp_flags(str(knows), openmp) == ["-fopenmp"]
    assert (
        build_config.openmp_flags(f"{refuses} -m64", openmp)
        == f"{refuses} -m64 does not compile with -fopenmp"
    )
    assert "does not compile" in build_config.openmp_flags(str(tmp_path / "gone"), openmp)
    assert build_config.openmp_flags(str(refuses), other) == []


def test_toolkit_needs_compiler_and_headers(tmp_path):
    home = fake_toolkit(tmp_path / "toolkit")
    assert build_config.toolkit_at(home) == Toolkit(home, (13, 0))
    assert build_config.toolkit_at(fake_toolkit(tmp_path / "no_headers", headers=False)) is None
    (home / "bin" / "nvcc").unlink()
    assert build_config.toolkit_at(home) is None


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_named_toolkit_is_the_only_one_considered(tmp_path, variable):
    home = fake_toolkit(tmp_path / "toolkit")
    path = str(fake_toolkit(tmp_path / "other") / "bin")
    assert build_config.find_toolkit("13.2", {variable: str(home), "PATH": path}).home == home
    reason = build_config.find_toolkit("13.2", {variable: str(tmp_path / "gone"), "PATH": path})
    assert reason.startswith("no CUDA toolkit") and str(tmp_path / "gone") in reason


@pytest.mark.parametrize("kind", ["directly", "link", "script"])
def test_toolkit_of_the_nvcc_on_path(tmp_path, kind):
    home = fake_toolkit(tmp_path / "toolkit")
    folder = tmp_path / "bin"
    folder.mkdir()
    if kind == "directly":
        folder = home / "bin"
    elif kind == "link":
        (folder / "nvcc").symlink_to(home / "bin" / "nvcc")
    else:  # as the real nvcc answers to --dryrun
        executable(folder / "nvcc", f"echo '#$ _SPACE_= '; echo '#$ _HERE_={home}/bin'")
    assert build_config.find_toolkit("13.2", {"PATH": str(folder)}).home == home


def test_toolkit_from_packages_and_generation(tmp_path, monkeypatch):
    monkeypatch.setattr(build_config, "toolkit_folders", lambda environ, sites: iter(folders))
    folders = [fake_toolkit(tmp_path / "old", "12.8"), fake_toolkit(tmp_path / "new", "13.1")]
    assert build_config.find_toolkit("13.2", {}).home == folders[1]
    assert build_config.find_toolkit("12.6", {}).home == folders[0]
    reason = build_config.find_toolkit("11.8", {})
    assert "torch was built with CUDA 11.8" in reason and "not CUDA 12.8" in reason


def test_toolkit_packages_are_looked_at(tmp_path):
    home = fake_toolkit(tmp_path / "nvidia" / "cu13")
    (tmp_path / "nvidia" / "cudnn").mkdir()
    assert list(build_config.toolkit_folders({"PATH": ""}, [str(tmp_path)]))[-1] == home


CUDA_13 = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1)]


CUDA_12_4 = [(5, 0), (6, 0), (7, 0), (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)]


@pytest.mark.parametrize(
    ("known", "gpus", "expected"),
    [
        (CUDA_13, [], "8.0;9.0;10.0;12.0+PTX"),
        (CUDA_12_4, [], "8.0;9.0+PTX"),
        ([(7, 0), (7, 5)], [], "7.5+PTX"),
        (CUDA_13, [(9, 0)], "9.0+PTX"),
        (CUDA_13, [(9, 0), (8, 6), (9, 0)], "8.6;9.0+PTX"),
        (CUDA_12_4, [(10, 0)], "9.0+PTX"),  # newer than the compiler
    ],
)
def test_default_architectures(known, gpus, expected):
    assert build_config.choose_architectures(known, gpus) == expected
    assert ";".join(build_config.architectures_of(build_config.gencode_flags(expected))) == expected


def test_architectures_that_nvcc_lists(tmp_path):
    nvcc = executable(tmp_path / "nvcc", "printf 'compute_75\\ncompute_90\\ncompute_100\\ncompute_121\\n'")
    assert build_config.nvcc_architectures(nvcc) == [(7, 5), (9, 0), (10, 0), (12, 1)]
    with pytest.raises(BuildError, match="set TORCH_CUDA_ARCH_LIST"):
        build_config.choose_architectures(build_config.nvcc_architectures(tmp_path / "gone"), [])


def environment(folder: Path, torch_version: str | None) -> Path:
    """A virtual environment with a pretended torch; gives its interpreter."""
    venv.create(folder, with_pip=False, symlinks=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    if torch_version:
        (site / "torch").mkdir()
        (site / "torch" / "__init__.py").touch()
        (site / f"torch-{torch_version}.dist-info").mkdir()
        (site / f"torch-{torch_version}.dist-info" / "METADATA").write_text(
            f"Name: torch\nVersion: {torch_version}\n"
        )
    return folder / "bin" / "python"


def test_probe_sees_through_pip_isolation(tmp_path):
    python = environment(tmp_path / "env", "2.15.0")
    # pip isolates by a PYTHONPATH whose sitecustomize hides the environment's packages.
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(
        "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]"
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "hide"), "PYTHONNOUSERSITE": "1"}
    path = build_config.probe(python, environ)
    assert sysconfig.get_path("purelib", vars={"base": str(tmp_path / "env")}) in path
    assert "" not in path


@pytest.mark.parametrize("version", [None, "2.3.1", "1.13.1"])
def test_probe_refuses_no_torch_and_too_old_ones(tmp_path, version):
    assert build_config.probe(environment(tmp_path / "env", version), os.environ) is None


def test_probe_refuses_another_python(tmp_path):
    other = executable(
        tmp_path / "python", """echo '{"abi": "cpython-27", "torch": "2.15.0", "path": ["/a"]}'"""
    )
    assert build_config.probe(other, os.environ) is None
    assert build_config.probe(tmp_path / "gone", os.environ) is None


def test_candidates_in_a_separate_build_environment(tmp_path):
    own = Path(sys.executable)
    system = executable(tmp_path / "system" / "bin" / "python", "")
    active, local = (tmp_path / "active", tmp_path / "project" / ".venv")
    for folder in (active, local):
        folder.mkdir(parents=True)
        (folder / "pyvenv.cfg").touch()
    path = f"{tmp_path}/empty::{system.parent}"
    environ = {"PATH": path, "PWD": str(tmp_path / "project" / "sub")}
    candidates = build_config.candidate_pythons
    assert candidates(environ) == [own, system]
    assert candidates({**environ, "UV": "/bin/uv"}) == [own, local / "bin" / "python"]
    # An active environment is the one that is installed into, so no other matters.
    assert candidates({**environ, "UV": "/bin/uv", "PATH": f"{path}:{active}/bin"}) == [
        own,
        active / "bin" / "python",
    ]
    assert candidates({**environ, "VIRTUAL_ENV": str(active)}) == [own, active / "bin" / "python"]
    assert candidates({**environ, "VIRTUAL_ENV": sys.prefix}) == [own, system]
    # pip builds with the interpreter that it installs for.
    assert candidates({**environ, "VIRTUAL_ENV": str(active), "PIP_BUILD_TRACKER": "/tmp/x"}) == [own]


def test_torch_of_the_active_environment_is_found(tmp_path, monkeypatch):
    without = environment(tmp_path / "without", None)
    environment(tmp_path / "with", "2.13.0+cpu")
    monkeypatch.setattr(sys, "executable", str(without))
    monkeypatch.setattr(build_config, "importable", lambda module: False)
    environ = {**os.environ, "PATH": "", "VIRTUAL_ENV": str(tmp_path / "with")}
    environ.pop("PIP_BUILD_TRACKER", None)
    assert str(tmp_path / "with") in " ".join(build_config.find_torch(environ))
    environ["PIP_BUILD_TRACKER"] = "x"
    assert build_config.find_torch(environ) is None


def test_a_torch_that_is_importable_already_is_the_one():
    assert build_config.find_torch({"VIRTUAL_ENV": "/elsewhere"}) == sys.path


def test_found_torch_goes_behind_everything_else(monkeypatch):
    monkeypatch.setattr(sys, "path", ["/build", "/shared"])
    monkeypatch.setattr(build_config, "find_torch", lambda environ: ["/shared", "/site"])
    assert build_config.add_torch_to_path({})
    assert sys.path == ["/build", "/shared", "/site"]


def test_torch_is_a_build_requirement_only_where_the_build_finds_none(monkeypatch):
    monkeypatch.delenv("INVOLUTION_BUILD", raising=False)
    monkeypatch.setattr(build_config, "why_no_compiling", lambda environ: None)
    monkeypatch.setattr(build_config, "find_torch", lambda environ: None)
    assert backend._torch() == ["torch>=2.6"]
    monkeypatch.setenv("INVOLUTION_BUILD", "none")
    assert backend._torch() == []
    monkeypatch.delenv("INVOLUTION_BUILD")
    monkeypatch.setattr(build_config, "why_no_compiling", lambda environ: "no compiler")
    assert backend._torch() == []
    monkeypatch.undo()
    assert backend._torch() == []  # the torch that runs this test


def test_the_torch_requirement_is_the_same_everywhere():
    assert f'dependencies = ["{build_config.TORCH_REQUIREMENT}"]' in (ROOT / "pyproject.toml").read_text()
    assert build_config.TORCH_REQUIREMENT == "torch>=" + ".".join(map(str, build_config.OLDEST_TORCH))
