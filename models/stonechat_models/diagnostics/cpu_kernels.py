"""Says which instruction set the compiled CPU kernels lack, and why."""

from collections.abc import Collection


def missing_instructions(isa: str, instruction_sets: Collection[str]) -> str | None:
    """Return why the kernels for `isa` are not the fastest that there are, or None if they are.

    `isa` is the name that the library gives, and `instruction_sets` are the flags that the system
    reports for the processor.
    """
    if isa.startswith(("neon", "sve")):
        return _missing_on_arm(isa, instruction_sets)
    if isa.startswith("avx512"):
        return None
    if "avx512_vnni" in instruction_sets:
        return _unused("AVX-512 VNNI")
    if isa == "avx2-vnni":
        return None
    if "avx_vnni" in instruction_sets:
        return _unused("AVX-VNNI")
    if isa == "generic" and "avx2" in instruction_sets:
        return _unused("AVX2")
    if isa == "avx2" and "avx512f" in instruction_sets:
        return "this processor has AVX-512 but no VNNI"
    return f"this processor has no {'VNNI' if isa == 'avx2' else 'AVX2'}"


def _missing_on_arm(isa: str, instruction_sets: Collection[str]) -> str | None:
    if isa == "sve256":
        return None
    if "sve256" in instruction_sets and {"i8mm", "bf16"} <= set(instruction_sets):
        return _unused("SVE of 256 bits")
    if isa == "neon-i8mm":
        return None
    if "i8mm" in instruction_sets:
        return _unused("i8mm")
    if isa == "neon-dotprod":
        return "this processor has no i8mm"
    return _unused("dotprod") if "asimddp" in instruction_sets else "this processor has no dotprod"


def _unused(name: str) -> str:
    return f"the compiler does not use this processor's {name}; a newer one may"
