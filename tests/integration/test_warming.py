"""After the warming no kernel is left to compile, whatever the first events carry: seen in a process of its own."""

import json
import subprocess
import sys

SCRIPT = """
import gc, json
import numpy as np
from numba.core.registry import CPUDispatcher
from member_node.service.warming import warm, warm_devices
from scoring.devices.linker import DeviceLinker
from scoring.engine import ScoringCore
from scoring.features.engine import FeatureEngine
from scoring.features.spec import parse_spec
from scoring.schema import transaction_batch

SPEC = parse_spec('''
[[feature]]
name = "n"
entity = "device"
aggregation = "count"
window = "1h"
''')

def known():
    kernels = [each for each in gc.get_objects() if isinstance(each, CPUDispatcher)]
    return {(each.py_func.__module__, each.py_func.__name__): len(each.signatures) for each in kernels}

def batch(number, rows):
    return transaction_batch(
        event_id=np.arange(number * 100, number * 100 + rows),
        time_us=np.arange(rows) * 10**6 + number * 10**9,
        amount=np.ones(rows),
        channel="card",
        entities={"customer": np.arange(1, rows + 1), "device": [None] * rows},
    )

def bundle(device, **more):
    return json.dumps({"os": "android", "model": "Pixel 9", "installId": f"i{device}", "rooted": False, **more})

warm(FeatureEngine(SPEC), SPEC, linked=True)
warm_devices()
before = known()
core = ScoringCore(FeatureEngine(SPEC), features=SPEC.names, linker=DeviceLinker())
core.advance(batch(1, 3), None, [bundle(1), bundle(1, osVersion="2"), bundle(2)])
core.advance(batch(2, 30), None, [bundle(1)] * 30)
core.advance(batch(200_000, 3), None, [bundle(5), None, bundle(1)])
after = known()
print(json.dumps([".".join(each) for each, count in after.items() if count != before.get(each, 0)]))
"""


def test_the_first_events_with_device_components_compile_nothing():
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == []
