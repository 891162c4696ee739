"""Processes that share steps, forked from one that has imported all there is; a launcher imports it in each."""

import os
import shutil
import signal
import sys
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


def forked(world, work, seconds=100):
    """Run `work(rank)` in so many gloo processes, each with one thread; if one fails, all end."""
    meeting = Path(tempfile.mkdtemp())
    children = {one(rank, world, work, meeting / "point", seconds) for rank in range(world)}
    while children:
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGKILL)
            raise SystemExit(1)
    shutil.rmtree(meeting)


def one(rank, world, work, meeting, seconds):
    """The number of a process that does its part."""
    sys.stdout.flush()
    if child := os.fork():
        return child
    try:
        here = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {name: str(number) for name, number in here.items()}
        torch.set_num_threads(1)
        how = {"rank": rank, "world_size": world, "timeout": timedelta(seconds=seconds)}
        dist.init_process_group("gloo", init_method=f"file://{meeting}", **how)
        work(rank)
        if dist.is_initialized():
            dist.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        print(f"[{rank}] {traceback.format_exc()}", flush=True)
        os._exit(1)
