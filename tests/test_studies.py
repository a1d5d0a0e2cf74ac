"""The pages of studies have the numbers of their results."""

import json

from benchmarks import sn_and_npr
from benchmarks.reference_page import filled


def test_the_page_of_sn_and_npr_has_the_numbers_of_its_results():
    content, page = json.loads(sn_and_npr.RESULTS.read_text()), sn_and_npr.PAGE.read_text()
    made = sn_and_npr.tables(content)
    assert all(f"<!-- {name} -->\n" in page for name in made)
    assert filled(page, made) == page
    content["cells"]["SN @ 0"]["ddpm 5"]["fd_pixel"] += 1
    assert filled(page, sn_and_npr.tables(content)) != page
