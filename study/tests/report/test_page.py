"""The page in a browser: picking, comparing, scrolling together, width, colours."""

import shutil
from itertools import pairwise

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from implementations.common import registry
from study.report.sources import files as files_of
from study.tests import made_up_data

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="chromium and chromedriver are not installed"
)

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
KERNELS = registry.kernels()
WIDE, NARROW = (1400, 900), (390, 844)
PANES, SCROLLS = "#compared .pane", "#compared .scroll"

# The contrast of every text that is shown (WCAG 2), the lowest of each kind.
CONTRAST = """
const rgb = text => text.match(/[\\d.]+/g).map(Number);
const luminance = text => rgb(text).slice(0, 3)
    .map(x => x / 255 <= 0.04045 ? x / 255 / 12.92 : ((x / 255 + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, i) => sum + x * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
    const color = element && getComputedStyle(element).backgroundColor;
    return color && (rgb(color)[3] ?? 1) ? color : behind(element.parentElement);
};
const lowest = {};
for (const element of document.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(x => x.nodeType === 3 && x.data.trim());
    if (!own || !element.getClientRects().length || element.closest("option")) continue;
    const style = getComputedStyle(element);
    const text = luminance(element.closest("svg") ? style.fill : style.color);
    const paper = luminance(behind(element));
    const ratio = (Math.max(text, paper) + 0.05) / (Math.min(text, paper) + 0.05);
    const kind = `${element.localName}.${element.getAttribute("class") ?? ""}`;
    lowest[kind] = Math.min(lowest[kind] ?? 99, ratio);
}
return [lowest, luminance(behind(document.body))];
"""


@pytest.fixture
def url(built):
    """The page on made-up data."""
    return (built / "index.html").as_uri()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, url):
    """Opens the page anew at a fragment, wide and light. Nothing may have gone wrong in the end."""

    def open_(fragment="", size=WIDE, scheme="light"):
        metrics = dict(width=size[0], height=size[1], deviceScaleFactor=1, mobile=False)
        chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        feature = {"name": "prefers-color-scheme", "value": scheme}
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        chromium.get("about:blank")
        chromium.get(url + fragment)
        return chromium

    yield open_
    assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0
    assert [entry["message"] for entry in chromium.get_log("browser")] == []


def find(driver, selector):
    return driver.find_elements(By.CSS_SELECTOR, selector)


def shown(driver):
    """Whether the report and the comparison are seen."""
    return tuple(find(driver, f"#{name}")[0].is_displayed() for name in ("report", "compare"))


def assert_compares(driver, kernel):
    assert driver.execute_script("return location.hash") == f"#compare={kernel}"
    assert shown(driver) == (False, True)
    assert Select(find(driver, "#kernel")[0]).first_selected_option.text == kernel
    panes = find(driver, PANES)
    assert len(panes) == len(registry.BACKENDS)
    for pane, (backend, row) in zip(panes, registry.BACKENDS.items(), strict=True):
        head = pane.find_element(By.TAG_NAME, "header").text
        assert head.startswith(row.title)
        assert all(word in head for word in ("speed", "of the limit", "baseline", "tokens", "–"))
        codes = [
            code.get_property("textContent") for code in pane.find_elements("css selector", "pre")
        ]
        files = files_of(kernel, backend)
        assert [file.text for file in pane.find_elements("css selector", ".file")][:1] == [
            files[0].name
        ]
        assert codes == [path.read_text() for path in files]


def shares(driver):
    """How far each pane is scrolled, 0 to 1."""
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(s => s.scrollTop / (s.scrollHeight - s.clientHeight))",
        SCROLLS,
    )


def test_each_kernel_can_be_picked(browser):
    driver = browser(f"#compare={KERNELS[-1]}")
    for kernel in KERNELS:
        Select(find(driver, "#kernel")[0]).select_by_visible_text(kernel)
        WebDriverWait(driver, 5).until(lambda d: f"={kernel}" in d.current_url)  # noqa: B023
        assert_compares(driver, kernel)


@pytest.mark.parametrize("kernel", (KERNELS[0], made_up_data.product(), KERNELS[-1]))
def test_link_to_a_comparison_works_on_load(browser, kernel):
    assert_compares(browser(f"#compare={kernel}"), kernel)


@pytest.mark.parametrize("fragment", ["", "#compare=no_such_kernel", "#compare", "#%"])
def test_any_other_fragment_shows_the_report(browser, fragment):
    assert shown(browser(fragment)) == (True, False)


def wheel(driver, pane, pixels):
    origin = ScrollOrigin.from_element(pane)
    ActionChains(driver).scroll_from_origin(origin, 0, pixels).perform()


