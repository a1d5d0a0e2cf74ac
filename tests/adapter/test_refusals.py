"""What users get wrong works all the same, or ends in one sentence that says what to give instead."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import optcov
from optcov.adapter.images import data
from optcov.denoiser import Denoiser
from optcov.guidance import ClassifierFreeGuidance

SHAPE = (1, 4, 4)
STATED: dict[str, Any] = {
    "shape": SHAPE, "prediction": "eps", "schedule": "linear", "time": "n", "data_range": (-1, 1), "check": False
}  # fmt: skip
IMAGES = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1


class Convolution(nn.Module):
    """`(x, n) -> channels` of one projection."""

    def __init__(self, channels: int = 1, inputs: int = 1) -> None:
        super().__init__()
        self.drop, self.last = nn.Dropout(0.5), nn.Conv2d(inputs, channels, 3, padding=1)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.last(self.drop(x))


def load(network: Any = None, **stated: Any) -> Denoiser:
    return optcov.load(Convolution() if network is None else network, **STATED | stated)


def without(name: str) -> Denoiser:
    return optcov.load(Convolution(), **{key: value for key, value in STATED.items() if key != name})


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "not a network": (lambda: load(3), r"source must be a network, a function, or the place of one \(got int\)"),
    "no shape": (
        lambda: without("shape"),
        r"shape must be stated, because .*: give shape=\(C, H, W\)",
    ),
    "no schedule": (lambda: without("schedule"), r"schedule must be stated"),
    "no time": (lambda: without("time"), r"time must be stated, .*\"n-1\""),
    "no prediction": (lambda: without("prediction"), r"prediction must be stated, .*\"velocity\""),
    "channels": (
        lambda: load(shape=(3, 4, 4)),
        r"network must accept \(x, time\) with x of \[2, 3, 4, 4\] .*failed",
    ),
    "answers of another shape": (
        lambda: load(lambda x, n: x[:, :, :2]),
        r"must return \[2, 1, 4, 4\] \(got \[2, 1, 2, 4\]\)",
    ),
    "2C channels": (lambda: load(Convolution(2)), r"learned_sigma must be stated for a network .* 2 channels for 1"),
    "C where 2C were promised": (
        lambda: load(learned_sigma=True),
        r"must return \[2, 2, 4, 4\] \(got \[2, 1, 4, 4\]\)",
    ),
    "NaN": (lambda: load(lambda x, n: x / 0 * 0), r"must return finite numbers \(got NaN or infinity\)"),
    "no tensor": (lambda: load(lambda x, n: "eps"), r"must return a tensor, .*\(got str\)"),
    "labels it does not take": (lambda: load(num_classes=3), r"must accept \(x, time, labels\)"),
    "a needless network": (
        lambda: optcov.load(Convolution(), network=Convolution(), **STATED),
        r"network must be left out",
    ),
    "a feature that is not there": (lambda: load(features="lost"), r"features must name a module .*'lost'.*last"),
    "a feature of another shape": (
        lambda: load(Pooled(), features="pool"),
        r"features = pool must be a module whose input has the data's height and width",
    ),
    "prediction": (lambda: load(prediction="epsilonn"), r"prediction must be one of eps, x0, v, .*'epsilonn'"),
    "time": (lambda: load(time="steps"), r"time must be one of 'n', 'n-1', .*'steps'"),
    "schedule": (lambda: load(schedule="lineer"), r"schedule must be one of .*did you mean linear"),
    "a schedule of strings": (lambda: load(schedule=object()), r"schedule must be a name, N betas, two functions"),
    "alpha_bar for betas": (
        lambda: load(schedule=torch.linspace(0.01, 1.2, 10)),
        r"betas must be at least 2 finite numbers, each between 0 and 1 .*1\.2",
    ),
    "alphas_cumprod for betas": (
        lambda: load(schedule=torch.linspace(0.9999, 0.01, 10)),
        r"schedule must be betas, .*\(got 0\.9999 falling to 0\.01, .*give 1 - alphas_cumprod",
    ),
    "functions of math": (
        lambda: load(schedule=(lambda t: math.cos(t), lambda t: math.sin(t))),
        r"schedule must be two functions of a tensor .*torch\.cos",
    ),
    "variances for amplitudes": (
        lambda: load(schedule=(lambda t: t, lambda t: 1 - t)),
        r"schedule must start from clean data, alpha\(0\) = 1",
    ),
    "v on a flow": (
        lambda: load(prediction="v", schedule="flow"),
        r"parameterization must be eps, x0, velocity or edm",
    ),
    "eps without signal": (lambda: load(schedule="flow"), r"must determine x_0 at t = 1"),
    "range": (lambda: load(data_range=(1, -1)), r"data_range must be two finite ends, low below high"),
    "range of one": (lambda: load(data_range=(1,)), r"data_range must be two ends, \(low, high\) \(got \(1,\)\)"),
    "range by name": (lambda: load(data_range="images"), r"a DataRange or \"unbounded\" \(got 'images'\)"),
    "images of another shape": (
        lambda: optcov.fit("analytic", load(), IMAGES[..., :3]),
        r"images must have the shape \[n, 1, 4, 4\]",
    ),
    "images of another range": (
        lambda: optcov.fit("analytic", load(), IMAGES * 127),
        r"images must lie in the network's range \[-1, 1\]",
    ),
    "images with NaN": (lambda: optcov.fit("analytic", load(), IMAGES * torch.nan), r"images must be finite"),
    "no images": (lambda: optcov.fit("sn_dpm", load()), r"images must be given to fit SN"),
    "an empty loader": (lambda: optcov.fit("sn_dpm", load(), []), r"images must not be empty"),
    "steps of a pass": (lambda: optcov.fit("analytic", load(), IMAGES, 5), r"steps must be left out for Analytic"),
    "steps of nothing": (lambda: optcov.fit("beta", load(), steps=5), r"steps must be left out for Beta"),
    "no steps": (lambda: optcov.fit("sn_dpm", load(), IMAGES, 0), r"steps must be at least 1 \(got 0\)"),
    "strategy": (lambda: optcov.fit("snn_dpm", load(), IMAGES), r"var must be one of .*did you mean sn_dpm"),
    "a setting": (
        lambda: optcov.fit("analytic", load(), IMAGES, images_num=3),
        r"settings of var=analytic must be among .*did you mean num_images",
    ),
    "a strategy that is not fitted": (
        lambda: optcov.sample(load(), "sn_dpm"),
        r"strategy must be fitted .*optcov\.fit",
    ),
    "labels of a network without": (
        lambda: optcov.sample(load(), count=2, labels=1, progress=False),
        r"labels must be left out",
    ),
    "times": (
        lambda: optcov.sample(load(), trajectory=[0.5, 0.2], progress=False),
        r"must be times that rise",
    ),
    "a measured trajectory": (
        lambda: optcov.sample(load(), trajectory="optimal", progress=False),
        r"images must be given for trajectory='optimal'",
    ),
    "bits between grey levels": (
        lambda: optcov.bits_per_dim(load(), "beta", IMAGES),
        r"images must lie on the 256 grey levels .*give uint8",
    ),
    "bits of latents": (
        lambda: optcov.bits_per_dim(load(data_range="unbounded"), "beta", IMAGES),
        r"data_range must have grey levels .* a density, not a probability per pixel; .*unit=\"nats\"",
    ),
    "bits of one image": (lambda: optcov.bits_per_dim(load(), "beta", IMAGES[:1]), r"images must be at least two"),
    "unit": (lambda: optcov.bits_per_dim(load(), "beta", IMAGES, unit="bit"), r'unit must be "bits" or "nats"'),
}


class Table(Convolution):
    """Has a vector for each of 1,000 times, and one for each of three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self.classes = nn.Embedding(1000, 1), nn.Embedding(3, 1)

    def forward(self, x: Tensor, n: Tensor, label: Tensor | None = None) -> Tensor:
        shift = self.times(n) + (0 if label is None else self.classes(label))
        return super().forward(x, n) + shift[:, :, None, None]


