import os

import pytest

from flaxtl.parallel import host

X86 = "processor\t: 0\nmodel name\t: Some x86\nflags\t\t: fpu avx2 avx512f{}\n\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd{}\n\n"
PHYSICAL = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("membership", "files", "limit"),
    [
        ("0::/\n", {}, PHYSICAL),
        ("0::/\n", {"memory.max": "4096\n"}, 4096),
        ("0::/\n", {"memory.max": "max\n"}, PHYSICAL),
        ("0::/jobs/7/step\n", {"jobs/memory.max": "9000\n", "jobs/7/memory.max": "5000\n"}, 5000),
        ("0::/jobs/7/step\n", {"jobs/7/step/memory.max": "max\n", "jobs/memory.max": "7000\n"}, 7000),
        ("5:cpu,memory:/jobs/7\n0::/\n", {"memory/jobs/7/memory.limit_in_bytes": "6000\n"}, 6000),
        ("4:memory:/outside/the/container\n", {"memory/memory.limit_in_bytes": "3000\n"}, 3000),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": f"{2**63 - 4096}\n"}, PHYSICAL),
        ("5:cpu:/jobs\n", {"memory/memory.limit_in_bytes": "3000\n"}, PHYSICAL),
    ],
)
def test_host_memory_is_the_lowest_limit_of_a_control_group(tmp_path, membership, files, limit):
    (tmp_path / "cgroup").write_text(membership)
    for name, text in files.items():
        (file := tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "memory.max").write_text("1\n")  # not a control group: outside their folder
    assert host.host_memory(tmp_path / "cgroup", tmp_path / "groups") == limit


def test_host_memory_without_control_groups_is_that_of_the_machine(tmp_path):
    assert host.host_memory(tmp_path / "none", tmp_path) == PHYSICAL


def test_machine_name_depends_on_features_of_the_processor(monkeypatch):
    name = host.machine_name()
    assert name == host.machine_name()
    monkeypatch.setattr(host, "_read", lambda file: "flags\t: other\n")
    assert host.machine_name() != name


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        (X86.format(""), False),
        (X86.format(" avx512_bf16 vnni"), True),
        (X86.format(" amx_bf16"), True),
        (X86.format(" avx512_bf16_other"), False),
        (2 * ARM.format(" i8mm bf16"), True),
        (ARM.format(""), False),
        ("", False),  # a system other than Linux
    ],
)
def test_multiplies_bfloat16_reads_the_features_of_the_processor(monkeypatch, cpuinfo, expected):
    monkeypatch.setattr(host, "_read", lambda file: cpuinfo)
    assert host.multiplies_bfloat16.__wrapped__() == expected