def test_panes_scroll_together_unless_told_not_to(browser):
    driver = browser(f"#compare={made_up_data.product()}")
    wait, panes = WebDriverWait(driver, 5, 0.05), find(driver, SCROLLS)
    for at, pane in enumerate(panes):
        before = shares(driver)[at]
        wheel(driver, pane, 150)
        wait.until(lambda d: shares(d)[at] > before + 0.02)  # noqa: B023
        wait.until(lambda d: max(shares(d)) - min(shares(d)) < 0.01)

    find(driver, "#together")[0].click()
    before = shares(driver)
    wheel(driver, panes[0], -150)
    wait.until(lambda d: shares(d)[0] < before[0] - 0.02)
    driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
    assert shares(driver)[1:] == before[1:]


def test_keys_scroll_together(browser):
    longest = max(KERNELS, key=lambda k: len(registry.files(k, "numba")[0].read_text()))
    driver = browser(f"#compare={longest}")
    find(driver, SCROLLS)[1].send_keys(Keys.END)
    WebDriverWait(driver, 5).until(lambda d: min(shares(d)) > 0.99)


def test_back_to_the_report_at_the_place_that_was_left(browser):
    driver = browser()
    first, second = KERNELS[1], KERNELS[2]
    driver.execute_script(f"document.getElementById('sources-{first}').open = true")
    link = find(driver, f"#sources-{first} a")[0]
    driver.execute_script("arguments[0].scrollIntoView()", link)
    top = driver.execute_script("return scrollY")
    link.click()
    assert_compares(driver, first)
    Select(find(driver, "#kernel")[0]).select_by_visible_text(second)
    WebDriverWait(driver, 5).until(lambda d: second in d.current_url)
    driver.find_element(By.LINK_TEXT, "Back to the report").click()
    assert shown(driver) == (True, False)
    assert top > 1000 and driver.execute_script("return scrollY") == top

    find(driver, f"#sources-{first} a")[0].click()
    driver.back()
    WebDriverWait(driver, 5).until(lambda d: shown(d) == (True, False))


def test_contents_lead_to_the_sections(browser):
    driver = browser()
    driver.find_element(By.LINK_TEXT, "Claims").click()
    top = driver.execute_script(
        "return document.getElementById('claims').getBoundingClientRect().top"
    )
    assert -5 < top < 100


def test_panes_stand_side_by_side_in_one_screen(browser):
    driver = browser(f"#compare={KERNELS[0]}")
    boxes = [pane.rect for pane in find(driver, PANES)]
    assert len({box["y"] for box in boxes}) == 1
    for left, right in pairwise(boxes):
        assert left["x"] + left["width"] < right["x"]
    assert boxes[-1]["x"] + boxes[-1]["width"] <= WIDE[0]
    assert all(box["y"] + box["height"] <= WIDE[1] for box in boxes)
    assert all(scroll.rect["height"] > WIDE[1] / 2 for scroll in find(driver, SCROLLS))


def test_panes_swipe_sideways_on_a_narrow_screen(browser):
    driver = browser(f"#compare={KERNELS[0]}", NARROW)
    boxes = [pane.rect for pane in find(driver, PANES)]
    assert all(NARROW[0] * 0.75 < box["width"] < NARROW[0] * 0.95 for box in boxes)
    assert all(box["y"] + box["height"] <= NARROW[1] for box in boxes)
    assert all(scroll.rect["height"] > NARROW[1] / 2 for scroll in find(driver, SCROLLS))
    driver.execute_script("arguments[0].scrollIntoView()", find(driver, PANES)[-1])
    last = find(driver, PANES)[-1].rect
    assert 0 <= last["x"] and last["x"] + last["width"] <= NARROW[0]


@pytest.mark.parametrize("size", [WIDE, (800, 900), NARROW], ids=lambda size: f"{size[0]}")
@pytest.mark.parametrize("fragment", ["", f"#compare={KERNELS[-1]}"], ids=["report", "compare"])
def test_page_is_no_wider_than_the_screen(browser, size, fragment):
    driver = browser(fragment, size)
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    width, height = driver.execute_script(
        "const page = document.documentElement; return [page.scrollWidth, page.scrollHeight]"
    )
    assert width <= size[0]
    assert not fragment or height <= size[1]
    heads = find(driver, ".pane header")
    wider = "return arguments[0].filter(h => h.scrollWidth > h.clientWidth).length"
    assert heads and driver.execute_script(wider, heads) == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser, scheme):
    driver = browser("", scheme=scheme)
    driver.execute_script("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    for fragment in ("", f"#compare={KERNELS[-1]}"):
        driver.execute_script("location.hash = arguments[0]", fragment)
        lowest, paper = driver.execute_script(CONTRAST)
        kinds = {"strong.", "dt.", "a.", "div.file", "span.k", "span.kn"}
        kinds |= set() if fragment else {"p.", "th.", "td.", "code.", "text.", "h1.", "a.compare"}
        assert kinds <= set(lowest)
        assert {kind: ratio for kind, ratio in lowest.items() if ratio < 4.5} == {}
        assert paper > 0.9 if scheme == "light" else paper < 0.02