def in_place(x: Tensor, n: Tensor) -> Tensor:
    return x.mul_(0)


def classes(**stated: Any) -> Denoiser:
    return load(Table(), time="n-1", num_classes=3, **stated)


REFUSED |= {
    "a loss": (lambda: load(lambda x, n: x.mean()), r"network must return .*\(got \[\]\): give the network inside of"),
    "a dictionary": (lambda: load(lambda x, n: {"eps": x}), r"must return a tensor, .*\(got dict of eps\): wrap it"),
    "1 - alphas_cumprod for betas": (
        lambda: load(schedule=1 - (1 - torch.linspace(1e-4, 0.02, 1000)).cumprod(0), prediction="x0"),
        r"schedule must be betas, of which few are near 1 \(got 0\.72 on average, as of 1 - alphas_cumprod\)",
    ),
    "no shape at all": (lambda: load(shape=8), r"shape must be positive integers, of one sample \(got 8\)"),
    "a range of a number": (lambda: load(data_range=1), r"data_range must be two ends, \(low, high\) \(got 1\)"),
    "a range of other channels": (
        lambda: load(data_range=((0, 0, 0), (1, 1, 1))),
        r"data_range must have an end for each of the 1 channels \(got 3\)",
    ),
    "a list of predictions": (lambda: load(prediction=["eps"]), r"prediction must be one of .*\(got \['eps'\]\)"),
    "a number for the time": (lambda: load(time=5), r"time must be one of .*, or a function of the level \(got 5\)"),
    "a time that fails": (lambda: load(time=lambda t: 1000 * t), r"time must be a function of the level, .*it failed"),
    "a time without shape": (lambda: load(time=lambda level: 0.5), r"time must be a function that .*\(got float\)"),
    "a fraction for an index": (lambda: load(Table(), time="t"), r"time must be whole numbers for .*\(got 0\.001 to 1"),
    "a step too many": (lambda: load(Table()), r"time must be in the network's range .*at 1 or 1000, .*\"n-1\""),
    "NaN at the end": (
        lambda: load(lambda x, n: x / (1000 - n)[:, None, None, None] * 0),
        r"finite numbers at the first and the last step .*at time 1000",
    ),
    "too many classes": (
        lambda: load(Table(), time="n-1", num_classes=4),
        r"num_classes must be a label that the network knows \(got 4; it failed: index out of range",
    ),
    "a null class that is not there": (lambda: classes(null_class=3), r"null_class must be a label .*\(got 3;"),
    "a null class alone": (lambda: load(null_class=3), r"num_classes must be given with null_class"),
    "a null binding alone": (lambda: load(null_bind={"a": IMAGES}), r"null_bind must name what bind does"),
    "an input changed in place": (lambda: load(in_place), r"network must leave its input as it is"),
    "no numbers": (lambda: load(Convolution().to("meta")), r"network must have numbers for weights"),
    "a device that is not there": (lambda: load(device="gpu"), r"device must be one that PyTorch has here"),
    "no class": (
        lambda: optcov.sample(classes(), num_steps=2, progress=False),
        r"labels must be given for a network without a null class",
    ),
    "a null label without a null class": (
        lambda: optcov.sample(classes(), count=2, labels=3, progress=False),
        r"labels must lie between 0 and 2 \(got 3 to 3\)",
    ),
    "guidance without a null class": (
        lambda: optcov.sample(classes(), labels=1, guidance=ClassifierFreeGuidance(classes(), weight=2)),
        r"guidance must do without a null class",
    ),
    "labels between classes": (
        lambda: optcov.fit("analytic", classes(), IMAGES, labels=torch.full((8,), 0.5)),
        r"labels must be whole numbers",
    ),
    "channels last": (
        lambda: optcov.fit("analytic", load(), IMAGES.permute(0, 2, 3, 1)),
        r"images must have the shape .*: put the channels first",
    ),
    "complex images": (lambda: optcov.fit("analytic", load(), IMAGES + 0j), r"images must be real"),
    "two images": (lambda: optcov.fit("analytic", load(), IMAGES[:2]), r"images must be at least 3 \(got 2\)"),
    "the network itself": (lambda: optcov.sample(Convolution()), r"denoiser must be one from optcov\.load"),
    "arguments exchanged": (lambda: optcov.fit(load(), "sn_dpm"), r"strategy must be the name of an option of var"),
    "half a step": (lambda: optcov.sample(load(), num_steps=2.5), r"num_steps must be a whole number \(got 2\.5\)"),
    "a negative seed": (lambda: optcov.sample(load(), seed=-1), r"seed must not be negative \(got -1\)"),
    "a negative rate": (lambda: optcov.fit("sn_dpm", load(), IMAGES, 2, lr=-1), r"lr must be positive \(got -1\)"),
}


