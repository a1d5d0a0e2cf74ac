"""Wherever a network comes from, its weights are found and nothing in a file runs."""

import argparse
import gc
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

import optcov
from optcov.adapter.network import AdaptedNetwork
from optcov.denoiser import Denoiser

SHAPE = (1, 4, 4)
STATED: dict[str, Any] = {
    "shape": SHAPE, "prediction": "eps", "schedule": "linear", "time": "n", "data_range": (-1, 1), "check": False
}  # fmt: skip


class Small(nn.Module):
    """`(x, n) -> eps`, with a projection at its end and a buffer."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.first, self.last = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 1, 3, padding=1)
        self.register_buffer("scale", torch.tensor(1e-3))

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.last((self.first(x) + self.scale * n[:, None, None, None]).tanh())


def answer(denoiser: Denoiser) -> Tensor:
    """What a denoiser says of fixed noise at step 300."""
    x_t = torch.randn(3, *denoiser.data_shape, generator=torch.Generator().manual_seed(0))
    return denoiser(x_t, denoiser.levels(torch.tensor(0.3))).output


def said(network: nn.Module) -> Tensor:
    """What the network says when it is asked directly."""
    with torch.no_grad():
        return network(torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.full((3,), 300.0))


class Compiled(nn.Module):
    """As what `torch.compile` makes, whose import takes seconds."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._orig_mod = network

    def forward(self, *arguments: Tensor) -> Tensor:
        return self._orig_mod(*arguments)


