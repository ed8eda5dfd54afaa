<?php
// An application that keeps recordings: it decides which of them a client may hear, and has the daemon send its features.
declare(strict_types=1);

$call = $_GET['call'] ?? '';
if (!ctype_digit($call)) {
    http_response_code(404);
    exit("There is no such call.\n");
}
$handoff = [
    'user_id' => 1,
    'backend' => 'mel',
    'audio_path' => "calls/$call.wav",
    'options' => ['format' => $_GET['format'] ?? 'sse', 'normalisation' => $_GET['normalisation'] ?? 'none'],
];
header('X-Socket-Handoff: ' . $_GET['socket']);
header('X-Handoff-Data: ' . json_encode($handoff, JSON_UNESCAPED_SLASHES));
