"""Which servers are measured: how each is installed and started, and what of it differs from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

from benchmarks.peers.wires import AsrWs, SttServer, WhisperLive, WhisperLiveKit, Wire, Wyoming

REPOSITORY: Final = Path(__file__).parents[2]

# RealtimeSTT always asks torch.hub for Silero, which may not be reached. This is what the hub would give it, from the
# same makers' package.
HUBCONF: Final = """\
from silero_vad import load_silero_vad


def silero_vad(onnx=False, **_):
    return load_silero_vad(onnx=onnx), ()
"""
# Its wheel has no command; this is what the repository's run_server.py does with a folder as its model.
RUN_WHISPER_LIVE: Final = (
    "import sys; from whisper_live.server import TranscriptionServer; TranscriptionServer().run('127.0.0.1',"
    " port=int(sys.argv[2]), backend='faster_whisper', faster_whisper_custom_model_path=sys.argv[1],"
    " single_model=True)"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server. In ``command``, ``address`` and ``files`` stand {bin}, {folder}, {model}, {port} and {port2}.

    Attributes:
        environment: the virtual environment's name; two may share one.
        packages: what pip is told.
        files: written below the environment before the start.
        differs: from the others, in settings, for the report.
    """

    name: str
    environment: str
    packages: tuple[str, ...]
    package: str
    command: tuple[str, ...]
    address: str
    wire: Callable[[], Wire]
    differs: str = ""
    push_to_talk: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


OURS: Final = (
    *("{bin}/asr-ws", "serve", "--host", "127.0.0.1", "--port", "{port}", "--model", "{model}"),
    *("--compute-type", "int8", "--state-dir", "{folder}/state"),
)
PEERS: Final = {
    peer.name: peer
    for peer in (
        Peer(
            name="asr-ws",
            environment="asr-ws",
            packages=(f"{REPOSITORY}[server]",),
            package="asr-ws",
            command=OURS,
            address="ws://127.0.0.1:{port}/v1/stream",
            wire=AsrWs,
            differs="endpoint after 600 ms of silence; finals with beam 5, partials with beam 1",
        ),
        Peer(
            name="RealtimeSTT",
            environment="realtimestt",
            packages=("RealtimeSTT[faster-whisper,silero-onnx]",),
            package="RealtimeSTT",
            command=(
                *("{bin}/stt-server", "--model", "{model}", "--rt-model", "{model}", "--lang", "en", "--device", "cpu"),
                *("--compute_type", "int8", "--control", "{port2}", "--data", "{port}"),
            ),
            address="ws://localhost:{port}",
            wire=SttServer,
            differs="endpoint after 450, 700 or 2000 ms of silence by how the text ends; beam 5, partials beam 3; "
            "Silero from its PyPI package in place of torch.hub",
            variables={"TORCH_HOME": "{folder}/torch"},
            files={"torch/hub/snakers4_silero-vad_master/hubconf.py": HUBCONF},
        ),
        Peer(
            name="WhisperLiveKit",
            environment="whisperlivekit",
            packages=("whisperlivekit", "faster-whisper"),
            package="whisperlivekit",
            command=(
                *("{bin}/wlk", "serve", "--host", "127.0.0.1", "--port", "{port}", "--backend", "faster-whisper"),
                *("--backend-policy", "localagreement", "--model_dir", "{model}", "--lan", "en", "--pcm-input"),
                *("--warmup-file", ""),
            ),
            address="ws://127.0.0.1:{port}/asr",
            wire=WhisperLiveKit,
            differs="compute type auto (it has no option); LocalAgreement, because its default, SimulStreaming, needs "
            "PyTorch weights beside this model; beam 5",
        ),
        Peer(
            name="WhisperLive",
            environment="whisper-live",
            packages=("whisper-live",),
            package="whisper-live",
            command=("{bin}/python", "-c", RUN_WHISPER_LIVE, "{model}", "{port}"),
            address="ws://127.0.0.1:{port}",
            wire=WhisperLive,
            differs="one model for all clients, as with any folder as its model; 4 clients; beam 5",
        ),
        Peer(
            name="asr-ws, push to talk",
            environment="asr-ws",
            packages=(f"{REPOSITORY}[server]",),
            package="asr-ws",
            command=OURS,
            address="ws://127.0.0.1:{port}/v1/stream",
            wire=partial(AsrWs, push_to_talk=True),
            differs="the client says when speech ends",
            push_to_talk=True,
        ),
        Peer(
            name="wyoming-faster-whisper",
            environment="wyoming-faster-whisper",
            packages=("wyoming-faster-whisper",),
            package="wyoming-faster-whisper",
            command=(
                *("{bin}/wyoming-faster-whisper", "--uri", "tcp://127.0.0.1:{port}", "--model", "{model}"),
                *("--data-dir", "{folder}/data", "--language", "en", "--compute-type", "int8", "--beam-size", "5"),
                *("--stt-library", "faster-whisper"),
            ),
            address="tcp://127.0.0.1:{port}",
            wire=Wyoming,
            differs="the client says when speech ends; no partials; beam 5",
            push_to_talk=True,
        ),
    )
}