WRAPPED: dict[str, Callable[[Small], Any]] = {
    "module": lambda net: net,
    "function": lambda net: lambda x, n: net(x, n),
    "object with sample": lambda net: lambda x, n: SimpleNamespace(sample=net(x, n)),
    "dictionary": lambda net: lambda x, n: {"sample": net(x, n)},
    "tuple": lambda net: lambda x, n: (net(x, n), "more"),
    "DataParallel": nn.DataParallel,
    "compiled": Compiled,
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_anything_that_answers_is_a_network(kind: str):
    net = Small()
    denoiser = optcov.load(WRAPPED[kind](net), **STATED)
    assert denoiser.network.features == ("last" if kind in ("module", "DataParallel", "compiled") else None)
    with torch.no_grad():
        assert_close(answer(denoiser), said(net))


def test_a_name_in_a_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    (tmp_path / "some_project.py").write_text("def network(x, n):\n    return x / 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert answer(optcov.load("some_project:network", **STATED)).shape == (3, *SHAPE)
    with pytest.raises(ValueError, match=r"source = some_project:other cannot be imported .*give module:name"):
        optcov.load("some_project:other", **STATED)
    with pytest.raises(ValueError, match=r"source = nowhere\.pt does not exist"):
        optcov.load("nowhere.pt", **STATED)


def averaged() -> dict[str, Tensor]:
    return Small(1).state_dict()


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in weights.items()}


def parameters() -> dict[str, Tensor]:
    """Averages without the buffer."""
    return {key: value.data for key, value in Small(1).named_parameters()}


RAW = Small(2).state_dict() | {"scale": torch.tensor(7.0)}


def buffered() -> dict[str, Tensor]:
    """Raw weights whose buffer is right."""
    return RAW | {"scale": averaged()["scale"]}


LAYOUTS: dict[str, Callable[[], Any]] = {
    "plain": averaged,
    "module.": lambda: prefixed("module.", averaged()),
    "module._orig_mod.": lambda: prefixed("_orig_mod.", averaged()),
    "ema": lambda: {"model": RAW, "ema": averaged(), "step": 7},
    "ema_model": lambda: {"model": RAW, "ema_model": averaged()},
    "model_ema": lambda: {"model": prefixed("module.", RAW), "model_ema": prefixed("module.", averaged())},
    "ema_state_dict": lambda: {"state_dict": RAW, "ema_state_dict": averaged()},
    "Lightning": lambda: {"state_dict": prefixed("model.", averaged()), "global_step": 3, "hyper_parameters": {"a": 1}},
    "Lightning with EMA": lambda: {
        "state_dict": prefixed("model.", RAW) | prefixed("ema_model.", averaged()) | {"loss.weight": torch.ones(1)}
    },
    "a trainer's": lambda: {"step": 1, "model": RAW, "ema": prefixed("ema_model.model.", averaged())
                            | prefixed("online_model.model.", RAW) | {"initted": torch.tensor(True)}},
    "score SDE": lambda: {
        "model": prefixed("module.", buffered()), "optimizer": {"lr": 1.0}, "step": 9,
        "ema": {"decay": 0.999, "num_updates": 9, "shadow_params": list(Small(1).parameters())},
    },
    "beside tables": lambda: prefixed("net.", averaged()) | {"betas": torch.ones(3)},
    "latent diffusion": lambda: {"state_dict": prefixed("model.diffusion_model.", buffered())
                                 | {"model_ema.diffusion_model" + key.replace(".", ""): value
                                    for key, value in parameters().items()}},
    "shadow": lambda: {"model": buffered(), "ema": {"decay": 0.99, "shadow": parameters()}},
    "params_ema": lambda: {"params": RAW, "params_ema": averaged()},
    "ema_0.9999": lambda: {"model": RAW, "ema_0.9999": averaged()},
    "Lightning net_ema": lambda: {"state_dict": prefixed("net.", RAW) | prefixed("net_ema.", averaged())},
    "a callback's": lambda: {"state_dict": prefixed("model.", RAW),
                             "callbacks": {"EMA": {"ema_state_dict": prefixed("model.", averaged())}}},
    "an optimizer's": lambda: {"state_dict": prefixed("model.", buffered()),
                               "optimizer_states": [{"opt": {}, "ema": tuple(parameters().values())}]},
    "AveragedModel": lambda: prefixed("module.module.", averaged()) | {"n_averaged": torch.tensor(3)},
    "DeepSpeed": lambda: {"module": averaged(), "optimizer": None},
    "settings beside": lambda: {"model": RAW, "ema": averaged(), "args": argparse.Namespace(lr=1e-4)},
    "a name of its own": lambda: {"generator": averaged(), "discriminator": {"last.weight": torch.ones(2)}},
    "compiled inside": lambda: {key.replace("last.", "last._orig_mod."): value for key, value in averaged().items()},
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_averaged_weights_are_found_in(layout: str, tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    torch.save(LAYOUTS[layout](), path)
    denoiser = optcov.load(path, network=Small(5), **STATED)
    with torch.no_grad():
        assert_close(answer(denoiser), said(Small(1)))


def test_averages_that_do_not_fit_are_told(tmp_path: Path):
    torch.save({"model": Small(1).state_dict(), "ema": {f"{i}": torch.ones(2) for i in range(9)}}, tmp_path / "both.pt")
    with pytest.warns(UserWarning, match=r"both\.pt seems to hold averaged weights that do not fit the network"):
        optcov.load(tmp_path / "both.pt", network=Small(5), **STATED)


def test_safetensors_and_half_precision(tmp_path: Path):
    save_file({key: value.half() for key, value in averaged().items()}, tmp_path / "weights.safetensors")
    denoiser = optcov.load(tmp_path / "weights.safetensors", network=Small(), **STATED)
    with torch.no_grad():
        assert_close(answer(denoiser), said(Small(1)), rtol=0, atol=2e-3)


class Runs:
    """What a pickle could do."""

    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit('it ran')",)


def bad_files(folder: Path) -> dict[str, Path]:
    """Files that hold no weights of `Small`."""
    (folder / "network.pkl").write_bytes(pickle.dumps(Runs()))
    torch.save({"model": Runs()}, folder / "objects.pt")
    torch.save(Small(), folder / "module.pt")
    (folder / "cut.pt").write_bytes(b"PK\x03\x04 not all of it")
    (folder / "cut.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}")
    torch.save({"epoch": 3}, folder / "empty.pt")
    torch.save([1, 2], folder / "list.pt")
    torch.save({"up.weight": torch.ones(2)}, folder / "other.pt")
    torch.save(averaged() | {"last.more": torch.ones(2)}, folder / "more.pt")
    torch.save(averaged() | {"first.weight": torch.ones(9, 1, 3, 3)}, folder / "wide.pt")
    torch.save({"ema": {"shadow_params": [torch.ones(2)]}, "model": RAW}, folder / "shadows.pt")
    torch.save({"ema": {"shadow_params": [torch.ones(2)]}}, folder / "shadows_alone.pt")
    return {path.name: path for path in folder.iterdir()}


REFUSED = {
    "network.pkl": r"network\.pkl must not be a pickle.*save its weights",
    "objects.pt": r"objects\.pt must hold only tensors",
    "module.pt": r"module\.pt must hold only tensors",
    "cut.pt": r"cut\.pt is damaged or not a file of weights",
    "cut.safetensors": r"cut\.safetensors is damaged or not a file of weights",
    "empty.pt": r"empty\.pt must hold weights \(got only epoch\)",
    "list.pt": r"list\.pt must hold a state dict \(got list\)",
    "other.pt": r"weights of Small \(it lacks first\.bias, has up\.weight; 5 of 5 are missing\)",
    "more.pt": r"weights of Small alone \(it has last\.more, too; 1 in all\)",
    "wide.pt": r"weights of Small \(first\.weight is \[9, 1, 3, 3\], not \[6, 1, 3, 3\]\)",
    "shadows.pt": r"one average per parameter \(got 1 for 4\)",
    "shadows_alone.pt": r"the weights that its averages belong to",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_of_something_else_is_refused_in_a_sentence(name: str, tmp_path: Path):
    path = bad_files(tmp_path)[name]
    with pytest.raises(ValueError, match=REFUSED[name]) as caught:
        optcov.load(path, network=Small(), **STATED)
    assert "\n" not in str(caught.value)
    without = REFUSED[name] if path.suffix == ".pkl" else r"network must be given for a file of weights"
    with pytest.raises(ValueError, match=without):
        optcov.load(path, **STATED)


def unet() -> nn.Module:
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, add_attention=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline of pixels on disk, as `save_pretrained` leaves it."""
    diffusers = pytest.importorskip("diffusers")
    folder = tmp_path_factory.mktemp("pipeline")
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    diffusers.DDPMPipeline(unet(), scheduler).save_pretrained(folder)
    return folder


def test_a_folder_of_diffusers_states_its_conventions(pipeline: Path, tmp_path: Path):
    stated = {"data_range": (-1, 1), "check": False}
    loaded = optcov.load(pipeline, **stated)
    assert (loaded.data_shape, type(loaded.parameterization).__name__) == ((1, 8, 8), "V")
    assert type(loaded.schedule).__name__ == "CosineSchedule"
    level = loaded.levels(torch.tensor(0.3))
    assert float(loaded.network_time(level)) == pytest.approx(299)  # its timestep 299 is our n = 300
    x_t = torch.randn(2, 1, 8, 8)
    network = unet().eval()
    with torch.no_grad():
        assert_close(loaded(x_t, level).output, network(x_t, 299).sample, rtol=1e-5, atol=1e-6)
        hub = tmp_path / "models--me--mine"  # the layout of the Hub's cache
        (hub / "refs").mkdir(parents=True)
        (hub / "refs" / "main").write_text("b2\n")
        (hub / "snapshots" / "a1").mkdir(parents=True)
        (hub / "snapshots" / "b2").symlink_to(pipeline)
        for source in (hub, pipeline / "unet"):
            assert_close(optcov.load(source, **stated)(x_t, level).output, loaded(x_t, level).output)


def test_a_pipeline_and_its_network_with_a_scheduler(pipeline: Path):
    from diffusers import DDIMScheduler, DDPMPipeline

    opened = DDPMPipeline.from_pretrained(pipeline)
    for source, stated in [
        (opened, {}),
        (opened.unet, {"schedule": DDIMScheduler(beta_schedule="squaredcos_cap_v2"), "prediction": "v", "time": "n-1"}),
    ]:
        denoiser = optcov.load(source, data_range=(-1, 1), check=False, **stated)
        assert denoiser.network.features == "conv_norm_out"
        assert optcov.sample(denoiser, num_steps=2, count=1, progress=False).shape == (1, 1, 8, 8)
    with pytest.raises(ValueError, match=r"prediction and schedule and time must be stated, .*give prediction=\"eps\""):
        optcov.load(opened.unet, data_range=(-1, 1))


def test_text_and_classes_of_diffusers():
    """UNet2DConditionModel with bound embeddings, DiT with labels and learned sigma."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    text = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8, attention_head_dim=4,
    )  # fmt: skip
    stated: dict[str, Any] = {
        "schedule": diffusers.DDIMScheduler(), "prediction": "eps", "time": "n-1", "data_range": "unbounded",
        "check": False,
    }  # fmt: skip
    prompt, empty = torch.randn(1, 3, 8), torch.zeros(1, 3, 8)
    denoiser = optcov.load(
        text, bind={"encoder_hidden_states": prompt}, null_bind={"encoder_hidden_states": empty}, **stated
    )
    assert (denoiser.data_shape, denoiser.num_classes) == ((4, 8, 8), 1)
    x_t, level = torch.randn(2, 4, 8, 8), denoiser.levels(torch.tensor(0.3))
    with torch.no_grad():
        found = denoiser(x_t, level, torch.tensor([0, 1])).output
        wanted = text.eval()(x_t, 299, torch.cat([prompt, empty])).sample
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    samples = optcov.sample(denoiser, num_steps=2, count=2, labels=0, guidance="classifier_free", progress=False)
    assert samples.isfinite().all()
    gc.collect()

    dit = diffusers.DiTTransformer2DModel(
        sample_size=4, in_channels=2, out_channels=4, patch_size=2, num_layers=1, num_attention_heads=2,
        attention_head_dim=4, num_embeds_ada_norm=5,
    )  # fmt: skip
    denoiser = optcov.load(dit, **stated)
    assert (denoiser.num_classes, denoiser.network.null_class) == (5, 5)
    assert denoiser.network.learned_sigma
    x_t = torch.randn(2, 2, 4, 4)
    with torch.no_grad():
        found = denoiser(x_t, level, torch.tensor([3, 5])).output
        wanted = dit.eval()(x_t, torch.tensor([299, 299]), class_labels=torch.tensor([3, 5])).sample[:, :2]
    assert_close(found, wanted, rtol=1e-5, atol=1e-6)


STATES: dict[str, tuple[dict[str, Any], str]] = {  # what a scheduler states: schedule, prediction, time at n = 300
    "PNDMScheduler": ({"beta_schedule": "scaled_linear"}, "BetaSchedule Eps 299"),
    "EulerDiscreteScheduler": ({"prediction_type": "v_prediction"}, "BetaSchedule V 299"),
    "FlowMatchEulerDiscreteScheduler": ({}, "FlowSchedule Velocity 300"),
    "UniPCMultistepScheduler": (
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction"},
        "FlowSchedule Velocity 300",
    ),
    "EDMEulerScheduler": ({}, "VESchedule EDM -0.759"),
    "ScoreSdeVeScheduler": ({"num_train_timesteps": 1000}, "VESchedule Score 0.346"),
    "IPNDMScheduler": ({}, "FunctionSchedule V 0.3"),
}
STATES_NOTHING: dict[str, tuple[dict[str, Any], str]] = {
    "CMStochasticIterativeScheduler": (
        {},
        r"scheduler must state betas, or be of flow matching or EDM \(got CMStochasticIterativeScheduler\)",
    ),
    "EDMDPMSolverMultistepScheduler": ({"prediction_type": "v_prediction"}, "must be epsilon, EDM's F"),
    "DDPMScheduler": ({"beta_schedule": "laplace"}, r"beta_schedule of DDPMScheduler must be .*\(got laplace\)"),
    "EulerDiscreteScheduler": ({"timestep_type": "continuous"}, "timestep_type of EulerDiscreteScheduler must be"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_scheduler_states_the_path_and_the_time(name: str):
    diffusers = pytest.importorskip("diffusers")
    settings, wanted = STATES[name]
    scheduler = getattr(diffusers, name)(**settings)
    denoiser = optcov.load(SimpleNamespace(scheduler=scheduler, unet=unet()), data_range=(-1, 1), check=False)
    fed = float(denoiser.network_time(denoiser.levels(torch.tensor(0.3))))
    found = (type(denoiser.schedule).__name__, type(denoiser.parameterization).__name__, f"{fed:.3g}")
    assert " ".join(found) == wanted
    kept = optcov.load(unet(), schedule=scheduler, prediction="x0", time="n", data_range=(-1, 1), check=False)
    assert type(kept.schedule) is type(denoiser.schedule)  # also where it is given as the schedule alone


@pytest.mark.parametrize("name", STATES_NOTHING)
def test_a_scheduler_of_another_kind_is_refused(name: str):
    diffusers = pytest.importorskip("diffusers")
    settings, message = STATES_NOTHING[name]
    pipeline = SimpleNamespace(scheduler=getattr(diffusers, name)(**settings), unet=unet())
    with pytest.raises(ValueError, match=message):
        optcov.load(pipeline, data_range=(-1, 1), check=False)


def test_a_variant_is_opened_and_code_is_not(pipeline: Path, tmp_path: Path):
    import shutil

    for name in ("half", "evil"):
        shutil.copytree(pipeline, tmp_path / name)
        shutil.rmtree(tmp_path / name / "unet")
    unet().half().save_pretrained(tmp_path / "half" / "unet", variant="fp16")
    denoiser = optcov.load(tmp_path / "half", data_range=(-1, 1), check=False)
    found = denoiser.network.call.network.conv_in.weight
    assert torch.equal(found.data, unet().conv_in.weight.data.half().float())
    unet().save_pretrained(tmp_path / "evil" / "unet", safe_serialization=False)
    torch.save({"conv_in.weight": Runs()}, next((tmp_path / "evil" / "unet").glob("*.bin")))
    with pytest.raises(ValueError, match="cannot be opened"):
        optcov.load(tmp_path / "evil", data_range=(-1, 1), check=False)


def test_broken_folders_are_refused_in_a_sentence(pipeline: Path, tmp_path: Path):
    import json
    import shutil

    def broken(name: str, spoil: Callable[[Path], object]) -> Path:
        shutil.copytree(pipeline, tmp_path / name)
        spoil(tmp_path / name)
        return tmp_path / name

    for folder, message in {
        broken("damaged", lambda f: (f / "unet" / "config.json").write_text("{")): r"unet/config\.json is damaged",
        broken("alien", lambda f: (f / "unet" / "config.json").write_text(json.dumps({"_class_name": "os"}))): (
            r"unet/config\.json must name a network of diffusers \(got os\)"
        ),
        broken("weightless", lambda f: next((f / "unet").glob("*.safetensors")).unlink()): r"cannot be opened",
        broken(
            "timeless", lambda f: shutil.rmtree(f / "scheduler")
        ): r"prediction and schedule and time must be stated",
        broken("none", shutil.rmtree).parent: r"must hold a run of optcov .* or a model of diffusers",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            optcov.load(folder, data_range=(-1, 1))
        assert "\n" not in str(caught.value)


def test_a_network_of_ours_is_adapted_no_further():
    from optcov.model import UNet

    denoiser = optcov.load(UNet(SHAPE, channels=8, channel_mult=(1,)), **{**STATED, "shape": None})
    assert not isinstance(denoiser.network, AdaptedNetwork)
    assert optcov.load(denoiser) is denoiser
