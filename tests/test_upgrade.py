"""Configs of earlier versions, read by this one."""

from importlib import import_module

import pytest

from optcov.upgrade import MOVED, upgrade


@pytest.mark.parametrize("old", MOVED)
def test_what_moved_is_named_by_its_place_today(old: str):
    found = upgrade({"logger": {"mine": {"_target_": old, "project": old}}, "callbacks": [{"_target_": old}]})
    assert found["logger"] == {"mine": {"_target_": MOVED[old], "project": old}}
    assert found["callbacks"] == [{"_target_": MOVED[old]}]
    module, _, name = MOVED[old].rpartition(".")
    assert hasattr(import_module(module), name)
