"""What the processor is and can do."""

import pytest

from flaxtl.parallel import processor

X86 = "processor\t: 0\nmodel name\t: Some x86\nflags\t\t: fpu avx2 avx512f{}\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd{}\n\n"


def test_machine_name_depends_on_features_of_the_processor(monkeypatch):
    name = processor.machine_name()
    assert name == processor.machine_name()
    monkeypatch.setattr(processor.Path, "read_text", lambda *args, **options: "flags\t: other\n")
    assert processor.machine_name() != name


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86.format(""), False),
        (X86.format(" avx512_bf16 vnni"), True),
        (X86.format(" amx_bf16"), True),
        (X86.format(" avx512_bf16_other"), False),
        (2 * ARM.format(" i8mm bf16"), True),
        (ARM.format(""), False),
    ],
)
def test_multiplies_bfloat16_reads_the_features_of_the_processor(monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(processor.Path, "read_text", lambda *args, **options: cpuinfo)
    assert processor.multiplies_bfloat16.__wrapped__() == expected


def test_multiplies_bfloat16_is_false_without_a_list_of_features(monkeypatch):
    def read_text(*args, **options):
        raise FileNotFoundError

    monkeypatch.setattr(processor.Path, "read_text", read_text)
    monkeypatch.setattr(processor.platform, "processor", lambda: "arm")
    assert not processor.multiplies_bfloat16.__wrapped__()
