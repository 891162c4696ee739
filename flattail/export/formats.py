"""The formats of an export: how each is written, and how it is run again by those who have nothing else."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from .. import runs
from ..rebuilt import weights_of
from .program import WEIGHTS, Program, load_export

Run = Callable[[Tensor], Tensor]  # images [B, ch, H, W] in [0, 1] to logits [B, C]


@dataclass(frozen=True)
class Given:
    """What is exported."""

    program: Program
    shape: tuple[int, ...]  # (ch, H, W) of an image

    @cached_property
    def graph(self) -> ExportedProgram:
        """For batches of any size; ValueError naming the part that torch.export cannot follow."""
        images = torch.zeros(2, *self.shape)
        try:
            with quiet():
                return torch.export.export(self.program, (images,), dynamic_shapes=({0: Dim("batch")},))
        except Exception as error:  # torch has dozens
            name, part = culprit(self.program, images)
            reason = " ".join(str(error).split())[:200]
            raise ValueError(
                f"torch.export cannot follow `{name}`, a {type(part).__name__} ({type(error).__name__}: {reason})"
            ) from error


class Format(NamedTuple):
    """One format."""

    file: str  # its file in the folder
    write: Callable[[Given, Path], None]
    read: Callable[[Path], Run]  # what such a file does


def culprit(program: nn.Module, images: Tensor) -> tuple[str, nn.Module]:
    """The innermost part, and its name, that cannot be exported by itself."""
    inputs: dict[nn.Module, tuple] = {}
    hooks = [m.register_forward_pre_hook(lambda m, x: inputs.setdefault(m, x) and None) for m in program.modules()]
    with torch.no_grad():
        program(images)
    for hook in hooks:
        hook.remove()
    found, name = program, "model"
    while True:
        for inner, part in within(found, inputs):
            if not follows(part, inputs[part]):
                found, name = part, f"{name}.{inner}".removeprefix("model.")
                break
        else:
            return name, found


def within(part: nn.Module, called: Container[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """The outermost modules inside a part that are called, with their names in it."""
    for name, child in part.named_children():
        if child in called:
            yield name, child
        else:
            yield from ((f"{name}.{inner}", module) for inner, module in within(child, called))


def follows(part: nn.Module, inputs: tuple) -> bool:
    """Whether torch.export can follow a module by itself."""
    try:
        with quiet():
            torch.export.export(part, inputs)
    except Exception:
        return False
    return True


@contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings and remarks of exporters, which are for their authors."""
    levels = {name: logging.getLogger(name).level for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


# ---- safetensors -------------------------------------------------------------------------------------------


def write_safetensors(given: Given, path: Path) -> None:
    """The weights, under the names of the run's own; `config.json` beside them says what they belong to."""
    runs.write_bytes(path, save(weights_of(given.program.model), metadata={"format": "pt"}))


def read_safetensors(path: Path) -> Run:
    """By `load_export`."""
    return load_export(path.parent)


# ---- torch.export ------------------------------------------------------------------------------------------


def write_torch(given: Given, path: Path) -> None:
    """The graph and its weights, which torch runs without flattail."""
    buffer = io.BytesIO()
    torch.export.save(given.graph, buffer)
    runs.write_bytes(path, buffer.getvalue())


def read_torch(path: Path) -> Run:
    """By torch alone."""
    return torch.export.load(path).module()


# ---- ONNX --------------------------------------------------------------------------------------------------


def write_onnx(given: Given, path: Path) -> None:
    """The graph and its weights in one file; input `images`, output `logits`.

    Raises ImportError, naming the extra, without the packages; ValueError for an operator that ONNX lacks.
    """
    need_onnx()
    names = {"input_names": ["images"], "output_names": ["logits"], "dynamic_shapes": ({0: "batch"},)}
    try:
        with quiet():
            made = torch.onnx.export(given.graph, (), dynamo=True, external_data=False, verbose=False, **names)  # type: ignore[arg-type]
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"torch.onnx.export cannot translate the model ({type(error).__name__}: {reason})") from error
    assert made is not None
    runs.write_bytes(path, made.model_proto.SerializeToString())


def read_onnx(path: Path) -> Run:
    """By onnxruntime on the CPU."""
    need_onnx()
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


def need_onnx() -> None:
    """Raise ImportError, naming the extra, unless ONNX files can be written and run."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"onnx: {error.name} is not installed: `pip install 'flattail[export]'`") from error


FORMATS = {
    "safetensors": Format(WEIGHTS, write_safetensors, read_safetensors),
    "torch": Format("model.pt2", write_torch, read_torch),
    "onnx": Format("model.onnx", write_onnx, read_onnx),
}
