import pytest
from helpers import tiny_run

from flaxtl.parallel.device_speed import DeviceGroup, DeviceSpeed
from flaxtl.report.device_report import device_json, device_tables, estimate_images, step_flops

GROUPS = [DeviceGroup("gpu", "NVIDIA H200", 4, 140 * 2**30)]
SPEED = DeviceSpeed({"float32": 4e14, "bfloat16": 7.04e14}, 4.1e12)


FEATURES = (
    2
    * 9
    * (
        200**2 * (3 * 64 + 64 * 64)
        + 100**2 * (64 * 128 + 128 * 128)
        + 50**2 * (128 * 256 + 2 * 256 * 256)
        + 25**2 * (256 * 512 + 2 * 512 * 512)
        + 12**2 * 3 * 512 * 512
    )
)
"""Operations of the convolutions of VGG16 at 200x200."""


def test_step_flops_add_the_backward_pass_of_the_last_block():
    block5 = 2 * 9 * 12**2 * 3 * 512 * 512
    assert step_flops("vgg16") == {"features": FEATURES, "fine-tuning": FEATURES + 2 * block5}


def test_estimate_images_divides_the_rate_by_the_operations():
    images = estimate_images(SPEED)["vgg16"]["float32"]
    assert images == {"features": 4e14 / FEATURES, "fine-tuning": 4e14 / step_flops("vgg16")["fine-tuning"]}


def test_device_tables_show_two_digits_with_units():
    console = tiny_run.quiet()
    console.print(*device_tables(GROUPS, SPEED))
    text = " ".join(tiny_run.texts(console).split())
    assert "gpu NVIDIA H200 4 140.0 GiB" in text
    assert "float32 matrix product 400 TFLOP/s bfloat16 matrix product 700 TFLOP/s" in text
    assert "memory, read and written 4.1 TB/s" in text
    assert "vgg16 float32 16,000 14,000" in text


@pytest.mark.parametrize("hint", ["", "Unset JAX_PLATFORMS."])
def test_device_json_has_the_measured_values(hint):
    values = device_json(GROUPS, SPEED, hint)
    assert values["devices"] == [{"platform": "gpu", "kind": "NVIDIA H200", "count": 4, "memory_bytes": 140 * 2**30}]
    assert values["matmul_flops_per_second"]["bfloat16"] == 7.04e14
    assert values["memory_bytes_per_second"] == 4.1e12
    assert values["estimated_images_per_second"]["resnet50"]["bfloat16"]["features"] > 0
    assert values["hint"] == hint