def each(x: Tensor, n: Tensor) -> Tensor:
    assert len(x) == 1
    assert n.ndim == 0
    return x


class Shared(Convolution):
    """Normalizes over the batch, in eval mode, too."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.BatchNorm2d(1, track_running_stats=False)  # type: ignore[assignment]


class Partly(Convolution):
    """Has a weight that was never filled."""

    def __init__(self) -> None:
        super().__init__()
        self.more = nn.Linear(1, 1, device="meta")


def sometimes(x: Tensor, n: Tensor) -> Tensor:
    """Is not finite from step 200 to 400."""
    return 0 * x / ((n - 300).abs() > 100)[:, None, None, None]


REFUSED |= {
    "an assertion": (lambda: load(lambda x, n: each(x, x)), r"network must accept \(x, time\) .*it failed: assert"),
    "time before x": (lambda: load(lambda n, x: x * n[:, None, None, None]), r"give lambda x, t: network\(t, x\)$"),
    "time in a column": (lambda: load(lambda x, n: x * n.unsqueeze(2).unsqueeze(3)), r"network\(x, t\[:, None\]\)$"),
    "one sample at a time": (
        lambda: load(each),
        r"give lambda x, t: torch\.cat\(\[network\(x\[i : i \+ 1\], t\[i\]\) for",
    ),
    "a batch of two": (
        lambda: load(lambda x, n: x + torch.zeros(2, 1, 1, 1)),
        r"any size \(it failed for three samples",
    ),
    "complex answers": (
        lambda: load(lambda x, n: x + 0j),
        r"must return real floating-point numbers \(got complex64\)",
    ),
    "whole answers": (lambda: load(lambda x, n: x.long()), r"must return real floating-point numbers \(got int64\)"),
    "a class of networks": (lambda: load(Convolution), r"the place of one \(got the class Convolution\)"),
    "no numbers in a part": (lambda: load(Partly()), r"network must have numbers for weights"),
    "a name of the Hub": (
        lambda: load("google/ddpm-cifar10-32"),
        r"does not exist: .*huggingface_hub\.snapshot_download",
    ),
    "a shape without a number": (lambda: load(shape=(1, 4, math.nan)), r"shape must be positive integers"),
    "text for a binding": (lambda: load(bind="text"), r"bind must be a dictionary of arguments \(got str\)"),
    "classes in words": (
        lambda: load(Table(), time="n-1", num_classes="3"),
        r"num_classes must be a whole number .*'3'",
    ),
    "NaN in a sample": (
        lambda: optcov.sample(load(sometimes), num_steps=4, progress=False),
        r"samples must be finite",
    ),
    "NaN while a head is fitted": (
        lambda: optcov.fit("npr_dpm", load(sometimes), IMAGES, 2, progress=False),
        r"network must return finite numbers at every time \(got NaN or infinity at t = 0\.[234]",
    ),
    "a gradient in inference mode": (
        lambda: optcov.sample(load(torch.inference_mode()(lambda x, n: x * 0.1)), "lgs", 2, 2, progress=False),
        r"network must be differentiable in forward mode .*no gradient in x",
    ),
}


class Pooled(Convolution):
    """Has a module that sees no map of the data's size."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Linear(1, 1)

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return super().forward(x, n) + self.pool(x.mean((1, 2, 3))[:, None])[:, :, None, None]


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_in_a_sentence(name: str):
    ask, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        ask()
    assert "\n" not in str(caught.value)
    assert re.match(r"^[a-z]", str(caught.value))


