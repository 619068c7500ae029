"""The memory meter against sums done by hand."""

import torch

from featsharp_adapter.sharpening.peak_memory import PeakMemory

KIB = torch.ones(256)


def test_counts_what_lives_at_one_time() -> None:
    with PeakMemory() as memory:
        first = KIB * 2
        second = first + KIB  # two at a time
        assert (memory.current, memory.peak) == (2048, 2048)
        del first
        third = second.view(16, 16).T  # a view takes nothing
        assert memory.current == 1024
        fourth = torch.cat([second] * 4)  # 4 KiB beside the one that is left
        del second, third
        assert memory.peak == 5120
        del fourth
    assert (memory.current, memory.peak) == (0, 5120)


def test_what_was_there_before_is_free() -> None:
    with PeakMemory() as memory:
        KIB.view(2, 128)
        KIB[:3].add_(0)
    assert memory.peak == 0


def test_backward_is_counted() -> None:
    leaf = KIB.clone().requires_grad_()
    with PeakMemory() as memory:
        (leaf.exp() * leaf.sin()).sum().backward()
    assert memory.peak >= 4 * 1024 and memory.current == 1024  # the gradient stays


def test_what_takes_no_memory_is_counted_when_asked() -> None:
    with PeakMemory() as real, PeakMemory(meta=True) as hollow:
        there = torch.zeros(250, device="meta") + 1
        here = torch.zeros(100)
    assert (real.peak, hollow.peak) == (here.nbytes, 2 * there.nbytes)
