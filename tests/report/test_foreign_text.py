"""A report over the runs of a stranger: names are text in every format, and no file outside the folder is touched."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from test_report import make

from optcov.foreign import DamagedError, cell, file_name, label, read_json, read_yaml, sealed_json, sealed_yaml, tex
from optcov.report import gather, plot, scores, write, write_report

HOSTILE = [
    "/abs/path", "../../up", "..", ".hidden", "a/b", "variance", "nul\0byte", "x" * 5000,
    "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "{{ 7*7 }}",
    "\\input{/etc/passwd}\n\\write18{id}", "$\\frac$", "_", "a|b`c`", "[x](javascript:alert(1))",
    "[bold]x[/nothing]", "[/]", "\\", "\x1b]0;title\x07\x1b[2J", "\u202egnp.exe", "=cmd|' /C calc'!A1",
]  # fmt: skip


def test_hostile_names_are_text_wherever_they_land(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """As metric, choice, setting, device, folder and log: one report over all of them, written and read back."""

    def drawn(frame: Any, metric: str, path: Path) -> None:  # one is enough, of all labels
        plot(frame, metric, path) if metric == "$\\frac$" else Image.new("L", (1, 1)).save(path)

    monkeypatch.setattr(write, "plot", drawn)
    base = tmp_path / "sweep"
    for i, name in enumerate(HOSTILE):
        folder = name if name.isprintable() and "/" not in name and len(name) < 200 and name != ".." else f"run{i}"
        make(
            base / f"javascript:{folder}", {"fd": 1.0 + i, name: 2.0}, var=name, device=name, num_steps=3 + i % 2,
            overrides={"sampler.eta": name, f"+{name}": name}, higher_is_better=[name], reference={name: name},
        )  # fmt: skip
    (base / "killed" / ".hydra").mkdir(parents=True)
    (base / "killed" / "train.log").write_text("[now][x][INFO] - \x1b[31mred <b>| \\input{x}\n")
    out = tmp_path / "out"
    out.mkdir()
    write_report(gather(base), out)
    assert {path.name for path in tmp_path.iterdir()} == {"sweep", "out"}
    written = {path.name for path in out.iterdir()}
    assert all(re.fullmatch(r"[A-Za-z0-9][\w.-]{0,120}", name) for name in written)
    assert len(written) == 4 + 1 + len(HOSTILE)  # each metric has its plot
    page = (out / "report.html").read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|img src=x)", page)
    for address in re.findall(r'(?:href|src)="([^"]*)"', page):
        assert re.match(r"data:image/png;base64,|[^:]*$", address)
    latex = (out / "table.tex").read_text()
    assert not re.search(r"^[^%\n]*\\(input|write|frac)", latex, re.MULTILINE)
    for text in (page, latex, (out / "table.md").read_text(), capsys.readouterr().out):
        assert not re.search("[\0-\x08\x0b-\x1f\x7f\u202e]", text)
    assert "\n=cmd" not in (out / "table.csv").read_text().replace(",", "\n")


@pytest.mark.parametrize("name", HOSTILE)
def test_the_terminal_prints_a_name_as_it_is(tmp_path: Path, name: str):
    make(tmp_path / "a", {"fd": 1.0}, var=name)
    make(tmp_path / "b", {"fd": 2.0}, var="other")
    console = Console(width=400, record=True, file=(tmp_path / "out").open("w"))
    console.print(scores(gather(tmp_path).frame(), "fd").to_terminal())
    assert label(name) in console.export_text()


@pytest.mark.parametrize(
    "facts",
    [
        {"num_steps": 0}, {"num_steps": 10**30}, {"nfe": float("nan")}, {"seed": -1}, {"var": None}, {"metrics": None},
        {"metrics": {"run": 1.0}}, {"metrics": {str(i): 1.0 for i in range(999)}}, {"metrics": {"fd": "1"}},
        {"metrics": {"fd": float("inf")}}, {"metrics": {"fd": 1e308}}, {"nfe": 10**4000}, {"seed": 2**64}, {"var": ""},
        {"overrides": {"x": 3}}, {"data_shape": [1, -1, 8]}, {"data_shape": [10**9] * 3}, {"num_samples": True},
    ],
)  # fmt: skip
def test_results_of_another_form_are_refused(tmp_path: Path, facts: dict[str, Any]):
    folder = make(tmp_path / "a")
    content = json.loads((folder / "results.json").read_text()) | facts
    (folder / "results.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"^runs: .*results.json is damaged \(.*\): run it again"):
        gather(tmp_path)


@pytest.mark.parametrize("secret", ["train.log", "samples.png", "variance.csv"])
def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path, secret: str, caplog: pytest.LogCaptureFixture):
    outside = tmp_path / "outside"
    outside.write_text("the secret\n")
    folder = make(tmp_path / "runs" / "a")
    if secret == "train.log":
        (folder / "results.json").unlink()
    (folder / secret).symlink_to(outside)
    make(tmp_path / "runs" / "b")
    write_report(gather(tmp_path / "runs"), tmp_path)
    assert not [path for path in tmp_path.glob("*.*") if b"secret" in path.read_bytes()]
    assert secret == "train.log" or f"{secret} is damaged" in caplog.text


@pytest.mark.parametrize(
    "text", ["[" * 9000, '{"a":' * 9000, "1" * 5000, '{"a": 1', "", "\0", '{"sha256": "0"}', " " * (1 << 20) + "1"]
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str):
    (tmp_path / "f").write_text(text)
    with pytest.raises(DamagedError):
        read_json(tmp_path / "f")


def test_every_flipped_byte_of_a_sealed_file_is_noticed_or_harmless(tmp_path: Path):
    """Only what the content is counts: a flip inside the name of the checksum leaves the content as it was."""
    content: dict[str, Any] = {"metrics": {"fd": 1.25}, "seed": 0, "var": "beta", "none": None}
    yaml_text = sealed_yaml("seed: 0\nvar: beta\nlist: [1, 2]\n")
    path = tmp_path / "f"
    for text, read in ((sealed_json(content, indent=2), read_json), (yaml_text, read_yaml)):
        path.write_text(text)
        whole = read(path)
        for i in range(len(text)):
            damaged = bytearray(text.encode())
            damaged[i] ^= 1
            path.write_bytes(damaged)
            try:
                found = read(path)
            except DamagedError:
                continue
            kept = found if not isinstance(found, dict) else {key: found.get(key) for key in whole}
            assert kept == whole, f"{text[:i]}>>>{chr(damaged[i])}<<<"


def test_names_and_cells():
    assert file_name("fd_pixel_2k") == "fd_pixel_2k"
    assert len({file_name(name) for name in (*HOSTILE, "a_b", "a\\b")}) == len(HOSTILE) + 2
    assert [cell(each) for each in ("-3", "-x", -3)] == ["-3", "'-x", -3]
    assert tex("50% & $x_1$ \\{~^}") == (r"50\% \& \$x\_1\$ \textbackslash{}\{\textasciitilde{}\textasciicircum{}\}")
