"""Parts: joined into rows, and shared out over processes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from flattail.analysis import joined
from flattail.analysis.parts import part_by_part

TWO = """
import numpy as np, torch, torch.distributed as dist
from flattail.analysis import class_hessian
from forked import forked
def work(rank):
    assert dist.get_world_size() == 2
    torch.manual_seed(0)
    model, x = torch.nn.Linear(4, 3), torch.randn(12, 4)
    mine = []
    how = {"subsets": 2, "dtype": "float64"}
    data, counts = [(x, torch.arange(12) % 3)], torch.tensor([9, 9, 9])
    found = class_hessian(model, data, counts, on_part=lambda name, _: mine.append(name), **how)
    assert mine == (["0", "2"] if rank == 0 else ["1", "all"]), mine
    assert found["name"].tolist() == ["0", "1", "2", "all"]
    dist.destroy_process_group()
    alone = class_hessian(model, data, counts, **how)
    for key in set(found) - {"seconds"}:
        np.testing.assert_array_equal(found[key], alone[key])
    print("rank", rank, "agrees")
forked(2, work)
"""


def test_rows_of_different_lengths_are_filled_up():
    out = joined({"a": {"t": np.ones(2), "k": np.array(1)}, "b": {"t": np.zeros(3), "k": np.array(2)}})
    assert out["name"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(out["t"], [[1, 1, np.nan], [0, 0, 0]])
    np.testing.assert_array_equal(out["k"], [1, 2])


def test_two_processes_share_the_classes_and_agree(tmp_path: Path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("agrees") == 2


def test_float32_is_not_rounded_inside_and_as_it_was_outside():
    cudnn, inside = torch.backends.cudnn, []
    before = (cudnn.allow_tf32, cudnn.conv.fp32_precision)

    def compute(name):
        inside.append((cudnn.allow_tf32, cudnn.conv.fp32_precision == "tf32"))
        return {}

    part_by_part(["a"], compute, done={}, on_part=lambda *_: None)
    assert inside == [(False, False)] and (cudnn.allow_tf32, cudnn.conv.fp32_precision) == before
    cudnn.conv.fp32_precision = "ieee"
    try:
        part_by_part(["a"], lambda name: {}, done={}, on_part=lambda *_: None)
        assert cudnn.conv.fp32_precision == "ieee"
    finally:
        cudnn.allow_tf32 = before[0]
