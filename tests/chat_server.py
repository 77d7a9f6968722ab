"""A stub of an endpoint of chat completions on the loopback, shared by tests."""

import contextlib
import http.server
import json
import threading


class ChatServer:
    """Answers `POST /v1/chat/completions` and `GET /v1/models`.

    answers: called with each request, a dict; gives the text, None for an answer without choices, or an int, the HTTP
      status of an error.
    requests: what was asked, with the key under "key".
    """

    def __init__(self, answers, models=("stub",)):
        self.answers, self.models, self.requests = answers, models, []
        self.url = ""


@contextlib.contextmanager
def chat_server(answers, models=("stub",)):
    """A running `ChatServer`."""
    stub = ChatServer(answers, models)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send(200, {"object": "list", "data": [{"id": name, "object": "model"} for name in stub.models]})

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            stub.requests.append(asked | {"key": self.headers["Authorization"], "path": self.path})
            found = stub.answers(asked)
            if isinstance(found, int):
                return self.send(found, {"error": {"message": "temperature is not supported", "type": "x"}})
            choices = [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": found}}]
            whole = {"id": "1", "object": "chat.completion", "created": 0, "model": asked["model"]}
            return self.send(200, whole | {"choices": [] if found is None else choices})

        def send(self, status, body):
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        stub.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield stub
        finally:
            server.shutdown()
            thread.join()
