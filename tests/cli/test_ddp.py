"""Two processes on the CPU, as two GPUs would be: one run's folder, and the samples of one process."""

import os
import subprocess
import sys

from command_line import CLI, ROOT, TINY, UNET, files, results
from test_tracking import scored_again, tracked

TWO = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
TRACKED = [
    "callbacks=tracking", "callbacks.tracking.every_n_steps=1", "callbacks.tracking.num_samples=5",
    "callbacks.tracking.mean_steps=4",
]  # fmt: skip


def test_two_processes_train_fit_and_draw_as_one_draws(run: CLI):
    """Their samples are those that one process draws with the same weights: they depend on (seed, i) alone."""
    arguments = [a for a in [*TINY, *UNET] if a != "trainer=cpu"] + [
        "var=npr_dpm",
        "num_samples=9",
        "sample_batch_size=3",
    ]
    environment = {k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments, *TWO, *TRACKED, "hydra.run.dir=two"],
        cwd=run.folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "Traceback" not in said
    assert said.count("fd_pixel_9") == 1  # one of them speaks

    two = run.folder / "two"
    assert files(two) == {
        "results.json", "metrics.csv", "samples.png", "variance.csv", "variance.png",
        ".hydra/config.yaml", ".hydra/overrides.yaml",
        "checkpoints/mean.safetensors", "checkpoints/variance.safetensors",
        "checkpoints/best_mean.safetensors", "checkpoints/best_variance.safetensors",
        *(f"tracking/{stage}_{step}.png" for stage in ("mean", "variance") for step in (1, 2)),
    }  # fmt: skip
    assert len(list(run.folder.rglob("results.json"))) == 1
    assert results(two)["num_samples"] == 9  # an odd number: none twice, none missing

    last = {name: steps[2] for name, steps in tracked(two).items()}  # of 5 samples: 3 of one process, 2 of the other
    assert last == scored_again(two, ["var=npr_dpm"], mean_steps=4, count=5, batch_size=3)

    given = [
        f"{key}={two}/checkpoints/{kind}.safetensors" for key, kind in (("mean_ckpt", "mean"), ("var_ckpt", "variance"))
    ]
    one = run(*arguments, *given, "trainer=cpu", "hydra.run.dir=one")
    assert results(one)["metrics"] == results(two)["metrics"]
    assert (one / "samples.png").read_bytes() == (two / "samples.png").read_bytes()

    forked = [*TWO, "trainer.strategy=ddp_fork"]  # which imports nothing again
    few = run(f"run={two}", *forked, "num_samples=3", "hydra.run.dir=few", task="sample", tiny=False)
    assert files(few) == {"samples.npz", "samples.png", "samples.json"}  # of one batch for two processes
