"""Why a request's head is refused. A fault is a negative number; the hundreds are the status that answers it."""

from __future__ import annotations

REQUEST_LINE = -400_01
TARGET = -400_02
LINE_END = -400_03
CONTROL = -400_04
FIELD_NAME = -400_05
FOLDED = -400_06
REPEATED = -400_07
HOST_MISSING = -400_08
HOST = -400_09
CONTENT_LENGTH = -400_10
LENGTH_AND_CODING = -400_11
CODING_IN_HTTP_1_0 = -400_12
NOT_CHUNKED = -400_13
REQUEST_LINE_BYTES = -414_01
EXPECTATION = -417_01
FIELD_LINE_BYTES = -431_01
FIELD_COUNT = -431_02
HEAD_BYTES = -431_03
METHOD = -501_01
CODING = -501_02
VERSION = -505_01

TEXTS = {
    REQUEST_LINE: "the first line is not a method, a target and a version with one space between them",
    TARGET: "the target is neither a path, nor an http URL, nor * for OPTIONS, or holds a space, a # or a byte that is "
    "not visible ASCII: encode it with %",
    LINE_END: "a line ends with CR LF; a CR or an LF alone is not allowed",
    CONTROL: "the head holds a control character",
    FIELD_NAME: "a header field is a name, a colon without a space before it, and a value",
    FOLDED: "a header field is continued on a second line: write it in one",
    REPEATED: "a header field that may stand there once stands there twice",
    HOST_MISSING: "HTTP/1.1 requires a Host header field",
    HOST: "Host is not a name or an address, with a port or without",
    CONTENT_LENGTH: "Content-Length is not a number of at most 19 digits",
    LENGTH_AND_CODING: "Content-Length and Transfer-Encoding are both there: send one of them",
    CODING_IN_HTTP_1_0: "Transfer-Encoding is not part of HTTP/1.0: send Content-Length",
    NOT_CHUNKED: "the last transfer coding of a request is chunked",
    REQUEST_LINE_BYTES: "the first line is too long",
    EXPECTATION: "the only expectation that is met is 100-continue",
    FIELD_LINE_BYTES: "a header field is too long",
    FIELD_COUNT: "there are too many header fields",
    HEAD_BYTES: "the header fields are too long in all",
    METHOD: "the method is not implemented",
    CODING: "the only transfer coding that is implemented is chunked",
    VERSION: "the versions that are implemented are HTTP/1.1 and HTTP/1.0",
}


def status_of(fault: int) -> int:
    """The status that answers a fault."""
    return -fault // 100
