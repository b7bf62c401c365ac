"""What the compiled kernels lack on a processor."""

import pytest

from stonechat_models.diagnostics.cpu_kernels import missing_instructions


@pytest.mark.parametrize(
    ("isa", "instruction_sets", "expected"),
    [
        ("avx512-vnni", {"avx2", "avx512f", "avx512_vnni"}, None),
        ("avx2", {"avx2", "avx512f"}, "this processor has AVX-512 but no VNNI"),
        ("avx2", {"avx2", "avx512f", "avx512_vnni"}, "does not use this processor's AVX-512 VNNI"),
        ("avx2", {"avx2", "avx_vnni"}, "does not use this processor's AVX-VNNI"),
        ("avx2", {"avx2"}, "this processor has no VNNI"),
        ("avx2-vnni", {"avx2", "avx_vnni"}, None),
        ("generic", {"avx2"}, "does not use this processor's AVX2"),
        ("generic", set(), "this processor has no AVX2"),
        ("sve256", {"asimddp", "i8mm", "bf16", "sve", "sve256"}, None),
        (
            *("neon-i8mm", {"asimddp", "i8mm", "bf16", "sve", "sve256"}),
            "does not use this processor's SVE of 256 bits",
        ),
        ("neon-i8mm", {"asimddp", "i8mm", "bf16", "sve"}, None),
        ("neon-i8mm", {"asimddp", "i8mm"}, None),
        ("neon-dotprod", {"asimddp", "i8mm"}, "does not use this processor's i8mm"),
        ("neon-dotprod", {"asimddp"}, "this processor has no i8mm"),
        ("neon", {"asimddp"}, "does not use this processor's dotprod"),
        ("neon", set(), "this processor has no dotprod"),
    ],
)
def test_what_is_missing(isa: str, instruction_sets: set[str], expected: str | None) -> None:
    missing = missing_instructions(isa, instruction_sets)
    if expected is None:
        assert missing is None
    else:
        assert missing is not None
        assert expected in missing
