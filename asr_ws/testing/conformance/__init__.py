"""Whether a server, or a client, keeps what asr-ws.v1 promises: ``python -m asr_ws.testing.conformance``.

For any that speaks the protocol, in whatever language it is written: nothing is asked for that
docs/reference/protocol.md does not promise. A server's promises are in `promises`; `live` is the server, as they need
it. A client's are in `clients`, judged by what `relay` heard between it and a live server.
"""
