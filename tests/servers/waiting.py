"""The Flask example under waitress, on the socket whose number is the argument."""

import socket
import sys
from importlib import import_module

if __name__ == "__main__":
    # It keeps 18,000 bytes back by default, which would be most of an answer.
    listener = socket.socket(fileno=int(sys.argv[1]))
    import_module("waitress").serve(
        import_module("flask_app").app, sockets=[listener], send_bytes=1
    )
