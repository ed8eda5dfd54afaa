"""Any FastAPI or Starlette application can hand a client's socket to a running daemon: here is one.

DAEMON_SOCKET=run/streaming-daemon.sock python examples/handing_over.py 8080
"""

import json
import os
import socket
import sys

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response

from daemon.control.http.uvicorn.taking import EXTENSION, ClientGone, TakingProtocol

DAEMON = os.environ.get("DAEMON_SOCKET", "/var/run/streaming-daemon.sock")
app = FastAPI()


@app.get("/chat")
async def chat(request: Request, prompt: str = "Hello") -> Response:
    """Authenticate, decide what is streamed, and let go: the worker is free at once."""
    taking = request.scope.get("extensions", {}).get(EXTENSION)
    if taking is None:  # under TLS, or on a server without `http=TakingProtocol`
        raise HTTPException(501, "this connection cannot be handed over")
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        try:
            peer.connect(DAEMON)
        except OSError as error:
            raise HTTPException(503, "the streaming daemon is not there") from error
        try:
            taken = await taking["take"]()
        except ClientGone:
            return Response()
        try:
            handoff = {"user_id": taken.client_address, "prompt": prompt}
            socket.send_fds(peer, [json.dumps(handoff).encode()], [taken.fd])
        finally:
            os.close(taken.fd)
    return Response()  # nobody gets it: the connection is the daemon's


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), http=TakingProtocol, log_level="warning")
