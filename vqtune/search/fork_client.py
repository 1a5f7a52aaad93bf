"""What Ray's raylet starts in place of a worker: asks the fork server for a process that is one, and lasts as long.

A script for a bare interpreter, `fork_client.py SOCKET PYTHON SCRIPT ARGUMENT...`. Where no process is to be had it
becomes what Ray wanted to start.
"""

import json
import os
import resource
import socket
import sys


def main() -> None:
    path, *command = sys.argv[1:]
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(path)
            umask = os.umask(0o077)
            os.umask(umask)
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            mine = {"pid": os.getpid(), "umask": umask, "files": limits, "folder": os.getcwd()}
            asked = json.dumps({"command": command, "environment": dict(os.environ), **mine}).encode()
            socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
            server.sendall(asked)
            if server.recv(1):  # there is a process; its end is the end of the connection
                server.recv(1)
                return
    except OSError:
        pass
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
