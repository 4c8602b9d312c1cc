"""Any declared rate -> 16 kHz mono, by FFmpeg's libswresample through PyAV.

Rules:
- The output depends on the samples alone, never on how they were cut into calls.
- ``round(n * 16000 / rate)`` samples come out for ``n`` that went in, at the same times: the filter adds no delay.
- No threads. `av.AudioResampler` cannot be told so: each instance starts as many as there are cores, which for a server
  with hundreds of sessions means thousands. The same filter in a graph of our own has none and gives the same bits.
"""

from __future__ import annotations

import numpy as np

from asr_ws.core.types import SAMPLE_RATE, Samples
from asr_ws.errors import not_imported

try:
    import av
    import av.filter
except ImportError as error:
    raise not_imported(error, "resampling", "server") from error

_MIN_FEED_S = 0.004  # one pass through the filter graph costs about 40 us, however little it is given
_TAIL_S = 0.05  # of zeros at the end: more than the filter's 32 taps at 8 kHz, which also start it on a 1-sample stream
_NOTHING: Samples = np.empty(0, np.float32)


class AvResampler:
    """An `asr_ws.core.types.Resampler`. Nothing is allocated before the first 4 ms of audio.

    Holds back at most 4 ms of input, so that a client that sends sample by sample does not cost a pass of the filter
    for each, and the 1 to 3 ms that the filter looks ahead. Calls of 4 ms and more wait for the filter only.

    Args:
        rate: of the input, Hz, 8000..192000. The usual ones cost some 10 to 150 KB; one that shares few factors with
            16000 (191999) up to 1.6 MB and 11 ms at the first call.
    """

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._min_feed = int(rate * _MIN_FEED_S)
        self._waiting: list[Samples] = []
        self._n_waiting = self._n_in = self._n_out = 0
        self._graph: av.filter.Graph | None = None

    def feed(self, samples: Samples) -> Samples:
        """Take mono samples at the declared rate, return what is ready at 16 kHz.

        Args:
            samples: shape (n,), n >= 0; may be kept until the next call, so do not write to it.
        Returns:
            shape (m,), m >= 0.
        """
        if len(samples):
            self._waiting.append(samples)
            self._n_waiting += len(samples)
            self._n_in += len(samples)
        return self._filter() if self._n_waiting >= self._min_feed else _NOTHING

    def flush(self) -> Samples:
        """What was held back, so that the total is ``round(n * 16000 / rate)``; nothing may be fed afterwards."""
        if not self._n_in:
            return _NOTHING
        missing = (self._n_in * SAMPLE_RATE + self._rate // 2) // self._rate - self._n_out
        self._waiting.append(np.zeros(int(self._rate * _TAIL_S), np.float32))
        tail = self._filter()[:missing]
        assert len(tail) == missing, "the zeros must push all of the signal out"
        self._graph = None
        return tail

    def _filter(self) -> Samples:
        if self._graph is None:
            self._graph = _open_graph(self._rate)
        frame = av.AudioFrame.from_ndarray(np.concatenate(self._waiting)[np.newaxis], format="flt", layout="mono")
        frame.sample_rate = self._rate
        self._waiting.clear()
        self._n_waiting = 0
        self._graph.push(frame)
        ready = []
        while True:
            try:
                pulled = self._graph.pull()
            except av.BlockingIOError:  # it wants more input first
                break
            assert isinstance(pulled, av.AudioFrame)
            ready.append(pulled.to_ndarray()[0])
        if not ready:
            return _NOTHING
        samples: Samples = np.concatenate(ready)
        self._n_out += len(samples)
        return np.clip(samples, -1, 1, out=samples)  # band limiting overshoots at full scale


def _open_graph(rate: int) -> av.filter.Graph:
    graph = av.filter.Graph()
    graph.threads = 1  # the caller's own; must be set before the first filter
    source = graph.add("abuffer", sample_rate=str(rate), sample_fmt="flt", channel_layout="mono", time_base=f"1/{rate}")
    graph.link_nodes(source, graph.add("aresample", str(SAMPLE_RATE)), graph.add("abuffersink")).configure()
    return graph
