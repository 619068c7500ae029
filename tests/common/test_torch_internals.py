"""Every part of torch with an underscore that the code uses, by name: a torch that lacks one fails here, in words."""

import ast
import threading
from pathlib import Path

import pytest
import torch

from common import torch_internals
from common.fresh_thread import in_fresh_thread
from distill.planning.counting import KERNELS

ROOT = Path(__file__).parents[2]
ROOMS = ("agglomerate", "common", "distill", "eval_suite", "featsharp_adapter", "imagery", "teachers", "tools")
#: Imported by `common.torch_internals` alone.
MODULES = {"torch._subclasses.fake_tensor", "torch.utils._python_dispatch"}
#: Named in torch's documentation under "Foreach Operations", as beta.
FOREACH = {f"torch._foreach_{name}" for name in ("add_", "addcmul_", "div", "div_", "lerp_", "mul_", "norm", "sqrt")}


def dotted(node: ast.expr) -> str:
    """`torch.a.b` of an attribute chain; "" where it is none."""
    if isinstance(node, ast.Name):
        return node.id
    before = dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{before}.{node.attr}" if before and isinstance(node, ast.Attribute) else ""


def private(name: str) -> bool:
    """Whether it is torch's and has a part with one underscore in front."""
    return name.startswith("torch.") and any(
        part.startswith("_") and not part.startswith("__") for part in name.split(".")
    )


def test_nothing_else_of_torch_is_used_that_it_does_not_promise() -> None:
    found: dict[str, set[str]] = {}
    for path in (file for room in ROOMS for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [dotted(node)] if isinstance(node, ast.Attribute) else []
            for name in filter(private, names):
                found.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())
    assert set(found) == MODULES | FOREACH
    assert all(found[name] == {"common/torch_internals.py"} for name in MODULES)


@pytest.mark.parametrize("name", sorted(FOREACH))
def test_torch_has_it(name: str) -> None:
    assert callable(getattr(torch, name.removeprefix("torch.")))


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_torch_has_the_kernel(name: str) -> None:
    """Where it has not, operations of the kernel that took its place are not counted: see what it is called now."""
    assert hasattr(torch.ops.aten, name)


def test_tensors_can_be_faked_and_operations_seen() -> None:
    seen = []

    class Seen(torch_internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with torch_internals.FakeTensorMode(), Seen():
        fake = torch.ones(2, 3) @ torch.ones(3, 4)
    assert fake.shape == (2, 4) and type(fake) is not torch.Tensor
    assert "aten.mm.default" in seen


def test_a_fresh_thread_knows_no_modes() -> None:
    def made() -> tuple[torch.Tensor, bool, threading.Thread]:
        return torch.ones(2) * 3, torch.is_autocast_enabled("cpu"), threading.current_thread()

    with torch_internals.FakeTensorMode(), torch.inference_mode(), torch.autocast("cpu"), torch.device("meta"):
        tensor, autocast, thread = in_fresh_thread(made)
    assert type(tensor) is torch.Tensor and tensor.device.type == "cpu" and tensor.tolist() == [3, 3]
    assert not tensor.is_inference() and not autocast and thread is not threading.current_thread()
