"""What the layers of the U-Net reach alone, and so what the whole network could reach at most.

Each convolution, norm and attention of `networks.cifar10_network` is timed by itself, at the shapes it has there, in
every form in which PyTorch runs it: contiguous, channels last, with oneDNN's own layout of weights, and compiled.  The
sum of the fastest forms, each as often as it occurs, with everything else (additions, concatenations, embeddings) for
nothing, is the time that no network of these layers falls below.  Forms take turns, as all contenders do.
"""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.networks import cifar10_network, flops_per_image
from benchmarks.timing import Contender, Row, Settings, Times, alternate, seconds_of
from optcov.model import unet
from optcov.model.blocks import norm_silu

BATCHES = (1, 4, 8, 32)
TARGET = 0.05  # seconds of a turn of a layer, which is called as often as that takes
FORMS = ("contiguous", "channels last", "prepacked", "compiled")


@dataclass(frozen=True)
class Layer:
    """A layer and its input, without the batch.

    Args:
        kind: ``conv``, ``norm`` (with its SiLU) or ``attention``.
        shape: ``(C, H, W)`` of the input; of an attention ``(heads, H W, C)`` of each of q, k and v.
        out, kernel, stride, padding: of a convolution.
        groups: of a norm.
    """

    kind: str
    shape: tuple[int, ...]
    out: int = 0
    kernel: int = 0
    stride: int = 1
    padding: int = 0
    groups: int = 0

    def __str__(self) -> str:
        place = " x ".join(map(str, self.shape[1:]))
        if self.kind == "conv":
            by = f", every {self.stride}nd pixel" if self.stride > 1 else ""
            return f"convolution {self.kernel} x {self.kernel}, {self.shape[0]} to {self.out} channels, {place}{by}"
        if self.kind == "norm":
            return f"norm and SiLU, {self.shape[0]} channels, {place}"
        return f"attention, {self.shape[1]} pixels, {self.shape[2]} channels"

    @property
    def flops(self) -> float:
        """Operations on one image, of convolutions and products only."""
        if self.kind == "conv":
            height, width = ((side + 2 * self.padding - self.kernel) // self.stride + 1 for side in self.shape[1:])
            return 2 * self.shape[0] * self.out * self.kernel**2 * height * width
        return 4.0 * self.shape[0] * self.shape[1] ** 2 * self.shape[2] if self.kind == "attention" else 0.0

    def forms(self, batch: int, dtype: torch.dtype, compiled: bool) -> dict[str, Contender]:
        """Calls of this layer, by the form in which it runs."""
        torch.manual_seed(0)
        x = torch.randn(batch, *self.shape, dtype=dtype)
        if self.kind == "attention":
            given = (x, x.clone(), x.clone())
            whole: dict[str, Contender] = {"contiguous": partial(unet.attend, *given)}
            if compiled:
                whole["compiled"] = partial(compile_alone(unet.attend), *given)
            return whole
        last = x.to(memory_format=torch.channels_last)
        module: nn.Module
        call: Callable[[Tensor], Tensor]
        if self.kind == "norm":
            module = nn.GroupNorm(self.groups, self.shape[0], eps=1e-6).to(dtype)
            call = partial(norm_silu, module)
        else:
            module = nn.Conv2d(self.shape[0], self.out, self.kernel, self.stride, self.padding).to(dtype)
            call = module
        module.eval().requires_grad_(False)
        found: dict[str, Contender] = {"contiguous": partial(call, x)}
        if self.kind == "conv":
            found["channels last"] = partial(copy.deepcopy(module).to(memory_format=torch.channels_last), last)  # type: ignore[call-overload]
            found["prepacked"] = partial(prepacked(module, last), last)
        else:
            found["channels last"] = partial(call, last)
        if compiled:
            found["compiled"] = partial(compile_alone(call), last)
        return found


def prepacked(module: nn.Module, like: Tensor) -> Callable[[Tensor], Tensor]:
    """A convolution whose weights are in the layout that oneDNN chooses for an input, as compiled code has them."""
    conv: nn.Conv2d = module  # type: ignore[assignment]
    padding, stride = list(conv.padding), list(conv.stride)
    packed = torch.ops.mkldnn._reorder_convolution_weight(conv.weight, padding, stride, [1, 1], 1, list(like.shape))

    def call(x: Tensor) -> Tensor:
        made: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x, packed, conv.bias, padding, stride, [1, 1], 1, "none", [], ""
        )
        return made

    return call


