"""A person at the example's page, played in Chromium (Qt WebEngine): `python browser.py URL PICTURE`.

Asks for twelve digits at random, changes the guidance of one and cancels another while they form, takes a picture
meanwhile, and prints what became of the cards as JSON.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")

from PySide6.QtCore import QEventLoop, QTimer, QUrl
from PySide6.QtWebEngineWidgets import QWebEngineView
from PySide6.QtWidgets import QApplication

STATE = "JSON.stringify([...document.querySelectorAll('.card')].map(c => [c.className, c.innerText]))"


class Page:
    def __init__(self, url: str) -> None:
        self.app = QApplication(sys.argv[:1])
        self.view = QWebEngineView()
        self.view.resize(1100, 760)
        self.view.load(QUrl(url))
        self.view.show()

    def wait(self, milliseconds: int) -> None:
        loop = QEventLoop()
        QTimer.singleShot(milliseconds, loop.quit)
        loop.exec()

    def run(self, script: str) -> str:
        loop, found = QEventLoop(), []
        self.view.page().runJavaScript(script, 0, lambda value: (found.append(value), loop.quit()))
        QTimer.singleShot(5000, loop.quit)
        loop.exec()
        return found[0] if found else None

    def until(self, script: str, seconds: float = 60.0) -> None:
        for _ in range(int(seconds * 20)):
            if self.run(script):
                return
            self.wait(50)
        raise SystemExit(f"the page never came to {script}: {self.run(STATE)}")


def main() -> None:
    page = Page(sys.argv[1])
    page.until("document.body.dataset.ready === 'yes' && document.querySelectorAll('option').length > 10")
    page.run("document.getElementById('form').requestSubmit()")
    page.run("document.getElementById('many').click()")
    page.until("document.querySelectorAll('.card.running').length >= 8")
    page.run(
        "(() => { const c = document.querySelector('.card.running:not(.done) input'); c.value = 8;"
        " c.dispatchEvent(new Event('change')); c.id = 'changed'; })()"
    )
    page.run("[...document.querySelectorAll('.card.running:not(.done) button')].at(-1).click()")
    page.until("document.querySelectorAll('.card.cancelled').length === 1")
    page.wait(1200)
    page.view.grab().save(sys.argv[2])
    page.until(
        "document.querySelectorAll('.card').length === 13"
        " && !document.querySelector('.card.running:not(.done):not(.cancelled)')"
    )
    page.until("!document.querySelector('.card.waiting')")
    told = page.run("document.getElementById('changed').nextSibling.textContent")
    print(json.dumps({"cards": json.loads(page.run(STATE)), "changed": told}), flush=True)
    # Qt's own end takes seconds, and says nothing about the page.
    os._exit(0)


if __name__ == "__main__":
    main()
