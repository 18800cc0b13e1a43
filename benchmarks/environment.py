"""What a measurement was made on and with, for the record that it goes into."""

from __future__ import annotations

import datetime
import platform
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import involution

ROOT = Path(__file__).resolve().parents[1]


def _output(*command: str) -> str | None:
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=ROOT)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def device_name(device: torch.device) -> str:
    """The name on the chip."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def cache_bytes(device: torch.device) -> int:
    """The last level of cache, which a cold measurement has to pass; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text().strip()
    except OSError:
        return 0
    return int(text[:-1]) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[text[-1]]


def free_bytes(device: torch.device) -> int:
    """Memory that a baseline may still take."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    except OSError:
        found = None
    return int(found[1]) * 1024 if found else 1 << 32


def scratch_bytes(call: Callable[[], torch.Tensor], device: torch.device) -> int:
    """Memory that a call allocates beside its result: copies in another storage format, for example."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        held = torch.cuda.memory_allocated(device) - before
        del kept
        return torch.cuda.max_memory_allocated(device) - before - held
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = call()
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    return allocated - kept.untyped_storage().nbytes()


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """The most memory that a call has at once, beside what was there before; None on a CPU, which does not count."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def clocks(device: torch.device) -> str:
    """Clocks and what throttles them, as nvidia-smi says now; on a CPU, that they are not controlled."""
    if device.type != "cuda":
        return "not controlled; other processes may have run at the same time"
    query = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu,clocks_event_reasons.active"
    identity = getattr(torch.cuda.get_device_properties(device), "uuid", None)  # not in every torch
    selected = [] if identity is None else [f"--id=GPU-{identity}"]
    answer = _output("nvidia-smi", *selected, f"--query-gpu={query}", "--format=csv,noheader")
    return f"{query}: {answer}" if answer else "not known: nvidia-smi gave no answer"


def describe(device: torch.device) -> dict[str, Any]:
    """Device, driver, versions and commit. Holds no paths of the machine."""
    cuda = device.type == "cuda"
    build = involution.build_info()
    dirty = _output("git", "status", "--porcelain", "--untracked-files=no")
    driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") if cuda else None
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(device),
        "device_type": device.type,
        "driver": driver.splitlines()[0] if driver else None,
        "multiprocessors": torch.cuda.get_device_properties(device).multi_processor_count if cuda else None,
        "threads": None if cuda else torch.get_num_threads(),
        "cache_bytes": cache_bytes(device),
        "clocks": clocks(device),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
        "triton": _version("triton"),
        "python": platform.python_version(),
        "involution": involution.__version__,
        "built": {
            key: build.get(key) for key in ("torch", "cuda", "architectures", "compiler", "cpu_capability")
        },
        "commit": (_output("git", "rev-parse", "HEAD") if shutil.which("git") else None),
        "uncommitted_changes": bool(dirty),
    }
