"""GPUs: driver, the CUDA that torch was built for, compute capability, free memory."""

import re
import shutil
from pathlib import Path

from mips_dist.doctor.finding import Finding, said_by
from mips_dist.doctor.packages import can_import

GB = 10**9


def probe() -> list[Finding]:
    """Look at the GPUs as torch sees them, and at the driver where it sees none."""
    import torch

    built = f"torch {torch.__version__} for {_target(torch)}"
    driver = _driver()
    if torch.cuda.is_available():
        return [*_devices(torch, built, driver), *_compiler(torch)]
    if driver is None:
        if torch.version.cuda is None:
            return [Finding("ok", "gpu", f"none; {built}")]
        remedy = "install the NVIDIA driver, if this machine has a GPU"
        return [
            Finding(
                "warning", "gpu", f"{built}, and no driver here: it computes on the CPU", remedy
            )
        ]
    if torch.version.cuda is None and torch.version.hip is None:
        remedy = "install the build for CUDA (see https://pytorch.org/get-started/locally)"
        return [Finding("problem", "gpu", f"NVIDIA driver {driver} is there, but {built}", remedy)]
    try:
        torch.cuda.init()
        reason = "no device; see CUDA_VISIBLE_DEVICES"
    except Exception as error:  # torch and the driver have classes of their own
        reason = str(error).strip().splitlines()[0]
    remedy = "install the driver that this CUDA needs, or a torch for an older CUDA"
    return [Finding("problem", "gpu", f"driver {driver}, {built}, but {reason}", remedy)]


def _target(torch: object) -> str:
    version = torch.version  # type: ignore[attr-defined]
    if version.cuda is not None:
        return f"CUDA {version.cuda}"
    return f"ROCm {version.hip}" if version.hip is not None else "CPUs"


def _driver() -> str | None:
    """Return the version of the NVIDIA driver, or None where there is none."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if said := said_by(query, seconds=20):
        return said.splitlines()[0]
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", text)
    return found[0] if found else "unknown"


def _devices(torch: object, built: str, driver: str | None) -> list[Finding]:
    cuda = torch.cuda  # type: ignore[attr-defined]
    findings = []
    built_for = re.findall(r"(sm|compute)_(\d+)", " ".join(cuda.get_arch_list()))
    majors = {int(number[:-1]) for kind, number in built_for if kind == "sm"}
    # Of a compute_ there is code that the driver translates for any later GPU.
    oldest = min((int(number) for kind, number in built_for if kind == "compute"), default=10**6)
    for number in range(cuda.device_count()):
        major, minor = cuda.get_device_capability(number)
        free, total = cuda.mem_get_info(number)
        seen = (
            f"{number}: {cuda.get_device_name(number)}, compute capability {major}.{minor}, "
            f"{free / GB:.1f} of {total / GB:.1f} GB free; {built}, driver {driver}"
        )
        if built_for and major not in majors and 10 * major + minor < oldest:
            remedy = f"install a torch that is built for compute capability {major}.{minor}"
            findings.append(Finding("problem", "gpu", f"{seen}: not built for this GPU", remedy))
        elif free < 0.5 * total:
            remedy = "see nvidia-smi for who holds it, or choose with CUDA_VISIBLE_DEVICES"
            findings.append(Finding("warning", "gpu", seen, remedy))
        else:
            findings.append(Finding("ok", "gpu", seen))
    return findings


def _compiler(torch: object) -> list[Finding]:
    """Look at nvcc, which DeepSpeed's operators for GPUs are compiled with."""
    wanted = torch.version.cuda  # type: ignore[attr-defined]
    if wanted is None or not can_import("deepspeed"):
        return []
    if shutil.which("nvcc") is None:
        seen = "no nvcc: an operator of DeepSpeed that has to be compiled fails"
        return [Finding("warning", "nvcc", seen, f"install the toolkit of CUDA {wanted}")]
    found = re.search(r"release (\d+)\.(\d+)", said_by(["nvcc", "--version"], seconds=20) or "")
    if found is None or found[1] != wanted.split(".")[0]:
        seen = f"nvcc of CUDA {found[1] if found else 'unknown'}, torch is built for {wanted}"
        return [Finding("warning", "nvcc", seen, f"install the toolkit of CUDA {wanted}")]
    return [Finding("ok", "nvcc", f"CUDA {found[1]}.{found[2]}")]
