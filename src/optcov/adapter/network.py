"""Adapts third-party networks to the interface of a denoiser: ``(x_t, time[, labels]) -> (output, features)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

LABELS = ("class_labels", "labels", "y", "label")  # what networks call their labels
TIMES = ("timestep", "timesteps", "timestep_ratio", "t")  # what networks of diffusers call their time


class AnswerError(ValueError):
    """A network answers with something that is not a prediction; the message says what to do."""


class AdaptedNetwork(nn.Module):
    """Wraps a callable ``(x, time[, labels]) -> tensor`` so that it has the attributes and outputs of our networks.

    Args:
        call: a module, which becomes a submodule, or a function.  It may return a tensor, a tuple that starts with one,
            or an object or dictionary with ``sample``.
        data_shape: shape of one sample.
        num_classes: K, if the network takes labels 0..K-1.
        null_class: the label it is fed for the null label K; None if it has none.
        learned_sigma: whether the output has 2C channels, of which the second half is Improved DDPM's ``2 v - 1``.
        integer_time: whether the network needs the time as int64.
        time_dtype: of the time otherwise; None for that of the weights.
        bind: keyword arguments of every call; tensors with one row, ``[1, ...]``, apply to every sample.  They, and
            those in dictionaries, are moved to the weights, and floating ones get their precision.
        null_bind: the same for the null label of a network that is guided by ``bind``; K is then 1.
        features: name of the module whose input heads read; None for ``(x_t, output)``.
    Attributes:
        feature_channels: number of channels that heads read.
        default_head: the option of ``head`` that suits the features.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        data_shape: tuple[int, ...],
        *,
        num_classes: int | None = None,
        null_class: int | None = None,
        learned_sigma: bool = False,
        integer_time: bool = False,
        time_dtype: torch.dtype | None = None,
        bind: dict[str, Any] | None = None,
        null_bind: dict[str, Any] | None = None,
        features: str | None = None,
    ) -> None:
        super().__init__()
        self.call = call
        self.label_keyword = _label_keyword(call)
        self.data_shape = tuple(data_shape)
        self.num_classes = 1 if null_bind else num_classes
        self.null_class, self.learned_sigma = null_class, learned_sigma
        self.integer_time, self.time_dtype = integer_time, time_dtype
        self.bind, self.null_bind = bind or {}, null_bind
        self.features = features
        self.feature_channels = 2 * data_shape[0] if features is None else 0
        self.default_head = "input" if features is None else "simple"
        self._seen: Tensor | None = None
        if features is not None:
            assert isinstance(call, nn.Module)
            dict(inner(call).named_modules())[features].register_forward_pre_hook(self._keep)

    @property
    def has_null_label(self) -> bool:
        """Whether the network can be called without a label."""
        return self.num_classes is None or self.null_class is not None or self.null_bind is not None

    def forward(self, x_t: Tensor, time: Tensor, condition: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Output and features, from x_t ``[B, *data_shape]``, time ``[B]`` and labels ``[B]``."""
        answer = self.ask(x_t, time, condition)
        output, variance = answer, None
        if self.learned_sigma:
            output, variance = answer.chunk(2, 1)
        if self.features is None:
            features = torch.cat([x_t, output.to(x_t.dtype)], 1)
        else:
            assert self._seen is not None
            features, self._seen = _ordinary(self._seen).to(x_t.dtype), None  # heads are not in half precision
        if variance is not None:  # the last C channels of the features
            features = torch.cat([features, variance.to(features.dtype)], 1)
        return output, features

    def ask(self, x_t: Tensor, time: Tensor, condition: Tensor | None = None) -> Tensor:
        """The network's unmodified output, ``[B, C or 2C, ...]``."""
        dtype = self.dtype or x_t.dtype
        time = time.round().long() if self.integer_time else time.to(self.time_dtype or dtype)
        arguments: list[Tensor] = [x_t.to(dtype), time.clone()]  # networks may change their time in place
        bound = {name: self._rows(value, len(x_t)) for name, value in self.bind.items()}
        if self.null_bind is not None:
            if condition is None:
                raise ValueError("labels must be given: 0 for what is bound, 1 for the null binding")
            for name, value in self.null_bind.items():
                null, wanted = self._rows(value, len(x_t)), bound[name]  # `load` checks that both name the same
                bound[name] = torch.where(condition.eq(1).reshape(-1, *[1] * (null.ndim - 1)), null, wanted)
        elif condition is not None:
            if self.null_class is not None:
                condition = condition.masked_fill(condition.eq(self.num_classes or 0), self.null_class)
            if self.label_keyword is None:
                arguments.append(condition)
            else:
                bound[self.label_keyword] = condition
        return _ordinary(tensor_of(self.call(*arguments, **bound))).to(x_t.dtype)

    @property
    def dtype(self) -> torch.dtype | None:
        """The precision of the weights; None if there are none."""
        return next((p.dtype for p in self.parameters() if p.is_floating_point()), None)

    def _rows(self, value: Any, count: int) -> Any:
        """Expand a bound value to a batch."""
        if isinstance(value, dict):
            return {name: self._rows(each, count) for name, each in value.items()}
        if not isinstance(value, Tensor):
            return value
        device = next((p.device for p in self.parameters()), value.device)
        value = value.to(device, (self.dtype or value.dtype) if value.is_floating_point() else value.dtype)
        return value.expand(count, *value.shape[1:]) if value.ndim and len(value) == 1 else value

    def _keep(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self._seen = arguments[0]


def tensor_of(answer: Any) -> Tensor:
    """Extract the tensor from a network's output.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(answer, dict) and "sample" in answer:
        answer = answer["sample"]
    elif not isinstance(answer, Tensor) and hasattr(answer, "sample"):
        answer = answer.sample
    elif isinstance(answer, tuple | list) and answer:
        answer = answer[0]
    if not isinstance(answer, Tensor):
        raise AnswerError(
            f"network must return a tensor, a tuple that starts with one, or an object with .sample (got "
            f"{type(answer).__name__}{_keys(answer)}): wrap it in a function that does"
        )
    if not answer.is_floating_point():
        raise AnswerError(
            f"network must return real floating-point numbers (got {str(answer.dtype).removeprefix('torch.')}): wrap "
            "it in a function that does"
        )
    return answer


def _ordinary(tensor: Tensor) -> Tensor:
    """A tensor that a loss may be computed from: one made in inference mode may not be saved for a backward pass."""
    return tensor.clone() if tensor.is_inference() and not torch.is_inference_mode_enabled() else tensor


def _keys(answer: Any) -> str:
    """The first keys of a dictionary, or fields of a record."""
    keys = list(answer if isinstance(answer, dict) else getattr(answer, "__dict__", ()))[:3]
    return f" of {', '.join(map(str, keys))}" if keys else ""


def _label_keyword(call: Callable[..., Any]) -> str | None:
    """The keyword by which a network takes its labels; None if they are its third argument."""
    if (keyword := getattr(call, "label_keyword", None)) is not None:
        return str(keyword)
    network = inner(call)
    try:
        taken = inspect.signature(network.forward if isinstance(network, nn.Module) else network).parameters
    except (TypeError, ValueError):
        return None
    names = list(taken)
    found = next((name for name in LABELS if name in taken), None)
    if found is None or (names.index(found) == 2 and taken[found].kind is not inspect.Parameter.KEYWORD_ONLY):
        return None
    return found


def inner(network: Any) -> Any:
    """The network inside ``torch.compile``, or inside the wrapper that makes a network of diffusers return a tensor."""
    for name in ("_orig_mod", "wrapped"):
        if isinstance(network, nn.Module) and isinstance(getattr(network, name, None), nn.Module):
            return inner(getattr(network, name))
    return network


@contextmanager
def _recorded(network: nn.Module) -> Iterator[list[tuple[str, nn.Module, Tensor, Tensor]]]:
    """Record the calls of modules without children, in order: name, module, input and output."""
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    handles = []
    for name, module in network.named_modules():
        if not any(True for _ in module.children()):

            def record(module: nn.Module, arguments: Any, output: Any, name: str = name) -> None:
                if arguments and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
                    calls.append((name, module, arguments[0], output))

            handles.append(module.register_forward_hook(record))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def find_features(network: AdaptedNetwork, x_t: Tensor, time: Tensor, condition: Tensor | None) -> str | None:
    """Find the module whose input is the last feature map: the last projection, or the norm and activation before it.

    Args:
        network: an adapted network whose ``call`` is a module.
        x_t, time, condition: any valid input to it.
    Returns:
        The module's name; None if there is no map of the data's height and width.
    """
    if not isinstance(network.call, nn.Module):
        return None
    spatial = network.data_shape[1:]
    widths = {network.data_shape[0], 2 * network.data_shape[0]}
    with torch.no_grad(), _recorded(inner(network.call)) as calls:
        network.ask(x_t, time, condition)
    place = next(
        (
            i
            for i in range(len(calls) - 1, -1, -1)
            if calls[i][3].ndim == x_t.ndim and calls[i][3].shape[1] in widths and calls[i][3].shape[2:] == spatial
            if isinstance(calls[i][1], nn.Conv2d | nn.Linear | nn.Conv1d | nn.Conv3d)
        ),
        None,
    )
    if place is None or calls[place][2].ndim != x_t.ndim or calls[place][2].shape[2:] != spatial:
        return None
    while place > 0 and _stands_before(calls[place - 1], calls[place]):
        place -= 1
    return calls[place][0]


def _stands_before(
    former: tuple[str, nn.Module, Tensor, Tensor], latter: tuple[str, nn.Module, Tensor, Tensor]
) -> bool:
    """Whether a call is a norm, an activation or dropout whose output is the next one's input."""
    _, module, given, answer = former
    kind = type(module).__name__
    is_small = "Norm" in kind or kind in ("Dropout", "Dropout2d", "Identity", "SiLU", "Swish")
    is_small = is_small or type(module).__module__ == "torch.nn.modules.activation"
    return is_small and answer.data_ptr() == latter[2].data_ptr() and given.shape == answer.shape == latter[2].shape
