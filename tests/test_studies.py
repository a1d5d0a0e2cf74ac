"""The pages of studies, and that of the budget war, have the numbers of their results."""

import json

import pytest
import torch
from torch.testing import assert_close

from benchmarks import budget_page, latents, sn_and_npr, studies
from benchmarks.reference_page import filled
from optcov.denoiser import Denoiser
from optcov.model import UNet
from optcov.parameterization import X0, V
from optcov.schedule import LinearSchedule


def test_the_page_of_sn_and_npr_has_the_numbers_of_its_results():
    content, page = json.loads(sn_and_npr.RESULTS.read_text()), sn_and_npr.PAGE.read_text()
    made = sn_and_npr.tables(content)
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert filled(page, made) == page
    content["cells"]["SN @ 0"]["ddpm 5"]["fd_pixel"] += 1
    assert filled(page, sn_and_npr.tables(content)) != page


@pytest.mark.parametrize("study", studies.STUDIES)
def test_a_page_has_the_numbers_of_its_study(study: str):
    content, page = json.loads(studies.RESULTS.read_text()), (studies.PAGES / f"{study}.md").read_text()
    made = studies.tables(content)[study]
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert filled(page, made) == page
    cell = next(cell for key, cell in content["cells"].items() if key.startswith(f"{study}: "))
    cell |= {column: value + 1 for column, value in cell.items()}
    assert filled(page, studies.tables(content)[study]) != page


def test_the_page_of_the_budget_war_has_the_numbers_of_its_results():
    cells, page = budget_page.read("learned"), budget_page.PAGE.read_text()
    made = budget_page.tables(cells)
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert filled(page, made) == page
    cells["2M"][5]["scores"]["0"]["features"] += 1
    assert filled(page, budget_page.tables(cells)) != page


def test_the_table_of_latents_has_the_numbers_of_its_results():
    content, page = json.loads(latents.RESULTS.read_text()), latents.PAGE.read_text()
    assert filled(page, latents.tables(content)) == page
    assert all(f"{content['floor'][name]:.2f}" in page for name in ("images", "decoded", "psnr"))
    content["cells"]["npr_dpm 10"] += 1
    assert filled(page, latents.tables(content)) != page


def test_a_network_is_the_same_in_the_unit_of_another_target():
    denoiser = Denoiser(UNet((1, 8, 8), channels=8, channel_mult=[1]), LinearSchedule(1000)).eval()
    torch.nn.init.normal_(denoiser.network.output.weight, std=0.3)
    x, level = torch.randn(4, 1, 8, 8), denoiser.levels(torch.tensor(0.4, dtype=torch.float64))
    with torch.no_grad():
        expected = denoiser(x, level)
        for target in (V(), X0()):
            found = Denoiser(studies.Converted(denoiser, target), denoiser.schedule, target)(x, level)
            assert_close(found.x0, expected.x0, rtol=1e-4, atol=1e-4)
            assert not torch.allclose(found.output, expected.output, atol=0.1)


def test_dropout_lasts_while_heads_are_fitted():
    network = UNet((1, 8, 8), channels=8, channel_mult=[1]).eval()
    for block in network.modules():
        if hasattr(block, "layer2"):
            torch.nn.init.normal_(block.layer2.weight)
    torch.nn.init.normal_(network.output.weight)
    x, time = torch.randn(2, 1, 8, 8), torch.full((2,), 300.0)

    def same() -> bool:
        return torch.equal(network(x, time)[0], network(x, time)[0])

    with studies.dropping(network):
        assert not same()
    assert same()
