"""Calls a network a few times, to find out how it must be called, and refuses one that does not answer as stated.

A network of others may raise anything, such as the `AssertionError` of an `assert`, so every exception is a refusal.
"""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from optcov.adapter.network import LABELS, TIMES, AdaptedNetwork, AnswerError, find_features, inner, tensor_of
from optcov.adapter.time import TimeFeed
from optcov.denoiser import device_of
from optcov.schedule import NoiseSchedule
from optcov.wording import first_line

log = logging.getLogger(__name__)

HALF = (torch.float16, torch.bfloat16)
ALIKE = 1e-2  # largest difference of two answers to one question, as a share of their size


def adapt(
    call: Callable[..., Any],
    shape: tuple[int, ...],
    options: dict[str, Any],
    schedule: NoiseSchedule,
    feed: TimeFeed,
    *,
    integer_time: bool | None = None,
    learned_sigma: bool | None = None,
    features: str | None = "auto",
    device: torch.device | None = None,
) -> AdaptedNetwork:
    """Make the adapter of a network by calling it at a middle time, at the first and the last one, and with its labels.

    Args:
        call, shape, options: as `AdaptedNetwork` takes them.
        schedule, feed: the times at which it is asked.
        integer_time, learned_sigma, features: as in `optcov.load`.
        device: of the input of a function, which has no weights that say it.
    Raises:
        ValueError: if the network does not answer as stated; the message is one sentence.
    """

    def made(**changed: Any) -> AdaptedNetwork:
        network = AdaptedNetwork(call, shape, **options | changed)
        if device is not None and not isinstance(call, nn.Module):
            network.register_buffer("place", torch.empty(0, device=device), persistent=False)
        return network

    network = made()
    place = device_of(network)
    x_t = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(place)
    clock = torch.device("cpu") if place.type == "meta" else place  # where there are numbers
    time = fed(feed, schedule, torch.full((2,), 0.5, dtype=torch.float64, device=clock)).to(place)
    condition = None if network.num_classes is None else torch.zeros(2, dtype=torch.long, device=place)
    given = x_t.clone()
    with torch.no_grad(), _eager(call):
        answer = _first(network, feed, schedule, x_t, time, condition, integer_time)
        _check_answer(network, answer, learned_sigma)
        if not torch.equal(x_t, given):
            raise ValueError(
                "network must leave its input as it is (it changed x in place): wrap it in a function that gives it "
                "x.clone()"
            )
        _ask_at_the_ends(network, feed, schedule, x_t, condition)
        if network.num_classes is not None and network.null_bind is None:
            _ask_labels(network, x_t, time)
        name = find_features(network, x_t, time, condition) if features == "auto" else _named(call, features)
        again = network.ask(x_t, time, condition)
    if not _is_alike(answer, again):
        warnings.warn(
            "the network answers the same question differently each time: switch off what is random in it, such as "
            "dropout that eval() does not reach",
            stacklevel=3,
        )
    elif not _is_alike(answer, _with_another(network, x_t, time, condition)):
        warnings.warn(
            "the network's answer for a sample depends on the others in its batch: switch off what mixes them, such as "
            "a BatchNorm without running statistics, or its samples and scores depend on batch_size",
            stacklevel=3,
        )
    if name is None and network.learned_sigma is False:
        return network
    known = {"integer_time": network.integer_time, "time_dtype": network.time_dtype}
    network = made(features=name, **known)
    if name is not None:
        with torch.no_grad():
            network.ask(x_t, time, condition)
        seen = network._seen
        if seen is None and features == "auto":
            warnings.warn(
                "the network was compiled and called before it was loaded, so that heads cannot read its features and "
                "read its input and output instead: load it before its first call",
                stacklevel=3,
            )
            network = made(**known)
        elif seen is None or seen.ndim != x_t.ndim or seen.shape[2:] != x_t.shape[2:]:
            raise ValueError(
                f"features = {name} must be a module whose input has the data's height and width (got "
                f"{'none' if seen is None else list(seen.shape)}): name another, or give features=None"
            )
        else:
            network.feature_channels = seen.shape[1]
            log.info("heads read the input of %s, %d channels", name, seen.shape[1])
    network.feature_channels += shape[0] if network.learned_sigma else 0
    return network


def _is_alike(answer: Tensor, other: Tensor) -> bool:
    """Whether two answers to the same question are equal but for rounding."""
    return bool((answer - other).abs().max() <= ALIKE * answer.abs().max())


