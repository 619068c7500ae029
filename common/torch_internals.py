"""What we use of torch that torch does not promise to keep, in one place; public torch has nothing for it.

`FakeTensorMode` runs a model on tensors that have shapes and no numbers; `TorchDispatchMode` sees every operation. Both
are described in torch's documentation, and live in modules with an underscore.
"""

import torch

try:
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode
except ImportError as error:
    raise ImportError(
        f"torch {torch.__version__} has moved {error.name}, which counting FLOPs and memory needs; "
        "install the torch that constraints.txt names"
    ) from error

__all__ = ["FakeTensorMode", "TorchDispatchMode"]
