"""Checkpoints on disk: whole or not at all, refused unless sound, found again by what determined them."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from optcov.training import Checkpoint, CheckpointError, Entry
from optcov.training.store import identity_key

IDENTITY = {"model": {"channels": 8, "mult": [1, 2]}, "seed": 0, "lr": 1e-3, "ema": None}
WEIGHTS = {"a": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor([1, 2]), "c": torch.zeros((), dtype=torch.float64)}


def checkpoint() -> Checkpoint:
    return Checkpoint("mean", IDENTITY, WEIGHTS)


def test_what_is_saved_is_what_is_loaded(tmp_path: Path):
    path = tmp_path / "new" / "mean.safetensors"
    checkpoint().save(path)
    loaded = Checkpoint.load(path, "mean", "mean_ckpt")
    assert loaded.identity == IDENTITY
    assert loaded.key == checkpoint().key
    assert loaded.weights.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert loaded.weights[name].dtype == value.dtype
        assert torch.equal(loaded.weights[name], value)
    assert [file.name for file in path.parent.iterdir()] == ["mean.safetensors"]
    (tmp_path / "as usual").touch()
    assert path.stat().st_mode == (tmp_path / "as usual").stat().st_mode  # others may read a shared cache


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException):
    path = tmp_path / "mean.safetensors"
    checkpoint().save(path)
    before = path.read_bytes()

    def fails(partial: Path, content: bytes) -> None:
        with partial.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise error

    monkeypatch.setattr(Path, "write_bytes", fails)
    with pytest.raises((OSError, KeyboardInterrupt)):
        Checkpoint("mean", IDENTITY, {"a": torch.zeros(1)}).save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["mean.safetensors"]


def damaged(tmp_path: Path, how: str) -> Path:
    path = tmp_path / "given.safetensors"
    checkpoint().save(path)
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "header only":
        path.write_bytes(content[:40])
    elif how == "longer":
        path.write_bytes(content + b"x")
    elif how == "flipped":
        path.write_bytes(content[:-3] + bytes([content[-3] ^ 1]) + content[-2:])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "pickle":
        path.write_bytes(pickle.dumps({"identity": IDENTITY}))
    elif how == "torch":
        torch.save({"state_dict": WEIGHTS}, path)
    elif how == "folder":
        path.unlink()
        path.mkdir()
    elif how == "missing":
        path.unlink()
    elif how == "no header":
        save_file({"a": torch.zeros(1)}, path)
    elif how == "header of another":
        save_file({"a": torch.zeros(1)}, path, {"kind": "mean", "identity": "no json"})
    else:
        save_file({"a": torch.zeros(1)}, path, {"kind": "mean", "identity": json.dumps([1])})
    return path


DAMAGE = ["truncated", "header only", "longer", "flipped", "empty", "pickle", "torch", "folder", "missing", "no header",
          "header of another", "identity of no names"]  # fmt: skip


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path, how: str):
    path = damaged(tmp_path, how)
    with pytest.raises(CheckpointError) as refusal:
        Checkpoint.load(path, "mean", "mean_ckpt")
    sentence = str(refusal.value)
    assert sentence.startswith(f"mean_ckpt = {path} ")
    assert "mean.safetensors" in sentence
    assert "\n" not in sentence


def test_a_checkpoint_of_the_other_kind_is_refused(tmp_path: Path):
    path = tmp_path / "mean.safetensors"
    checkpoint().save(path)
    with pytest.raises(CheckpointError, match=r"var_ckpt = .*got its mean.*variance\.safetensors"):
        Checkpoint.load(path, "variance", "var_ckpt")


def test_the_key_does_not_depend_on_order_process_or_version():
    """Its value is pinned: with another, every cache in use would be trained anew."""
    assert identity_key(dict(reversed(IDENTITY.items()))) == identity_key(IDENTITY) == "5f84bbbc8156a577"


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"lr": 1.0000001e-3}, {"ema": {}}, {"ema": False}, {"model": {"channels": 8, "mult": [2, 1]}},
     {"model": {"channels": "8", "mult": [1, 2]}}, {"more": None}],
)  # fmt: skip
def test_the_key_feels_every_difference(other: dict[str, Any]):
    assert identity_key(IDENTITY | other) != identity_key(IDENTITY)


def test_an_entry_holds_what_was_put_there_and_nothing_else(tmp_path: Path):
    entry = Entry(tmp_path, "mean", IDENTITY)
    assert entry.load() is None
    with entry.lock():
        checkpoint().save(entry.path)
    found = Entry(tmp_path, "mean", IDENTITY).load()
    assert found is not None
    assert torch.equal(found.weights["a"], WEIGHTS["a"])
    assert Entry(tmp_path, "mean", IDENTITY | {"seed": 1}).load() is None
    assert Entry(tmp_path, "variance", IDENTITY).load() is None
    Checkpoint("mean", IDENTITY | {"seed": 1}, WEIGHTS).save(entry.path)  # another's, under this one's name
    assert entry.load() is None


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_entry_counts_as_none(tmp_path: Path, how: str):
    entry = Entry(tmp_path / "cache", "mean", IDENTITY)
    entry.folder.mkdir(parents=True)
    damaged(tmp_path, how)
    if how != "missing":
        (tmp_path / "given.safetensors").rename(entry.path)
    assert entry.load() is None


def test_the_lock_keeps_others_out(tmp_path: Path):
    from filelock import FileLock, Timeout

    entry = Entry(tmp_path, "mean", IDENTITY)
    with entry.lock():
        lock = entry.folder / ".lock"
        with pytest.raises(Timeout):
            FileLock(lock).acquire(timeout=0)
    FileLock(lock).acquire(timeout=0).lock.release()
