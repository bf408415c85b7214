"""python two_processes.py SCRIPT ARGUMENTS: what torchrun starts on one machine with
--nproc_per_node 2, as forks of this process."""

import os
import runpy
import socket
import sys

sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(os.path.abspath(sys.argv[0]))
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
second = os.fork()
rank = "0" if second else "1"
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    if second and os.waitpid(second, 0)[1]:
        sys.exit("the second process failed")
