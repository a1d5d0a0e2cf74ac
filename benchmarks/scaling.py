"""Measures images per second of one network call against threads, batch and image size, compared with diffusers'."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.networks import cifar10_network, diffusers_network, flops_per_image, pair, peer_weights
from benchmarks.timing import Row, Settings, alternate


def threads(settings: Settings) -> Iterator[Row]:
    """Network calls over threads (on a CPU) and batch sizes, at 32 x 32, compared with diffusers."""
    denoiser, peer = pair(settings.device, settings.channels)
    before = torch.get_num_threads()
    for count in settings.threads if settings.device == "cpu" else (before,):
        torch.set_num_threads(count)
        for batch in settings.batch_sizes:
            for precision in settings.precisions:
                what = f"{count} threads" if settings.device == "cpu" else "32 x 32"
                yield call(denoiser.network, peer, settings, precision, batch, 32, what)
    torch.set_num_threads(before)


def sizes(settings: Settings) -> Iterator[Row]:
    """Network calls over image sizes, in batches with equally many pixels; attention stays at a height of 16."""
    for size in (16, 32) if settings.quick else (16, 32, 64):
        peer, network = diffusers_network(channels=settings.channels).eval(), cifar10_network(settings.channels).eval()
        network.load_state_dict(peer_weights(peer))
        network, peer = network.to(settings.device), peer.to(settings.device)
        if settings.device == "cpu":
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batch = max(1, settings.batch_size * 1024 // size**2)
        for precision in settings.precisions:
            yield call(network, peer, settings, precision, batch, size, f"{size} x {size}")


def call(
    network: torch.nn.Module,
    peer: torch.nn.Module,
    settings: Settings,
    precision: str,
    batch: int,
    size: int,
    what: str,
) -> Row:
    """Compare one network call of ours with one of diffusers'."""
    x = torch.randn(batch, 3, size, size, device=settings.device)
    t = torch.full((batch,), 500.0, device=settings.device)

    def ours() -> None:
        with torch.no_grad(), settings.autocast(precision):
            network(x, t)

    def theirs() -> None:
        with torch.no_grad(), settings.autocast(precision):
            peer(x, t)

    times = alternate({"ours": ours, "diffusers": theirs}, settings)
    row = times.row("ours", "diffusers", "network call", f"{precision}, {what}, batch {batch}", batch, "images/s")
    row.note = f"{flops_per_image(network, (3, size, size)) * batch / times.median('ours') / 1e9:.0f} GFLOP/s"
    return row
