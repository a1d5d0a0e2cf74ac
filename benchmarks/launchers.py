"""Sends a sweep through a launcher of a cluster, requeues the job that trains, kills another, and repeats the command.

`submitit_slurm` gets commands that stand in for SLURM's: ``sbatch`` starts what submitit's script says, once for each
job of the array, on this machine, and ``scontrol requeue`` starts a job again once it has ended.  Run it with
``python -m benchmarks.launchers submitit_slurm`` (or ``submitit_local``, ``ray``, and a number of jobs).
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.damage import SETTINGS
from optcov.foreign import read_json

ROOT = Path(__file__).parents[1]
LIMIT = 1500  # seconds for each wait
ONE_JOB = """
import os, pathlib, subprocess, sys
script, state, job, task = sys.argv[1:]
name, state = f"{job}_{task}", pathlib.Path(state)
(line,) = (line for line in open(script) if line.startswith("srun "))
own = {"SLURM_JOB_ID": f"{job}{task}", "SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": task, "SLURM_NTASKS": "1",
       "SLURM_JOB_NAME": "train", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
       "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost", "SUBMITIT_EXECUTOR": "slurm"}
while True:
    (state / f"{name}.again").unlink(missing_ok=True)
    with open(state / f"{name}.log", "a") as log:
        command = "exec " + line[line.index(sys.executable):]
        status = subprocess.run(["bash", "-c", command], env=os.environ | own, stdout=log, stderr=log).returncode
    if not (state / f"{name}.again").exists():
        break
(state / f"{name}.state").write_text("COMPLETED" if status == 0 else "FAILED")
"""
COMMANDS = {
    "sbatch": """
import os, pathlib, re, subprocess, sys
state, script = pathlib.Path(os.environ["FAKE_SLURM"]), pathlib.Path(sys.argv[1]).read_text()
job = str(1 + len(list(state.glob("*.script"))))
(state / f"{job}.script").write_text(script)
array = re.search(r"--array=0-([0-9]+)", script)
for task in range(int(array[1]) + 1 if array else 1):
    (state / f"{job}_{task}.state").write_text("RUNNING")
    subprocess.Popen([sys.executable, state / "one_job.py", state / f"{job}.script", state, job, str(task)],
                     start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Submitted batch job {job}")
""",
    "sacct": """
import os, pathlib
print("JobID|State|NodeList")
for path in pathlib.Path(os.environ["FAKE_SLURM"]).glob("*.state"):
    print(f"{path.stem}|{path.read_text() or 'RUNNING'}|localhost")
""",
    "scontrol": """
import os, pathlib, sys
assert sys.argv[1] == "requeue"
pathlib.Path(os.environ["FAKE_SLURM"], f"{sys.argv[2]}.again").touch()
""",
    "srun": "",
}


def fake_slurm(state: Path) -> dict[str, str]:
    """Put commands that stand in for SLURM's into a folder; returns the environment in which they are found."""
    state.mkdir()
    (state / "one_job.py").write_text(ONE_JOB)
    for name, code in COMMANDS.items():
        path = state / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return {"FAKE_SLURM": str(state), "PATH": f"{state}{os.pathsep}{os.environ['PATH']}"}


def until(what: str, found: Callable[[], Any]) -> Any:
    """Wait for something, and return it."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        if answer := found():
            return answer
        time.sleep(0.2)
    raise SystemExit(f"no {what} within {LIMIT} s")


def process_of(job: Path) -> int:
    """The process that works in the folder of a job, or 0."""
    try:
        return int(read_json(job / ".holder.lock")["process"])
    except Exception:  # not there yet, or being written
        return 0


def drill(launcher: str, jobs: int, place: Path) -> list[tuple[str, bool]]:
    """Run the sweep twice, disturbing it the first time.

    Returns:
        What was checked, and whether it held.
    """
    steps = ",".join(str(2 + i) for i in range(-(-jobs // 3)))
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", *(a for a in SETTINGS if "num_steps=3" not in a),
        "trainer.max_steps=400", "checkpoint_every=5", "var=beta,beta_tilde,npr_dpm", f"sampler.num_steps={steps}",
        f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    own = {"submitit_slurm": fake_slurm(place / "slurm")} if launcher == "submitit_slurm" else {}
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | own.get(launcher, {})
    sweep, cache = place / "sweep", place / "outputs" / "cache"

    def folders() -> list[Path]:
        return [path.parent for path in sweep.glob("*/.lock")]

    first = subprocess.Popen(command, cwd=place, env=environment)
    (holder,) = until(
        "fit", lambda: list(cache.glob("mean/*/.holder.lock")) and list(cache.glob("mean/*/resume/*.ckpt"))
    )
    trains = int(read_json(holder.parents[1] / ".holder.lock")["process"])
    other = until("waiting job", lambda: [each for each in folders() if process_of(each) not in (0, trains)])[0]
    if launcher != "ray":  # no handler there
        os.kill(trains, signal.SIGUSR2)
    os.kill(process_of(other), signal.SIGKILL)
    first_status = first.wait(LIMIT)
    total = -(-jobs // 3) * 3
    until("end of the other jobs", lambda: len(list(sweep.glob("*/results.json"))) >= total - 1)
    time.sleep(5)  # the jobs' own ends
    before = {path: path.stat().st_mtime_ns for path in sweep.glob("*/results.json")}
    lost = [path for path in folders() if not (path / "results.json").exists()]
    second_status = subprocess.run(command, cwd=place, env=environment, timeout=LIMIT).returncode
    logs = "\n".join(path.read_text() for path in sweep.glob("*/train.log"))
    found = list(sweep.glob("*/results.json"))
    return [
        (f"a killed job makes the command fail (status {first_status})", first_status == 1 or launcher == "ray"),
        (f"the other {total - 1} jobs end", len(before) >= total - 1),
        ("only the killed job is repeated", {path: path.stat().st_mtime_ns for path in before} == before),
        (f"{len(lost)} repeated, status {second_status}", second_status == 0 and len(found) == total),
        ("one mean network", len(list(cache.glob("mean/*/mean.safetensors"))) == 1),
        ("the requeued fit goes on", "resuming from step" in logs or launcher == "ray"),
        ("the report", (sweep / "report.html").is_file()),
    ]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = drill(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 12, Path(folder))
    for words, held in rows:
        print(f"{'held  ' if held else 'FAILED'} {words}")
    sys.exit(not all(held for _, held in rows))
