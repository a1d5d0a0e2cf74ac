"""Inception-v3: its resizing in closed form, and where its weights come from; the network: test_torch_fidelity."""

import hashlib
from pathlib import Path

import pytest
import torch
from projection import inception_by_formula, waves

from optcov.metric import InceptionFeatures
from optcov.metric import inception as module
from optcov.metric.inception import FILE, URL, InceptionV3, resize_like_tensorflow


def test_resizing_reads_position_i_in_over_out():
    """Of a ramp it is the position itself, up to the last pixel: no half pixel, no antialias."""
    ramp = torch.arange(32.0).view(1, 1, 1, 32).expand(1, 2, 5, 32)
    found = resize_like_tensorflow(ramp, 299)
    expected = (torch.arange(299.0) * 32 / 299).clamp(max=31)
    torch.testing.assert_close(found, expected.expand(1, 2, 299, 299), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(resize_like_tensorflow(ramp.mT, 299), found.mT, rtol=0, atol=0)
    down = resize_like_tensorflow(torch.arange(8.0).view(1, 1, 1, 8).expand(1, 1, 8, 8) ** 2, 4)
    assert down[0, 0, 0].tolist() == [0, 4, 16, 36]  # every second pixel, whatever lies between
    same = torch.rand(1, 3, 299, 299)
    assert torch.equal(resize_like_tensorflow(same), same)


def test_missing_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ValueError, match="is not a file: put https") as refused:
        InceptionFeatures()
    for part in (URL, str(tmp_path / "hub" / "checkpoints" / FILE), "features.download=true", "OPTCOV_INCEPTION"):
        assert part in str(refused.value)
    (tmp_path / "other.pth").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"other.pth is not pt_inception.*SHA-256 begins [0-9a-f]{8}, not 6726825d"):
        InceptionFeatures(str(tmp_path / "other.pth"))


def test_weights_are_downloaded_and_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    network = InceptionV3().eval()
    torch.save(network.state_dict(), tmp_path / "served.pth")
    digest = hashlib.sha256((tmp_path / "served.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(module, "URL", (tmp_path / "served.pth").as_uri())
    target = tmp_path / "new folder" / FILE
    with pytest.raises(ValueError, match=r"did not arrive.*invalid hash.*put it at"):
        InceptionFeatures(str(target), download=True)
    assert not target.exists()
    monkeypatch.setattr(module, "SHA256", digest[:8])
    features = InceptionFeatures(str(target), download=True, batch_size=1)
    assert features.key == f"inception-{digest[:8]}"
    images = torch.randint(0, 256, (2, 1, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(images.expand(2, 3, 8, 8).float())
        torch.testing.assert_close(features.logits(expected), expected @ network.fc.weight.T)
    found = features(images)
    assert found.shape == (2, 2048)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(module, "URL", (tmp_path / "absent.pth").as_uri())
    with pytest.raises(ValueError, match="did not arrive"):
        InceptionFeatures(str(tmp_path / "another.pth"), download=True)


def test_the_network_answers_what_that_of_torch_fidelity_does():
    """Numbers of a network by formula, on which test_torch_fidelity found both to agree to 3e-7 of the largest."""
    with torch.no_grad():
        features = inception_by_formula()(waves((24, 32)).float())
    assert (features @ torch.sin(torch.arange(2048.0) + 1)).tolist() == pytest.approx([-97.0546, -95.1809], abs=0.01)
    assert features.norm(dim=1).tolist() == pytest.approx([144.4499, 144.5347], abs=0.01)
