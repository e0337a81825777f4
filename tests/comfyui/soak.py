"""Run many prompts on real ComfyUI servers, one for each kind of cache, with interrupts, errors and bad input among
them, and look for what is left behind: ``make soak``, or ``python tests/comfyui/soak.py --help``.

Every picture must have the same pixels as when its prompt ran first. At the end the models must have the same weights
and settings as before, no file may be left that no node showed or saved, the log may hold only the planned errors,
and the process may have grown by at most one percent since every template ran once. Its memory is measured twice: as
it is, and after ComfyUI was asked to empty its caches and the heap was given back to the system (``malloc_trim``).
The second is what counts: caches hold more and more results by design.
"""

import argparse
import hashlib
import io
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from comfy_server import Server
from PIL import Image
from soak_plan import (
    BROKEN_FILE,
    STEPS_TO_INTERRUPT,
    TEMPLATES,
    Turn,
    first_turns,
    more_turns,
    prompt_of,
    repeatable,
)

from benchmarks.hosts.find import find_host

CACHES = {
    "ram": (),
    "lru": ("--cache-lru", "24"),
    "none": ("--cache-none",),
    "classic": ("--cache-classic",),
}
"""ComfyUI's caches with the arguments that choose them; ``ram`` is its default: it empties when memory runs short."""

GROWTH = 1.01
"""The most that the memory may be at the end, of what it was when every template had run once."""

PREVIEW = re.compile(r"ComfyUI_temp_[a-z]{5}_\d{5}_\.png")
"""What ComfyUI's own Preview Image calls its files in the folder temp, until the server stops."""

WARM = 20
"""The fewest prompts before memory is measured first."""

PATIENCE_S = 180


