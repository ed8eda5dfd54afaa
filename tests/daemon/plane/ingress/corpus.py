"""Requests as real clients send them, and as attackers do, who want two readers to see two things in the same bytes."""

from __future__ import annotations


def lines(*parts: bytes, body: bytes = b"") -> bytes:
    """Lines with their ends, an empty one, and a body."""
    return b"".join(part + b"\r\n" for part in (*parts, b"")) + body


BODY = b'{"model": "test-model", "messages": [{"role": "user", "content": "hi"}], "stream": true}'
OPENAI = lines(
    b"POST /v1/chat/completions HTTP/1.1",
    b"Host: 127.0.0.1:8080",
    b"Accept-Encoding: gzip, deflate",
    b"Connection: keep-alive",
    b"Accept: application/json",
    b"Content-Type: application/json",
    b"User-Agent: OpenAI/Python 3.57.0",
    b"X-Stainless-Lang: python",
    b"X-Stainless-Package-Version: 3.57.0",
    b"X-Stainless-OS: Linux",
    b"X-Stainless-Arch: x64",
    b"Authorization: Bearer sk-0123456789abcdef0123456789abcdef",
    b"Content-Length: %d" % len(BODY),
    body=BODY,
)
CURL = lines(b"GET /health?verbose=1 HTTP/1.1", b"Host: localhost:8080", b"User-Agent: curl/8.14.1", b"Accept: */*")
CURL_UPLOAD = lines(
    b"POST /v1/audio/transcriptions HTTP/1.1",
    b"Host: [::1]:8080",
    b"User-Agent: curl/8.14.1",
    b"Accept: */*",
    b"Transfer-Encoding: chunked",
    b"Expect: 100-continue",
    body=b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nTrailer: x\r\n\r\n",
)
BROWSER = lines(
    b"GET /page/?a=%20b&c[]=d HTTP/1.1",
    b"Host: daemon.example",
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    b"Accept-Language: en-US,en;q=0.5",
    b"Accept-Encoding: gzip, deflate, br, zstd",
    b"Connection: keep-alive",
    b"Cookie: session=0123; theme=dark",
    b"Upgrade-Insecure-Requests: 1",
    b"Sec-Fetch-Dest: document",
    b'If-None-Match: "0123"',
    b"Priority: u=0, i",
)
WEBSOCKET = lines(
    b"GET /audio/ws HTTP/1.1",
    b"Host: localhost",
    b"Origin: http://localhost",
    b"Connection: keep-alive, Upgrade",
    b"Upgrade: websocket",
    b"Sec-WebSocket-Version: 13",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
PROXIED = lines(
    b"DELETE /v1/files/1 HTTP/1.1",
    b"Host: daemon.example:443",
    b"X-Forwarded-For: 192.0.2.1, 10.0.0.1",
    b"X-Forwarded-For: 10.0.0.2",
    b"Forwarded: for=192.0.2.1;proto=https",
    b"X-Request-ID: 0123-4567",
    b"Content-Length: 0",
)
TO_PROXY = lines(b"OPTIONS http://daemon.example:80/v1/models?x HTTP/1.1", b"Host: daemon.example:80", b"Accept:")
PREFLIGHT = lines(
    b"OPTIONS /v1/models HTTP/1.1", b"Host: a", b"Origin: http://b", b"Access-Control-Request-Method: POST"
)
ANY_OPTIONS = lines(b"OPTIONS * HTTP/1.1", b"Host: a")
BENCHMARK = lines(
    b"GET / HTTP/1.0", b"Connection: Keep-Alive", b"Host: localhost:80", b"User-Agent: ApacheBench/2.3", b"Accept: */*"
)
OLD = lines(b"HEAD / HTTP/1.0")
CLOSING = lines(b"GET / HTTP/1.1", b"Host: a", b"Connection: close")
VALID = {
    "openai": OPENAI,
    "curl": CURL,
    "curl upload": CURL_UPLOAD,
    "browser": BROWSER,
    "websocket": WEBSOCKET,
    "proxied": PROXIED,
    "to a proxy": TO_PROXY,
    "preflight": PREFLIGHT,
    "any options": ANY_OPTIONS,
    "benchmark": BENCHMARK,
    "old": OLD,
    "closing": CLOSING,
    "pipelined": CURL + OPENAI + CURL_UPLOAD + PROXIED + CLOSING + CURL,
}

POST = b"POST / HTTP/1.1"
HOST = b"Host: a"
CHUNKED = b"Transfer-Encoding: chunked"
CHUNKS = b"3\r\nabc\r\n0\r\n\r\n"
SMUGGLED = lines(b"GET /smuggled HTTP/1.1", HOST)


def post(*fields: bytes, body: bytes = b"") -> bytes:
    """A POST with these fields, and a request behind its body."""
    return lines(POST, HOST, *fields, body=body + SMUGGLED)


def chunked(body: bytes) -> bytes:
    """A POST whose body is framed like this."""
    return post(CHUNKED, body=body)


LENGTHS = [
    b"5, 5",
    b"5,5",
    b"5, 6",
    b",5",
    b"5,",
    b"+5",
    b"-5",
    b"0x5",
    b"5 5",
    b"5\t5",
    b"5.0",
    b"5e0",
    b"5_0",
    b"",
    b"\xb5",
    b"18446744073709551621",
    b"9223372036854775808",
    b"00000000000000000005",
    b"5;",
    b"'5'",
    b'"5"',
    b"5\xa0",
    b"\x0b5",
]
CODINGS = [
    b"chunked, chunked",
    b"chunked,",
    b",chunked",
    b"gzip, chunked",
    b"chunked, gzip",
    b"gzip",
    b"identity",
    b"xchunked",
    b"chunkedx",
    b"chunke",
    b"'chunked'",
    b'"chunked"',
    b"chunked;",
    b"chunked;q=1",
    b"chunked\x0b",
    b"\x0bchunked",
    b"chunked\xa0",
    b"\x00chunked",
    b"ch\xfcnked",
    b"",
    b"chunked, identity",
    b"x: chunked",
    b"chunked chunked",
]
SMUGGLING = {
    **{f"Content-Length: {value!r}": post(b"Content-Length: " + value, body=b"abcde") for value in LENGTHS},
    **{f"Transfer-Encoding: {value!r}": post(b"Transfer-Encoding: " + value, body=CHUNKS) for value in CODINGS},
    "length and coding": post(b"Content-Length: 13", CHUNKED, body=CHUNKS),
    "coding and length": post(CHUNKED, b"Content-Length: 13", body=CHUNKS),
    "length of nothing and coding": post(b"Content-Length: 0", CHUNKED, body=CHUNKS),
    "two lengths": post(b"Content-Length: 5", b"Content-Length: 6", body=b"abcdef"),
    "twice the same length": post(b"Content-Length: 5", b"Content-Length: 5", body=b"abcde"),
    "two codings": post(CHUNKED, b"Transfer-Encoding: identity", body=CHUNKS),
    "twice chunked": post(CHUNKED, CHUNKED, body=CHUNKS),
    "chunked in HTTP/1.0": lines(b"POST / HTTP/1.0", HOST, CHUNKED, body=CHUNKS + SMUGGLED),
    "space before the colon": post(b"Content-Length : 5", body=b"abcde"),
    "tab before the colon": post(b"Transfer-Encoding\t: chunked", body=CHUNKS),
    "space before the name": post(b" Content-Length: 5", body=b"abcde"),
    "name in a fold": post(b"A: b", b" Content-Length: 5", body=b"abcde"),
    "value in a fold": post(b"Transfer-Encoding:", b" chunked", body=CHUNKS),
    "value in a fold with a tab": post(b"Content-Length:", b"\t5", body=b"abcde"),
    "name behind a NUL": post(b"\0Content-Length: 5", body=b"abcde"),
    "name with an umlaut": post(b"Content-L\xe4ngth: 5", body=b"abcde"),
    "name without a colon": post(b"Content-Length 5", body=b"abcde"),
    "name of nothing": post(b": 5"),
    "underscores": post(b"Content_Length: 5", b"Transfer_Encoding: chunked"),
    "length behind a bare LF": post(b"A: b\nContent-Length: 5", body=b"abcde"),
    "length behind a bare CR": post(b"A: b\rContent-Length: 5", body=b"abcde"),
    "length behind CR CR LF": post(b"A: b\r", b"Content-Length: 5", body=b"abcde"),
    "all lines with bare LF": post(b"Content-Length: 5", body=b"abcde").replace(b"\r\n", b"\n"),
    "head ended by LF LF": b"POST / HTTP/1.1\r\nHost: a\nContent-Length: 5\n\nabcde",
    "head ended by CR LF LF": b"POST / HTTP/1.1\r\nHost: a\r\n\nGET / HTTP/1.1\r\n\r\n",
    "NUL in a value": post(b"A: b\0c"),
    "DEL in a value": post(b"A: b\x7fc"),
    "two hosts": post(b"Host: b"),
    "two hosts that are the same": post(HOST),
    "two keys": post(b"Authorization: Bearer a", b"Authorization: Bearer b"),
    "host in the target, too": lines(b"GET http://b/ HTTP/1.1", HOST) + SMUGGLED,
    "user in the target": lines(b"GET http://a@b/ HTTP/1.1", HOST),
    "no host": lines(b"GET / HTTP/1.1"),
    "request in the target": lines(b"GET / HTTP/1.1 GET /smuggled HTTP/1.1", HOST),
    "space behind the version": lines(b"GET / HTTP/1.1 ", HOST),
    "two spaces": lines(b"GET  / HTTP/1.1", HOST),
    "tabs": lines(b"GET\t/\tHTTP/1.1", HOST),
    "space before the method": lines(b" GET / HTTP/1.1", HOST),
    "no version": lines(b"GET /", HOST),
    "preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "empty line before": b"\r\n" + SMUGGLED,
    "two empty lines before": b"\r\n\r\n" + SMUGGLED,
    "bare LF before": b"\n" + SMUGGLED,
    "empty line between": post(b"Content-Length: 5", body=b"abcde\r\n"),
    "body of a GET": lines(b"GET / HTTP/1.1", HOST, b"Content-Length: 5", body=b"abcde") + SMUGGLED,
    "h2c": lines(b"GET / HTTP/1.1", HOST, b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c") + SMUGGLED,
    "h2c with a body": post(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 5", body=b"abcde"),
    "tunnel": lines(b"CONNECT a:1 HTTP/1.1", HOST) + SMUGGLED,
    "closed": lines(b"GET / HTTP/1.1", HOST, b"Connection: x, close") + SMUGGLED,
}
CHUNKING = {
    "size with a sign": b"+3\r\nabc\r\n0\r\n\r\n",
    "size with 0x": b"0x3\r\nabc\r\n0\r\n\r\n",
    "size of nothing": b"\r\nabc\r\n0\r\n\r\n",
    "size with a comma": b"3,3\r\nabc\r\n0\r\n\r\n",
    "two sizes": b"3 3\r\nabc\r\n0\r\n\r\n",
    "space before the size": b" 3\r\nabc\r\n0\r\n\r\n",
    "space behind the size": b"3 \r\nabc\r\n0\r\n\r\n",
    "NUL behind the size": b"3\0\r\nabc\r\n0\r\n\r\n",
    "size that wraps around": b"10000000000000003\r\nabc\r\n0\r\n\r\n",
    "zeros before the size": b"000003\r\nabc\r\n00\r\n\r\n",
    "size ended by LF": b"3\nabc\r\n0\r\n\r\n",
    "size ended by CR": b"3\rabc\r\n0\r\n\r\n",
    "data ended by LF": b"3\r\nabc\n0\r\n\r\n",
    "data ended by CR": b"3\r\nabc\r0\r\n\r\n",
    "data longer than its size": b"3\r\nabcd\r\n0\r\n\r\n",
    "data shorter than its size": b"3\r\nab\r\n0\r\n\r\n",
    "extension": b"3;a=b;c\r\nabc\r\n0;d\r\n\r\n",
    "extension in quotes": b'3;a="b c"\r\nabc\r\n0\r\n\r\n',
    "extension with spaces": b"3 ; a = b\r\nabc\r\n0\r\n\r\n",
    "extension of nothing": b"3;\r\nabc\r\n0\r\n\r\n",
    "extension ended by LF": b"3;a\nabc\r\n0\r\n\r\n",
    "extension with CR": b"3;a\rb\r\nabc\r\n0\r\n\r\n",
    "extension with NUL": b"3;a\0\r\nabc\r\n0\r\n\r\n",
    "extension that hides a chunk": b"3;\n\r\nabc\r\n0\r\n\r\n",
    "endless extension": b"3;" + b"a" * 5000 + b"\r\nabc\r\n0\r\n\r\n",
    "trailers": b"3\r\nabc\r\n0\r\nA: b\r\nC:\r\n\r\n",
    "trailer with a length": b"3\r\nabc\r\n0\r\nContent-Length: 5\r\n\r\n",
    "trailer with a coding": b"3\r\nabc\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n",
    "trailer ended by LF": b"3\r\nabc\r\n0\r\nA: b\n\r\n",
    "trailer in a fold": b"3\r\nabc\r\n0\r\nA: b\r\n c\r\n\r\n",
    "trailer without a colon": b"3\r\nabc\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
    "trailer with a control character": b"3\r\nabc\r\n0\r\nA: \x01\r\n\r\n",
    "trailers ended by LF": b"3\r\nabc\r\n0\r\n\n",
    "endless trailers": b"3\r\nabc\r\n0\r\n" + b"A: b\r\n" * 1000 + b"\r\n",
    "no end": b"3\r\nabc\r\n",
}
ATTACKS = {**SMUGGLING, **{f"chunked: {name}": chunked(body) for name, body in CHUNKING.items()}}
