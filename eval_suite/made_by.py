"""What stands beside a result: digests that say whether two results can be compared, and what they stand for.

`eval_suite.provenance` computes them. This file needs no torch, so that `eval_suite table` does not wait for it.
"""

from typing import Annotated, Any

from pydantic import Field

from common.recipes import Node

Digest = Annotated[str, Field(min_length=1)]


class MadeBy(Node):
    """What a result hangs on. Results with equal protocol, data, program and dtype can be compared."""

    protocol: Digest  #: every option of the probe at its resolved value
    data: Digest  #: images and labels, as the probe sees them
    backbone: Digest  #: the backbone's node with its options and weights
    program: str  #: version of the package, and revision of its probes
    dtype: str = "float32"  #: of the backbone's matrix products, as `eval_suite run --dtype` said


class TaskDetails(Node):
    """What the digests of a task stand for, so that a difference can be named."""

    options: dict[str, Any]  #: the probe's node
    reader: dict[str, Any]  #: the reader's node
    contents: dict[str, Digest]  #: "test classes: images" -> digest