@pytest.mark.parametrize("part", [lambda net: net.forward, lambda net: partial(net), lambda net: partial(net.forward)])
def test_a_part_of_a_network_puts_it_to_eval(part: Callable[[nn.Module], Any]):
    network = Convolution()
    denoiser = load(part(network))
    assert not network.training
    assert (denoiser.network.call is network) == (denoiser.network.features is not None)


def test_a_network_in_training_mode_is_put_to_eval():
    network = Convolution().train()
    denoiser = load(network)
    level, x_t = denoiser.levels(torch.tensor(0.5)), IMAGES
    with torch.no_grad():
        assert torch.equal(denoiser(x_t, level).output, denoiser(x_t, level).output)
    assert not network.training


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_of_another_precision_works(dtype: torch.dtype):
    denoiser = load(Convolution().to(dtype))
    strategy = optcov.fit("sn_dpm", denoiser, IMAGES, 2, progress=False)
    samples = optcov.sample(denoiser, strategy, 2, 2, progress=False)
    assert samples.dtype == torch.float32
    assert samples.isfinite().all()


def test_half_precision_does_not_round_the_time():
    fed: list[Tensor] = []

    class Watched(Convolution):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            fed.append(n)
            return super().forward(x, n)

    denoiser = load(Watched().bfloat16())
    denoiser(IMAGES[:1], denoiser.levels(torch.tensor(0.299)))  # bfloat16 knows 298 and 300
    assert fed[-1].item() == 299

    class Careless(Convolution):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            return super().forward(x, n) * n.to(torch.bfloat16).matmul(torch.ones(len(n), dtype=n.dtype))

    with pytest.warns(UserWarning, match=r"takes its time in bfloat16, which is off by up to 2"):
        load(Careless().bfloat16(), integer_time=False)