class Soak:
    """The prompts on one server. ``faults`` are the sentences that say what went wrong."""

    def __init__(self, server, pictures, choose, say):
        self.server, self.pictures, self.choose, self.say = server, pictures, choose, say
        self.faults = []
        self.counts = Counter()
        self.shown = {"output": set(), "temp": set()}
        self.rss = []
        self.logged = len(server.log.read_text())

    def run(self, names, prompts):
        """Run ``prompts`` prompts at least of the templates ``names`` and return the figures."""
        (self.server.base / "input" / "broken.psd").write_bytes(BROKEN_FILE)
        self.server.get("/soak/models")  # loads them
        self.empty()
        before = self.server.get("/soak/models")
        files = self.files()
        start = time.monotonic()
        turns = first_turns(names)
        more = more_turns(names, self.choose)
        while (turn := next(turns, None)) or self.counts["prompts"] < WARM:
            self.turn(turn or next(more))
        first = self.measure(names[0])
        while self.counts["prompts"] < prompts:
            self.turn(next(more))
        seconds = time.monotonic() - start
        last = self.measure(names[0])
        self.look_at_memory(first, last)
        after = self.server.get("/soak/models")
        for name in before:
            for what in before[name]:
                if before[name][what] != after[name][what]:
                    self.faults.append(f"{name}: {what} was {before[name][what]} and is {after[name][what]}")
        left = self.look_at_files(files)
        self.look_at_log()
        more = {
            what: (Counter(dict(last.pop(what))) - Counter(dict(first.pop(what)))).most_common(12)
            for what in ("types", "shapes")
        }
        return {
            **self.counts,
            "seconds": round(seconds),
            "first": first,
            "last": last,
            "rss_mb": self.rss,
            "more": more,
            "models": len(before),
            "files": left,
            "faults": self.faults,
        }

    def turn(self, turn):
        """Queue one prompt, and do with it what its kind says."""
        prompt, target = prompt_of(turn, self.counts["prompts"], self.choose)
        name = f"prompt {self.counts['prompts']} ({turn.template}, {turn.kind})"
        ahead = None
        if turn.kind == "deleted":
            ahead = self.queue(prompt_of(turn, self.counts["prompts"], self.choose)[0])[1]["prompt_id"]
            prompt = prompt_of(turn, self.counts["prompts"], self.choose)[0]
        code, answer = self.queue(prompt)
        self.counts[turn.kind] += 1
        if turn.kind == "refused" and not answer.get("node_errors"):
            self.faults.append(f"{name} was not refused")
        if code != 200:
            if turn.kind != "refused":
                self.faults.append(f"{name} was refused: {json.dumps(answer)[:1000]}")
            return
        if turn.kind == "interrupted":
            self.interrupt(answer["prompt_id"], target)
        if ahead:
            self.server.post("/queue", {"delete": [answer["prompt_id"]]})
            ended = self.ended(ahead)
            if self.server.get(f"/history/{answer['prompt_id']}"):
                self.faults.append(f"{name} ran although it was deleted from the queue")
        else:
            ended = self.ended(answer["prompt_id"])
        self.look_at_end(turn, name, ended, repeatable(prompt))
        self.rss.append(round(self.memory()["rss"], 1))
        if self.counts["prompts"] % 20 == 0:
            self.say(f"{self.counts['prompts']} prompts, {self.rss[-1]} MB, {len(self.faults)} faults")

    def queue(self, prompt):
        self.counts["prompts"] += 1
        return self.server.queue(prompt)

    def ended(self, prompt_id):
        """Return the history entry of a prompt when it has ended, and take it out of the history, which else holds
        10,000 prompts in memory."""
        end = time.monotonic() + PATIENCE_S
        while not (history := self.server.get(f"/history/{prompt_id}")):
            if time.monotonic() > end or self.server.process.poll() is not None:
                self.server.process.send_signal(signal.SIGUSR1)
                time.sleep(1)
                raise SystemExit(
                    f"a prompt did not end; the server's log:\n{self.server.log.read_text()[-9000:]}"
                )
            time.sleep(0.02)
        self.server.post("/history", {"delete": [prompt_id]})
        return history[prompt_id]

    def interrupt(self, prompt_id, target):
        """Interrupt a prompt when the node ``target`` has done some of its steps."""
        at = self.choose.randint(1, 8)
        while not self.server.get(f"/history/{prompt_id}"):
            for node, done, total in self.server.get("/soak/progress"):
                ours = node == target or node.startswith(f"{target}.")
                if ours and total == STEPS_TO_INTERRUPT and done >= at:
                    self.server.post("/interrupt", {"prompt_id": prompt_id})
                    return
            time.sleep(0.02)

    def look_at_end(self, turn, name, entry, compared):
        """Compare what a prompt came to with its plan, and the pictures of the nodes ``compared`` with those that they
        showed first."""
        messages = dict(entry["status"]["messages"])
        planned = {
            "interrupted": "execution_interrupted",
            "broken": "execution_error",
            "failing": "execution_error",
        }.get(turn.kind, "execution_success")
        if planned not in messages:
            told = messages.get("execution_error", {}).get("exception_message", list(messages))
            self.faults.append(f"{name} did not end with {planned}: {told}")
        if turn.kind == "broken" and "broken on purpose" not in json.dumps(messages):
            self.faults.append(f"{name} broke in another way: {json.dumps(messages)[:1000]}")
        from_cache = set(messages.get("execution_cached", {}).get("nodes", []))
        self.counts["from_cache"] += len(from_cache)
        pictures = {}
        for node, output in sorted(entry["outputs"].items()):
            files = [x for value in output.values() if isinstance(value, list) for x in value if _is_file(x)]
            for file in files:
                self.shown[file["type"]].add(str(Path(file["subfolder"], file["filename"])))
            if node in compared:
                pictures[node] = [self.pixels(file) for file in output.get("images", [])]
        if planned == "execution_success" and turn.kind != "refused":
            known = self.pictures.setdefault((turn.template, turn.variant), {})
            both = known.keys() & pictures.keys()
            self.counts["compared"] += sum(len(known[node]) for node in both)
            # A node whose result is in the cache need not show it again.
            other = {node for node in both if known[node] != pictures[node]}
            other |= known.keys() - pictures.keys() - from_cache
            if other:
                self.faults.append(
                    f"{name} shows other pixels than at its first time, in node {', '.join(other)}"
                )
            known.update({node: shown for node, shown in pictures.items() if node not in known})

    def pixels(self, file):
        """Return a checksum of a picture's pixels."""
        picture = np.asarray(Image.open(io.BytesIO(self.server.picture(file))))
        return hashlib.sha256(f"{picture.shape}".encode() + picture.tobytes()).hexdigest()

    def memory(self):
        """Return what the server's process holds: memory in MB, without ("own") and with the pages of programs and
        files that it reads ("rss"); open files; threads."""
        process = Path("/proc", str(self.server.process.pid))
        sizes = dict(re.findall(r"^(\w+): +(\d+) kB", (process / "smaps_rollup").read_text(), re.M))
        return {
            "rss": int(sizes["Rss"]) / 1024,
            "own": int(sizes["Anonymous"]) / 1024,
            "open_files": len(list((process / "fd").iterdir())),
            "threads": len(list((process / "task").iterdir())),
        }

    def measure(self, name):
        """Return the memory as it is, and after the caches were emptied. ComfyUI may hold on to what belongs to the
        last prompt, so that is always of the template ``name``."""
        self.turn(Turn(name, "anew"))
        as_it_is, alive = self.memory(), self.empty()
        emptied = {**self.memory(), **{what: alive.pop(what) for what in ("in_use", "small_blocks")}}
        emptied["threads"] -= alive.pop("executor")
        return {"prompts": self.counts["prompts"], "as_it_is": as_it_is, "emptied": emptied, **alive}

    def empty(self):
        """Let ComfyUI empty its caches and take its models off their device, and return counts of what is alive.
        Garbage is searched for before: if that happens to begin while ComfyUI 0.33.0 unloads models of which one waits
        in the cycle of an error's traceback, its worker ends, and no prompt runs any more."""
        self.server.get("/soak/alive")
        self.server.post("/free", {"unload_models": True, "free_memory": True})
        alive = self.server.get("/soak/alive")
        for _ in range(30):
            time.sleep(1)
            before, alive = alive, self.server.get("/soak/alive")
            if not alive["loaded"] and alive["tensors"] == before["tensors"]:
                break
        return alive

    def look_at_memory(self, first, last):
        for what, bound in (("rss", GROWTH), ("in_use", GROWTH), ("threads", 1), ("open_files", 1)):
            before, after = first["emptied"][what], last["emptied"][what]
            if after > before * bound:
                self.faults.append(f"{what}, caches emptied, was {before:.0f} and is {after:.0f}")
        if last["tensors"] > first["tensors"] or last["tensor_bytes"] > first["tensor_bytes"]:
            told = [f"{x['tensors']} tensors ({x['tensor_bytes'] / 2**20:.2f} MB)" for x in (first, last)]
            self.faults.append(f"there were {told[0]} and there are {told[1]}")

    def files(self):
        """Return {folder: the files in it}."""
        base = self.server.base
        return {
            folder: {str(x.relative_to(base / folder)) for x in (base / folder).rglob("*") if x.is_file()}
            for folder in ("input", "temp", "output", "system")
        }

    def look_at_files(self, before):
        """Compare the files with those that nodes showed and return the number of new ones by folder."""
        new = {folder: files - before[folder] for folder, files in self.files().items()}
        for folder, files in new.items():
            # A prompt that fails does not tell which previews were shown before.
            left = files - self.shown.get(folder, set())
            if left := {x for x in left if folder != "temp" or not PREVIEW.fullmatch(x)}:
                self.faults.append(f"{folder}: {len(left)} files were left, such as {sorted(left)[0]!r}")
        return {folder: len(files) for folder, files in new.items()}

    def look_at_log(self):
        log = self.server.log.read_text()[self.logged :]
        planned = self.counts["broken"] + self.counts["failing"]
        for text, count in (
            ("!!! Exception during processing !!!", planned),
            ("Traceback (most recent call last)", planned),
            ("Processing interrupted", self.counts["interrupted"]),
            ("memory leak", 0),
        ):
            if (found := log.count(text)) != count:
                self.faults.append(f"the log says {text!r} {found} times instead of {count}")


