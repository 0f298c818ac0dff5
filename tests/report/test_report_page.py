"""The page in a browser: it sorts, filters, hides, shows a run, compares two, and reports no error."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from newllm.report.__main__ import main

pytestmark = pytest.mark.xdist_group("report_page")  # one process, whose fixtures are made once

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="Chromium: chromium and chromedriver are not installed (Debian: chromium, chromium-driver)",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("selenium", reason="Chromium: selenium is not installed (pip install -e .[test])")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.add_argument("--window-size=1280,1000")
    options.add_argument("--host-resolver-rules=MAP * ~NOTFOUND")  # no network
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(sweep: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("page")
    baseline = "baseline=[pos_encoding=rope,attention=mha,theta=1e4]"
    assert main([str(sweep), f"out={out}", "formats=html", baseline]) == 0
    return (out / "report.html").as_uri()


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page, freshly opened; whatever a test does there must leave no error on the console."""
    browser.get("about:blank")
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []


def all_of(page: Any, selector: str) -> list[Any]:
    from selenium.webdriver.common.by import By

    return page.find_elements(By.CSS_SELECTOR, selector)


def the_only(page: Any, selector: str) -> Any:
    (found,) = all_of(page, selector)
    return found


def column(page: Any, table: str, number: int) -> list[str]:
    """The visible texts of a column."""
    return [cell.text for cell in all_of(page, f"{table} tbody td:nth-child({number})") if cell.is_displayed()]


def click(page: Any, element: Any) -> None:
    page.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
    element.click()


def test_a_table_sorts_by_numbers_both_ways(page: Any) -> None:
    heading = all_of(page, "#table-main th button")[2]
    assert heading.text == "val/ppl"
    for way in (1, -1):
        click(page, heading)
        means = [float(text.split(" ")[0]) for text in column(page, "#table-main", 3)]
        assert len(means) == 6
        assert means == sorted(means, reverse=way < 0)


def test_a_table_filters(page: Any) -> None:
    the_only(page, "#table-main .filter").send_keys("nope mha")
    assert column(page, "#table-main", 1) == ["nope · mha"]


def test_a_group_is_hidden_in_all_figures_at_once(page: Any) -> None:
    chip = all_of(page, ".chip")[0]
    index = chip.get_attribute("data-group")
    parts = all_of(page, f".group-{index}")
    figures = {part.find_element("xpath", "ancestor::figure").get_attribute("id") for part in parts}
    assert {"figure-curves", "figure-position", "figure-cache", "figure-reversal"} <= figures
    click(page, chip)
    assert not any(part.is_displayed() for part in parts)
    assert all(part.is_displayed() for part in all_of(page, "#figure-curves .group-1"))
    key = all_of(page, f"#figure-curves .key-{index} text, #figure-curves text.key-{index}, .key-{index}")[-1]
    page.execute_script("arguments[0].dispatchEvent(new MouseEvent('click', {bubbles: true}))", key)
    assert all(part.is_displayed() for part in all_of(page, f"#figure-curves .group-{index}"))
    assert chip.get_attribute("aria-pressed") == "true"


def test_runs_filter_sort_and_lead_to_their_configuration(page: Any) -> None:
    the_only(page, "#run-filter").send_keys("rope mla kv_dim=128 seed=2")
    assert the_only(page, "#run-count").text == "1 of 27 runs"
    link = the_only(page, "#run-table tbody a")
    name = link.text
    click(page, link)
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(page, 10).until(lambda page: the_only(page, "#details-title").text == name)  # follows an event
    yaml = the_only(page, "#details pre").text
    assert "attention:\n  _target_: newllm.attention.Latent" in yaml
    assert "\nkv_dim: 128\n" in yaml
    assert "kv_dim: 128" in [marked.text.strip() for marked in all_of(page, "#details pre .own")]
    assert "val/ppl" in the_only(page, "#details").text
    assert name in the_only(page, "#details p a").get_attribute("href")
    click(page, the_only(page, "#details button"))
    assert not the_only(page, "#details").is_displayed()


def test_two_runs_are_compared_by_their_differing_keys(page: Any) -> None:
    the_only(page, "#run-filter").send_keys("mha seed=1 10000")
    click(page, all_of(page, "#run-table tbody input")[0])
    the_only(page, "#run-filter").clear()
    the_only(page, "#run-filter").send_keys("nope seed=1")
    click(page, all_of(page, "#run-table tbody input")[0])
    click(page, the_only(page, "#compare"))
    rows = {row.text.split(" ")[0]: row.text for row in all_of(page, "#details table:first-of-type tbody tr")}
    assert rows["choices.pos_encoding"] == "choices.pos_encoding rope nope"
    assert rows["pos_encoding.theta"].startswith("pos_encoding.theta 10000 ")
    assert "seed" not in rows
    assert rows["val/ppl"].endswith("%")


def test_a_link_opens_a_run(browser: Any, address: str) -> None:
    browser.get("about:blank")
    browser.get(f"{address}#run-3")
    assert the_only(browser, "#details").is_displayed()
    assert browser.get_log("browser") == []
