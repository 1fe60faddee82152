"""`flaxtl devices` with a machine of known speed; what it measures is tested in tests/parallel/test_device_speed.py."""

import json
import re

from flaxtl.cli.main import main
from flaxtl.parallel import device_speed


def test_devices_prints_tables_or_json(capsys, monkeypatch):
    speed = device_speed.DeviceSpeed({"float32": 1e12, "bfloat16": 2e12}, 3e11)
    monkeypatch.setattr(device_speed, "measure_speed", lambda: speed)
    main(["devices"])
    text = " ".join(capsys.readouterr().out.split())
    assert re.search(
        r"\bcpu cpu \d+ .*\bfloat32 matrix product 1 TFLOP/s .*\bvgg16 float32 \d+ \d+ .*\bestimates\b", text
    )
    main(["devices", "--json"])
    assert json.loads(capsys.readouterr().out)["matmul_flops_per_second"] == {"float32": 1e12, "bfloat16": 2e12}
