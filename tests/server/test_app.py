import pytest
from structlog.testing import capture_logs

from asr_ws.config import Admission
from asr_ws.server.app import announce_loaded, too_slow
from asr_ws.worker.ipc import Loaded
from asr_ws.worker.supervisor import WorkerSpec
from tests.server.running import serving

# 5 s of audio cost (5 + 8) / (11 + 8) of this: 2 s.
LOADED = Loaded(
    pid=1, device="cpu", compute_type="int8", load_s=1.0, self_test_audio_s=11.0, self_test_decode_s=2.0 * 19 / 13
)


@pytest.mark.parametrize(("capacity", "warns"), [(4, False), (5, True)])
def test_a_model_too_slow_for_a_full_queue_is_warned_of(capacity: int, warns: bool) -> None:
    said = too_slow(Admission(queue_capacity=capacity, max_wait_ms=8001), LOADED)
    assert said == warns * (
        "a decode takes some 2.0 s, and 5 may wait, 8001 ms at most: some will wait in vain. asr-ws doctor says more"
    )


async def test_the_warning_is_logged_once_the_model_is_loaded(scripted: WorkerSpec) -> None:
    async with serving(scripted, queue_capacity=5, max_wait_ms=8000) as app:
        with capture_logs() as logs:
            await announce_loaded(app)
            assert logs == []
            app.supervisor.loaded = LOADED
            await announce_loaded(app)
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["queue.not_reached"]
