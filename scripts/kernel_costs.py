"""What our Triton kernels cost on a GPU, read off their machine code: no GPU is needed.

Compiles each for a compute capability, as the base preset calls it in bf16, and prints registers of
a thread, bytes that did not fit into them, shared memory of a program, and instructions. Needs
Triton alone; ./scripts/test has put one at .venv/interpreted-kernels.

    PYTHONPATH=.venv/interpreted-kernels python scripts/kernel_costs.py [--capability 90] [--json F]
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mips_dist.model import gelu_dropout, pack_attention

ROWS = 128 * 257
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.int32: "*i32"}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one kernel; see the head of this file."""

    kernel: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: int


class Caught(Exception):
    """Ends a launch that shall not take place."""


def cost(module: Any, function: str, call: Callable[..., Any], *inputs: Any, target: Any) -> Cost:
    """Let one of our functions launch its kernel, and compile that instead."""
    kernel = getattr(module, function)
    arguments: dict[str, Any] = {}

    class Launch:
        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            def launch(*positional: Any, **named: Any) -> None:
                arguments.update(zip(kernel.arg_names, positional, strict=False), **named)
                raise Caught

            return launch

    setattr(module, function, Launch())
    try:
        call(*inputs)
    except Caught:
        pass
    finally:
        setattr(module, function, kernel)
    options = {key: value for key, value in arguments.items() if key not in kernel.arg_names}
    constants = {p.name: arguments[p.name] for p in kernel.params if p.is_constexpr}
    signature, aligned = {}, {}
    for place, key in enumerate(kernel.arg_names):
        value = arguments[key]
        if key in constants:
            signature[key] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[key] = TYPES[value.dtype]
            aligned[(place,)] = [["tt.divisibility", 16]]
        else:
            signature[key] = "i32" if isinstance(value, int) else "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=target, options=options)
    usage, code = (read(compiled.asm["cubin"], option) for option in ("-res-usage", "-sass"))
    return Cost(
        kernel=f"{module.__name__.rsplit('.', 1)[1]}{function.removesuffix('_kernel')}",
        registers=number(r"REG:(\d+)", usage),
        spilled_bytes=number(r"STACK:(\d+)", usage),
        shared_bytes=compiled.metadata.shared,
        instructions=len(re.findall(r"/\*[0-9a-f]{4,5}\*/\s+[@A-Z]", code)),
    )


def read(cubin: bytes, option: str) -> str:
    """Return what the disassembler that comes with Triton says."""
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def number(pattern: str, text: str) -> int:
    """Return the number that a pattern finds."""
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def costs(capability: int) -> list[Cost]:
    """Return the cost of every kernel, for the shapes of the base preset."""
    half = {"dtype": torch.bfloat16, "device": "meta"}
    full = {"dtype": torch.float32, "device": "meta"}
    seed = torch.empty((), dtype=torch.int32, device="meta")
    qkv, qkv_bias = torch.empty(257, 128, 3, 8, 64, **half), torch.empty(1536, **half)
    bias, total = torch.empty(257, 1, 128, 128, **full), torch.empty(257, 8, 128, **full)
    mixed = torch.empty(257, 128, 512, **half)
    x, x_bias = torch.empty(ROWS, 2048, **half), torch.empty(2048, **half)
    inputs, settings = (qkv, qkv_bias, bias, seed), (512**-0.5, 0.1)
    saved = mixed, *inputs, mixed, total
    target = GPUTarget("cuda", capability, 32)
    forward, backward = "_forward_kernel", "_backward_kernel"
    # The functions behind the operators: these would leave tensors without memory to their fakes.
    attend = pack_attention.pack_attention_forward._init_fn
    attend_back = pack_attention.pack_attention_backward._init_fn
    activate, activate_back = (
        operator._init_fn
        for operator in (gelu_dropout.gelu_dropout, gelu_dropout.gelu_dropout_backward)
    )
    return [
        cost(pack_attention, forward, attend, *inputs, *settings, target=target),
        cost(pack_attention, backward, attend_back, *saved, *settings, target=target),
        cost(gelu_dropout, forward, activate, x, x_bias, seed, 0.1, target=target),
        cost(gelu_dropout, backward, activate_back, x, x, x_bias, seed, 0.1, target=target),
    ]


def main() -> int:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capability", type=int, default=90, help="of the GPU, times ten")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    rows = costs(arguments.capability)
    for row in rows:
        print(
            f"{row.kernel}: {row.registers} registers, {row.spilled_bytes} bytes beside them, "
            f"{row.shared_bytes / 1024:.0f} KiB shared, {row.instructions} instructions"
        )
    if arguments.json:
        rows_as = [asdict(row) for row in rows]
        arguments.json.write_text(json.dumps(rows_as, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
