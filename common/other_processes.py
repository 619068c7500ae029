"""Words for what torch.distributed says when another process of the same run ends, hangs or cannot be reached."""

import torch.distributed as dist

from common.errors import UserError


def in_words(error: RuntimeError, what_stays: str) -> UserError | None:
    """The error for the user, None where the error is not one of talking to other processes (gloo, NCCL)."""
    named = isinstance(error, dist.DistError)
    if not named and not any(word in str(error) for word in ("gloo", "Gloo", "NCCL", "ProcessGroup")):
        return None
    reason = str(error).splitlines()[0][-200:]
    return UserError(
        f"another process of this run ended, hangs or cannot be reached ({reason}); what it said last tells why. "
        f"{what_stays}; start again to go on"
    )