def test_a_network_in_inference_mode_has_heads_and_its_time_is_its_own():
    class Inference(Convolution):
        @torch.inference_mode()
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            n.sub_(1)
            return super().forward(x, n)

    denoiser = load(Inference())
    strategy = optcov.fit("npr_dpm", denoiser, IMAGES, 2, progress=False)
    assert optcov.sample(denoiser, strategy, 2, 3, progress=False).isfinite().all()


def test_answers_that_depend_on_the_batch_are_told():
    with pytest.warns(UserWarning, match="answer for a sample depends on the others in its batch"):
        load(Shared())


def test_answers_that_differ_each_time_are_told():
    def network(x: Tensor, n: Tensor) -> Tensor:
        return x + torch.rand(1)

    with pytest.warns(UserWarning, match="answers the same question differently each time"):
        load(network)


def test_images_of_pillow_are_those_of_their_pixels():
    shape = (3, 2, 4)
    pixels = torch.randint(0, 256, (5, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = [Image.fromarray(each.permute(1, 2, 0).numpy()) for each in pixels]
    denoiser = load(lambda x, n: x, shape=shape)
    assert torch.equal(data(denoiser, given), data(denoiser, pixels))


def test_images_on_half_of_the_range_are_told():
    with pytest.warns(UserWarning, match=r"images fill only the upper half of the network's range \[-1, 1\]"):
        optcov.fit("analytic", load(), (IMAGES + 1) / 2, num_images=4, num_times=4, progress=False)


def test_a_network_on_another_device_is_asked_there():
    """On the meta device, which has shapes alone: the question arrives where the weights are."""
    asked: list[str] = []

    class Elsewhere(Convolution):
        def forward(self, x: Tensor, n: Tensor) -> Tensor:
            asked.append(f"{x.device} {n.device}")
            raise RuntimeError("no numbers here")

    with pytest.raises(ValueError, match="no numbers here"):
        load(Elsewhere().to("meta"))
    assert set(asked) == {"meta meta"}
    assert next(load(Convolution(), device="cpu").parameters()).device.type == "cpu"