def _is_file(item):
    return isinstance(item, dict) and {"filename", "subfolder", "type"} <= set(item)


def started(host, folder, cache):
    """Start a server with one kind of cache in a new folder of ``folder``."""
    base = folder / cache
    (base / "system").mkdir(parents=True)
    return Server(
        *host,
        base,
        more_packs=[Path(__file__).parent / "soak_nodes"],
        arguments=CACHES[cache],
        variables={"TMPDIR": str(base / "system")},
    )


def table(figures):
    """Return the figures as lines of Markdown, one column for each cache."""
    rows = {
        "prompts queued": lambda x: x["prompts"],
        "interrupted while running": lambda x: x["interrupted"],
        "broken while sampling": lambda x: x["broken"],
        "failed with a named error": lambda x: x["failing"],
        "refused before running": lambda x: x["refused"],
        "deleted from the queue": lambda x: x["deleted"],
        "pictures compared with their first time": lambda x: x["compared"],
        "memory as it is, MB": lambda x: _change(x, "as_it_is", "rss"),
        "with its caches emptied, MB": lambda x: _change(x, "emptied", "rss"),
        "of that without programs' files, MB": lambda x: _change(x, "emptied", "own"),
        "of that in use, without small objects, MB": lambda x: _change(x, "emptied", "in_use"),
        "blocks of small Python objects": lambda x: _change(x, "emptied", "small_blocks"),
        "tensors alive": lambda x: f"{x['first']['tensors']:,} → {x['last']['tensors']:,}",
        "open files": lambda x: _change(x, "emptied", "open_files"),
        "threads but those of asyncio's executor": lambda x: _change(x, "emptied", "threads"),
        "models with the same bits as before": lambda x: x["models"],
        "new files in input": lambda x: x["files"]["input"],
        "new files in temp, all previews of nodes": lambda x: x["files"]["temp"],
        "new files in the system's temp folder": lambda x: x["files"]["system"],
        "minutes": lambda x: round(x["seconds"] / 60, 1),
        "faults": lambda x: len(x["faults"]),
    }
    lines = [["", *figures], ["---"] * (1 + len(figures))]
    lines += [[name, *(str(value(x)) for x in figures.values())] for name, value in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _change(figures, when, what):
    before, after = (figures[at][when][what] for at in ("first", "last"))
    percent = "" if what in ("open_files", "threads") else f" ({100 * (after / before - 1):+.2f} %)"
    return f"{before:,.0f} → {after:,.0f}{percent}"


def main():
    """Run the soak, print the table and the faults, and exit with 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=200, help="for each cache (default: %(default)s)")
    parser.add_argument("--caches", nargs="+", choices=CACHES, default=["ram", "lru", "none"])
    parser.add_argument("--templates", nargs="+", choices=TEMPLATES, default=list(TEMPLATES), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0, help="of the order (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures into this file, too")
    options = parser.parse_args()
    host = find_host()
    if isinstance(host, str):
        sys.exit(host)
    figures, pictures = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for cache in options.caches:
            server = started(host, Path(folder), cache)
            try:
                soak = Soak(
                    server, pictures, random.Random(options.seed), lambda x: sys.stderr.write(f"{x}\n")
                )
                figures[cache] = soak.run(options.templates, options.prompts)
            finally:
                server.stop()
            if options.json:
                options.json.write_text(json.dumps(figures, indent=1))
    sys.stdout.write(table(figures) + "\n")
    faults = [f"{cache}: {fault}" for cache, x in figures.items() for fault in x["faults"]]
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
