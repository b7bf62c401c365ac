import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path

import httpx
import pytest

from stonechat_server.app import create_app
from stonechat_server.cli import main
from stonechat_server.serving import http_server
from stonechat_server.settings import Settings
from tests.server.fake_engine import FakeEngine
from tests.server.live import wait_until


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """A self-signed certificate for 127.0.0.1, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


def test_https(certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    servers = []
    original = http_server._Server.startup

    async def remember(self: http_server._Server, *args: object, **kwargs: object) -> None:
        servers.append(self)
        await original(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(http_server._Server, "startup", remember)
    app = create_app(Settings(), FakeEngine())
    started = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        cert, key = certificate
        options = {"tls_cert": cert, "tls_key": key}
        thread = threading.Thread(
            target=http_server.serve, args=(app, listener, started.set), kwargs=options
        )
        thread.start()
        assert started.wait(60)
        url = f"https://127.0.0.1:{listener.getsockname()[1]}/health"
        trusted = ssl.create_default_context(cafile=str(cert))
        assert httpx.get(url, verify=trusted).status_code == 200
        with pytest.raises(httpx.ConnectError):
            httpx.get(url)
        too_many = {f"X-{number}": "y" for number in range(200)}
        assert httpx.get(url, verify=trusted, headers=too_many).status_code == 431
        servers[0].handle_exit(15, None)
        thread.join(60)
    wait_until(lambda: not thread.is_alive())


def test_a_certificate_needs_its_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["serve", "--port", "0", "--tls-cert", str(tmp_path / "cert.pem")]) == 1
    assert "--tls-key" in capsys.readouterr().err
