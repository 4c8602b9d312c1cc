"""In place of espeak: tells 127.0.0.1:PORT what it says, and says it until a byte comes back."""

import socket
import sys

with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as listener:
    listener.sendall(sys.argv[2].encode() + b"\n")
    listener.recv(1)
