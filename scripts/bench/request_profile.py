"""Count the files, functions and classes that one plain streamed request runs through.

    .venv/bin/python scripts/bench/request_profile.py [--list] [--tokens 12]

The server runs in this process with the default model and the ledger off. A client in another
process sends two equal requests (streamed, temperature 0.7, a seed, no end before `--tokens`; no
tools, schema, stop strings or key); `sys.setprofile` records the code that every thread runs during
the second. Counted are the project's own files, their distinct functions without comprehensions,
the distinct classes and modules that hold them, and all calls of Python functions, those of
libraries too. On a busy machine the server joins waiting tokens, which takes fewer calls.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import CodeType, FrameType

ROOT = Path(__file__).resolve().parents[2]
TICK = ("serving/connections.py", "DrainingServer.on_tick", "Lifecycle.is_drained")
"""What the server does every 100 ms, whether there is a request or not. It is not counted."""
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
PACKAGES = {"server": ROOT / "server", "models": ROOT / "models"}
CLIENT = """
import http.client, json, sys
body = {"messages": [{"role": "user", "content": "Name three rivers of Europe."}], "stream": True,
        "model": sys.argv[2], "temperature": 0.7, "seed": 42, "ignore_eos": True,
        "max_completion_tokens": int(sys.argv[3])}
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]))
for number in range(2):
    sys.stdin.readline()
    connection.request("POST", "/v1/chat/completions", json.dumps(body),
                       {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == 200 and text.endswith("data: [DONE]\\n\\n"), text
    print("done", flush=True)
"""


class Recorder:
    """Records code objects of the project while `is_on`; installed in every thread."""

    def __init__(self) -> None:
        self.is_on = False
        self.codes: set[CodeType] = set()
        self.num_calls = 0

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        if self.is_on and event == "call":
            self.codes.add(frame.f_code)
            self.num_calls += 1

    def install(self) -> None:
        sys.setprofile(self)
        threading.setprofile(self)

    def functions(self) -> set[tuple[str, str, str]]:
        """(package, path in it, qualified name) of each function.

        Comprehensions are not counted: from Python 3.12 on they are part of their function.
        """
        functions = set()
        for code in self.codes:
            if code.co_name in COMPREHENSIONS:
                continue
            for package, folder in PACKAGES.items():
                path = Path(code.co_filename)
                if path.is_relative_to(folder):
                    functions.add(
                        (
                            package,
                            path.relative_to(folder).as_posix(),
                            f"{code.co_qualname}:{code.co_firstlineno}",
                        )
                    )
        return functions


def run_client(port: int, model: str, num_tokens: int, recorder: Recorder) -> None:
    """Send both requests, and record during the second."""
    command = [sys.executable, "-c", CLIENT, str(port), model, str(num_tokens)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        for is_second in (False, True):
            time.sleep(0.5)  # the end of the first request is not part of the second
            recorder.is_on = is_second
            client.stdin.write("\n")
            client.stdin.flush()
            assert client.stdout.readline() == "done\n", "the client failed"
            time.sleep(0.1)  # the server records the request after its last byte
            recorder.is_on = False


def record(num_tokens: int) -> Recorder:
    recorder = Recorder()
    recorder.install()
    from stonechat_models import AsyncEngine
    from stonechat_server.app import create_app
    from stonechat_server.commands.serve import listen
    from stonechat_server.serving.http_server import serve
    from stonechat_server.settings import Settings

    settings = Settings(ledger="off")
    engine = AsyncEngine.from_config(
        settings.engine_config(), lambda line: print(line, file=sys.stderr)
    )
    app = create_app(settings, engine)
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]

    def drive() -> None:
        import os
        import signal

        try:
            run_client(port, engine.model.name, num_tokens, recorder)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    serve(app, listener, lambda: threading.Thread(target=drive).start())
    return recorder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--list", action="store_true", help="list the functions by file")
    parser.add_argument("--tokens", type=int, default=12, help="tokens of the answer")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")
    arguments = parser.parse_args()
    recorder = record(arguments.tokens)
    functions = recorder.functions()
    own = {f for f in functions if not any(part in f"{f[1]}:{f[2]}" for part in TICK)}
    scopes = {
        (package, path, name.partition(".<locals>")[0].rpartition(".")[0])
        for package, path, name in own
    }
    counts = {
        "files": len({(package, path) for package, path, _ in own}),
        "functions": len(own),
        "classes and scopes": len(scopes),
    }
    for package in PACKAGES:
        counts[f"{package} files"] = len({path for p, path, _ in own if p == package})
        counts[f"{package} functions"] = sum(p == package for p, _, _ in own)
    counts["calls, with those of libraries"] = recorder.num_calls
    if arguments.json:
        print(json.dumps(counts))
        return 0
    for name, count in counts.items():
        print(f"{count:5d}  {name}")
    if arguments.list:
        by_file = Counter((package, path) for package, path, _ in own)
        for (package, path), number in sorted(by_file.items()):
            print(f"{number:4d}  {package}/{path}")
            for p, f, name in sorted(own):
                if (p, f) == (package, path):
                    print(f"        {name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
