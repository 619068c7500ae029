"""The store: every field of a key decides, what is damaged is made again, one of several processes makes it."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.store import Store, packed, packed_state, unpacked, unpacked_state
from tests.common.disk_faults import Fault, check_every_fault, run_under

KEY = {"images": "a", "batch": 3, "scale": 0.5, "flip": True, "none": None, "below": {"list": [1, 2]}}
CHANGED: list[dict[str, Any]] = [
    {"images": "b"},
    {"batch": 4},
    {"batch": "3"},
    {"scale": 0.25},
    {"flip": False},
    {"none": 0},
    {"below": {"list": [2, 1]}},
    {"below": {}},
    {"more": None},
]


def made(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"x": torch.full((2, 3), value), "empty": torch.zeros(0), "flag": torch.tensor(True)}


def never() -> dict[str, torch.Tensor]:
    raise AssertionError("made again")


def same(one: Any, other: Any) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_what_was_made_once_is_read_and_every_field_decides(tmp_path: Path) -> None:
    store = Store(tmp_path, {"of": "this"})
    assert store.read(KEY) is None
    assert same(store.get(KEY, made), made())
    assert same(Store(tmp_path, {"of": "this"}).get(dict(reversed(KEY.items())), never), made())
    for changed in CHANGED:
        assert store.read({**KEY, **changed}) is None
    assert store.read({name: value for name, value in KEY.items() if name != "none"}) is None
    assert Store(tmp_path, {"of": "that"}).read(KEY) is None
    assert store.size() == sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize("key", [{"a": {1, 2}}, {"a": Path("x")}, {"a": torch.zeros(1)}])
def test_a_key_without_a_json_form_is_an_error(tmp_path: Path, key: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        Store(tmp_path, {}).get(key, made)
    with pytest.raises(TypeError):
        Store(tmp_path, key)


def test_every_damage_is_made_again(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    store.get(KEY, made)
    path = store.path(KEY)
    whole = path.read_bytes()
    damages = [whole[:length] for length in range(0, len(whole), 7)]
    damages += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    for damaged in damages:
        path.write_bytes(damaged)
        found = store.read(KEY)
        assert found is None or same(found, made())  # a bit in the padding of the header changes nothing
    path.write_bytes(whole[:50])
    assert same(store.get(KEY, lambda: made(2.0)), made(2.0)) and same(store.get(KEY, never), made(2.0))


def test_a_result_of_another_key_at_the_same_place_is_not_taken(tmp_path: Path) -> None:
    store = Store(tmp_path, {})
    store.get({"a": 1}, made)
    other = store.path({"a": 2})
    other.parent.mkdir(parents=True, exist_ok=True)
    other.write_bytes(store.path({"a": 1}).read_bytes())
    assert store.read({"a": 2}) is None


def write(folder: Path, value: float) -> None:
    Store(folder, {}).write(KEY, made(value))
    if value_of(folder) != value:  # a disk that is full is no error of the program, but it is one here
        raise OSError


def value_of(folder: Path) -> float:
    found = Store(folder, {}).read(KEY)
    assert found is not None
    return float(found["x"][0, 0])


def test_old_or_new_at_every_fault(fast_folder: Path) -> None:
    check_every_fault(fast_folder, lambda folder: write(folder, 1.0), lambda folder: write(folder, 2.0), value_of)


def test_a_full_disk_ends_the_keeping_not_the_program(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> None:
        store = Store(tmp_path, {})
        assert same(store.get({"a": 1}, made), made()) and same(store.get({"a": 2}, made), made())

    for at in range(4):
        assert run_under(work, Fault("fail", at)).done
    (tmp_path / "file").write_text("x")
    blocked = Store(tmp_path / "file", {})
    assert same(blocked.get({}, made), made())
    blocked.write({}, made())
    blocked.write({}, made())
    assert capfd.readouterr().err.count("no longer kept") >= 1


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    def slowly() -> dict[str, torch.Tensor]:
        with (tmp_path / "made.txt").open("a") as file:
            file.write("x")
        time.sleep(0.3)
        return made()

    children = []
    for _ in range(3):
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if same(Store(tmp_path / "s", {}).get(KEY, slowly), made()) else 2
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert (tmp_path / "made.txt").read_text() == "x"
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()].count(".lock") == 0


def test_plain_data_and_states_go_through_tensors() -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {}}
    assert unpacked(packed(value)) == value
    with pytest.raises(TypeError):
        packed({"a": {1}})
    layer = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    found = unpacked_state(packed_state({"epochs": 3, "optimiser": optimiser.state_dict()}))
    assert found["epochs"] == 3
    assert torch.equal(found["optimiser"]["state"][0]["exp_avg"], optimiser.state_dict()["state"][0]["exp_avg"])
