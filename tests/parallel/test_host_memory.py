import os

import pytest

from flaxtl.parallel import host_memory

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
    assert host_memory.host_memory(tmp_path / "cgroup", tmp_path / "groups") == limit


def test_host_memory_without_control_groups_is_that_of_the_machine(tmp_path):
    assert host_memory.host_memory(tmp_path / "none", tmp_path) == PHYSICAL
