"""Processors on which a benchmark runs: this one as it is, and this one limited to AVX2, which rounds otherwise."""

import os
import platform

NATIVE, AVX2 = "native", "avx2"
# oneDNN, PyTorch's own kernels, OpenBLAS; XLA has a flag among others
_VARIABLES = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell"}
_XLA_FLAG = "--xla_cpu_max_isa=AVX2"


def instruction_set() -> str:
    """NATIVE, or AVX2 if this process was started with what limits every library to it."""
    flags = os.environ.get("XLA_FLAGS", "").split()
    limited = _XLA_FLAG in flags and all(os.environ.get(name) == value for name, value in _VARIABLES.items())
    return AVX2 if limited else NATIVE


def avx2_environment() -> dict[str, str]:
    """Variables for a child process that is to use AVX2 and nothing newer.

    Raises:
        ValueError: no processor of a PC, which has other instructions.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        raise ValueError(f"--isa avx2: a processor of the sort {platform.machine()} has no AVX2")
    flags = os.environ.get("XLA_FLAGS", "").split()
    return {**os.environ, **_VARIABLES, "XLA_FLAGS": " ".join([*flags, _XLA_FLAG])}
