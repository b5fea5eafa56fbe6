"""Compile the fused kernels for GPUs that need not be there, and print what they use; exits 77 without a toolchain."""

import sys

from triton import compile as compile_kernel
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.fused.engine import launch_options
from sbi_physics.models.flows.fused.kernels import run_flow
from sbi_physics.models.flows.fused.packing import Packing

# Shared memory that one program may have on the smallest of GPUs of each capability.
SHARED_MEMORY = {80: 163 << 10, 86: 99 << 10, 90: 227 << 10}
CASES = [
    ({"features": 5, "context_features": 3}, 90, "tf32", False),
    ({"features": 5, "context_features": 3}, 90, "tf32x3", True),
    ({"features": 1, "context_features": None}, 80, "tf32x3", False),
    ({"features": 40, "context_features": 3, "hidden_features": 128, "bins": 16}, 86, "tf32x3", True),
]


def main() -> None:
    if "nvidia" not in backends:
        print("Triton has no NVIDIA backend")
        sys.exit(77)
    for options, capability, precision, inverse in CASES:
        packing = Packing(build_flow("nsf", **options))
        constants = launch_options(packing, precision, inverse=inverse, gated=True, shared_context=inverse)
        settings = {name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        signature = dict.fromkeys(run_flow.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
        signature |= {"count": "i32", "context_stride": "i32"}
        aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(run_flow.arg_names) if signature[n] == "*fp32"}
        source = ASTSource(fn=run_flow, signature=signature, constexprs=constants, attrs=aligned)
        compiled = compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=settings)
        print(options, capability, precision, compiled.metadata.shared)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= SHARED_MEMORY[capability]


if __name__ == "__main__":
    main()