@torch.no_grad()
def _with_another(network: AdaptedNetwork, x_t: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
    """The answers for the same two samples in a batch of three."""
    rows = torch.tensor([0, 1, 0], device=x_t.device)
    three = x_t[rows] * torch.tensor([1.0, 1.0, 3.0], device=x_t.device).reshape(-1, *[1] * (x_t.ndim - 1))
    try:
        with _eager(network.call):
            return network.ask(three, time[rows], None if condition is None else condition[rows])[:2]
    except Exception as error:
        raise ValueError(
            f"network must accept batches of any size (it failed for three samples: {first_line(error)}): wrap it in a "
            "function, and bind only what is the same for every sample, as [1, ...]"
        ) from error


def fed(feed: TimeFeed, schedule: NoiseSchedule, t: Tensor) -> Tensor:
    """What the network is fed at times, float64 in their shape.

    Raises:
        ValueError: if the feed fails, or returns anything else; the message is one sentence.
    """
    try:
        time: Any = feed(schedule.levels(t))
    except Exception as error:
        raise ValueError(
            f"time must be a function of the level, which has t, alpha, sigma and log_snr (it failed: "
            f"{first_line(error)}): give such as lambda level: 1000 * level.t"
        ) from error
    if not isinstance(time, Tensor) or time.shape != t.shape or bool(time.isnan().any()):
        got = f"shape {list(time.shape)}" if isinstance(time, Tensor) else type(time).__name__
        raise ValueError(
            "time must be a function that returns a tensor of numbers in the level's shape (got "
            f"{'NaN' if isinstance(time, Tensor) and time.shape == t.shape else got}): give such as "
            "lambda level: 1000 * level.t"
        )
    return time


def _first(
    network: AdaptedNetwork,
    feed: TimeFeed,
    schedule: NoiseSchedule,
    x_t: Tensor,
    time: Tensor,
    condition: Tensor | None,
    integer_time: bool | None,
) -> Tensor:
    """The answer to the first kind of time that the network accepts, which it is then fed."""
    grid = fed(feed, schedule, schedule.grid())
    whole = bool((grid - grid.round()).abs().max() < 1e-6)
    half = network.dtype in HALF
    kinds: list[tuple[bool, torch.dtype | None]] = [(False, torch.float32), (False, None)] if half else [(False, None)]
    if integer_time is None:
        kinds.insert(1, (True, None))  # half precision would round them
    elif integer_time:
        kinds = [(True, None)]
    reasons: list[Exception] = []
    for network.integer_time, network.time_dtype in kinds:
        if network.integer_time and half and not whole and not integer_time:
            continue
        try:
            answer = network.ask(x_t, time.float(), condition)
        except AnswerError:
            raise
        except Exception as error:
            reasons.append(error)
            continue
        if network.integer_time and len(set(grid.round().tolist())) < len(grid) / 2:
            raise ValueError(
                f"time must be whole numbers for a network that takes integers (got {float(grid[0]):.4g} to "
                f'{float(grid[-1]):.4g}): give time="n" or time="n-1"'
            )
        if half and network.time_dtype is None and not network.integer_time:
            off = float((grid.to(network.dtype).double() - grid).abs().max())
            if off > 1e-2 * float((grid - grid[0]).abs().max()) / schedule.num_steps:
                warnings.warn(
                    f"the network takes its time in {str(network.dtype).removeprefix('torch.')}, which is off by up to "
                    f"{off:.2g}: load it in float32 if its samples are worse than they should be",
                    stacklevel=4,
                )
        return answer
    form = _other_form(network, x_t, time.float()) if condition is None else None
    if form is not None:
        raise ValueError(
            f"network must accept (x, time) with x of [2, {', '.join(map(str, network.data_shape))}] and time of [2] "
            f"(it failed: {first_line(reasons[0])}): give {form}"
        ) from reasons[0]
    asked = "(x, time)" if condition is None else "(x, time, labels)"
    raise ValueError(
        f"network must accept {asked} with x of [2, {', '.join(map(str, network.data_shape))}] (it failed: "
        f"{first_line(reasons[0])}): give its shape, bind its other arguments{_unbound(network)}, or wrap it in a "
        "function"
    ) from reasons[0]


FORMS: dict[str, Callable[[Callable[..., Any], Tensor, Tensor], Any]] = {  # other ways to call a network
    "lambda x, t: network(t, x)": lambda network, x, t: network(t, x),
    "lambda x, t: network(x, t[:, None])": lambda network, x, t: network(x, t[:, None]),
    "lambda x, t: network(x.movedim(1, -1), t).movedim(-1, 1)": lambda network, x, t: tensor_of(
        network(x.movedim(1, -1), t)
    ).movedim(-1, 1),
    "lambda x, t: torch.cat([network(x[i : i + 1], t[i]) for i in range(len(x))])": lambda network, x, t: torch.cat(
        [tensor_of(network(x[i : i + 1], t[i])) for i in range(len(x))]
    ),
    "lambda x, t: torch.cat([network(x[i : i + 1], int(t[i])) for i in range(len(x))])": lambda network, x, t: (
        torch.cat([tensor_of(network(x[i : i + 1], int(t[i]))) for i in range(len(x))])
    ),
}


def _other_form(network: AdaptedNetwork, x_t: Tensor, time: Tensor) -> str | None:
    """The function that makes the network accept ``(x, time)``, if it answers in another form with x's shape."""
    for form, ask in FORMS.items():
        try:
            answer = tensor_of(ask(partial(network.call, **network.bind), x_t.to(network.dtype), time))
        except Exception:
            continue
        if answer.shape == x_t.shape:
            return form
    return None


def _unbound(network: AdaptedNetwork) -> str:
    """The first arguments that a network has beside x, time and labels, and that are not bound."""
    call = inner(network.call)
    try:
        taken = inspect.signature(call.forward if isinstance(call, nn.Module) else call).parameters.values()
    except (TypeError, ValueError):
        return ""
    named = [each.name for each in taken if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    known = {*named[:1], *TIMES, *network.bind, "return_dict", *(LABELS if network.num_classes else ())}
    if not set(named) & set(TIMES):
        known |= set(named[:2])
    others = [name for name in named if name not in known][:3]
    return f" (such as {', '.join(others)})" if others else ""


def _check_answer(network: AdaptedNetwork, answer: Tensor, learned_sigma: bool | None) -> None:
    """Refuse an answer of another shape, without numbers, or not finite."""
    channels, *rest = network.data_shape
    doubled = (2, 2 * channels, *rest)
    if learned_sigma is None and answer.shape == doubled:
        raise ValueError(
            f"learned_sigma must be stated for a network that returns {2 * channels} channels for {channels}: "
            "give learned_sigma=True if the second half is Improved DDPM's variance, or wrap the network"
        )
    wanted = doubled if network.learned_sigma else (2, channels, *rest)
    if answer.shape != wanted:
        remedy = "give the shape of its data, or wrap it"
        if answer.ndim == 0:
            remedy = "give the network inside of what computes a loss, such as diffusion.model"
        raise ValueError(
            f"network must return [2, {', '.join(map(str, wanted[1:]))}] (got {list(answer.shape)}): {remedy}"
        )
    if answer.is_meta or any(each.is_meta for each in network.parameters()):
        raise ValueError("network must have numbers for weights (got a network on the meta device): load its weights")
    if not answer.isfinite().all():
        raise ValueError("network must return finite numbers (got NaN or infinity): look at its weights")


def _ask_at_the_ends(
    network: AdaptedNetwork, feed: TimeFeed, schedule: NoiseSchedule, x_t: Tensor, condition: Tensor | None
) -> None:
    """Refuse a network that fails at the first or the last time of the grid."""
    t = torch.tensor([1 / schedule.num_steps, 1.0], dtype=torch.float64, device=x_t.device)
    time = fed(feed, schedule, t)
    first, last = time.tolist()
    try:
        answer = network.ask(x_t, time.float(), condition)
    except Exception as error:
        raise ValueError(
            f"time must be in the network's range (it failed at {first:.6g} or {last:.6g}, the first and the last "
            f'step: {first_line(error)}): give another, such as time="n-1" for networks that count from 0'
        ) from error
    if not answer.isfinite().all():
        at = next(value for value, each in zip((first, last), answer, strict=True) if not each.isfinite().all())
        raise ValueError(
            f"network must return finite numbers at the first and the last step (got NaN or infinity at time {at:.6g}):"
            " give another time or schedule"
        )


def _ask_labels(network: AdaptedNetwork, x_t: Tensor, time: Tensor) -> None:
    """Refuse a network that does not know its last class, or the null class."""
    count = network.num_classes or 0
    for argument, label in (("num_classes", count - 1), ("null_class", count)):
        if label == count and network.null_class is None:
            continue
        try:
            network.ask(x_t, time.float(), torch.full((len(x_t),), label, device=x_t.device))
        except Exception as error:
            raise ValueError(
                f"{argument} must be a label that the network knows (got {getattr(network, argument)}; it failed: "
                f"{first_line(error)}): give what it was trained with"
            ) from error


def _named(call: Any, name: Any) -> str | None:
    """The name, if the network has such a module."""
    modules = dict(inner(call).named_modules()) if isinstance(call, nn.Module) else {}
    if name is not None and name not in modules:
        near = get_close_matches(str(name), modules, 3) or list(modules)[-3:]
        raise ValueError(
            f"features must name a module of the network (got {name!r}): give one such as {', '.join(near)}, or None"
        )
    return None if name is None else str(name)


def _eager(call: Any) -> AbstractContextManager[Any]:
    """While a compiled network is asked, that it runs as written: what runs compiled ignores hooks added later."""
    modules = call.modules() if isinstance(call, nn.Module) else []
    compiled = type(call).__module__.startswith("torch._dynamo")
    if compiled or any(getattr(each, "_compiled_call_impl", None) is not None for each in modules):
        eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return eager
    return nullcontext()
