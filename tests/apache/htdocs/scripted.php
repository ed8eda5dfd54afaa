<?php
// Streams what the page must cope with and a healthy daemon does not send on request; no handoff takes place.
declare(strict_types=1);

header('Content-Type: text/event-stream');
header('Cache-Control: no-cache');
while (ob_get_level() > 0) {
    ob_end_flush();
}
$pieces = [
    'error' => [
        "data: {\"content\":\"Half an \"}\n\n",
        "event: error\ndata: {\"error\":{\"message\":\"the model went away\",\"type\":\"server_error\",\"param\":null,\"code\":null}}\n\n",
    ],
    'truncated' => ["data: {\"content\":\"Half an \"}\n\n"],
    // Cut inside a line end, inside a UTF-8 character and inside a field, with comments and all three line ends.
    'pieces' => [": keep-alive\r", "\n\r\ndata: {\"conte", "nt\":\"gr\xc3", "\xbc\xc3\x9fe\"}\r\r", "da", "ta: {\"content\":\" all\"}\n",
                 "\n", "data: [DONE]\r\n\r", "\n"],
][$_GET['script']];
foreach ($pieces as $piece) {
    echo $piece;
    flush();
    usleep(20_000);
}
