"""Whether a server keeps what asr-ws.v1 promises, asked of one that runs: ``python -m asr_ws.testing.conformance``.

For any server that speaks the protocol, in whatever language it is written: nothing is asked for that
docs/reference/protocol.md does not promise. The promises are in `promises`; `live` is the server, as they need it.
"""
