"""The default U-Net follows the shape of the data; one of another shape is refused by name."""

import pytest

from optcov.model import MLP, UNet


@pytest.mark.parametrize(
    ("shape", "heights"),
    [((1, 8, 8), 2), ((3, 16, 16), 3), ((1, 28, 28), 3), ((3, 32, 32), 4), ((3, 64, 64), 5), ((3, 7, 9), 1)],
)
def test_images_get_a_unet_with_as_many_levels_as_fit(shape: tuple[int, ...], heights: int) -> None:
    model = UNet(shape)
    assert sum(type(module).__name__ == "Downsample" for module in model.down) == heights - 1


def test_a_model_for_another_shape_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"data must be images for model=unet \(got .*: set model=mlp"):
        UNet((2,))
    with pytest.raises(ValueError, match=r"data must be vectors for model=mlp \(got .*: set model=unet"):
        MLP((3, 32, 32))
