"""The page of ``layered app`` in a browser, as someone uses it: with a mouse, and on a phone with a finger."""

import contextlib
import importlib.util

import page as pages
import pytest
import torch

from layered_core.canvas.compositing import composite
from layered_core.document import Layer, LayerDocument
from layered_core.files import read_layers, write_layers
from layered_core.formats.pictures import write_picture

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}
PATIENCE = 60_000


@pytest.fixture(scope="module")
def served(skip_suite):
    """The page on the storybook at 2 steps: its address."""
    missing = pages.find_browser()[1]
    if importlib.util.find_spec("gradio") is None:
        missing = "gradio is not installed: pip install -e '.[app]'"
    if missing:
        skip_suite("the page of layered app", missing)
    from layered_cli.app import open_page
    from layered_diffusers.pipeline import LayeredDiffusionPipeline

    page = open_page(LayeredDiffusionPipeline.from_pretrained(device="cpu"), steps=2)
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def chromium(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=pages.find_browser()[0], args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def app(served, chromium):
    """Return ``app(device)``, which opens the page on a device. After the test no page may have complained, or have
    asked anything but its own server."""
    with contextlib.ExitStack() as stack:
        opened = []

        def open_on(device=DESKTOP):
            context = chromium.new_context(**device)
            stack.callback(context.close)
            opened.append(App(context.new_page(), served, "has_touch" in device))
            return opened[-1]

        yield open_on
        for each in opened:
            assert each.asked_elsewhere == []
            assert each.complaints == []


class App:
    """An open page."""

    def __init__(self, page, url, by_touch):
        self.page, self.by_touch, self.complaints, self.asked_elsewhere = page, by_touch, [], []
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        ours = (url, "data:", "blob:")
        page.on("request", lambda r: None if r.url.startswith(ours) else self.asked_elsewhere.append(r.url))
        page.goto(url)
        self.wait("() => document.querySelector('.ld-hint')?.textContent.startsWith('Begin')")

    def wait(self, condition, arg=None):
        self.page.wait_for_function(condition, arg=arg, polling=50)

    def wait_until(self, condition):
        """Wait until a condition of this process holds."""
        for _ in range(PATIENCE // 50):
            if condition():
                return
            self.page.wait_for_timeout(50)
        raise AssertionError("it did not come")

    def said(self, beginning):
        """Wait until the page says a line with this beginning; return the line."""
        line = self.page.locator(".ld-line")
        try:
            self.wait("(x) => document.querySelector('.ld-line').textContent.startsWith(x)", beginning)
        except Exception as error:
            raise AssertionError(f"it says {line.text_content()!r} and not {beginning!r}") from error
        return line.text_content()

    def write(self, field, words):
        self.page.locator(f"{field} textarea, {field} input").first.fill(words)

    def press(self, button):
        if self.by_touch:
            self.page.tap(button)
        else:
            self.page.click(button)

    def tab(self, name):
        self.press(f"#ld-tabs [role=tab][data-tab-id={name}]")

    def make_background(self, words="a meadow"):
        self.write("#ld-background", words)
        self.press("#ld-make")
        self.said("Made the background")

    def drag(self, start, end):
        """Drag on the picture, with the mouse or a finger, from one place to another, each in shares of it."""
        frame = self.page.locator(".ld-frame")
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        track = [
            (box["x"] + box["width"] * (start[0] + (end[0] - start[0]) * part / 4),
             box["y"] + box["height"] * (start[1] + (end[1] - start[1]) * part / 4))
            for part in range(5)
        ]  # fmt: skip
        if not self.by_touch:
            self.page.mouse.move(*track[0])
            self.page.mouse.down()
            for place in track[1:]:
                self.page.mouse.move(*place)
            self.page.mouse.up()
            return
        finger = self.page.context.new_cdp_session(self.page)
        for kind, place in [
            ("touchStart", track[0]),
            *(("touchMove", x) for x in track[1:]),
            ("touchEnd", None),
        ]:
            points = [] if place is None else [{"x": place[0], "y": place[1]}]
            finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    def add(self, words, start, end):
        """Draw a box and add something in it."""
        self.drag(start, end)
        self.page.wait_for_selector(".ld-new")
        self.write("#ld-words", words)
        self.press("#ld-add")
        self.said(f"Added '{words}'")

    def layers(self):
        return self.page.locator(".ld-row").evaluate_all("rows => rows.map((row) => row.dataset.layer)")

    def picture(self):
        return self.page.locator(".ld-picture").get_attribute("src")

    @contextlib.contextmanager
    def late_answer(self, told=""):
        """Hold back, until the block ends, the answer to the first action at once whose request tells ``told``; the
        server does it. Yields a list, which is empty until then."""
        held = []

        def hold(route):
            if held or told not in route.request.post_data:
                route.continue_()
            else:
                held.append(route)
                held.append(route.fetch())

        self.page.route("**/run/predict*", hold)
        yield held
        route, answer = held
        route.fulfill(response=answer)

    def take(self, kind, folder):
        """Take a file home and return its path."""
        self.tab("files")
        with self.page.expect_download() as download:
            self.press(f"#ld-take-{kind}")
        path = folder / download.value.suggested_filename
        download.value.save_as(path)
        return path


@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_landscape_a_ball_a_star_the_star_as_a_tree_undo_and_the_psd(app, device, tmp_path):
    page = app(device)
    page.make_background()
    page.add("a red ball", (0.1, 0.5), (0.4, 0.9))
    page.add("a yellow star", (0.55, 0.1), (0.9, 0.45))
    assert page.layers() == ["a yellow star", "a red ball", "background"]
    with_star = page.picture()
    page.press("[data-layer='a yellow star'] .ld-pick")
    page.write("#ld-layer-words", "a green tree")
    page.press("#ld-anew")
    page.said("Made 'a yellow star' anew")
    assert page.picture() != with_star
    assert page.layers() == ["a green tree", "a red ball", "background"]
    page.press("#ld-undo")
    page.said("Undone: made 'a yellow star' anew")
    assert page.picture() == with_star
    document = read_layers(page.take("psd", tmp_path)).document
    assert [(x.name, x.prompt) for x in document] == [
        ("background", "a meadow"),
        ("a red ball", "a red ball"),
        ("a yellow star", "a yellow star"),
    ]
    ball, star = document.layer("a red ball"), document.layer("a yellow star")
    assert (round(ball.x / 128, 1), round(ball.y / 128, 1)) == (0.1, 0.5)
    assert (round((star.x + star.width) / 128, 1), round((star.y + star.height) / 128, 1)) == (0.9, 0.5)
    page.press("#ld-redo")
    page.said("Done again: made 'a yellow star' anew")
    assert page.page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("device", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_a_selected_layer_is_moved_and_scaled_on_the_picture(app, device, tmp_path):
    page = app(device)
    page.make_background()
    page.add("a red ball", (0.1, 0.1), (0.4, 0.4))
    page.press("[data-layer='a red ball'] .ld-pick")
    page.page.wait_for_selector(".ld-selected .ld-corner")
    page.drag((0.25, 0.25), (0.55, 0.55))
    page.said("Placed 'a red ball'")
    moved = page.picture()
    page.drag((0.7, 0.7), (0.9, 0.9))
    page.wait("(before) => document.querySelector('.ld-picture').src !== before", moved)
    ball = read_layers(page.take("ora", tmp_path)).document.layer("a red ball")
    assert [round(value / 128, 1) for value in (ball.x, ball.y, ball.width, ball.height)] == [
        0.4,
        0.4,
        0.5,
        0.5,
    ]


def test_cancel_stops_the_run_and_leaves_the_picture_as_it_was(app):
    page = app()
    page.make_background()
    before = page.picture()
    page.press("button:has-text('Advanced')")
    page.write("#ld-steps", "1000")
    page.write("#ld-words", "a red ball")
    page.press("#ld-add")
    page.page.wait_for_selector("#ld-board [role=progressbar]")
    assert page.page.is_disabled("#ld-add")
    page.press("#ld-cancel")
    page.said("Cancelled: nothing was changed")
    assert page.picture() == before
    assert page.layers() == ["background"]
    page.write("#ld-steps", "2")
    page.press("#ld-add")
    page.said("Added 'a red ball'")


def test_an_answer_to_cancel_that_comes_after_the_end_of_the_run_changes_nothing(app):
    page = app()
    page.make_background()
    page.press("button:has-text('Advanced')")
    page.write("#ld-steps", "1000")
    page.write("#ld-words", "a red ball")
    page.press("#ld-add")
    page.page.wait_for_selector("#ld-board [role=progressbar]")
    with page.late_answer() as held:
        page.press("#ld-cancel")
        page.said("Cancelled: nothing was changed")
        page.wait_until(lambda: len(held) == 2)
    page.page.wait_for_timeout(500)
    assert page.page.locator(".ld-line").text_content().startswith("Cancelled")
    assert page.page.is_disabled("#ld-cancel")


def test_a_box_and_its_numbers_are_one_without_the_server(app):
    page = app()
    page.make_background()
    page.press("button:has-text('The box in numbers')")
    asked = []
    page.page.on("request", lambda request: asked.append(request.url))
    page.drag((0.25, 0.5), (0.5, 0.75))
    fields = [page.page.locator(f"#ld-box-{i} input") for i in range(4)]
    page.wait("() => document.querySelector('#ld-box-3 input').value === '32'")
    assert [field.input_value() for field in fields] == ["32", "64", "32", "32"]
    fields[0].fill("64")
    page.wait("() => document.querySelector('.ld-new').style.left === '50%'")
    fields[0].fill("")
    page.wait("() => !document.querySelector('.ld-new')")
    fields[0].fill("0")
    page.wait("() => document.querySelector('.ld-new').style.left === '0%'")
    page.press("button:has-text('No box')")
    page.wait("() => !document.querySelector('.ld-new')")
    assert [field.input_value() for field in fields] == [""] * 4
    assert asked == []


@contextlib.contextmanager
def background_selected_unseen(page):
    """Make a ball in a meadow, and select the meadow; until the block ends the page shows the ball as selected."""
    page.make_background()
    page.add("a red ball", (0.1, 0.1), (0.4, 0.4))
    page.tab("layer")
    with page.late_answer('"layer":"background"') as held:
        page.press("[data-layer=background] .ld-pick")
        page.wait_until(lambda: len(held) == 2)
        yield


def test_an_action_on_a_layer_that_was_selected_unseen_is_refused(app):
    page = app()
    with background_selected_unseen(page):
        page.press("#ld-remove")
        page.said("Nothing was changed, as 'background' was selected just now")
    assert page.layers() == ["a red ball", "background"]
    assert page.page.locator("#ld-layer-words textarea").input_value() == "a meadow"
    page.press("#ld-remove")
    page.said("Removed 'background'")


def test_the_layer_whose_words_are_shown_is_made_anew(app):
    page = app()
    with background_selected_unseen(page):
        page.write("#ld-layer-words", "a green tree")
        page.press("#ld-anew")
        page.said("Made 'a red ball' anew")
        made = page.picture()
    # The late answer shows what there was before, until the page has asked again.
    page.wait_until(lambda: page.layers() == ["a green tree", "background"] and page.picture() == made)


def test_a_press_at_the_first_moment_counts(served, chromium):
    page = chromium.new_page(**DESKTOP)
    page.goto(served)
    page.fill("#ld-background textarea", "by the sea")
    page.click("#ld-make")  # waits until it can be pressed
    begins = "() => document.querySelector('.ld-line')?.textContent.startsWith('Made the background')"
    page.wait_for_function(begins, polling=50, timeout=PATIENCE)
    page.close()


def test_a_board_that_comes_after_the_first_answer_begins_too(served, chromium):
    page, complaints, held = chromium.new_page(**DESKTOP), [], []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.route("**/HTML-*.js", lambda route: held.append(route))  # playwright takes no built-in
    with page.expect_response("**/run/predict*", timeout=PATIENCE):
        page.goto(served, wait_until="commit")
    page.unroute("**/HTML-*.js")  # lets go what was held
    begins = "() => document.querySelector('.ld-hint')?.textContent.startsWith('Begin')"
    page.wait_for_function(begins, polling=50, timeout=PATIENCE)
    assert held
    assert complaints == []
    page.close()


def test_a_second_press_while_a_run_is_made_does_nothing(app):
    page = app()
    page.write("#ld-background", "a meadow")
    page.page.locator("#ld-make").dblclick()
    page.said("Made the background")
    page.press("#ld-undo")
    page.said("Undone")
    assert page.page.is_disabled("#ld-undo")


def test_an_error_says_what_to_do_and_keeps_what_was_written(app):
    page = app()
    page.tab("add")
    page.write("#ld-words", "a red ball")
    page.press("#ld-add")
    assert page.said("There is no picture yet") == (
        "There is no picture yet. Make a background, add a picture or open a file first."
    )
    assert page.page.locator("#ld-words textarea").input_value() == "a red ball"


@pytest.mark.slow
def test_two_tabs_do_not_mix(app):
    one, other = app(), app()
    one.make_background()
    other.make_background("at night")
    one.press("#ld-undo")
    one.said("Undone")
    assert (one.layers(), other.layers()) == ([], ["background"])


@pytest.mark.slow
def test_pictures_are_dropped_in_and_harmonised(app, tmp_path):
    duck = torch.zeros(40, 40, 4)
    duck[8:32, 8:32] = torch.tensor([1, 0.8, 0, 1])
    write_picture(duck, tmp_path / "duck.png")
    write_picture(torch.ones(64, 64, 3), tmp_path / "photo.png")
    page = app()
    page.tab("add")
    page.page.set_input_files("#ld-pictures input", [tmp_path / "photo.png", tmp_path / "duck.png"])
    page.said("Added the picture 'duck'")
    assert page.layers() == ["duck", "photo"]
    before = page.picture()
    page.tab("harmonise")
    page.press("#ld-harmonise")
    page.said("Harmonised all layers")
    assert page.layers() == ["harmonised", "duck", "photo"]
    assert page.picture() != before


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["psd", "ora", "json"])
def test_a_document_is_opened_and_comes_home_the_same(app, kind, tmp_path):
    layers = (
        Layer("sky", torch.rand(32, 48, 4), prompt="a sky"),
        Layer("ball", prompt="a ball", width=9, height=9),
    )
    path = write_layers(
        LayerDocument(48, 32, layers), tmp_path / ("out" if kind == "json" else f"out.{kind}"), bits=8
    )
    page = app()
    page.tab("files")
    page.page.set_input_files("#ld-open input", sorted(path.parent.iterdir()) if kind == "json" else [path])
    page.said("Opened '")
    assert page.layers() == ["ball", "sky"]
    home = tmp_path / "home"
    home.mkdir()
    taken = read_layers(page.take("psd", home)).document
    assert torch.equal(composite(taken), composite(read_layers(path).document))


def test_names_from_a_file_are_shown_as_text_and_never_run(app, tmp_path):
    name = "<img src=x onerror=\"document.title='run'\">${document.title='run'}`{{1}}"
    path = write_layers(
        LayerDocument(8, 8, (Layer(name, torch.ones(8, 8, 4), prompt=name), Layer("b", prompt=name))),
        tmp_path / "a.ora",
    )
    page = app()
    page.tab("files")
    page.page.set_input_files("#ld-open input", path)
    page.said("Opened 'a.ora'")
    assert page.layers() == ["b", name]
    page.press(".ld-row:last-child .ld-pick")
    page.page.wait_for_selector(".ld-row:last-child.ld-selected")
    assert page.page.title() == "Layered Diffusion"
    assert page.page.locator("#ld-layers img[src=x], #ld-board img[src=x], #ld-says img").count() == 0
