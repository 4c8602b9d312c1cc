from asr_ws.config import DEFAULTS
from asr_ws.doctor import Status, failed, installation, ok, warning

DECLARED = [
    "websockets>=17",
    "aiohttp>=3.14.1; extra == 'server'",
    'psutil>=5.9; extra == "server"',
    "nvidia-cudnn-cu12>=9; (sys_platform == 'linux') and extra == 'cuda'",
    "sounddevice>=0.4.6; extra == 'mic'",
]


def test_what_the_server_declares_is_looked_for_and_no_other_extra() -> None:
    there = {"websockets": "17.0.post1", "aiohttp": "3.20", "psutil": "5.9.0", "asr-ws": "0.1.0"}
    versions = {"asr-ws": "0.1.0", "websockets": "17.0.post1", "aiohttp": "3.20"}
    found = installation.judged(DECLARED, there.get)
    assert found == ok("asr-ws 0.1.0, websockets 17.0.post1, aiohttp 3.20", versions=versions)


def test_missing_packages_fail_with_the_command_that_brings_them() -> None:
    assert installation.judged(DECLARED, {"websockets": "16.9"}.get) == failed(
        "not installed: aiohttp, psutil",
        "pip install --upgrade 'asr-ws[server]'",
        versions={"websockets": "16.9"},
    )


def test_a_package_that_is_too_old_is_warned_of() -> None:
    there = {"websockets": "17", "aiohttp": "3.9.5", "psutil": "5.10"}
    assert installation.judged(DECLARED, there.get) == warning(
        "too old: aiohttp 3.9.5 (needs 3.14.1)",
        "pip install --upgrade 'asr-ws[server]'",
        versions={"websockets": "17", "aiohttp": "3.9.5"},
    )


def test_this_installation_has_what_it_declares() -> None:
    assert installation.packages(DEFAULTS).status is Status.OK