def compile_alone(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Compile for one shape, with weights as constants."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    with inductor.patch(freezing=True):
        made: Callable[..., Tensor] = torch.compile(call, dynamic=False)

    def run(*arguments: Tensor) -> Tensor:
        with inductor.patch(freezing=True):
            return made(*arguments)

    return run


def layers_of(network: nn.Module) -> Counter[Layer]:
    """The layers of a network, and how often each occurs in a call."""
    found: Counter[Layer] = Counter()
    inside = {module.norm for module in network.modules() if isinstance(module, unet.Attention)}  # without a SiLU

    def see(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        shape = tuple(given[0].shape[1:])
        if isinstance(module, nn.Conv2d):
            side, stride, padding = module.kernel_size[0], module.stride[0], module.padding[0]
            found[Layer("conv", shape, module.out_channels, side, int(stride), int(padding))] += 1
        elif isinstance(module, nn.GroupNorm):
            found[Layer("norm", shape, groups=module.num_groups)] += module not in inside
        elif isinstance(module, unet.Attention):
            channels, heads = shape[0], module.num_heads
            found[Layer("attention", (heads, shape[1] * shape[2], channels // heads))] += 1

    kinds = (nn.Conv2d, nn.GroupNorm, unet.Attention)
    hooks = [each.register_forward_pre_hook(see) for each in network.modules() if isinstance(each, kinds)]
    with torch.no_grad():
        network(torch.zeros(1, *network.data_shape), torch.ones(1))  # type: ignore[misc]
    for hook in hooks:
        hook.remove()
    return +found


def repeated(forms: Mapping[str, Contender]) -> dict[str, Contender]:
    """Turns that tell the seconds of one call, each of as many calls as take `TARGET`."""

    def turn(form: Contender, calls: int) -> float:
        return seconds_of(form, "cpu", calls)

    made: dict[str, Contender] = {}
    for name, form in forms.items():
        form()
        once = min(seconds_of(form, "cpu") for _ in range(2))
        made[name] = partial(turn, form, max(1, min(1000, int(TARGET / max(once, 1e-6)))))
    return made


def roofline(settings: Settings) -> Iterator[Row]:
    """Layers of the U-Net alone, in every form; the network against the sum of their best (CPU only)."""
    if settings.device != "cpu":
        yield Row.left_out("roofline", "is of a CPU: see the rows gpu")
        return
    network = cifar10_network(settings.channels).eval().requires_grad_(False)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    flops, layers = flops_per_image(cifar10_network(settings.channels).eval()), layers_of(network)
    for precision in settings.precisions:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        for batch in (settings.batch_size,) if settings.quick else BATCHES:
            compiled = batch == settings.batch_size and not settings.quick
            least, chosen = 0.0, Counter[str]()
            for layer, count in sorted(layers.items(), key=lambda item: -item[0].flops * item[1]):
                with torch.no_grad():
                    times = alternate(repeated(layer.forms(batch, dtype, compiled)), settings, tell_seconds=True)
                row, best = layer_row(layer, count, batch, precision, times, network)
                least += count * times.median(best)
                chosen[best] += count
                if compiled or settings.quick:
                    yield row
            yield from network_rows(network, settings, precision, batch, least, chosen, flops, compiled)


def layer_row(
    layer: Layer, count: int, batch: int, precision: str, times: Times, network: nn.Module
) -> tuple[Row, str]:
    """A line for a layer, and its fastest form; "ours" is the form that the network has."""
    best = min(times.seconds, key=times.median)
    own = "channels last" if "channels last" in times.seconds else "contiguous"
    ratios = times.ratios(best, own)
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    forms = ", ".join(f"{name} {1e3 * times.median(name):.3g} ms" for name in FORMS if name in times.seconds)
    unit, scale = ("GFLOP/s", 1e-9 * layer.flops * batch) if layer.flops else ("calls/s", 1.0)
    row = Row(
        f"roofline: {layer}",
        f"{precision}, batch {batch}, {count} of them",
        scale / times.median(own),
        scale / times.median(best),
        unit,
        middle,
        low,
        high,
        note=f"{forms}; the ratio is what the best form, {best}, gains",
    )
    return row, best


def network_rows(
    network: nn.Module,
    settings: Settings,
    precision: str,
    batch: int,
    least: float,
    chosen: Counter[str],
    flops: float,
    compiled: bool,
) -> Iterator[Row]:
    """The network as it runs by default, and compiled, against the sum of its layers' bests."""
    x, time = torch.randn(batch, *network.data_shape), torch.full((batch,), 500.0)  # type: ignore[misc]
    contenders: dict[str, Contender] = {"eager": partial(network, x, time)}
    if compiled:
        contenders["compiled"] = partial(compile_alone(network), x, time)
    network.requires_grad_()  # so that autocast keeps its copies of the weights from one call to the next, as in a loop
    with torch.no_grad(), settings.autocast(precision):
        times = alternate(contenders, settings)
    network.requires_grad_(False)
    forms = ", ".join(f"{count} {name}" for name, count in chosen.most_common())
    for name in contenders:
        seconds = times.seconds[name]
        ratios = sorted(least / each for each in seconds)
        yield Row(
            f"roofline: network, {name}",
            f"{precision}, batch {batch}",
            1e-9 * flops * batch / times.median(name),
            1e-9 * flops * batch / least if least else None,
            "GFLOP/s",
            statistics.median(ratios),
            ratios[0],
            ratios[-1],
            ">= 0.95",
            note=f"{1e3 * times.median(name):.3g} ms against {1e3 * least:.3g} ms of its layers' best forms: {forms}",
        )
