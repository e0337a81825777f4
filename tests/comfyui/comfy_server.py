"""A real ComfyUI server on 127.0.0.1 with the pack in its custom_nodes, for the tests over HTTP and in a
browser."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path

PACK = Path(__file__).resolve().parents[2]


class NotStartedError(RuntimeError):
    """ComfyUI's server did not start; the text is its log."""


class Server:
    """ComfyUI, running until :meth:`stop`, with the pack in the folder ``pack`` and those of ``more_packs``; its base
    folder ``base`` is made here. ``arguments`` are added to its command, ``variables`` to its environment."""

    def __init__(
        self, comfyui, python, base, start_s=300, pack=PACK, more_packs=(), arguments=(), variables=None
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.base = base
        (base / "custom_nodes").mkdir(parents=True)
        (base / "custom_nodes" / "layered-diffusion").symlink_to(pack)
        for other in more_packs:
            (base / "custom_nodes" / other.name).symlink_to(other)
        self.log = base / "log.txt"
        command = [
            python,
            Path(__file__).parent / "serve.py",
            comfyui,
            "--port",
            str(self.port),
            "--listen",
            "127.0.0.1",
            "--cpu",
            "--disable-api-nodes",
        ]
        command += ["--database-url", "sqlite:///:memory:", "--base-directory", str(base), *arguments]
        # With several threads, these would wait for each other while a browser without a graphics card takes a core.
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **(variables or {})}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [str(c) for c in command], stdout=log, stderr=subprocess.STDOUT, env=environment
            )
        end = time.monotonic() + start_s
        while True:
            with contextlib.suppress(OSError):
                self.get("/system_stats")
                return
            if self.process.poll() is not None or time.monotonic() > end:
                self.stop()
                raise NotStartedError(self.log.read_text())
            time.sleep(0.3)

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.loads(answer.read())

    def read(self, path):
        """The bytes of a file that is served."""
        with urllib.request.urlopen(self.url + urllib.parse.quote(path), timeout=60) as answer:
            return answer.read()

    def post(self, path, data):
        request = urllib.request.Request(
            self.url + path, json.dumps(data).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
            return json.loads(body) if body else None

    def queue(self, prompt):
        """Queue an API prompt and return (status code, answer)."""
        try:
            return 200, self.post("/prompt", {"prompt": prompt, "client_id": uuid.uuid4().hex})
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def run(self, prompt, timeout_s=600):
        """Run an API prompt to its end and return its history entry."""
        code, answer = self.queue(prompt)
        assert code == 200, answer
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            history = self.get(f"/history/{answer['prompt_id']}")
            if history:
                entry = history[answer["prompt_id"]]
                assert entry["status"]["status_str"] == "success", entry["status"]
                return entry
            time.sleep(0.2)
        raise AssertionError("the prompt did not end")

    def picture(self, image):
        """Return the bytes of a picture that a node showed or saved."""
        with urllib.request.urlopen(f"{self.url}/view?{urllib.parse.urlencode(image)}", timeout=60) as answer:
            return answer.read()
