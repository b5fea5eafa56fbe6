"""Compile the fused kernels for GPUs that need not be there, and print what they use; exits 77 without a toolchain."""

import sys

from triton import compile as compile_kernel
from triton.backends import backends
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from sbi_physics.models.flows.build import build_flow
from sbi_physics.models.flows.fused.gradient_kernels import run_gradients
from sbi_physics.models.flows.fused.kernels import run_flow
from sbi_physics.models.flows.fused.packing import Packing
from sbi_physics.models.flows.fused.passes import Plan, launch_options

# What one program may have at most on GPUs of this capability.
SHARED_MEMORY = {86: 99 << 10, 90: 227 << 10}
WIDE = {"features": 40, "context_features": 3, "hidden_features": 128, "bins": 16}
CASES = [
    ({"features": 5, "context_features": 3}, 90, "tf32", "noise"),
    ({"features": 5, "context_features": 3}, 90, "tf32x3", "data"),
    ({"features": 5, "context_features": 3}, 90, "tf32x3", "gradients"),
    (WIDE, 86, "tf32x3", "gradients"),
]


def compiled(options, capability, precision, task):
    packing = Packing(build_flow("nsf", **options))
    kernel = run_gradients if task == "gradients" else run_flow
    plan = Plan(packing, precision, gated=packing.conditional)
    constants = launch_options(plan, shared_context=task == "data", task=task)
    settings = {name: constants.pop(name) for name in ("num_warps", "num_stages", "enable_fp_fusion")}
    if task != "gradients":
        constants["SAVE"] = task == "noise"
    signature = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(constants, "constexpr")
    signature |= {"count": "i32", "context_stride": "i32"}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(kernel.arg_names) if signature[n] == "*fp32"}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return compile_kernel(source, target=GPUTarget("cuda", capability, 32), options=settings)


def main():
    if "nvidia" not in backends:
        print("Triton has no NVIDIA backend")
        sys.exit(77)
    for case in CASES:
        binary = compiled(*case)
        print(*case, "shared memory:", binary.metadata.shared)
        assert binary.asm["cubin"]
        assert binary.metadata.shared <= SHARED_MEMORY[case[1]]


if __name__ == "__main__":
    main()
